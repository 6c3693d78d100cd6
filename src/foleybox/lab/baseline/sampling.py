"""Draw codes from PixelSNAIL position by position: `sample`, and `sample_naive`, with which it must agree.

The published sampler computes all rows so far again for every code. Here every row and every position is computed once:

* When a row starts, all rows above it are known in every layer, so their part of a layer's outputs in the row is one
  convolution (nine tenths of the work, at the speed of convolutions).
* A causal convolution does not use its own position, so at a position the convolutions of all layers are one batched
  matrix product.
* Attention keeps the keys and values of earlier positions.

Letters as in pixelsnail.py; L = blocks x gates layers of gated convolutions.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.baseline.pixelsnail import LABELS, Attention, Block, Gate, NormedConv, PixelSnail


@dataclass(frozen=True)
class Drawing:
    """How a code is drawn from the model's distribution; the defaults draw from it as it is, as published."""

    temperature: float = 1.0
    "below 1: likely codes become likelier; above 1: unlikely ones do"
    top_k: int = 0
    "draw among this many of the likeliest codes only; 0: all"
    top_p: float = 1.0
    "draw among the likeliest codes that together have this probability; 1: all"


PLAIN = Drawing()


# --- one code -----------------------------------------------------------------------------------------------------


class Noise:
    """The noise of every clip from its own seed, independent of the other clips of the batch."""

    def __init__(self, seeds: Sequence[int], width: int, codes: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape = (width, codes)

    def row(self) -> Tensor:
        """Return the Gumbel noise of the next row, float64 [W, B, K]."""
        draws = [torch.empty(self.shape, dtype=torch.float64).exponential_(generator=each) for each in self.generators]
        return torch.stack(draws, 1).log_().neg_()


def restricted(logits: Tensor, drawing: Drawing) -> Tensor:
    """Return logits [B, K] after temperature, minus infinity for codes that top-k and top-p exclude."""
    logits = logits.double() / drawing.temperature
    if 0 < drawing.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(drawing.top_k).values[:, -1:], -torch.inf)
    if drawing.top_p < 1:
        ordered, order = logits.softmax(1).sort(1, descending=True)
        excluded = ordered.cumsum(1) - ordered >= drawing.top_p  # likelier codes reach it alone; the first always stays
        logits = logits.masked_fill(torch.zeros_like(excluded).scatter(1, order, excluded), -torch.inf)
    return logits


def draw(logits: Tensor, noise: Tensor, drawing: Drawing) -> Tensor:
    """Draw codes [B] from logits [B, K] with Gumbel noise [B, K]: the argmax of their sum has the softmax's distribution.

    Two ways to compute a logit differ in the last bits. With this method a draw changes only if the two largest sums
    are that close; with cumulative probabilities it would change near any of K boundaries.
    """
    return (restricted(logits, drawing) + noise).argmax(1)


@torch.no_grad()
def sample_naive(model: PixelSnail, labels: Sequence[int], seeds: Sequence[int], drawing: Drawing) -> Tensor:
    """Draw codes [B, H, W] as the published code does, the whole prefix again for every code: the reference, very slow."""
    H, W, K = model.config.height, model.config.width, model.config.codes
    device = model.where.device
    noise, label = Noise(seeds, W, K), torch.tensor(labels, device=device)
    codes = torch.zeros(len(seeds), H, W, dtype=torch.int64, device=device)
    for row in range(H):
        row_noise = noise.row().to(device)
        for column in range(W):
            logits = model(codes[:, : row + 1], label)[:, :, row, column]
            codes[:, row, column] = draw(logits, row_noise[column], drawing)
    return codes


# --- incremental --------------------------------------------------------------------------------------------------


