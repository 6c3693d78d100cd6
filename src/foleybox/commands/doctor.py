"""`foleybox doctor`: check that this machine has what foleybox needs. Imports nothing that may be missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from foleybox.errors import INSTALL_LAB, LAB_PACKAGES, UserError
from foleybox.version import __version__

CORE = ("numpy", "onnxruntime", "soundfile", "soxr", "tyro", "tqdm", "mido")


@dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, the instrument, the lab, the disk. Exit code 0 if sounds can be made, else 1.

    Example: foleybox doctor
    """

    instrument: str | None = None
    "name or folder of another instrument to try instead of the default one"


def main(config: Doctor) -> int:
    """Print a line for each check: `ok`, `no` for what foleybox needs and lacks, `-` for what is optional and absent."""
    healthy = True
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("foleybox", lambda: f"{__version__} in {Path(__file__).resolve().parents[1]}", True),
        ("python", lambda: f"{platform.python_version()} on {platform.platform()}", True),
        ("core", _core, True),
        ("cores", _cores, True),
        ("instrument", lambda: _instrument(config.instrument), True),
        ("disk", lambda: f"{shutil.disk_usage('.').free / 1e9:,.1f} GB free in {Path.cwd()}", True),
        ("lab", _lab, False),
    ]
    for name, check, needed in checks:
        try:
            mark, text = "ok", check()
        except (UserError, ImportError, OSError, RuntimeError) as error:
            mark, text = ("no" if needed else "-"), " ".join(str(error).split())
            healthy = healthy and not needed
        print(f"{mark:3} {name:11} {text}", flush=True)
    if not healthy:
        print("foleybox cannot make sounds on this machine: repair what is marked `no`", file=sys.stderr)
    return 0 if healthy else 1


def _core() -> str:
    import onnxruntime
    import soundfile
    import soxr

    # Imported, since the shared library of an installed package may fail to load.
    assert all((onnxruntime, soundfile, soxr))
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in CORE)


def _cores() -> str:
    from foleybox.studio.synth import cores

    return f"{cores()} of {os.cpu_count()} available"


def _instrument(source: str | None) -> str:
    from foleybox.studio.synth import Synth

    start = time.perf_counter()
    synth = Synth.load(source)
    clip = synth.render(synth.labels[0], 0)
    cold = time.perf_counter() - start
    start = time.perf_counter()
    synth.render(synth.labels[0], 1)
    warm = time.perf_counter() - start
    made = synth.instrument
    size = sum(graph.bytes for graph in made.graphs.values()) / 1e6
    seconds = len(clip.wave) / clip.rate
    return (
        f"{made.name} {made.version} ({size:.1f} MB, {made.licence.terms}) renders {clip.label}: first clip after "
        f"{cold:.2f} s, then {seconds / warm:.0f}x real time"
    )


def _lab() -> str:
    if find_spec("torch") is None:
        raise UserError(f"not installed; needed to train, not to make sounds: {INSTALL_LAB}")
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    missing = [name for name in LAB_PACKAGES[1:] if find_spec(name) is None]
    text = f"torch {torch.__version__} on {device}"
    if missing:
        raise UserError(f"{text}, but without {', '.join(missing)}: {INSTALL_LAB}")
    return text
