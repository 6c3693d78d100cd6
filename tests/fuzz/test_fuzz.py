"""Hostile files end in one line: those that failed once, and new ones of hypothesis and of a minute's fuzzing in seconds."""

import random
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzz import MOST_BYTES, MOST_SECONDS, check, memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import mutated
from targets import CORPUS, LAB, STUDIO, Workspace, seeds, target_of

from foleybox.errors import UserError

TORCH = find_spec("torch") is not None
TARGETS = {**STUDIO, **(LAB if TORCH else {})}
FILES = [path for path in sorted(CORPUS.iterdir()) if target_of(path.name) in TARGETS]
QUICK = [name for name in TARGETS if name not in ("recipe_cli", "cli", "run_config", "run_state", "sound")]


@pytest.fixture(scope="module")
def work() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory() as folder:
        yield Workspace(Path(folder), lab=TORCH)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_input_that_failed_once_is_accepted_or_refused_in_a_line(work: Workspace, path: Path) -> None:
    before, start = memory(), time.process_time()
    assert check(target_of(path.name), path.read_bytes(), work) == ""
    assert time.process_time() - start < MOST_SECONDS
    assert memory() - before < MOST_BYTES


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_mutated_is_valid_before_it_is(work: Workspace, name: str) -> None:
    """Else the mutations would stop at the first check."""
    ours = [each for each in seeds(work)[name] if each not in [path.read_bytes() for path in FILES]]
    assert ours
    for data in ours if name not in ("cli", "signature", "recipe_cli") else ():
        TARGETS[name](data, work)


@pytest.mark.parametrize("name", QUICK)
def test_mutated_inputs_are_accepted_or_refused_in_a_line(work: Workspace, name: str) -> None:
    found = seeds(work)[name]

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 2**64), st.integers(0, len(found) - 1))
    def one(seed: int, at: int) -> None:
        assert check(name, mutated(found[at], found, random.Random(seed)), work) == ""

    one()


def test_a_crash_a_hang_and_an_error_of_ours_are_found(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself, with a target that fails in each way."""

    def broken(data: bytes, _: Workspace) -> None:
        if data == b"hang":
            while True:
                pass
        raise KeyError("x")

    monkeypatch.setitem(__import__("targets").TARGETS, "recipe", broken)
    monkeypatch.setattr("fuzz.MOST_SECONDS", 0.2)
    for data, words in ((b"hang", "HangError"), (b"key", "KeyError")):
        assert words in check("recipe", data, work)


def test_an_error_that_quotes_a_file_is_one_line_that_can_be_printed() -> None:
    assert str(UserError("column a\nb\x1b[2J\ud800, \u00e9")) == "column a\\nb\\x1b[2J\\ud800, \u00e9"
