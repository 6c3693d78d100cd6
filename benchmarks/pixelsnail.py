"""Speed of PixelSNAIL: the incremental sampler against the naive one, and a training step against the published one.

OMP_NUM_THREADS=1 python benchmarks/pixelsnail.py [--size published] [--batches 8 32] [--steps 2]

Sampling: one whole clip is drawn incrementally. The naive sampler is timed at a few depths, one pass over all rows so
far for one code; a whole clip is estimated from those on a line between them, and its draws in those rows are compared.

A training step, turn by turn, best of each: "published" has the dead network, attention with its matrix written out,
float32 and contiguous tensors; "ours" is the loop's, bfloat16 and channels-last. Both drop out the same share of all.

Seconds are given twice: by the clock, and of this process on a processor, which what else the machine does hardly moves.
"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from foleybox.lab.baseline.pixelsnail import SIZES, Attention, PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.sampling import PLAIN, Noise, PlaceByPlace, draw, memory_needed


@dataclass(frozen=True)
class Benchmark:
    """Print tokens per second, the naive sampler's estimate, memory, and the time of a training step."""

    size: Literal["small", "medium", "published"] = "published"
    depths: tuple[int, ...] = (1, 5, 10, 15, 20)
    "rows so far, at which the naive sampler is timed"
    batches: tuple[int, ...] = (8, 32)
    "clips at once, beside one"
    rows: tuple[int, ...] = (5, 15)
    "the rows that are drawn of the larger batches"
    steps: int = 2
    "training steps of each kind, the first of which warms up; 0: leave them out"
    clips: int = 1
    "of a training step"


class Spent(NamedTuple):
    clock: float
    process: float

    def __str__(self) -> str:
        return f"{self.clock:9.2f} s ({self.process:.2f} s of processor)"


Made = TypeVar("Made")


def timed(function: Callable[[], Made]) -> tuple[Spent, Made]:
    clock, process = time.perf_counter(), time.process_time()
    made = function()
    return Spent(time.perf_counter() - clock, time.process_time() - process), made


def total(*parts: Spent) -> Spent:
    return Spent(*(sum(each) for each in zip(*parts)))


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"


# --- sampling -----------------------------------------------------------------------------------------------------


def drawn_row(places: PlaceByPlace, row: int, codes: Tensor, noises: Tensor) -> Tensor:
    """Draw a row into codes [B, H, W] and return its logits [W, B, K]."""
    places.start_row(row, codes)
    logits = []
    for column in range(codes.shape[2]):
        logits.append(places.logits(row, column))
        codes[:, row, column] = draw(logits[-1], noises[column], PLAIN)
        places.take(column, codes[:, row, column])
    return torch.stack(logits)


@torch.no_grad()
def sampling(config: Benchmark, size: PixelSnailConfig) -> None:
    torch.manual_seed(0)
    model = PixelSnail(size).eval()
    H, W, K = size.height, size.width, size.codes
    print(f"model made: peak memory {peak()}")

    prepared, places = timed(partial(PlaceByPlace, model))
    spent, logits, noises = [prepared], [], []
    label, codes, noise = torch.tensor([3]), torch.zeros(1, H, W, dtype=torch.int64), Noise([7], W, K)
    places.begin(label)
    for row in range(H):
        noises.append(noise.row())
        seconds, found = timed(partial(drawn_row, places, row, codes, noises[row]))
        spent.append(seconds)
        logits.append(found)
    incremental = total(*spent)
    print(
        f"incremental, 1 clip, {H * W} tokens: {incremental}, {H * W / incremental.process:.0f} tokens/s of processor"
    )
    print(f"  {memory_needed(model, 1) / 1e9:.2f} GB foretold beside the model, peak memory {peak()}")

    passes, same, apart = {}, 0, 0.0
    for depth in config.depths:
        sofar = codes[:, :depth].clone()
        sofar[:, -1, -1] = 0  # as the naive sampler finds it before the row's last code
        passes[depth], found = timed(partial(model, sofar, label))
        naive = found[:, :, -1].permute(2, 0, 1)  # [W, 1, K]
        apart = max(apart, float((naive - logits[depth - 1]).abs().max()))
        same += int((draw(naive[:, 0], noises[depth - 1][:, 0], PLAIN) == codes[0, depth - 1]).sum())
        print(f"naive, one code with {depth:2d} rows so far: {passes[depth]}")
    whole = Spent(*(sum(W * between(passes, row + 1, kind) for row in range(H)) for kind in (0, 1)))
    print(f"  draws compared: {same} of {W * len(passes)} the same; logits differ by up to {apart:.1e}")
    print(f"naive, 1 clip, estimated from those {len(passes)} passes: {whole}")
    print(
        f"incremental is {whole.clock / incremental.clock:.0f} times as fast, "
        f"by processor time {whole.process / incremental.process:.0f}"
    )

    for batch in config.batches:
        torch.manual_seed(1)
        codes, noise = torch.randint(K, (batch, H, W)), Noise(range(batch), W, K)
        places.begin(torch.arange(batch) % 7)
        spent_here = total(*(timed(partial(drawn_row, places, row, codes, noise.row()))[0] for row in config.rows))
        tokens = batch * W * len(config.rows)
        print(
            f"incremental, {batch} clips, rows {', '.join(map(str, config.rows))} of {H}: {spent_here}, "
            f"{tokens / spent_here.clock:.0f} tokens/s, {tokens / spent_here.process:.0f} of processor; "
            f"{memory_needed(model, batch) / 1e9:.2f} GB foretold, peak memory {peak()}"
        )


