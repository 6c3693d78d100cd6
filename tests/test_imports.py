"""The import rules of the package: layers, no cycles, torch in the lab alone (design: architecture, import rules)."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# Layer -> its modules. A file in no layer fails: decide where it belongs before it is written.
LAYERS = {
    "root": ["foleybox"],
    "version": ["foleybox.version"],
    "errors": ["foleybox.errors"],
    "files": ["foleybox.files"],
    "schema": ["foleybox.schema"],
    "labels": ["foleybox.labels"],
    "audio": ["foleybox.audio"],
    "licences": ["foleybox.licences"],
    "graphs": ["foleybox.graphs"],
    "signature": ["foleybox.signature"],
    "instrument": ["foleybox.instrument"],
    "studio": ["foleybox.studio", "foleybox.studio.*"],
    "web": ["foleybox.web", "foleybox.web.*"],
    "commands": ["foleybox.commands", "foleybox.commands.*"],
    "core": ["foleybox.lab", "foleybox.lab.core", "foleybox.lab.core.*"],
    "vocoders": ["foleybox.lab.vocoders", "foleybox.lab.vocoders.*"],
    "kt": ["foleybox.lab.kt", "foleybox.lab.kt.*"],
    "baseline": ["foleybox.lab.baseline", "foleybox.lab.baseline.*"],
    "cmu": ["foleybox.lab.cmu", "foleybox.lab.cmu.*"],
    "patches": ["foleybox.lab.patches", "foleybox.lab.patches.*"],
    "evaluation": ["foleybox.lab.evaluation", "foleybox.lab.evaluation.*"],
    "export": ["foleybox.lab.export", "foleybox.lab.export.*"],
    "play": ["foleybox.lab.play", "foleybox.lab.play.*"],
    "flags": ["foleybox.flags"],
    "entry": ["foleybox.cli", "foleybox.__main__", "foleybox.commands.doctor"],
}
GROUND = ["version", "errors", "files", "schema", "labels", "audio", "licences", "graphs", "signature", "instrument"]
# Layer -> other layers that it may import.
MAY = {
    "root": ["version"],  # and the Python API by name, when it is used
    "version": [],
    "errors": [],
    "files": ["errors"],
    "labels": ["errors"],
    "schema": [],
    "audio": ["errors", "files", "schema"],
    "licences": ["errors", "files"],
    "graphs": [],
    "signature": ["errors", "files", "schema"],
    "instrument": ["errors", "files", "schema", "labels", "licences", "graphs"],
    "studio": GROUND,
    "web": [*GROUND, "studio"],
    "commands": [*GROUND, "studio", "web"],
    "core": GROUND,
    "vocoders": [*GROUND, "core"],
    "kt": [*GROUND, "core"],
    "baseline": [*GROUND, "core"],
    "cmu": [*GROUND, "core", "vocoders", "baseline"],
    "patches": [*GROUND, "core"],
    "evaluation": [*GROUND, "core", "kt"],
    "export": [*GROUND, "core", "vocoders", "kt", "patches"],
    "play": [*GROUND, "core", "vocoders", "kt", "baseline", "cmu", "patches", "evaluation"],
    "flags": ["errors"],
    "entry": ["version", "errors"],  # and any command by name, when it is used
}
# Layer -> packages of others that it may import, besides the standard library. A layer that is not here may import any.
GROUND_PACKAGES = {"numpy", "soundfile", "soxr"}
PACKAGES = {
    **dict.fromkeys(GROUND, GROUND_PACKAGES),
    "signature": {"cryptography"},
    "root": set(),
    "version": set(),
    "flags": {"tyro"},
    "studio": {*GROUND_PACKAGES, "onnxruntime", "mido", "tyro"},
    "web": {*GROUND_PACKAGES, "onnxruntime", "fastapi", "starlette", "pydantic", "uvicorn"},
    "commands": {*GROUND_PACKAGES, "tyro", "tqdm", "onnxruntime"},
}
PURE = ["foleybox.lab.*.losses", "foleybox.lab.*.systems"]  # torch and the standard library only
MODELS = [
    f"foleybox.lab.{name}"
    for name in (
        "vocoders.vocos", "vocoders.hifigan", "kt.sagan", "kt.encoder", "baseline.vqvae", "baseline.pixelsnail",
        "cmu.mvqvae", "patches.autoencoder", "patches.transformer", "core.compat",
    )
]  # fmt: skip
"models (and the names of their old checkpoints) import torch, the standard library, and models of what they extend"
LIGHT_AT_THE_TOP = {"entry", "root"}  # imports nothing heavy before a command is chosen
FEWEST = 20  # arrows between the packages of the lab, at most


def layer_of(module: str) -> str | None:
    """Return the layer of a module; an exact name goes before a pattern."""
    exact = [layer for layer, names in LAYERS.items() if module in names]
    matching = [layer for layer, names in LAYERS.items() if any(fnmatchcase(module, each) for each in names)]
    return (exact or matching or [None])[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SOURCE / "foleybox").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, tree: ast.Module, known: set[str], top_only: bool = False) -> set[str]:
    """Return the modules that a file imports, also inside functions and under TYPE_CHECKING; relative ones resolved."""
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


def problems(module: str, source: str, known: set[str]) -> list[str]:
    """Return what is wrong with the imports of one file."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} has no layer: add it to LAYERS in tests/test_imports.py"]
    tree = ast.parse(source)
    top = imports(module, tree, known, top_only=True)
    found = []
    pure = any(fnmatchcase(module, each) for each in PURE)
    for target in sorted(imports(module, tree, known)):
        first = target.split(".")[0]
        if first == "foleybox":
            other = layer_of(target)
            lazily = layer in LIGHT_AT_THE_TOP and target not in top
            if other not in (layer, *MAY[layer]) and not (lazily and other is not None):
                found.append(f"{module} ({layer}) imports {target} ({other})")
            allowed = target in MODELS or any(fnmatchcase(target, each) for each in PURE)
            if (pure or module in MODELS) and not allowed and other not in ("errors", "labels"):
                found.append(f"{module} imports {target}")
        elif first not in sys.stdlib_module_names:
            if layer in PACKAGES and first not in PACKAGES[layer]:
                found.append(f"{module} ({layer}) imports {first}")
            if (pure or module in MODELS) and first != "torch":
                found.append(f"{module} imports {first}")
            if layer in LIGHT_AT_THE_TOP and target in top:
                found.append(f"{module} ({layer}) imports {first} before a command is chosen")
    return found


