"""Runs of earlier versions: weights that have another name now, and settings that were removed.

A module whose weights were renamed declares `OLD_NAMES`, {old: new} beginnings of names inside it, and calls
`accept_old_names` in its constructor. Loading a state dict with old names then works as with new ones. A dataclass of
settings declares `REMOVED`, {name: the value that this version implies}.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

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

    Settings that were removed are dropped if they have the value in `kind.REMOVED`. Raises UserError for all others, and for
    values that are not of the type of the setting.
    """
    if not isinstance(stored, Mapping):
        raise UserError(f"{where} states no settings of its model: restore its config.json")
    known, removed = {each.name for each in fields(kind)}, getattr(kind, "REMOVED", {})  # pyright: ignore[reportArgumentType]
    for name, value in stored.items():
        if name not in known and (name not in removed or removed[name] != value):
            raise UserError(
                f"{where} was trained with {name} = {value!r}, which this version of foleybox does not have: use the "
                "version that made it"
            )
    hints = get_type_hints(kind)
    for name, value in stored.items():
        if name in known and not _fits(value, hints[name]):
            raise UserError(f"{where} states {name} = {value!r:.60}: expected {hints[name]}; restore its config.json")
    return kind(**{name: value for name, value in stored.items() if name in known})


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a JSON value is of the type of a setting: a number, a text, a choice, or anything else."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        return type(value) in (int, hint) and abs(value) < 1 << 20
    return type(value) is hint if hint in (bool, str) else True
