"""Zen mode against plain attention: tokens and memory by arithmetic, causality, a training step, sampling, accuracy.

OMP_NUM_THREADS=1 python benchmarks/zen.py [--codes runs/codes.npz] [-o results/zen.md]

Arithmetic is of the report's 288 x 75 codes and 8 heads. Causality is measured in float64 with attention four times as
loud, on every pair of places. A training step runs in a process of its own, so that its peak memory is its own; the
samplers each draw the whole clip, and the codes must be the same. With --codes, the same network is trained with 0, 1
and 2 halvings for as many steps on the same batches.

Seconds are of this process on a processor, which what else the machine does hardly moves, unless they say clock.
"""

import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from foleybox.files import write_text
from foleybox.lab.baseline.codes import read_codes, split_codes
from foleybox.lab.baseline.pixelsnail import SMALL, STRIDE, Attention, CausalTransposed, PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.sampling import PLAIN, sample, sample_naive
from foleybox.lab.baseline.train_pixelsnail import measure
from foleybox.lab.core.loop import batch_indices

NAMES = {0: "plain", 1: "Zen, one halving", 2: "Zen, two halvings"}
Grid = tuple[int, int]


@dataclass(frozen=True)
class Benchmark:
    """Print the tables of Zen mode, and write them where asked."""

    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    "the page to write"
    codes: Path | None = None
    "a codes file: also compare the accuracy at equal steps"
    train_grid: Grid = (72, 75)
    "height and width of the timed training step's codes"
    sample_grids: tuple[Grid, ...] = ((10, 10), (20, 20), (40, 36))
    "grids that both samplers draw"
    large_grid: Grid = (144, 75)
    "a grid that the incremental sampler alone draws"
    repeats: int = 1
    "timed training steps, after one that warms up; the best counts"
    steps: int = 100
    "training steps for the accuracy"
    batch: int = 4
    "of the accuracy's training"


Made = TypeVar("Made")


def timed(function: Callable[[], Made]) -> tuple[float, float, Made]:
    """Return seconds by the clock, seconds of this process on a processor, and what was made."""
    clock, process = time.perf_counter(), time.process_time()
    made = function()
    return time.perf_counter() - clock, time.process_time() - process, made


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.3f} GB" if count < 1e9 else f"{count / 1e9:.2f} GB"


# --- by arithmetic ------------------------------------------------------------------------------------------------