FOUND = modules()
GRAPH = {
    module: {
        target for target in imports(module, ast.parse(path.read_text(encoding="utf-8")), set(FOUND)) if target in FOUND
    }
    for module, path in FOUND.items()
}


@pytest.mark.parametrize("module", FOUND)
def test_imports_follow_the_layers(module: str) -> None:
    assert problems(module, FOUND[module].read_text(encoding="utf-8"), set(FOUND)) == []


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle, [] if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions() -> None:
    assert cycle(GRAPH) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]


def test_the_studio_imports_the_package_inside_no_function() -> None:
    for module, path in FOUND.items():
        if layer_of(module) in ("studio", "commands"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            inner = [
                each for function in functions for each in imports(module, ast.Module(function.body, []), set(FOUND))
            ]
            assert [each for each in inner if each.startswith("foleybox")] == [], module


def test_packages_of_the_lab_know_few_others() -> None:
    packages = [name for name in LAYERS if any(each.startswith("foleybox.lab.") for each in LAYERS[name])]
    arrows = {
        (here, there)
        for module, targets in GRAPH.items()
        for target in targets
        if (here := layer_of(module)) in packages and (there := layer_of(target)) in packages and here != there
    }
    assert len(arrows) <= FEWEST, sorted(arrows)


def test_every_layer_and_every_rule_names_layers_that_exist() -> None:
    assert set(MAY) == set(LAYERS)
    assert set(PACKAGES) <= set(LAYERS)
    assert {layer for layers in MAY.values() for layer in layers} <= set(LAYERS)
    assert set(MODELS) <= set(FOUND)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foleybox.audio", "import torch"),
        ("foleybox.audio", "from foleybox.studio.seeds import noise"),
        ("foleybox.errors", "from foleybox.files import write_text"),
        ("foleybox.studio.synth", "def f():\n    import torch"),
        ("foleybox.studio.synth", "from foleybox.lab.core import clips"),
        ("foleybox.studio.synth", "from ..lab import core"),
        ("foleybox.studio.sheet", "import rich"),
        ("foleybox.studio.scene", "from foleybox.commands.output import progress"),
        ("foleybox.commands.info", "from scipy.signal import stft"),
        ("foleybox.lab.core.clips", "from foleybox.studio.synth import Synth"),
        ("foleybox.lab.core.clips", "from foleybox.lab.kt import sagan"),
        ("foleybox.lab.kt.sagan", "import numpy as np"),
        ("foleybox.lab.kt.sagan", "from foleybox.lab.vocoders.vocos import Vocos"),
        ("foleybox.lab.kt.sagan", "from foleybox.files import write_text"),
        ("foleybox.lab.kt.losses", "import numpy"),
        ("foleybox.lab.kt.train_sagan", "from foleybox.lab.baseline.train_vqvae import main"),
        ("foleybox.lab.kt.train_sagan", "from foleybox.lab import evaluation"),
        ("foleybox.lab.baseline.vqvae", "from foleybox.lab.cmu.mvqvae import Mvqvae"),
        ("foleybox.lab.evaluation.report", "from foleybox.lab.play.sample import sample"),
        ("foleybox.lab.export.export", "from foleybox.lab.evaluation import report"),
        ("foleybox.cli", "import tyro"),
        ("foleybox", "import numpy"),
        ("foleybox", "from foleybox.studio.synth import Synth"),
        ("foleybox.cli", "from foleybox.lab import core"),
        ("foleybox.attic", "import os"),
        ("foleybox.lab.attic", "import os"),
    ],
)
def test_a_planted_wrong_import_is_caught(module: str, source: str) -> None:
    known = set(FOUND) | {module}
    assert problems(module, source, known)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("foleybox.studio.synth", "from foleybox.audio import fit\nimport numpy, onnxruntime, os"),
        ("foleybox.commands.pack", "from foleybox.studio.synth import Synth\nimport tyro, tqdm"),
        ("foleybox.lab.kt.train_sagan", "from foleybox.lab.core.loop import Log\nimport torch, accelerate"),
        ("foleybox.lab.cmu.mvqvae", "from foleybox.lab.baseline.vqvae import Vqvae"),
        ("foleybox.lab.evaluation.report", "from foleybox.lab.evaluation.prdc import prdc\nimport scipy"),
        ("foleybox.cli", "def f():\n    import tyro"),
        ("foleybox", "if TYPE_CHECKING:\n    from foleybox.studio.synth import Synth"),
    ],
)
def test_an_import_that_the_rules_allow_passes(module: str, source: str) -> None:
    assert problems(module, source, set(FOUND) | {module}) == []


def test_every_dependency_of_the_core_is_imported_by_the_ground_the_studio_or_its_commands() -> None:
    text = (SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8")
    asked = {re.split("[<>=~]", each)[0] for each in tomllib.loads(text)["project"]["dependencies"]}
    assert asked == PACKAGES["studio"] | PACKAGES["commands"]
    files = [path for module, path in FOUND.items() if layer_of(module) in (*GROUND, "studio", "commands")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert [name for name in sorted(asked) if not re.search(rf"^\s*(import|from) {name}\b", code, re.MULTILINE)] == []
