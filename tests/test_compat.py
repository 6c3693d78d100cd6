"""Checkpoints and settings of earlier versions: old names of weights load, removed settings are refused if they matter."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from foleybox.errors import UserError  # noqa: E402
from foleybox.lab.core.compat import read_settings  # noqa: E402
from foleybox.lab.patches import autoencoder, transformer  # noqa: E402
from foleybox.lab.vocoders.hifigan import Hifigan, HifiganConfig  # noqa: E402
from foleybox.lab.vocoders.vocos import Vocos, VocosConfig  # noqa: E402

MODULES = {
    "patches": lambda: transformer.Patches(transformer.SIZES["tiny"]),
    "autoencoder": lambda: autoencoder.Autoencoder(autoencoder.SIZES["tiny"]),
    "vocos": lambda: Vocos(VocosConfig(width=4, inner=4, layers=2)),
    "hifigan": lambda: Hifigan(HifiganConfig(width=16)),
}


def old_name(module: nn.Module, name: str) -> str:
    """Return the name that a weight of a module had, from the `OLD_NAMES` of the modules on the way to it."""
    head, rest = "", name
    for part, each in module.named_modules():
        prefix = f"{part}." if part else ""
        for old, new in getattr(each, "OLD_NAMES", {}).items():
            if name.startswith(prefix + new):
                head, rest = prefix + old, name[len(prefix + new) :]
    return head + rest


@pytest.mark.parametrize("kind", MODULES)
def test_a_state_dict_with_the_old_names_loads_strictly_inside_another_module_too(kind: str) -> None:
    module, again = (nn.ModuleDict({"part": MODULES[kind]()}) for _ in range(2))
    state = module.state_dict()
    renamed = {old_name(module, name): value for name, value in state.items()}
    assert len(renamed) == len(state)
    assert renamed.keys() != state.keys()
    again.load_state_dict(renamed)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict({**renamed, "part.surplus": torch.zeros(1)})


def test_a_removed_setting_is_dropped_with_the_value_that_is_implied_now_and_refused_with_another() -> None:
    @dataclass(frozen=True)
    class Sizes:
        width: int = 1
        REMOVED: ClassVar = {"depth": 2}

    assert read_settings(Sizes, {"width": 3, "depth": 2}, "run") == Sizes(3)
    for stored in ({"depth": 3}, {"height": 0}):
        with pytest.raises(UserError, match=r"run was trained with (depth = 3|height = 0), which this version"):
            read_settings(Sizes, stored, "run")