def arithmetic(height: int = 288, width: int = 75, heads: int = 8) -> str:
    rows = []
    for zen, name in NAMES.items():
        h, w = (-(-size // STRIDE**zen) for size in (height, width))
        with torch.device("meta"):
            model = PixelSnail(PixelSnailConfig(height, width, 1024, heads=heads, zen=zen))
        weights = sum(parameter.numel() for parameter in model.parameters())
        rows.append([
            name, f"{h} x {w}", f"{h * w:,}", f"{height * width / (h * w):.2f}", f"{(height * width / (h * w)) ** 2:.1f}",
            gigabytes(heads * (h * w) ** 2 * 2), f"{weights:,}",
        ])  # fmt: skip
    return table(
        ["attention", "grid", "tokens", "times fewer", "times smaller matrix", "matrices of a block, fp16", "weights"],
        rows,
    )


# --- causality ----------------------------------------------------------------------------------------------------


class PublishedTransposed(CausalTransposed):
    """The control: as in the public copy of CMU's code, a row of height padding, so that row I speaks to row 2I - 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight(), self.bias, self.stride, padding=(1, 0), output_padding=(1, 0))


@torch.no_grad()
def moved(zen: int, published: bool, height: int = 14, width: int = 9) -> tuple[float, float, float]:
    """Return the most that a code moves the logits up to its own place, places moved there, places moved after it."""
    torch.manual_seed(0)
    size = PixelSnailConfig(height, width, 16, 16, 16, blocks=2, gates=2, heads=2, zen=zen, label_width=0)
    model = PixelSnail(size).double().eval()
    for part in model.modules():
        if isinstance(part, Attention):
            part.query.gain.mul_(4)
            part.key.gain.mul_(4)
        if isinstance(part, CausalTransposed) and published:
            part.__class__ = PublishedTransposed
    n = height * width
    codes = torch.randint(16, (1, n)).expand(n, n)
    pair = [(codes + change).view(n, height, width) % 16 for change in (0, torch.eye(n, dtype=torch.int64))]
    before, after = (model(each, torch.full((n,), 3)).flatten(2) for each in pair)
    difference = (after - before).abs().amax(1)  # [changed place, place]
    ahead, later = difference.tril(), difference[torch.ones(n, n, dtype=torch.bool).triu(1)]
    return float(ahead.max()), float((ahead > 0).sum()), float((later > 0).double().mean())


def causality() -> str:
    rows = []
    for name, zen, published in [*((name, zen, False) for zen, name in NAMES.items()),
                                 *((f"published, {stages} halving(s)", stages, True) for stages in (1, 2))]:  # fmt: skip
        most, places, later = moved(zen, published)
        rows.append([name, f"{most:.1e}" if most else "0 exactly", f"{places:.0f}", f"{100 * later:.1f} %"])
    return table(
        ["attention", "most that a code moves a place not after it", "such places", "later places moved"], rows
    )


# --- a training step ----------------------------------------------------------------------------------------------


def peak() -> int:
    """Return the most bytes that this process has held (its parent's, which getrusage may count, left out)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def training_step(zen: int, grid: Grid, repeats: int, threads: int, answer: Any) -> None:
    """In a process of its own: send (seconds by the clock, of processor, bytes that steps took beside the model)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = PixelSnail(replace(SMALL, height=grid[0], width=grid[1], codes=1024, zen=zen))
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    codes, label = torch.randint(1024, (1, *grid)), torch.tensor([3])
    idle = peak()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(codes, label), codes).backward()
        optimizer.step()

    spent = [timed(step)[:2] for _ in range(repeats + 1)][1:]
    answer.send((min(clock for clock, _ in spent), min(process for _, process in spent), peak() - idle))


def training(config: Benchmark) -> str:
    spawn, found = multiprocessing.get_context("spawn"), {}
    for zen in NAMES:
        ours, theirs = spawn.Pipe(duplex=False)
        arguments = (zen, config.train_grid, config.repeats, torch.get_num_threads(), theirs)
        child = spawn.Process(target=training_step, args=arguments)
        child.start()
        found[zen] = ours.recv()
        child.join()
    rows = []
    for zen, (clock, process, taken) in found.items():
        faster, less = found[0][1] / process, found[0][2] / max(taken, 1)
        rows.append([NAMES[zen], f"{process:.2f}", f"{clock:.2f}", f"{faster:.2f}", gigabytes(taken), f"{less:.2f}"])
    return table(
        ["attention", "seconds of processor", "by the clock", "times as fast", "peak memory of a step", "times less"],
        rows,
    )


# --- sampling -----------------------------------------------------------------------------------------------------


def sampler(zen: int, grid: Grid) -> PixelSnail:
    torch.manual_seed(0)
    return PixelSnail(replace(SMALL, height=grid[0], width=grid[1], codes=1024, zen=zen)).eval()


def sampling(config: Benchmark) -> str:
    rows = []
    for grid in config.sample_grids:
        model, tokens = sampler(1, grid), grid[0] * grid[1]
        _, fast, drawn = timed(lambda model=model: sample(model, [3], [7]))
        _, slow, naive = timed(lambda model=model: sample_naive(model, [3], [7], PLAIN))
        same = int((drawn == naive).sum())
        rows.append([
            NAMES[1], f"{grid[0]} x {grid[1]}", f"{tokens:,}", f"{slow:.2f}", f"{fast:.2f}", f"{tokens / fast:,.0f}",
            f"{slow / fast:.0f}", f"{same:,} of {tokens:,}",
        ])  # fmt: skip
    large, tokens = config.large_grid, config.large_grid[0] * config.large_grid[1]
    for zen, name in NAMES.items():
        model = sampler(zen, large)
        _, fast, _ = timed(lambda model=model: sample(model, [3], [7]))
        rows.append(
            [name, f"{large[0]} x {large[1]}", f"{tokens:,}", "not run", f"{fast:.2f}", f"{tokens / fast:,.0f}", "", ""]
        )
    return table(
        ["attention", "grid", "tokens", "naive, s", "incremental, s", "tokens/s", "times as fast", "same tokens"], rows
    )


# --- accuracy at equal steps --------------------------------------------------------------------------------------


def accuracy(config: Benchmark, path: Path) -> str:
    codes, rows = read_codes(path), []
    kept, held = split_codes(codes, 0.1)
    n, h, w = codes.codes.shape
    size = replace(SMALL, height=h, width=w, codes=codes.size, channels=32, inner=32, gates=2)
    for zen, name in NAMES.items():
        torch.manual_seed(0)
        model = PixelSnail(replace(size, zen=zen))
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        clock = time.process_time()
        for step in range(config.steps):
            chosen = batch_indices(step, config.batch, len(kept.codes), 0)
            real, label = kept.codes[chosen], kept.labels[chosen]
            optimizer.zero_grad()
            F.cross_entropy(model(real, label), real).backward()
            optimizer.step()
        seconds = time.process_time() - clock
        found = measure(model, kept.pick(torch.arange(len(held.codes))), "train") | measure(model, held, "held_out")
        rows.append([
            name, *(f"{found[f'{side}_cross_entropy']:.4f}" for side in ("train", "held_out")),
            *(f"{100 * found[f'{side}_accuracy']:.2f} %" for side in ("train", "held_out")), f"{seconds:.0f}",
        ])  # fmt: skip
    values, counts = codes.codes.unique(return_counts=True)
    most = int(values[counts.argmax()])
    return (
        f"{n} clips of {h} x {w} of {codes.size} codes, of the VQ-VAE {codes.fingerprint[:12]} at step {codes.step:,}; "
        f"{len(held.codes)} of them, by recording, held out, and as many of the others measured. {size.channels} channels, "
        f"{size.blocks} blocks, {size.gates} gates; {config.steps} steps of {config.batch} clips, one rate of 1e-3, float32, "
        f"seed 0. Always saying code {most} would be right for {100 * int(counts.max()) / codes.codes.numel():.2f} %.\n\n"
        + table(
            ["attention", "cross-entropy, trained on", "held out", "accuracy, trained on", "held out", "s of training"],
            rows,
        )
    )


# --- the page -----------------------------------------------------------------------------------------------------


def asked(command: Sequence[str]) -> str:
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(config: Benchmark) -> None:
    load = os.getloadavg()[0]
    commit, changed = asked(["git", "rev-parse", "--short", "HEAD"]), asked(["git", "status", "--porcelain", "../src"])
    page = [
        "# Zen mode: what coarser attention costs and saves",
        f"Written by `python benchmarks/zen.py {' '.join(sys.argv[1:])}` at commit {commit}"
        + (" with uncommitted changes" if changed != "unknown" else "")
        + f", {torch.get_num_threads()} thread(s) of {processor()} ({os.cpu_count()} cores, load {load:.1f} from other "
        f"work when it began), torch {torch.__version__}. Networks have random weights (seed 0): speed and causality do not "
        "depend on what was learnt.",
    ]
    small = f"{SMALL.channels} channels, {SMALL.blocks} blocks, {SMALL.gates} gates, {SMALL.heads} heads, 1,024 codes"
    height, width = config.train_grid
    for title, text, part in [
        ("Tokens and matrices at 288 x 75, 8 heads (arithmetic)", "", arithmetic),
        (
            "Causality",
            "float64, attention weights x 4, 14 x 9 codes, every pair of places. The control is the arrangement of the "
            "public copy of CMU's code, whose transposed convolution cuts a row at the top.", causality,
        ),
        (
            "A training step", f"{small}, {height} x {width} codes, one clip, float32, with dropout; the best of "
            f"{config.repeats}, each kind in its own process. Memory is what the steps took beside the model.",
            lambda: training(config),
        ),
        (
            "Drawing a clip", f"{small}; one clip. Both samplers draw every token of the first {len(config.sample_grids)}; "
            "where a draw differs, the rest of the clip does too.", lambda: sampling(config),
        ),
    ]:  # fmt: skip
        page += [f"## {title}", *([text] if text else []), part()]
        print("\n\n".join(page[-3:]), flush=True)
    if config.codes is not None:
        page += ["## Accuracy at equal steps", accuracy(config, config.codes)]
        print(page[-1])
    page.append(f"The whole page took {time.process_time():.0f} s of processor, beside the training steps' own.")
    if config.out is not None:
        seen = config.out.with_name(f"{config.out.stem}_seen.md")
        if seen.is_file():
            page.append(seen.read_text(encoding="utf-8").rstrip())
        write_text(config.out, "\n\n".join(page) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
