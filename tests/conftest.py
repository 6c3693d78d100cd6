"""What the suite needs around it: the real recordings where they are, and the lab only where torch is."""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# A suite started in the background ignores Ctrl-C, and so would the commands whose Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).resolve().parent

collect_ignore: list[str] = []
if find_spec("torch") is None:  # a studio-only installation tests the studio
    collect_ignore = [path.name for path in HERE.glob("test_*.py") if "from foleybox.lab" in path.read_text("utf-8")]


def pytest_report_header() -> str:
    """Say what is left out."""
    return f"torch is absent: {len(collect_ignore)} files of lab tests are left out" if collect_ignore else ""


@pytest.fixture(scope="session")
def recordings() -> Path | None:
    """Return the folder of real recordings and weights (`FOLEYBOX_SHARED`, else `../shared`), or None where it is absent."""
    folder = Path(os.environ.get("FOLEYBOX_SHARED") or HERE.parents[1] / "shared")
    return folder if (folder / "data" / "foley" / "manifest.csv").is_file() else None


@pytest.fixture(scope="session")
def shared(recordings: Path | None) -> Path:
    """Return that folder, or skip the test."""
    if recordings is None:
        pytest.skip("no real recordings: ../shared is absent, and FOLEYBOX_SHARED names none")
    return recordings


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    """Let every test choose its precision: accelerate keeps that of the first run of a process."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
