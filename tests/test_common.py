"""The clock of every loop: batches, averages and noise are functions of the step; a run folder is never half-written."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.core.loop import at_least, balanced_indices, batch_indices, due, seed_step, share, update_average
from foleybox.lab.core.runs import clips_seen, open_run, read_run_config, resume, save_state


@dataclass(frozen=True)
class Toy:
    lr: float = 1e-3
    steps: int = 10
    batch: int = 4


def test_an_epoch_holds_every_clip_once_even_across_batches() -> None:
    stream = torch.cat([batch_indices(step, 4, 10, seed=3) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:20].tolist()


def test_balanced_batches_hold_every_label_equally_often_and_every_clip_in_turn() -> None:
    labels = torch.tensor([0] * 3 + [2] * 50 + [5] * 7)
    stream = torch.cat([balanced_indices(step, 4, labels, seed=0) for step in range(30)])
    assert torch.bincount(labels[stream])[[0, 2, 5]].tolist() == [40, 40, 40]
    rare = [int(index) for index in stream if labels[index] == 0]
    assert all(sorted(rare[turn : turn + 3]) == [0, 1, 2] for turn in range(0, 39, 3))


def test_an_epoch_holds_at_most_so_many_clips_of_a_recording_and_all_of_them_in_the_end() -> None:
    labels = torch.tensor([0] * 12 + [1] * 3)
    recordings = torch.tensor([7] * 9 + [3, 3, 5] + [7, 8, 9])
    stream = torch.cat([balanced_indices(step, 10, labels, 0, recordings, most=2) for step in range(30)])
    mine = stream[labels[stream] == 0]
    epochs = mine[: len(mine) // 5 * 5].reshape(-1, 5)  # two of 7, two of 3, one of 5
    for epoch in epochs.tolist():
        assert sorted(recordings[epoch].tolist()) == [3, 3, 5, 7, 7]
        assert len(set(epoch)) == 5
    assert set(mine.tolist()) == {*range(12)}
    assert torch.bincount(labels[stream]).tolist() == [150, 150]
    assert torch.equal(stream[100:110], balanced_indices(10, 10, labels, 0, recordings, most=2))


def test_the_batch_of_a_step_does_not_depend_on_the_steps_before() -> None:
    labels = torch.arange(21) % 7
    stream = torch.cat([balanced_indices(step, 14, labels, 1) for step in range(10)])
    assert torch.equal(stream[9 * 14 :], balanced_indices(9, 14, labels, 1))
    assert not torch.equal(balanced_indices(9, 14, labels, 1), balanced_indices(9, 14, labels, 2))


def test_processes_share_a_batch_without_overlap() -> None:
    batch = torch.arange(8)
    assert sorted(torch.cat([share(batch, rank, 3) for rank in range(3)]).tolist()) == list(range(8))


@pytest.mark.parametrize("seed", [0, 20_261_120, 2**53])
def test_any_seed_is_a_seed(seed: int) -> None:
    seed_step(seed, 10**6, rank=7)
    labels = torch.tensor([0, 1] * 3)
    assert (
        sorted(batch_indices(0, 6, 6, seed).tolist())
        == sorted(balanced_indices(0, 6, labels, seed).tolist())
        == [*range(6)]
    )


def test_what_is_due_is_due_at_multiples_and_at_the_last_step() -> None:
    assert [done for done in range(1, 12) if due(done, 11, 3, 4)] == [3, 4, 6, 8, 9, 11]


@dataclass(frozen=True)
class Seeded:
    seed: int


def test_settings_below_their_lowest_value_are_refused() -> None:
    at_least(Toy(), steps=10)
    with pytest.raises(UserError, match="--steps 10: expected 11 or more"):
        at_least(Toy(), steps=11)
    at_least(Seeded(2**53 - 1), seed=0)
    with pytest.raises(UserError, match=r"--seed 9007199254740992: expected below 2\*\*53"):
        at_least(Seeded(2**53), seed=0)


def test_every_step_has_its_own_noise() -> None:
    draws = set()
    for seed in range(3):
        for step in range(5):
            seed_step(seed, step)
            draws.add(float(torch.randn(())))
    assert len(draws) == 15


def test_the_average_moves_by_one_minus_its_decay_and_copies_buffers() -> None:
    model, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(5.0)  # type: ignore[union-attr]
    update_average(average, model, decay=0.9, step=10_000)
    assert average.weight.tolist() == pytest.approx([1.2, 1.2])
    assert average.running_mean.tolist() == [5, 5]  # type: ignore[union-attr]


def test_a_young_average_forgets_its_random_start() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.weight.fill_(100.0)
    for step in range(50):
        update_average(average, model, decay=0.999, step=step)
    assert float(average.weight) < 1.001


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
    assert cli._tell(caught.value) == 2
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
    open_run(tmp_path / "run", "toy", Toy(steps=20), [])  # more steps is how one goes on
    assert read_run_config(tmp_path / "run")["steps"] == 20
    with pytest.raises(UserError, match=r"was started with lr = 0.001, now 0.1"):
        open_run(tmp_path / "run", "toy", Toy(lr=0.1), [])
    with pytest.raises(UserError, match="is a run of 'toy', not of 'other'"):
        open_run(tmp_path / "run", "other", Toy(), [])
    with pytest.raises(UserError, match="was started with clips"):
        open_run(tmp_path / "run", "toy", Toy(), [{"clip": "Rain/0.wav 1"}])
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.abc.partial.json").write_text("{")
    open_run(tmp_path / "killed", "toy", Toy(), [])  # killed before its first file was whole: not somebody's folder
    assert not [path for path in (tmp_path / "killed").iterdir() if ".partial" in path.name]
    (tmp_path / "killed" / "clips.jsonl").unlink()
    open_run(tmp_path / "killed", "toy", Toy(), [])  # killed between its two files
    assert (tmp_path / "killed" / "clips.jsonl").is_file()


def test_processes_that_open_one_run_at_once_do_not_trip_over_each_other(tmp_path: Path) -> None:
    open_run(tmp_path, "toy", Toy(), [])  # the first process has been here
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: open_run(tmp_path, "toy", Toy(), []), range(64)))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before  # nothing was written again


def test_what_a_run_had_seen_before_it_began_stays_what_it_was(tmp_path: Path) -> None:
    open_run(tmp_path / "first", "toy", Toy(), [])
    save_state(tmp_path / "first" / "state.pt", 5, {})
    open_run(tmp_path / "second", "toy", Toy(), [], tmp_path / "first")
    save_state(tmp_path / "second" / "state.pt", 2, {})
    assert clips_seen(tmp_path / "second") == 7 * Toy().batch
    save_state(tmp_path / "first" / "state.pt", 500, {})  # it went on
    open_run(tmp_path / "second", "toy", Toy(), [], tmp_path / "first")
    (tmp_path / "first" / "state.pt").unlink()  # and is gone
    open_run(tmp_path / "second", "toy", Toy(), [], tmp_path / "first")
    assert clips_seen(tmp_path / "second") == 7 * Toy().batch


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_settings_that_are_none_are_told(tmp_path: Path, content: str) -> None:
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


def test_a_run_begun_before_a_setting_was_there_resumes_with_its_default_alone(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="was started with"):  # and what a setting was, nobody knows any more
        open_run(tmp_path / "run", "toy", Toy(), [])


def test_a_damaged_run_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(UserError, match="is not JSON"):
        read_run_config(tmp_path)
