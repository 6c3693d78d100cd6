"""Functions that every loop calls; nothing here calls a loop.

One clock: `step`. The batch, the noise, the learning rate and the weight of the average are functions of it, so a
checkpoint (`runs.py`) is the step and the state dicts, and running the same command again resumes: bit for bit on a CPU.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import KwargsHandler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.lab.core.runs import RunConfig
from foleybox.labels import LABELS

STEADY = torch.tensor([label.name in ("MovingMotorVehicle", "Rain") for label in LABELS])
"by label id: sounds without events, which may be turned round in time"

# --- the clock ----------------------------------------------------------------------------------------------------


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch from (seed, rank, step), so that a step's noise does not depend on how the run got there.

    With one rank for all, every process draws the same: draw for the global batch, and take this process's `share`.
    """
    torch.manual_seed(((seed * 1_000_003 + rank) * 1_000_000_007 + step) % 2**63)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


def batch_indices(step: int, batch: int, count: int, seed: int) -> Tensor:
    """Return the clips of a step, int64 [B]: epoch after epoch in shuffled order, every clip once an epoch."""
    places = torch.arange(step * batch, (step + 1) * batch)
    orders = {
        epoch: _order(count, seed, epoch) for epoch in range(int(places[0]) // count, int(places[-1]) // count + 1)
    }
    return torch.stack([orders[int(place) // count][int(place) % count] for place in places])


def balanced_indices(
    step: int, batch: int, labels: Tensor, seed: int, recordings: Tensor | None = None, most: int = 0
) -> Tensor:
    """Return the clips of a step, int64 [B], every label equally often; within a label, epoch after epoch.

    Place p of the endless stream belongs to label p mod (number of labels). An epoch of a label is all of its clips, or,
    with `most`, at most so many of each of the `recordings` [N] (a number for each), others each time.
    """
    groups = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    whose = [recordings[group] for group in groups] if most and recordings is not None else None
    lengths = [len(group) for group in groups]
    if whose is not None:
        lengths = [int(each.unique(return_counts=True)[1].clamp(max=most).sum()) for each in whose]
    orders: dict[tuple[int, int], Tensor] = {}
    indices = []
    for place in range(step * batch, (step + 1) * batch):
        which, turn = place % len(groups), place // len(groups)
        epoch, nth = divmod(turn, lengths[which])
        if (which, epoch) not in orders:
            order = _order(len(groups[which]), seed * 31 + which, epoch)
            orders[which, epoch] = order if whose is None else order[_first_of_each(whose[which][order], most)]
        indices.append(groups[which][orders[which, epoch][nth]])
    return torch.stack(indices)


def _first_of_each(whose: Tensor, most: int) -> Tensor:
    """Return which places [N] of `whose`, int64 [N], hold one of the first `most` of their number."""
    numbers, places = whose.sort(stable=True)
    nth = torch.empty_like(places)
    nth[places] = torch.arange(len(whose)) - torch.searchsorted(numbers, numbers)
    return nth < most


def share(batch: Tensor, rank: int, world: int) -> Tensor:
    """Return this process's part of a global batch [B, ...]."""
    return batch[rank::world]


def whole(part: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the global batch [B, ...] of the processes' shares [B / processes, ...], in the order that one would have."""
    if accelerator.num_processes == 1:
        return part
    gathered = torch.as_tensor(accelerator.gather(part.contiguous()))
    return gathered.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)


def agree(codebook: nn.Module, world: int) -> None:
    """Give every process the first one's codebook: each has made the same one, but for the last digits of a GPU's sums."""
    if world > 1:
        for buffer in codebook.buffers():
            torch.distributed.broadcast(buffer, 0)


def spread(count: int, wanted: int) -> Tensor:
    """Return the places of `wanted` of `count` things, evenly spread; all of them where there are no more."""
    return torch.arange(count) if wanted >= count else torch.arange(wanted) * count // wanted


def due(done: int, steps: int, *every: int) -> bool:
    """Return whether something that happens at the last of `steps` and at multiples of each of `every` happens now.

    `Log.write` asks all processes for their numbers: when it is called must not depend on what one of them knows.
    """
    return done == steps or any(done % each == 0 for each in every)


def all_finite(loss: Tensor, world: int) -> bool:
    """Return whether the loss is finite in every process, so that all of them skip a step or none."""
    finite = torch.isfinite(loss.detach()).float()
    if world > 1:
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    return bool(finite)


def cyclic_rate(
    step: int, low: float, high: float, period: int, shape: Literal["triangle", "cosine"] = "triangle"
) -> float:
    """Return a learning rate that goes from `low` at step 0 to `high` half a period later and back, over and over.

    triangle: in straight lines (Smith 2017, figure 2). cosine: slower at both turns.
    """
    phase = step % period / period
    height = 1 - abs(2 * phase - 1) if shape == "triangle" else (1 - math.cos(2 * math.pi * phase)) / 2
    return low + (high - low) * height


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the parameters of `average` toward `model`: average <- d average + (1 - d) model; copy the buffers.

    d = min(decay, (1 + step) / (10 + step)), so that a short run does not average its random start. Buffers are copied
    because the mean of two unit vectors is not one: averaged spectral-norm vectors make the norm, and so the weights,
    arbitrarily wrong.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, weight)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


class Best(nn.Module):
    """The lowest score so far; part of the checkpoint."""

    score: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("score", torch.tensor(torch.inf, dtype=torch.float64))


# --- the log -----------------------------------------------------------------------------------------------------------


class Log:
    """One line of JSON a logged step in `log.jsonl`, the same numbers to the tracker, a bar on the terminal.

    A line's step counts the steps done. On resume the lines beyond the resumed step are dropped: each step once.
    """

    def __init__(self, out: Path, accelerator: Accelerator, start: int, steps: int) -> None:
        self.path, self.accelerator = out / "log.jsonl", accelerator
        self.main = accelerator.is_main_process
        accelerator.init_trackers("foleybox")
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
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
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after step {self.done}; the same command resumes from the last checkpoint in {self.path.parent}"
            )

    def add(self, terms: Mapping[str, Tensor | float]) -> None:
        """Add a step's numbers to the means of the next line; a number that is not finite is left out."""
        for name, value in terms.items():
            number = float(value.detach() if isinstance(value, Tensor) else value)
            finite = math.isfinite(number)
            self.sums[name] = self.sums.get(name, 0.0) + (number if finite else 0.0)
            self.counts[name] = self.counts.get(name, 0) + finite

    def write(self, step: int, extra: Mapping[str, float] | None = None) -> None:
        """Write the means since the last line, over all processes, as the line of `step`."""
        now = time.monotonic()
        table = torch.tensor([[self.sums[name], self.counts[name]] for name in self.sums], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table.to(self.accelerator.device), "sum").cpu()  # type: ignore[union-attr]
        means = {name: float(total / count) for name, (total, count) in zip(self.sums, table) if count}
        means["steps_per_second"] = (step - self.clock_step) / max(now - self.clock, 1e-9)
        means |= extra or {}
        self.sums, self.counts, self.clock, self.clock_step = {}, {}, now, step
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
        """Move the bar: `step` steps are done."""
        self.done = step
        self.bar.update(self.task, completed=step)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off by kill -9


def accelerator_for(
    run: RunConfig, precision: str, out: Path, handlers: list[KwargsHandler] | None = None
) -> Accelerator:
    """Check a run's settings, set the threads, and return its accelerator: device, precision, processes, tracker.

    `precision`: "no", "bf16" or "fp16" (fp16 needs a GPU), unless the run names another. Processes are those of torchrun.
    Raises UserError for a number below its lowest value, a tracker that is not installed, and fp16 on a CPU.
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
    """Raise UserError for a setting of `config` below its lowest sensible value."""
    for name, bound in lowest.items():
        if getattr(config, name) < bound:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected {bound:g} or more")
        if name == "seed" and getattr(config, name) >= 2**53:
            raise UserError(f"--seed {getattr(config, name)}: expected below 2**53, as everywhere here")
