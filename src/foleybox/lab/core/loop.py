"""Functions that the training loops call: batches by step, weight averaging, the log, the accelerator.

There is no trainer class: each loop is written out in its own file and calls what it needs from here. One clock, `step`,
determines the batch, the noise, the learning rate and the decay of the average. A checkpoint (`runs.py`) is therefore
the step and the state dicts, and the same command resumes a run, bit for bit on a CPU.

Letters: B batch, N clips.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import KwargsHandler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.lab.core.runs import RunConfig, close_run
from foleybox.labels import LABELS

PATIENCE = 100
"consecutive steps without a finite loss after which training stops, at the next line of the log"
STEADY = torch.tensor([label.steady for label in LABELS])
"bool [7] by label id: steady sounds without events; a time shift may wrap round"

# --- the clock ----------------------------------------------------------------------------------------------------


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch from (seed, rank, step), so that the noise of a step does not depend on the steps before it.

    With the same rank in all processes, each draws the same numbers: draw for the global batch, then take the `share`.
    """
    torch.manual_seed(((seed * 1_000_003 + rank) * 1_000_000_007 + step) % 2**63)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


def batch_indices(step: int, batch: int, count: int, seed: int) -> Tensor:
    """Return the indices of a step's clips, int64 [B]: shuffled epochs, every clip once per epoch."""
    positions = range(step * batch, (step + 1) * batch)
    orders = {epoch: _order(count, seed, epoch) for epoch in range(positions[0] // count, positions[-1] // count + 1)}
    return torch.stack([orders[position // count][position % count] for position in positions])


def balanced_indices(
    step: int, batch: int, labels: Tensor, seed: int, recordings: Tensor | None = None, most: int = 0
) -> Tensor:
    """Return the indices of a step's clips, int64 [B], every label equally often; shuffled epochs within each label.

    Position p of the stream belongs to label p mod (number of labels). An epoch of a label is all of its clips, or, with
    `most` above 0, at most that many clips of each recording, drawn anew for each epoch. `recordings` int64 [N] are the
    recording numbers of the clips.
    """
    groups = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    sources = [recordings[group] for group in groups] if most and recordings is not None else None
    lengths = [len(group) for group in groups]
    if sources is not None:
        lengths = [int(each.unique(return_counts=True)[1].clamp(max=most).sum()) for each in sources]
    orders: dict[tuple[int, int], Tensor] = {}
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        nth, group = divmod(position, len(groups))
        epoch, place = divmod(nth, lengths[group])
        if (group, epoch) not in orders:
            order = _order(len(groups[group]), seed * 31 + group, epoch)
            orders[group, epoch] = order if sources is None else order[_first_of_each(sources[group][order], most)]
        indices.append(groups[group][orders[group, epoch][place]])
    return torch.stack(indices)


def _first_of_each(numbers: Tensor, most: int) -> Tensor:
    """Return a mask [N] of the positions whose number is among the first `most` of its value in `numbers`, int64 [N]."""
    ordered, places = numbers.sort(stable=True)
    nth = torch.empty_like(places)
    nth[places] = torch.arange(len(numbers)) - torch.searchsorted(ordered, ordered)
    return nth < most


def evenly_spaced(count: int, wanted: int) -> Tensor:
    """Return `wanted` of the indices 0 to count - 1, evenly spaced, int64; all of them if `wanted` is `count` or more."""
    return torch.arange(count) if wanted >= count else torch.arange(wanted) * count // wanted


# --- several processes ------------------------------------------------------------------------------------------------


def share(batch: Tensor, rank: int, world: int) -> Tensor:
    """Return this process's part [B / world, ...] of a global batch [B, ...]: items rank, rank + world, ..."""
    return batch[rank::world]


def gather_batch(part: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the global batch [B, ...] from all processes' shares [B / world, ...], in the order before `share`."""
    if accelerator.num_processes == 1:
        return part
    gathered = torch.as_tensor(accelerator.gather(part.contiguous()))
    return gathered.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)


def broadcast_buffers(module: nn.Module, world: int) -> None:
    """Overwrite the module's buffers with those of process 0.

    For buffers that every process computes from the same data, which on GPUs can differ in the last digits.
    """
    if world > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def all_finite(loss: Tensor, world: int) -> bool:
    """Return whether the loss is finite in every process, so that either all of them skip a step or none.

    Waits for the device: call it once per optimiser step.
    """
    finite = torch.isfinite(loss.detach()).float()
    if world > 1:
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    return bool(finite)


# --- schedules and averages -------------------------------------------------------------------------------------------


def due(done: int, steps: int, *every: int) -> bool:
    """Return whether something is due after `done` steps: at multiples of each of `every` and after the last step.

    `Log.write` is a collective operation: whether it is called must not depend on what only one process knows.
    """
    return done == steps or any(done % each == 0 for each in every)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the parameters of `average` toward `model`: average <- d average + (1 - d) model; copy the buffers.

    d = min(decay, (1 + step) / (10 + step)): early on, the random start leaves the average quickly. Buffers are copied,
    because averaged spectral-norm vectors are no unit vectors: the norm, and so the weights, would be wrong.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, weight)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


class Best:
    """The lowest score so far and the weights that had it: part of the checkpoint, so that both are of one moment."""

    def __init__(self) -> None:
        self.score, self.step = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, score: float, step: int, model: nn.Module) -> None:
        """Keep the weights that a model has after `step` steps if their score is the lowest."""
        if score < self.score:
            self.score, self.step = float(score), step
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take the state of `state_dict`, or of an earlier version, which wrote the weights to another file."""
        self.score = float(state_dict["score"])
        self.step, self.weights = state_dict.get("step", 0), state_dict.get("weights", {})


# --- the log -----------------------------------------------------------------------------------------------------------


class Log:
    """Writes means of logged terms to `log.jsonl` and to the tracker, and draws a progress bar on a terminal.

    One JSON object per line; its `step` is the number of steps done. On resume, lines beyond the resumed step are
    removed, so that every step appears once. `write` stops a training whose last steps were all `skipped` (`PATIENCE`).
    When the log is closed, other processes may train in the folder. Sums of tensors stay on their device until a line is
    written: reading a value from a GPU waits for all work queued on it.
    """

    def __init__(self, out: Path, accelerator: Accelerator, start: int, steps: int) -> None:
        self.path, self.accelerator = out / "log.jsonl", accelerator
        self.main = accelerator.is_main_process
        accelerator.init_trackers("foleybox")
        self.sums: dict[str, Tensor] = {}
        "float64 [2] for each term: the sum of its finite values, and their number"
        self.skipped = torch.zeros(())
        "how many of the last steps were skipped, one after the other"
        self.clock, self.clock_step, self.done = time.monotonic(), start, start
        if self.main:
            kept = []
            if start and self.path.is_file():
                kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= start]
            write_text(self.path, "".join(line + "\n" for line in kept))
        console = Console(file=sys.stderr)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (self.main and console.is_terminal),
        )
        self.task = self.bar.add_task("training", total=steps, completed=start)
        self.terminal = console.is_terminal

    def __enter__(self) -> "Log":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        self.accelerator.end_training()
        close_run(self.path.parent)
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after step {self.done}; the same command resumes from the last checkpoint in {self.path.parent}"
            )

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        """Add a step's scalars to the means of the next line; values that are not finite are left out.

        The term `skipped` is 1 for a step that was not made, because its loss or its gradients were not finite, else 0.
        """
        if "skipped" in terms:
            skipped = torch.as_tensor(terms["skipped"])
            self.skipped = (self.skipped.to(skipped.device) + 1) * skipped
        for name, value in terms.items():
            value = torch.as_tensor(value).detach().double().reshape(())
            finite = value.isfinite()
            entry = torch.stack([value.where(finite, 0.0), finite.double()])
            self.sums[name] = self.sums[name] + entry if name in self.sums else entry

    def write(self, step: int, extra: Mapping[str, float] | None = None) -> None:
        """Write the means since the last line, over all processes, as the line of `step`; `extra` is added as it is.

        Raises UserError if the last `PATIENCE` steps were skipped.
        """
        device = self.accelerator.device
        table = torch.zeros(0, 2, dtype=torch.float64, device=device)
        if self.sums:
            table = torch.stack([entry.to(device) for entry in self.sums.values()])
        if self.accelerator.num_processes > 1:
            table = torch.as_tensor(self.accelerator.reduce(table, "sum"))
        means = {name: total / count for name, (total, count) in zip(self.sums, table.tolist()) if count}
        now = time.monotonic()  # after the table was read, which waits for the device
        means["steps_per_second"] = (step - self.clock_step) / max(now - self.clock, 1e-9)
        means |= extra or {}
        self.sums, self.clock, self.clock_step = {}, now, step
        if int(self.skipped) >= PATIENCE:
            raise UserError(
                f"the loss or its gradients have been NaN or infinite for {int(self.skipped)} steps up to {step}: lower the "
                f"learning rate, or use --precision no; {self.path.parent} holds the last checkpoint before that"
            )
        if not self.main:
            return
        with self.path.open("a") as file:
            file.write(
                json.dumps({"step": step, **{name: float(f"{value:.7g}") for name, value in means.items()}}) + "\n"
            )
        self.accelerator.log(means, step=step)
        if not self.terminal:
            print(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in means.items()), flush=True)

    def advance(self, step: int) -> None:
        """Set the progress bar to `step` steps done."""
        self.done = step
        self.bar.update(self.task, completed=step)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # an incomplete line of a killed process


def accelerator_for(
    run: RunConfig, precision: str, out: Path, handlers: list[KwargsHandler] | None = None
) -> Accelerator:
    """Check a run's settings, set the number of threads, and return its accelerator (device, precision, processes, tracker).

    `precision` ("no", "bf16" or "fp16") is used unless `run.precision` is set. Processes are those started by torchrun.
    Raises UserError for a setting out of range, a tracker that is not installed, and fp16 without a GPU.
    """
    at_least(run, seed=0, threads=0, save_every=1, sample_every=1, log_every=1)
    precision = run.precision or precision
    if run.threads:
        torch.set_num_threads(run.threads)
    if run.tracker == "wandb" and find_spec("wandb") is None:
        raise UserError(
            "tracker wandb is not installed: pip install -c constraints.txt '.[wandb]', or use --tracker tensorboard"
        )
    if precision == "fp16" and (run.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("precision fp16 needs a GPU: use bf16 or no on a CPU")
    return Accelerator(
        mixed_precision=precision,
        cpu=run.device == "cpu" or not torch.cuda.is_available(),
        log_with=None if run.tracker == "none" else run.tracker,
        project_dir=out,
        kwargs_handlers=handlers,
    )


def at_least(config: object, **lowest: float) -> None:
    """Raise UserError for a setting of `config` below its lowest value. A `seed` must also be below 2**53."""
    for name, bound in lowest.items():
        if getattr(config, name) < bound:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected {bound:g} or more")
        if name == "seed" and getattr(config, name) >= 2**53:
            raise UserError(f"--seed {getattr(config, name)}: expected below 2**53")