class CausalLayers:
    """L causal convolutions of one kind, evaluated position by position.

    Columns are those of the input, except in `output`, whose columns are those of the output: with a stride it has fewer.
    """

    def __init__(self, convs: Sequence[NormedConv]) -> None:
        self.stride = convs[0].stride
        self.above, self.bias, before = [], [conv.bias for conv in convs], []
        for conv in convs:
            weight = conv.weight()  # [outputs, inputs, k, k]
            self.side = weight.shape[2] // 2
            self.above.append(weight[:, :, :-1].contiguous(memory_format=torch.channels_last))
            before.append(weight[:, :, -1, : self.side].permute(2, 1, 0).flatten(0, 1))
        self.before = torch.stack(before)  # [L, side * inputs, outputs]

    def reset(self, batch: int, width: int) -> None:
        """Start `batch` clips with rows of `width` positions."""
        outputs, inputs, up, _ = self.above[0].shape
        new = self.before.new_zeros
        self.rows = new(
            len(self.above), batch, up, self.side + width + self.side, inputs
        )  # the rows above, zero-padded
        self.row = new(len(self.above), batch, self.side + width, inputs)  # the current row
        self.from_above = new(-(-width // self.stride), len(self.above), batch, outputs)

    def start_row(self, has_outputs: bool = True) -> None:
        """Move the finished row to the rows above; compute their part of the next row's outputs if it has outputs."""
        self.rows[:, :, :-1] = self.rows[:, :, 1:].clone()
        self.rows[:, :, -1, self.side : -self.side] = self.row[:, :, self.side :]
        if not has_outputs:
            return
        for layer, (weight, bias) in enumerate(zip(self.above, self.bias)):
            part = F.conv2d(self.rows[layer].permute(0, 3, 1, 2), weight, bias, self.stride)  # [B, outputs, 1, W]
            self.from_above[:, layer] = part[:, :, 0].permute(2, 0, 1)

    def output(self, column: int) -> Tensor:
        """Return the outputs of all layers at a position, [L, B, outputs]."""
        near = self.row[:, :, column * self.stride : column * self.stride + self.side].flatten(2)
        return torch.baddbmm(self.from_above[column], near, self.before)

    def store(self, column: int, layers: slice, values: Tensor) -> None:
        """Set the inputs of some layers at a position, [n, B, inputs]."""
        self.row[layers, :, self.side + column] = values


class Pointwise:
    """A pointwise convolution of [B, inputs]; of several, the outputs concatenated."""

    def __init__(self, *convs: NormedConv) -> None:
        self.weight = torch.cat([conv.weight()[:, :, 0, 0] for conv in convs]).t().contiguous()
        self.bias = torch.cat([cast(Tensor, conv.bias) for conv in convs])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class PointwiseGate:
    """A gated block of pointwise convolutions, of [B, C]."""

    def __init__(self, gate: Gate) -> None:
        self.conv1, self.conv2 = Pointwise(gate.conv1), Pointwise(gate.conv2)
        self.aside = Pointwise(gate.aside) if gate.aside is not None else None

    def __call__(self, x: Tensor, aside: Tensor | None = None) -> Tensor:
        y = self.conv1(F.elu(x))
        if self.aside is not None and aside is not None:
            y = y + self.aside(F.elu(aside))
        return x + F.glu(self.conv2(F.elu(y)), 1)


class AttentionState(Protocol):
    """The attention of all blocks while a batch is drawn."""

    def reset(self, batch: int) -> None:
        """Start `batch` clips."""
        ...

    def start_row(self, row: int) -> None:
        """Start a row."""
        ...

    def start_position(self, row: int, column: int) -> None:
        """Compute what does not depend on the position's own features."""
        ...

    def attend(self, block: int, row: int, column: int, query: Tensor, key: Tensor) -> Tensor:
        """Return the output of a block's attention [B, C / 2]; keep query and key [B, ...] for later positions."""
        ...


class PlainAttentionState:
    """Keys and values of the positions so far, of every block."""

    def __init__(self, model: PixelSnail) -> None:
        self.config = model.config
        modules = [cast(Attention, block.attention) for block in cast(list[Block], list(model.blocks))]
        self.query = [Pointwise(each.query) for each in modules]
        self.key_value = [Pointwise(each.key, each.value) for each in modules]

    def reset(self, batch: int) -> None:
        c = self.config
        size = (c.blocks, 2, batch, c.heads, c.height * c.width, c.channels // 2 // c.heads)
        self.memory = self.query[0].weight.new_zeros(size)  # keys and values [2, B, E, N, C / 2 / E] of each block

    def start_row(self, row: int) -> None:
        pass

    def start_position(self, row: int, column: int) -> None:
        pass

    def attend(self, block: int, row: int, column: int, query: Tensor, key: Tensor) -> Tensor:
        B, heads, position = len(query), self.config.heads, row * self.config.width + column
        past = slice(position)
        keys, values = self.memory[block]
        q = self.query[block](query).view(B, heads, 1, -1)
        y = F.scaled_dot_product_attention(q, keys[:, :, past], values[:, :, past]) if position else torch.zeros_like(q)
        self.memory[block, :, :, :, position] = self.key_value[block](key).view(B, 2, heads, -1).transpose(0, 1)
        return y.flatten(1)


class AttentionMemory(NamedTuple):
    """Numbers per clip that the attention of all blocks holds while codes are drawn."""

    held: int
    at_once: int
    "of the largest temporary result"


@singledispatch
def attention_state(model: PixelSnail) -> AttentionState:
    """Return the attention of a model for drawing; another kind of PixelSNAIL registers its own."""
    return PlainAttentionState(model)


@singledispatch
def attention_memory(model: PixelSnail) -> AttentionMemory:
    """Return the memory of `attention_state`, in numbers per clip."""
    c = model.config
    return AttentionMemory(c.blocks * c.channels * c.height * c.width, 0)


class IncrementalPixelSnail:
    """PixelSNAIL's logits, one position after another: `reset`; for each row `start_row`; then `logits` and `append`."""

    def __init__(self, model: PixelSnail) -> None:
        self.model, self.config = model, model.config
        blocks = cast(list[Block], list(model.blocks))
        gates = [gate for block in blocks for gate in cast(list[Gate], list(block.gates))]
        self.first, self.second = CausalLayers([g.conv1 for g in gates]), CausalLayers([g.conv2 for g in gates])
        planes = [cast(NormedConv, gate.plane).weight()[:, 0, 0, 0] for gate in gates]
        self.planes = torch.stack(planes)[:, None]  # [L, 1, 2C]
        self.table = model.code_table()
        # The part of a code in the inputs of the next positions of its row, the next one first: [side, K, C].
        self.before = model.before.weight()[:, :, -1].permute(2, 1, 0).flip(0).contiguous()
        self.keys = [PointwiseGate(block.key) for block in blocks]
        self.queries = [PointwiseGate(block.query) for block in blocks]
        self.outs = [PointwiseGate(block.out) for block in blocks]
        self.attention = attention_state(model)
        self.out = Pointwise(model.out)

    def reset(self, label: Tensor) -> None:
        """Start a batch of clips with labels [B]."""
        self.batch = len(label)
        self.plane = self.model.label_plane(label)[:, 0]  # [B, H, W]
        for layers in (self.first, self.second):
            layers.reset(self.batch, self.config.width)
        self.attention.reset(self.batch)

    def start_row(self, row: int, codes: Tensor) -> None:
        """Compute what depends on the rows above only, of `codes` [B, H, W]."""
        self.first.start_row()
        self.second.start_row()
        self.attention.start_row(row)
        self.second.from_above += self.plane[:, row].t()[:, None, :, None] * self.planes  # [W, L, B, 2C]
        nothing = codes.new_full((self.batch, 1, self.config.width), -1)  # the row itself: no codes yet
        near = codes[:, max(0, row - self.config.kernel // 2) : row]
        features = self.model.embed(torch.cat([near, nothing], 1), self.table)[:, :, -1]
        self.inputs = features.permute(2, 0, 1).contiguous()  # [W, B, C]

    def append(self, column: int, code: Tensor) -> None:
        """Add the codes [B] of a position to the inputs of those after it in the row."""
        for distance, table in enumerate(self.before, 1):
            if column + distance < self.config.width:
                self.inputs[column + distance] += table[code]

    def logits(self, row: int, column: int) -> Tensor:
        """Return the logits [B, K] of a position, after `append` of all codes before it in the row."""
        c = self.config
        self.attention.start_position(row, column)
        where = self.model.where[:, :, row, column].expand(self.batch, -1)
        inner, change = self.first.output(column), F.glu(self.second.output(column), -1)  # [L, B, inner], [L, B, C]
        self.second.store(column, slice(None), F.elu(inner))
        x = self.inputs[column]
        for block in range(c.blocks):
            layers = slice(block * c.gates, (block + 1) * c.gates)
            stages = torch.cat([x[None], change[layers]]).cumsum(
                0
            )  # [gates + 1, B, C]: the input of each gate, the output
            self.first.store(column, layers, F.elu(stages[:-1]))
            y = stages[-1]
            query = self.queries[block](torch.cat([y, where], 1))
            key = self.keys[block](torch.cat([x, y, where], 1))
            x = self.outs[block](y, aside=self.attention.attend(block, row, column, query, key))
        return self.out(F.elu(x))


@torch.no_grad()
def sample(
    model: PixelSnail,
    labels: Sequence[int],
    seeds: Sequence[int],
    drawing: Drawing = PLAIN,
    batch: int = 16,
    progress: bool = True,
) -> Tensor:
    """Draw a clip's codes for each label and its seed, `batch` at once: int64 [N, H, W] on the CPU.

    A clip depends on its label and seed alone (within what the last bits of float32 can change, see `draw`), not on the
    rest of the batch. `progress`: show a bar on a terminal. Raises UserError for bad settings and too little memory.
    """
    check(labels, seeds, drawing, batch)
    require_memory(model, min(batch, len(labels)))
    H, W, K, device = model.config.height, model.config.width, model.config.codes, model.where.device
    was_training = model.training
    incremental = IncrementalPixelSnail(model.eval())
    drawn = torch.zeros(len(labels), H, W, dtype=torch.int64)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("drawing codes", total=-(-len(labels) // batch) * H)
        for start in range(0, len(labels), batch):
            chosen = slice(start, start + batch)
            codes, noise = drawn[chosen].to(device), Noise(seeds[chosen], W, K)
            incremental.reset(torch.tensor(labels[chosen], device=device))
            for row in range(H):
                row_noise = noise.row().to(device)
                incremental.start_row(row, codes)
                for column in range(W):
                    codes[:, row, column] = draw(incremental.logits(row, column), row_noise[column], drawing)
                    incremental.append(column, codes[:, row, column])
                bar.advance(task)
            drawn[chosen] = codes.cpu()
    model.train(was_training)
    return drawn


# --- checks -------------------------------------------------------------------------------------------------------


def check(labels: Sequence[int], seeds: Sequence[int], drawing: Drawing, batch: int) -> None:
    """Raise UserError for what cannot be drawn."""
    check_drawing(drawing)
    if len(labels) != len(seeds) or not all(0 <= label < LABELS for label in labels):
        raise ValueError(f"{len(labels)} labels, {len(seeds)} seeds: expected as many, and labels 0 to {LABELS - 1}")
    if batch < 1:
        raise UserError(f"--batch {batch}: expected 1 or more")


def check_drawing(drawing: Drawing, flag: str = "--") -> None:
    """Raise UserError for a temperature, top-k or top-p out of range."""
    if not 0 < drawing.temperature < float("inf"):
        raise UserError(
            f"{flag}temperature {drawing.temperature}: expected above 0; for the likeliest code {flag}top-k 1"
        )
    if drawing.top_k < 0:
        raise UserError(f"{flag}top-k {drawing.top_k}: expected 1 or more, or 0 for all")
    if not 0 < drawing.top_p <= 1:
        raise UserError(f"{flag}top-p {drawing.top_p}: expected above 0, up to 1")


def memory_needed(model: PixelSnail, batch: int) -> int:
    """Return about how many bytes `sample` takes for `batch` clips at once, besides the model itself."""
    c, size = model.config, model.where.element_size()
    layers, wide = c.blocks * c.gates, c.width + c.kernel - 1
    rows = layers * (c.inner + c.channels) * c.kernel * wide  # the inputs of both convolutions: rows above, current row
    from_above = layers * (c.inner + 2 * c.channels) * c.width
    attention = attention_memory(model)
    at_once = max(c.kernel**2 * max(c.channels, c.inner) * wide, attention.at_once)  # inside a convolution
    noise = 8 * 4 * c.width * c.codes
    weights = sum(parameter.numel() for parameter in model.parameters())
    return size * (weights + batch * (rows + from_above + attention.held + at_once)) + batch * noise


def require_memory(model: PixelSnail, batch: int) -> None:
    """Raise UserError where `memory_needed` is more than is free."""
    needed, free = memory_needed(model, batch), memory_free(model.where.device)
    if needed > free:
        fits = next((fewer for fewer in range(batch, 0, -1) if memory_needed(model, fewer) <= free), 0)
        advice = f"lower --batch to {fits}" if fits else "a smaller model is needed"
        raise UserError(
            f"drawing {batch} clips at once takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: {advice}"
        )


def memory_free(device: torch.device) -> int:
    """Return the bytes that a device has free: Linux's own estimate, elsewhere all that the machine has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if table.is_file():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62
