"""A part of `make crash`: commands are stopped at some of their file operations, others every day."""

import subprocess
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.skipif(find_spec("torch") is None, reason="needs the lab extra")
@pytest.mark.parametrize(
    ("command", "every"), [("generate", 11), ("jobs", 13), ("pack", 31), ("perform", 11), ("train", 67)]
)
def test_a_command_that_is_stopped_loses_nothing_and_the_same_command_goes_on(command: str, every: int) -> None:
    program = [sys.executable, str(Path(__file__).with_name("crash.py")), "--only", command]
    part = ["--every", str(every), "--offset", str(date.today().toordinal() % every)]
    run = subprocess.run([*program, *part], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{' '.join([*program, *part])}\n{run.stdout}\n{run.stderr[-2000:]}"
