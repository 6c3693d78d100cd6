"""The loop toolkit: batches, averages and noise are functions of the step; the log reads values only to write a line."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foleybox.errors import UserError
from foleybox.lab.core.loop import (
    Log,
    at_least,
    balanced_indices,
    batch_indices,
    due,
    evenly_spaced,
    seed_step,
    share,
    update_average,
)


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


def test_balanced_batches_hold_every_label_equally_often_and_every_clip_of_a_label() -> None:
    labels = torch.tensor([0] * 3 + [2] * 50 + [5] * 7)
    stream = torch.cat([balanced_indices(step, 4, labels, seed=0) for step in range(30)])
    assert torch.bincount(labels[stream])[[0, 2, 5]].tolist() == [40, 40, 40]
    rare = [int(index) for index in stream if labels[index] == 0]
    assert all(sorted(rare[start : start + 3]) == [0, 1, 2] for start in range(0, 39, 3))


def test_an_epoch_holds_at_most_a_given_number_of_clips_of_a_recording_and_all_of_them_over_time() -> None:
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
def test_every_seed_is_accepted(seed: int) -> None:
    seed_step(seed, 10**6, rank=7)
    labels = torch.tensor([0, 1] * 3)
    assert (
        sorted(batch_indices(0, 6, 6, seed).tolist())
        == sorted(balanced_indices(0, 6, labels, seed).tolist())
        == [*range(6)]
    )


def test_something_is_due_at_multiples_and_at_the_last_step() -> None:
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


def test_an_average_soon_forgets_its_random_start() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.weight.fill_(100.0)
    for step in range(50):
        update_average(average, model, decay=0.999, step=step)
    assert float(average.weight.detach()) < 1.001


def test_evenly_spaced_indices_are_as_many_as_wanted() -> None:
    assert evenly_spaced(10, 3).tolist() == [0, 3, 6]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert len(evenly_spaced(2283, 101).unique()) == 101


# --- the log ----------------------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts the operations that copy a tensor's value to Python, each of which waits for a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_adding_terms_to_the_log_reads_no_tensor(tmp_path: Path) -> None:
    weight = torch.ones((), requires_grad=True)
    with Log(tmp_path, Accelerator(cpu=True), 0, 3) as log:
        with Reads() as reads:
            for step in range(3):
                log.add({"loss": weight * step, "rate": 0.1, "bad": torch.tensor(math.nan)})
        assert reads.count == 0
        assert not any(entry.requires_grad for entry in log.sums.values())
        log.write(3)
    (line,) = read_log(tmp_path)
    assert (line["step"], line["loss"], line["rate"]) == (3, 1.0, pytest.approx(0.1))
    assert "bad" not in line  # no finite value


def test_a_value_that_changes_after_it_was_added_is_logged_as_it_was(tmp_path: Path) -> None:
    buffer = torch.zeros(())
    with Log(tmp_path, Accelerator(cpu=True), 0, 2) as log:
        for step in range(2):
            buffer.fill_(step + 1)
            log.add({"usage": buffer})
        log.write(2, {"measured": 7.0})
    assert read_log(tmp_path)[0] | {"steps_per_second": 0} == {
        "step": 2, "usage": 1.5, "measured": 7.0, "steps_per_second": 0,
    }  # fmt: skip


def test_values_that_are_not_finite_are_left_out_of_the_mean_and_a_line_starts_new_means(tmp_path: Path) -> None:
    with Log(tmp_path, Accelerator(cpu=True), 0, 4) as log:
        for step, value in enumerate((1.0, math.inf, 3.0, 5.0), start=1):
            log.add({"loss": torch.tensor(value)})
            if step in (3, 4):
                log.write(step)
    assert [line["loss"] for line in read_log(tmp_path)] == [2.0, 5.0]


def test_lines_after_the_resumed_step_are_removed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with Log(tmp_path, Accelerator(cpu=True), 2, 3) as log:
        log.add({"loss": 1.0})
        log.write(3)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
