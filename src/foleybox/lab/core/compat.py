"""Checkpoints of earlier versions: which weights have another name now.

A module whose weights were renamed declares `OLD_NAMES`, {old: new} beginnings of names inside it, and calls
`accept_old_names` in its constructor. Loading a state dict with old names then works as with new ones.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

V = TypeVar("V")


def accept_old_names(module: nn.Module) -> None:
    """Let `load_state_dict` of this module, and of modules that contain it, take the names in `OLD_NAMES`."""
    module.register_load_state_dict_pre_hook(_rename)


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    names: Mapping[str, str] = getattr(module, "OLD_NAMES")  # noqa: B009 (declared by the classes that use it)
    for old, new in names.items():
        for name in [each for each in state if each.startswith(prefix + old)]:
            state[prefix + new + name[len(prefix + old) :]] = state.pop(name)


def with_current_names(module: nn.Module, weights: Mapping[str, V]) -> dict[str, V]:
    """Return weights by name, each name as `module` and the modules inside it have it now."""
    renamed = dict(weights)
    for name, part in module.named_modules():
        if hasattr(part, "OLD_NAMES"):
            _rename(part, renamed, f"{name}." if name else "")
    return renamed
