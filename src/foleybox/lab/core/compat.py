"""Runs of earlier versions: weights that have another name now, and settings that were removed.

A module whose weights were renamed declares `OLD_NAMES`, {old: new} beginnings of names inside it, and calls
`accept_old_names` in its constructor. Loading a state dict with old names then works as with new ones. A dataclass of
settings declares `REMOVED`, {name: the value that this version implies}.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from foleybox.errors import UserError

V = TypeVar("V")


def accept_old_names(module: nn.Module) -> None:
    """Let `load_state_dict` of this module, and of modules that contain it, take the names in `OLD_NAMES`."""
    module.register_load_state_dict_pre_hook(_rename)


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    names: Mapping[str, str] = getattr(module, "OLD_NAMES")  # noqa: B009 (declared by the classes that use it)
    for old, new in names.items():
        for name in [each for each in state if each.startswith(prefix + old)]:
            state[prefix + new + name[len(prefix + old) :]] = state.pop(name)


def read_settings(kind: type[V], stored: Mapping[str, Any], where: str | Path) -> V:
    """Return the dataclass `kind` with the settings that are stored `where`: a run, an instrument.

    Settings that were removed are dropped if they have the value in `kind.REMOVED`. Raises UserError for all others.
    """
    known, removed = {each.name for each in fields(kind)}, getattr(kind, "REMOVED", {})  # pyright: ignore[reportArgumentType]
    for name, value in stored.items():
        if name not in known and (name not in removed or removed[name] != value):
            raise UserError(
                f"{where} was trained with {name} = {value!r}, which this version of foleybox does not have: use the "
                "version that made it"
            )
    return kind(**{name: value for name, value in stored.items() if name in known})