def between(passes: dict[int, Spent], depth: int, kind: int) -> float:
    """Return the seconds of a pass at any depth, on a line between the measured ones."""
    below = max((each for each in passes if each <= depth), default=min(passes))
    above = min((each for each in passes if each >= depth), default=max(passes))
    part = (depth - below) / (above - below) if above > below else 0.0
    return passes[below][kind] * (1 - part) + passes[above][kind] * part


# --- training -----------------------------------------------------------------------------------------------------


class PublishedAttention(Attention):
    """The matrix of all places by all places, -1e4 where one may not look, the first row times 0."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        q, k, v = (self._heads(part) for part in (self.query(query), self.key(key), self.value(key)))
        n = q.shape[2]
        weights = (q @ k.transpose(2, 3)) / q.shape[3] ** 0.5
        weights = weights.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(-1), -1e4).softmax(3)
        weights = F.dropout(weights * (torch.arange(n) > 0)[:, None], self.dropout, self.training)
        return (weights @ v).transpose(2, 3).flatten(1, 2).unflatten(2, query.shape[2:])


def trainer(config: Benchmark, size: PixelSnailConfig, kind: str) -> Callable[[], None]:
    """Return a function that makes one training step."""
    torch.manual_seed(0)
    plain = kind == "published"
    model = PixelSnail(replace(size, cond_resnet=plain))
    if plain:
        for part in model.modules():
            if type(part) is Attention:
                part.__class__ = PublishedAttention  # type: ignore[assignment]
    else:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 3e-4)
    codes, label = torch.randint(size.codes, (config.clips, size.height, size.width)), torch.arange(config.clips) % 7

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=not plain):
            logits = model(codes, label)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), codes).backward()
        optimizer.step()

    return step


def training(config: Benchmark, size: PixelSnailConfig) -> None:
    kinds = ("published", "ours")
    steps = {kind: trainer(config, size, kind) for kind in kinds}
    best = {kind: Spent(float("inf"), float("inf")) for kind in kinds}
    for turn in range(config.steps):
        for kind, step in steps.items():
            spent, _ = timed(step)
            if turn or config.steps == 1:
                best[kind] = Spent(*map(min, spent, best[kind]))
    for kind, spent in best.items():
        ratio = best["published"].process / spent.process
        print(
            f"training step of {config.clips} clip(s), {kind:9}: {spent}, {ratio:.2f} times as fast by processor time"
        )


def main(config: Benchmark) -> None:
    size = SIZES[config.size]
    load = os.getloadavg()[0]
    print(
        f"size {config.size}, {torch.get_num_threads()} CPU thread(s), {os.cpu_count()} cores, load {load:.1f} (other work "
        f"included), torch {torch.__version__}"
    )
    sampling(config, size)
    if config.steps:
        training(config, size)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
