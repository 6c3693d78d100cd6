"""The building's rules: every import goes down a floor, and torch stays in the lab (design/architecture.md)."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# Room -> its modules. A file in no room fails: decide where it lives before it is written.
ROOMS = {
    "root": ["foleybox"],
    "ground": ["foleybox.doors", "foleybox.labels", "foleybox.audio", "foleybox.instrument"],
    "studio": ["foleybox.studio", "foleybox.studio.*"],
    "lab": ["foleybox.lab"],
    "features": ["foleybox.lab.features", "foleybox.lab.augment"],
    "losses": ["foleybox.lab.losses"],
    "models": ["foleybox.lab.models", "foleybox.lab.models.*"],
    "data": ["foleybox.lab.data"],
    "cembed": ["foleybox.lab.cembed"],
    "runs": ["foleybox.lab.runs"],
    "codes": ["foleybox.lab.codes"],
    "sampling": ["foleybox.lab.sampling"],
    "training common": ["foleybox.lab.training", "foleybox.lab.training.common"],
    "training waves": ["foleybox.lab.training.waves"],
    "training": ["foleybox.lab.training.*"],
    "systems": ["foleybox.lab.systems"],
    "synthesis": ["foleybox.lab.synthesis"],
    "evaluation": ["foleybox.lab.evaluation", "foleybox.lab.evaluation.*"],
    "selection": ["foleybox.lab.selection"],
    "graphs": ["foleybox.lab.graphs"],
    "export": ["foleybox.lab.export"],
    "restore": ["foleybox.lab.restore"],
    "scored": ["foleybox.lab.scored"],
    "roof": ["foleybox.cli", "foleybox.doctor", "foleybox.__main__"],
}
WORKSHOP = ["features", "losses", "models", "data", "cembed"]
# Room -> rooms it may import.
MAY = {
    "root": [],
    "ground": ["root", "ground"],
    "studio": ["root", "ground", "studio"],
    "lab": [],
    "features": ["ground", "features"],
    "losses": [],
    "models": [],
    "data": ["ground", "features"],
    "cembed": ["ground", "features", "models", "data"],
    "runs": ["ground", "features", "models", "cembed"],
    "codes": ["ground", *WORKSHOP, "runs"],
    "sampling": ["ground", "models"],
    "training common": ["root", "ground", *WORKSHOP, "runs"],
    "training waves": ["root", "ground", *WORKSHOP, "runs", "codes"],
    # never another loop
    "training": ["root", "ground", *WORKSHOP, "runs", "codes", "systems", "training common", "training waves"],
    "systems": ["root", "ground", *WORKSHOP],
    "synthesis": ["root", "ground", *WORKSHOP, "runs", "codes", "sampling", "systems"],
    "evaluation": ["root", "ground", *WORKSHOP, "runs", "evaluation"],
    "selection": ["ground", *WORKSHOP, "runs"],
    "graphs": ["ground", *WORKSHOP],
    "export": ["root", "ground", *WORKSHOP, "runs", "codes", "systems", "graphs"],
    "restore": ["ground", *WORKSHOP, "runs"],
    # Where a loop is handed a score: above those that do not know one another, imported by nobody but the roof.
    "scored": ["root", "ground", *WORKSHOP, "runs", "codes", "synthesis", "training common", "training", "evaluation"],
    "roof": ["root", "ground", "roof"],  # and anything by name, when a verb is used
}
# Room -> packages of others that it may import, beside the standard library. A room that is not here may import any.
PACKAGES = {
    "root": set(),
    "ground": {"numpy", "soundfile", "soxr"},
    "studio": {"numpy", "soundfile", "soxr", "onnxruntime", "tyro", "rich", "mido"},
    "features": {"torch", "numpy"},
    "losses": {"torch"},
    "models": {"torch"},
}
# The roof may import these where they are used, inside a function; at its top it imports nothing heavy.
LIGHT_AT_THE_TOP = {"roof", "root"}


def room_of(module: str) -> str | None:
    """Return the room of a module; an exact name goes before a pattern."""
    exact = [room for room, modules in ROOMS.items() if module in modules]
    matching = [room for room, modules in ROOMS.items() if any(fnmatchcase(module, each) for each in modules)]
    return (exact or matching or [None])[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SOURCE / "foleybox").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, tree: ast.Module, known: set[str], top_only: bool = False) -> set[str]:
    """Return the modules that a file imports, relative ones resolved, `from package import module` seen through.

    What stands under `if TYPE_CHECKING:` is looked at like any other import: it is an arrow between rooms too.
    """
    found: set[str] = set()
    nodes = tree.body if top_only else ast.walk(tree)
    package = module if module in {each.rpartition(".")[0] for each in known} else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *filter(None, [base])])
            inner = {f"{base}.{alias.name}" for alias in node.names} & known
            found |= inner or {base}
    return found


def wrongs(module: str, source: str, known: set[str]) -> list[str]:
    """Return what is wrong with the imports of one file, in words."""
    room = room_of(module)
    if room is None:
        return [f"{module} has no floor: give it a room in tests/test_floors.py"]
    tree = ast.parse(source)
    problems = []
    for target in sorted(imports(module, tree, known)):
        first = target.split(".")[0]
        if first == "foleybox":
            there = room_of(target)
            lazily = room in LIGHT_AT_THE_TOP and target not in imports(module, tree, known, top_only=True)
            if there not in MAY[room] and not (lazily and there is not None):
                problems.append(f"{module} ({room}) imports {target} ({there})")
        elif first not in sys.stdlib_module_names and room in PACKAGES and first not in PACKAGES[room]:
            problems.append(f"{module} ({room}) imports {first}")
    if room in LIGHT_AT_THE_TOP:
        for target in imports(module, tree, known, top_only=True):
            first = target.split(".")[0]
            if first != "foleybox" and first not in sys.stdlib_module_names:
                problems.append(f"{module} ({room}) imports {first} before a verb is chosen")
    return problems


FOUND = modules()


@pytest.mark.parametrize("module", FOUND)
def test_imports_go_down_a_floor_and_never_sideways(module: str) -> None:
    assert wrongs(module, FOUND[module].read_text(encoding="utf-8"), set(FOUND)) == []


def test_every_room_and_every_rule_names_rooms_that_exist() -> None:
    assert set(MAY) == set(ROOMS)
    assert set(PACKAGES) <= set(ROOMS)
    assert {room for rooms in MAY.values() for room in rooms} <= set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foleybox.audio", "import torch"),
        ("foleybox.audio", "from foleybox.studio.seeds import noise"),
        ("foleybox.studio.synth", "def f():\n    import torch"),
        ("foleybox.studio.synth", "import torch.nn as nn"),
        ("foleybox.studio.synth", "from foleybox.lab import data"),
        ("foleybox.studio.synth", "from foleybox.lab.features import MelConfig"),
        ("foleybox.studio.synth", "from ..lab import data"),
        ("foleybox.studio.sheet", "import matplotlib.pyplot"),
        ("foleybox.studio.info", "from scipy.signal import stft"),
        ("foleybox.lab.data", "from foleybox.studio.synth import Synth"),
        ("foleybox.lab.data", "from foleybox.lab.training import common"),
        ("foleybox.lab.models.sagan", "import numpy as np"),
        ("foleybox.lab.models.sagan", "from foleybox.lab.models.vocos import Vocos"),
        ("foleybox.lab.models.sagan", "from . import vocos"),
        ("foleybox.lab.models.sagan", "from foleybox.doors import UserError"),
        ("foleybox.lab.losses", "import numpy"),
        ("foleybox.lab.features", "from foleybox.lab.data import find_clips"),
        ("foleybox.lab.training.sagan", "from foleybox.lab.training.vocoder import main"),
        ("foleybox.lab.training.sagan", "from foleybox.lab import evaluation"),
        ("foleybox.lab.evaluation.report", "from foleybox.lab.training.common import resume"),
        ("foleybox.lab.export", "from foleybox.lab.training import sagan"),
        ("foleybox.lab.codes", "from foleybox.lab.training.vqvae import train"),
        ("foleybox.cli", "import tyro"),
        ("foleybox", "import numpy"),
        ("foleybox", "from foleybox.studio.synth import Synth"),
        ("foleybox.cli", "from foleybox.lab import data"),
        ("foleybox.doctor", "import torch"),
        ("foleybox.attic", "import os"),
        ("foleybox.lab.attic", "import os"),
    ],
)
def test_a_planted_wrong_import_is_caught(module: str, source: str) -> None:
    known = set(FOUND) | {module, "foleybox.lab.data", "foleybox.lab.models.vocos", "foleybox.lab.training.common"}
    assert wrongs(module, source, known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foleybox.studio.synth", "from foleybox.audio import fit\nimport numpy, onnxruntime, os"),
        ("foleybox.lab.training.sagan", "from foleybox.lab.training.common import resume\nimport torch, accelerate"),
        ("foleybox.lab.training.sagan", "from foleybox.lab.models.sagan import Generator"),
        ("foleybox.lab.evaluation.report", "from foleybox.lab.evaluation.prdc import prdc\nimport scipy"),
        ("foleybox.doctor", "def f():\n    import torch\n    from foleybox.studio.synth import Synth"),
        ("foleybox", "if TYPE_CHECKING:\n    from foleybox.studio.synth import Synth"),
    ],
)
def test_an_import_that_the_rules_allow_passes(module: str, source: str) -> None:
    assert wrongs(module, source, set(FOUND) | {module, "foleybox.lab.models.sagan"}) == []


def test_every_dependency_of_the_core_is_imported_by_the_studio_or_the_ground() -> None:
    text = (SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8")
    asked = {re.split("[<>=~]", each)[0] for each in tomllib.loads(text)["project"]["dependencies"]}
    assert asked == PACKAGES["studio"]
    files = [*(SOURCE / "foleybox" / "studio").rglob("*.py"), *(SOURCE / "foleybox").glob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert [name for name in sorted(asked) if not re.search(rf"^\s*(import|from) {name}\b", code, re.MULTILINE)] == []
