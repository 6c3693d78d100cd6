"""The run folder: written atomically, resumed only with the same settings, and able to say how many clips were seen."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.core.runs import (
    clips_seen,
    close_run,
    merge_rows,
    open_run,
    read_clips,
    read_run_config,
    resume,
    save_state,
)


@dataclass(frozen=True)
class Toy:
    lr: float = 1e-3
    steps: int = 10
    batch: int = 4


ROW = {"clip": "Rain/0.wav 1", "label": "Rain", "tier": "", "licence": "", "source": ""}


def test_a_full_disk_leaves_the_last_checkpoint_and_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / "state.pt", nn.Linear(1, 1)
    save_state(path, 1, {"model": model})
    before = path.read_bytes()
    opened = Path.open

    def open_full(self: Path, mode: str = "r", **rest: Any) -> Any:
        """What a full disk is: the file opens, the bytes do not fit."""
        return opened(Path("/dev/full"), mode, **rest) if "w" in mode else opened(self, mode, **rest)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_state(path, 2, {"model": model})
    assert cli._report(caught.value) == 2
    assert capsys.readouterr().err == f"foleybox: No space left on device: {path}\n"
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]
    monkeypatch.undo()
    assert resume(path, {"model": model}) == 1


def test_a_checkpoint_of_another_width_or_system_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, 1, {"model": nn.Linear(1, 1)})
    with pytest.raises(UserError, match=r"does not fit the model .*was the width changed"):
        resume(path, {"model": nn.Linear(2, 1)})
    with pytest.raises(UserError, match="holds no 'generator'"):
        resume(path, {"generator": nn.Linear(1, 1)})


def test_a_run_resumes_only_with_its_own_settings(tmp_path: Path) -> None:
    open_run(tmp_path / "run", "toy", Toy(), [])
    open_run(tmp_path / "run", "toy", Toy(steps=20), [])
    assert read_run_config(tmp_path / "run")["steps"] == 20
    with pytest.raises(UserError, match=r"was started with lr = 0.001, now 0.1"):
        open_run(tmp_path / "run", "toy", Toy(lr=0.1), [])
    with pytest.raises(UserError, match="is a run of 'toy', not of 'other'"):
        open_run(tmp_path / "run", "other", Toy(), [])
    with pytest.raises(UserError, match="was started with clips"):
        open_run(tmp_path / "run", "toy", Toy(), [ROW])
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.0123abcd.partial.json").write_text("{")
    open_run(tmp_path / "killed", "toy", Toy(), [])  # killed before its first file was written
    assert not [path for path in (tmp_path / "killed").iterdir() if ".partial" in path.name]
    (tmp_path / "killed" / "clips.jsonl").unlink()
    open_run(tmp_path / "killed", "toy", Toy(), [])  # killed between its two files
    assert (tmp_path / "killed" / "clips.jsonl").is_file()


def test_processes_may_open_one_run_at_the_same_time(tmp_path: Path) -> None:
    open_run(tmp_path, "toy", Toy(), [])  # the first process has been here
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: open_run(tmp_path, "toy", Toy(), []), range(64)))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before  # nothing was written again


def test_the_clips_seen_before_a_run_began_do_not_change(tmp_path: Path) -> None:
    open_run(tmp_path / "first", "toy", Toy(), [])
    save_state(tmp_path / "first" / "state.pt", 5, {})
    open_run(tmp_path / "second", "toy", Toy(), [], tmp_path / "first")
    save_state(tmp_path / "second" / "state.pt", 2, {})
    assert clips_seen(tmp_path / "second") == 7 * Toy().batch
    save_state(tmp_path / "first" / "state.pt", 500, {})  # it continued
    open_run(tmp_path / "second", "toy", Toy(), [], tmp_path / "first")
    (tmp_path / "first" / "state.pt").unlink()  # and is removed
    open_run(tmp_path / "second", "toy", Toy(), [], tmp_path / "first")
    assert clips_seen(tmp_path / "second") == 7 * Toy().batch


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_a_config_that_holds_no_settings_is_a_user_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="does not hold the settings of a run"):
        read_run_config(tmp_path)


@dataclass(frozen=True)
class Inner:
    width: int = 3
    depth: int = 2


@dataclass(frozen=True)
class Grown(Toy):
    tricks: tuple[int, ...] = (0, 1)
    where: Path | None = None
    model: Inner = field(default_factory=Inner)


def test_a_run_started_before_a_setting_existed_resumes_only_with_its_default(tmp_path: Path) -> None:
    open_run(tmp_path / "run", "toy", Toy(), [])
    with pytest.raises(UserError, match=r"was started with tricks = \[0, 1\], now \[2\]"):
        open_run(tmp_path / "run", "toy", Grown(tricks=(2,)), [])
    with pytest.raises(UserError, match="was started with model"):
        open_run(tmp_path / "run", "toy", Grown(model=Inner(4)), [])
    open_run(tmp_path / "run", "toy", Grown(), [])
    stored = read_run_config(tmp_path / "run")
    assert (stored["tricks"], stored["where"], stored["model"]) == ([0, 1], None, {"width": 3, "depth": 2})
    del stored["model"]["depth"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="was started with model"):
        open_run(tmp_path / "run", "toy", Grown(model=Inner(depth=4)), [])
    open_run(tmp_path / "run", "toy", Grown(), [])
    with pytest.raises(UserError, match="was started by another version of foleybox, with model"):
        open_run(tmp_path / "run", "toy", Toy(), [])


def test_a_damaged_run_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(UserError, match="is not JSON"):
        read_run_config(tmp_path)


@dataclass(frozen=True)
class Shrunk(Toy):
    REMOVED: ClassVar[dict[str, Any]] = {"tricks": [0, 1]}


def test_a_run_with_a_setting_that_no_longer_exists_resumes_only_if_it_had_the_value_that_remains(
    tmp_path: Path,
) -> None:
    @dataclass(frozen=True)
    class Tricky(Toy):
        tricks: tuple[int, ...] = (0, 1)

    open_run(tmp_path / "same", "toy", Tricky(), [])
    open_run(tmp_path / "same", "toy", Shrunk(), [])
    open_run(tmp_path / "other", "toy", Tricky(tricks=(2,)), [])
    with pytest.raises(UserError, match=r"was started by another version of foleybox, with tricks = \[2\]"):
        open_run(tmp_path / "other", "toy", Shrunk(), [])


# --- what is there is verified ----------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    path, model = tmp_path / "state.pt", nn.Linear(3, 5)
    save_state(path, 7, {"model": model})
    content = path.read_bytes()
    assert resume(path, {"model": nn.Linear(3, 5)}) == 7
    for place in (*range(0, len(content), 97), *range(len(content) - 64, len(content))):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"state.pt .*: remove it to start again") as caught:
            resume(path, {"model": nn.Linear(3, 5)})
        assert "\n" not in str(caught.value)
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"state.pt cannot be read as a checkpoint"):
        resume(path, {"model": nn.Linear(3, 5)})


def test_a_checkpoint_of_an_earlier_version_is_accepted_with_a_note_unless_its_weights_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / "state.pt", nn.Linear(3, 5)
    torch.save({"step": 3, "model": model.state_dict(), "best": {"score": torch.tensor(torch.inf)}}, path)
    assert resume(path, {"model": model}) == 3
    assert "state.pt is of an earlier version and has no checksum" in capsys.readouterr().err
    with torch.no_grad():
        model.weight[1, 2] = torch.nan
    torch.save({"step": 3, "model": model.state_dict()}, path)
    with pytest.raises(UserError, match=r"state.pt holds weights that are NaN or infinite \(model.weight\): remove it"):
        resume(path, {"model": model})


@pytest.mark.parametrize("step", [None, "3", True, -1, 2.0, torch.zeros(2)])
def test_a_checkpoint_without_a_step_is_refused(tmp_path: Path, step: Any) -> None:
    state = {"model": nn.Linear(1, 1).state_dict()}
    for content in ({**state, "step": step}, state, [3], 3):
        torch.save(content, tmp_path / "state.pt")
        with pytest.raises(UserError, match=r"state.pt holds no step: it is no checkpoint of a training"):
            resume(tmp_path / "state.pt", {"model": nn.Linear(1, 1)})


@pytest.mark.parametrize("part", [None, 3, [], {}, {"weight": 3}, {3: 4}, {"weight": torch.zeros(1, 1), "bias": None}])
def test_a_checkpoint_whose_part_is_no_state_dict_is_refused(tmp_path: Path, part: Any) -> None:
    torch.save({"step": 3, "model": part}, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state.pt does not fit the model"):
        resume(tmp_path / "state.pt", {"model": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    "content",
    ["8", "{", '{"clip": "a"}', "[" * 100_000, json.dumps({**ROW, "tier": 2}), json.dumps({**ROW, "x": None})],
)
def test_a_list_of_clips_that_is_none_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "clips.jsonl").write_text(json.dumps(ROW) + "\n" + content + "\n")
    with pytest.raises(UserError, match=r"clips.jsonl(, line 2: expected an object| cannot be read)"):
        read_clips(tmp_path)


def test_recordings_replaced_by_others_of_the_same_name_and_size_are_noticed(tmp_path: Path) -> None:
    old, rows = [ROW, ROW], [{**ROW, "content": "aa"}, {**ROW, "content": "bb"}]  # two folders have such a name
    open_run(tmp_path, "toy", Toy(), old)  # of an earlier version
    open_run(tmp_path, "toy", Toy(), rows)
    open_run(tmp_path, "toy", Toy(), rows)
    with pytest.raises(UserError, match=r"was started with another content of Rain/0.wav, of the same size: restore"):
        open_run(tmp_path, "toy", Toy(), [rows[0], {**ROW, "content": "cc"}])


def test_a_run_whose_clips_had_the_tiers_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    rows = [{**ROW, "tier": tier, "licence": "CC0"} for tier in ("open", "free")]
    open_run(tmp_path, "toy", Toy(), rows[:1])
    open_run(tmp_path, "toy", Toy(), rows[1:])
    assert read_clips(tmp_path) == rows[1:]
    assert merge_rows(rows[1:], rows[:1]) == rows[1:]
    with pytest.raises(UserError, match="was started with clips"):
        open_run(tmp_path, "toy", Toy(), [{**rows[1], "label": "DogBark"}])


# --- one training at a time -------------------------------------------------------------------------------------------

OPEN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_runs import Toy
from foleybox.lab.core.runs import open_run
open_run(Path({out!r}), "toy", Toy(), [])
print("open", flush=True)
time.sleep(60)
"""


def test_a_second_training_in_a_folder_is_told_and_takes_over_when_the_first_was_killed(tmp_path: Path) -> None:
    program = OPEN.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=rf"is in use by process {other.pid} on .*: wait for it, or name another"):
            open_run(tmp_path, "toy", Toy(), [])
        other.send_signal(signal.SIGKILL)
    open_run(tmp_path, "toy", Toy(), [])
    assert str(os.getpid()) in (tmp_path / ".foleybox.lock").read_text()
    close_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.jsonl", "config.json"]
