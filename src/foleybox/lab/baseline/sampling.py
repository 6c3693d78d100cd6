"""Draw codes from PixelSNAIL place by place: `sample`, and `sample_naive`, which it must agree with.

The published sampler computes all rows so far again for every code. Here every row and every place is computed once:

* when a row begins, all rows above it are known in every layer, so what they say to the row's every place is one
  convolution a layer (nine tenths of the work, at the speed of convolutions);
* a causal convolution does not see its own place, so at a place all layers' convolutions are one batched product;
* attention keeps the keys and values of all places before.

In Zen mode a coarse place belongs to the first of its fine places, (s I, s J), in raster order: what it sees lies
before that one, in every block, so it is computed there, of all blocks at once, and heard from there on.

Letters as in `models/pixelsnail.py`; L = blocks x gates layers of gated convolutions.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.baseline.pixelsnail import LABELS, STRIDE, Attention, Block, Gate, NormedConv, PixelSnail, Zen


@dataclass(frozen=True)
class Drawing:
    """How a code is drawn of what the model gives; the defaults are the published ones, the model's own distribution."""

    temperature: float = 1.0
    "below 1: nearer to the likeliest codes; above 1: further out"
    top_k: int = 0
    "draw among this many of the likeliest codes only; 0: all"
    top_p: float = 1.0
    "draw among the likeliest codes that together have this probability; 1: all"


PLAIN = Drawing()


# --- one code -----------------------------------------------------------------------------------------------------


class Noise:
    """The noise of every clip from its own seed, whatever else is in the batch."""

    def __init__(self, seeds: Sequence[int], width: int, codes: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape = (width, codes)

    def row(self) -> Tensor:
        """Return the Gumbel noise of the next row, float64 [W, B, K]."""
        draws = [torch.empty(self.shape, dtype=torch.float64).exponential_(generator=each) for each in self.generators]
        return torch.stack(draws, 1).log_().neg_()


def narrowed(logits: Tensor, drawing: Drawing) -> Tensor:
    """Return logits [B, K] after temperature, minus infinity for what top-k and top-p leave out."""
    logits = logits.double() / drawing.temperature
    if 0 < drawing.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(drawing.top_k).values[:, -1:], -torch.inf)
    if drawing.top_p < 1:
        ordered, order = logits.softmax(1).sort(1, descending=True)
        beyond = ordered.cumsum(1) - ordered >= drawing.top_p  # what likelier codes reach alone; the first always stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return logits


def draw(logits: Tensor, noise: Tensor, drawing: Drawing) -> Tensor:
    """Draw codes [B] of logits [B, K] with Gumbel noise [B, K]: the likeliest after noise has the softmax's distribution.

    Two computations of one logit differ in the last bits. Here that changes a draw only if two codes are as near as
    that at the top; with the usual cumulative sums it would at any of K edges.
    """
    return (narrowed(logits, drawing) + noise).argmax(1)


@torch.no_grad()
def sample_naive(model: PixelSnail, labels: Sequence[int], seeds: Sequence[int], drawing: Drawing) -> Tensor:
    """Draw codes [B, H, W] as the published code does, the whole prefix anew for every code: the reference, very slow."""
    H, W, K = model.config.height, model.config.width, model.config.codes
    device = model.where.device
    noise, label = Noise(seeds, W, K), torch.tensor(labels, device=device)
    codes = torch.zeros(len(seeds), H, W, dtype=torch.int64, device=device)
    for row in range(H):
        noises = noise.row().to(device)
        for column in range(W):
            logits = model(codes[:, : row + 1], label)[:, :, row, column]
            codes[:, row, column] = draw(logits, noises[column], drawing)
    return codes


# --- incremental --------------------------------------------------------------------------------------------------


class CausalLayers:
    """L causal convolutions of one kind: what the rows above say to a row, and what the places before add.

    Columns are those of what goes in, but for `hear`'s, which are of what comes out: with a stride there are fewer.
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

    def begin(self, batch: int, width: int) -> None:
        """Forget everything; `batch` clips of rows of `width` places are to come."""
        outputs, inputs, up, _ = self.above[0].shape
        new = self.before.new_zeros
        self.rows = new(len(self.above), batch, up, self.side + width + self.side, inputs)  # those above, zeros beside
        self.row = new(len(self.above), batch, self.side + width, inputs)  # this one
        self.said = new(-(-width // self.stride), len(self.above), batch, outputs)

    def start_row(self, heard: bool = True) -> None:
        """Take the finished row to those above, and compute what they say to the next, if it has places that hear."""
        self.rows[:, :, :-1] = self.rows[:, :, 1:].clone()
        self.rows[:, :, -1, self.side : -self.side] = self.row[:, :, self.side :]
        if not heard:
            return
        for layer, (weight, bias) in enumerate(zip(self.above, self.bias)):
            said = F.conv2d(self.rows[layer].permute(0, 3, 1, 2), weight, bias, self.stride)  # [B, outputs, 1, W]
            self.said[:, layer] = said[:, :, 0].permute(2, 0, 1)

    def hear(self, column: int) -> Tensor:
        """Return the outputs of all layers at a place of theirs, [L, B, outputs]."""
        near = self.row[:, :, column * self.stride : column * self.stride + self.side].flatten(2)
        return torch.baddbmm(self.said[column], near, self.before)

    def tell(self, column: int, layers: slice, values: Tensor) -> None:
        """Note the inputs of some layers at a place, [n, B, inputs]."""
        self.row[layers, :, self.side + column] = values


class Pointwise:
    """A convolution that stays at its place, on [B, inputs]; of several, their outputs side by side."""

    def __init__(self, *convs: NormedConv) -> None:
        self.weight = torch.cat([conv.weight()[:, :, 0, 0] for conv in convs]).t().contiguous()
        self.bias = torch.cat([cast(Tensor, conv.bias) for conv in convs])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class PointwiseGate:
    """A gated block of pointwise convolutions, on [B, C]."""

    def __init__(self, gate: Gate) -> None:
        self.conv1, self.conv2 = Pointwise(gate.conv1), Pointwise(gate.conv2)
        self.aside = Pointwise(gate.aside) if gate.aside is not None else None

    def __call__(self, x: Tensor, aside: Tensor | None = None) -> Tensor:
        y = self.conv1(F.elu(x))
        if self.aside is not None and aside is not None:
            y = y + self.aside(F.elu(aside))
        return x + F.glu(self.conv2(F.elu(y)), 1)


class PointwiseLayers:
    """L pointwise convolutions at once, on [L, B, inputs]."""

    def __init__(self, layers: Sequence[Pointwise]) -> None:
        self.weight = torch.stack([layer.weight for layer in layers])
        self.bias = torch.stack([layer.bias for layer in layers])[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class ZenLayers:
    """Zen's attention in all L blocks. Level 0 is the grid of the codes, each further one is coarser by `STRIDE`."""

    def __init__(self, zens: Sequence[Zen]) -> None:
        self.stages, self.heads = len(zens[0].queries), zens[0].attention.heads
        self.queries, self.keys, self.back = [], [], []
        for stage in range(self.stages):  # down from level `stage`, and back to it
            self.queries.append(CausalLayers([cast(NormedConv, zen.queries[stage]) for zen in zens]))
            self.keys.append(CausalLayers([cast(NormedConv, zen.keys[stage]) for zen in zens]))
            backs = [cast(NormedConv, zen.back[self.stages - 1 - stage]) for zen in zens]
            weights = torch.stack([back.weight().permute(0, 2, 3, 1).flatten(1) for back in backs])
            self.back.append((weights, torch.stack([cast(Tensor, back.bias) for back in backs])))
        self.asked = PointwiseLayers([Pointwise(zen.attention.query) for zen in zens])
        self.kept = PointwiseLayers([Pointwise(zen.attention.key, zen.attention.value) for zen in zens])

    def begin(self, batch: int, height: int, width: int) -> None:
        """Forget everything; `batch` clips of rows of `width` places are to come."""
        L, _, channels = self.asked.weight.shape
        new = self.asked.weight.new_zeros
        self.widths, self.spread = [width], []
        for queries, keys in zip(self.queries, self.keys):
            queries.begin(batch, self.widths[-1])
            keys.begin(batch, self.widths[-1])
            self.widths.append(-(-self.widths[-1] // STRIDE))
            # What coarse places say to the fine rows of theirs, and to the next coarse row's first: [L, B, s + 1, W, C].
            self.spread.append(new(L, batch, STRIDE + 1, STRIDE * self.widths[-1] + 1, channels))
            height = -(-height // STRIDE)
        places = height * self.widths[-1]
        self.memory = new(2, L * batch, self.heads, places, channels // self.heads)

    def start_row(self, row: int) -> None:
        """Begin a row of the codes, and the coarser rows that begin with it."""
        for queries, keys, spread, (_, bias) in zip(self.queries, self.keys, self.spread, self.back):
            begins = row % STRIDE == 0
            queries.start_row(begins)
            keys.start_row(begins)
            if not begins:
                break
            spread[:, :, 0] = spread[:, :, -1] if row else bias[:, None, None]  # already told by the coarse row above
            spread[:, :, 1:] = bias[:, None, None, None]
            row //= STRIDE

    def hear(self, row: int, column: int, level: int = 0) -> Tensor:
        """Return what was attended, at a place of a level, [L, B, C]; the first of a coarse place computes that one."""
        y, x = row % STRIDE, column % STRIDE
        if y == 0 and x == 0:
            weights, _ = self.back[level]
            said = self._coarse(row // STRIDE, column // STRIDE, level + 1) @ weights
            said = said.unflatten(2, (STRIDE + 1, STRIDE + 1, -1))
            self.spread[level][:, :, :, column : column + STRIDE + 1] += said
        return self.spread[level][:, :, y, column]

    def _coarse(self, row: int, column: int, level: int) -> Tensor:
        query, key = self.queries[level - 1].hear(column), self.keys[level - 1].hear(column)
        if level < self.stages:
            self.queries[level].tell(column, slice(None), F.gelu(query))
            self.keys[level].tell(column, slice(None), F.gelu(key))
            return F.gelu(self.hear(row, column, level))
        place = row * self.widths[level] + column
        kept = self.kept(key).unflatten(2, (2, self.heads, -1))  # [L, B, 2, heads, d]
        self.memory[:, :, :, place] = kept.flatten(0, 1).transpose(0, 1)
        asked = self.asked(query)  # [L, B, C]
        if not place:
            return torch.zeros_like(asked)
        keys, values = self.memory[:, :, :, :place]
        query = asked.unflatten(2, (self.heads, 1, -1)).flatten(0, 1)  # [L B, heads, 1, d]
        return F.scaled_dot_product_attention(query, keys, values).reshape(asked.shape)

    def tell(self, column: int, block: int, query: Tensor, key: Tensor) -> None:
        """Note a block's query and key at a place."""
        self.queries[0].tell(column, slice(block, block + 1), query)
        self.keys[0].tell(column, slice(block, block + 1), key)


class PlaceByPlace:
    """PixelSNAIL's logits of one place after another: `begin`, then for each row `start_row`, `logits` and `take`."""

    def __init__(self, model: PixelSnail) -> None:
        self.model, self.config = model, model.config
        blocks = cast(list[Block], list(model.blocks))
        gates = [gate for block in blocks for gate in cast(list[Gate], list(block.gates))]
        self.first, self.second = CausalLayers([g.conv1 for g in gates]), CausalLayers([g.conv2 for g in gates])
        planes = [cast(NormedConv, gate.plane).weight()[:, 0, 0, 0] for gate in gates]
        self.planes = torch.stack(planes)[:, None]  # [L, 1, 2C]
        # What a code says to the places after it in its row, the next one first: [side, K, C].
        self.before = model.before.weight()[:, :, -1].permute(2, 1, 0).flip(0).contiguous()
        self.keys = [PointwiseGate(block.key) for block in blocks]
        self.queries = [PointwiseGate(block.query) for block in blocks]
        self.outs = [PointwiseGate(block.out) for block in blocks]
        attentions = [block.attention for block in blocks]
        self.zen = ZenLayers(cast(list[Zen], attentions)) if self.config.zen else None
        plain = [each for each in attentions if isinstance(each, Attention)]
        self.asked = [Pointwise(each.query) for each in plain]
        self.kept = [Pointwise(each.key, each.value) for each in plain]
        self.out = Pointwise(model.out)

    def begin(self, label: Tensor) -> None:
        """Start a batch of clips of those labels [B]."""
        c = self.config
        self.batch = len(label)
        self.plane = self.model.label_plane(label)[:, 0]  # [B, H, W]
        for layers in (self.first, self.second):
            layers.begin(self.batch, c.width)
        if self.zen is not None:
            self.zen.begin(self.batch, c.height, c.width)
            return
        heads = c.channels // 2 // c.heads
        # Two by the places before: keys and values [2, B, heads, N, C / 2 / heads] of each block.
        self.memory = self.plane.new_zeros(c.blocks, 2, self.batch, c.heads, c.height * c.width, heads)

    def start_row(self, row: int, codes: Tensor) -> None:
        """Compute what the rows above, of `codes` [B, H, W], say to a row."""
        self.first.start_row()
        self.second.start_row()
        if self.zen is not None:
            self.zen.start_row(row)
        self.second.said += self.plane[:, row].t()[:, None, :, None] * self.planes  # [W, L, B, 2C]
        seen = codes[:, max(0, row - self.config.kernel // 2) : row]
        seen = F.one_hot(seen, self.config.codes).permute(0, 3, 1, 2).to(self.plane.dtype)
        entered = F.pad(self.model.before(F.pad(seen, (0, 0, 0, 1)))[:, :, -1], (1, -1))  # this row's codes to come
        if row:
            entered = entered + self.model.above(seen)[:, :, -1]
        self.entered = entered.permute(2, 0, 1).contiguous()  # [W, B, C]

    def take(self, column: int, code: Tensor) -> None:
        """Take the codes [B] of a place into what the places after it are told."""
        for further, table in enumerate(self.before, 1):
            if column + further < self.config.width:
                self.entered[column + further] += table[code]

    def logits(self, row: int, column: int) -> Tensor:
        """Return the logits [B, K] of a place, whose codes before it have all been taken."""
        c, place, zen = self.config, row * self.config.width + column, self.zen
        heard = zen.hear(row, column) if zen is not None else None  # [blocks, B, C / 2]
        where = self.model.where[:, :, row, column].expand(self.batch, -1)
        inner, step = self.first.hear(column), F.glu(self.second.hear(column), -1)  # [L, B, inner], [L, B, C]
        self.second.tell(column, slice(None), F.elu(inner))
        x = self.entered[column]
        for index in range(c.blocks):
            layers = slice(index * c.gates, (index + 1) * c.gates)
            passed = torch.cat([x[None], step[layers]]).cumsum(0)  # [gates + 1, B, C]: into each gate, out of the last
            self.first.tell(column, layers, F.elu(passed[:-1]))
            y = passed[-1]
            query = self.queries[index](torch.cat([y, where], 1))
            key = self.keys[index](torch.cat([x, y, where], 1))
            if zen is not None and heard is not None:
                zen.tell(column, index, query, key)
                attended = heard[index]
            else:
                attended = self._attend(index, place, query, key)
            x = self.outs[index](y, aside=attended)
        return self.out(F.elu(x))

    def _attend(self, index: int, place: int, query: Tensor, key: Tensor) -> Tensor:
        """Return what a block attends to among the places before, [B, C / 2], and keep this one for those after."""
        heads = self.config.heads
        keys, values = self.memory[index]
        asked = self.asked[index](query).view(self.batch, heads, 1, -1)
        if place:
            attended = F.scaled_dot_product_attention(asked, keys[:, :, :place], values[:, :, :place])
        else:
            attended = torch.zeros_like(asked)
        kept = self.kept[index](key)
        self.memory[index, :, :, :, place] = kept.view(self.batch, 2, heads, -1).transpose(0, 1)
        return attended.flatten(1)


@torch.no_grad()
def sample(
    model: PixelSnail,
    labels: Sequence[int],
    seeds: Sequence[int],
    drawing: Drawing = PLAIN,
    batch: int = 16,
    watched: bool = True,
) -> Tensor:
    """Draw a clip's codes for each label and its seed, `batch` at once: int64 [N, H, W] on the CPU.

    On a terminal a bar shows how far it is, unless it is not `watched`.

    A clip follows from its label and seed (within what the last bits of float32 can tip, see `draw`), whatever is drawn
    beside it. Raises UserError for settings that make no sense, and where the memory would not do.
    """
    check(labels, seeds, drawing, batch)
    require_memory(model, min(batch, len(labels)))
    H, W, K, device = model.config.height, model.config.width, model.config.codes, model.where.device
    was_training = model.training
    places = PlaceByPlace(model.eval())
    drawn = torch.zeros(len(labels), H, W, dtype=torch.int64)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (watched and console.is_terminal)) as bar:
        task = bar.add_task("drawing codes", total=-(-len(labels) // batch) * H)
        for start in range(0, len(labels), batch):
            chosen = slice(start, start + batch)
            codes, noise = drawn[chosen].to(device), Noise(seeds[chosen], W, K)
            places.begin(torch.tensor(labels[chosen], device=device))
            for row in range(H):
                noises = noise.row().to(device)
                places.start_row(row, codes)
                for column in range(W):
                    codes[:, row, column] = draw(places.logits(row, column), noises[column], drawing)
                    places.take(column, codes[:, row, column])
                bar.advance(task)
            drawn[chosen] = codes.cpu()
    model.train(was_training)
    return drawn


# --- what is asked for ----------------------------------------------------------------------------------------------


def check(labels: Sequence[int], seeds: Sequence[int], drawing: Drawing, batch: int) -> None:
    """Raise UserError for what cannot be drawn."""
    check_drawing(drawing)
    if len(labels) != len(seeds) or not all(0 <= label < LABELS for label in labels):
        raise ValueError(f"{len(labels)} labels, {len(seeds)} seeds: expected as many, and labels 0 to {LABELS - 1}")
    if batch < 1:
        raise UserError(f"--batch {batch}: expected 1 or more")


def check_drawing(drawing: Drawing, flag: str = "--") -> None:
    """Raise UserError for a temperature, top-k or top-p that is none."""
    if not 0 < drawing.temperature < float("inf"):
        raise UserError(
            f"{flag}temperature {drawing.temperature}: expected above 0; for the likeliest code {flag}top-k 1"
        )
    if drawing.top_k < 0:
        raise UserError(f"{flag}top-k {drawing.top_k}: expected 1 or more, or 0 for all")
    if not 0 < drawing.top_p <= 1:
        raise UserError(f"{flag}top-p {drawing.top_p}: expected above 0, up to 1")


def memory_needed(model: PixelSnail, batch: int) -> int:
    """Return about how many bytes `sample` takes for `batch` clips at once, beside the model itself."""
    c, size = model.config, model.where.element_size()
    layers, wide = c.blocks * c.gates, c.width + c.kernel - 1
    told = layers * (c.inner + c.channels) * c.kernel * wide  # the rows above and this one, into either convolution
    said = layers * (c.inner + 2 * c.channels) * c.width
    kept = c.blocks * c.channels * -(-c.height // STRIDE**c.zen) * -(-c.width // STRIDE**c.zen)
    at_once = c.kernel**2 * max(c.channels, c.inner) * wide  # a convolution's own workings
    if c.zen:  # three rows of queries and keys that go down and of what comes back; all levels together are twice that
        told += 2 * c.blocks * (3 * (3 * c.channels + 4) + 3 * c.channels // 2) * wide
        said += c.blocks * (3 * c.channels + 4) * c.width
        at_once = max(at_once, (STRIDE + 1) ** 2 * (2 * c.channels + 2) * wide)
    noise = 8 * 4 * c.width * c.codes
    weights = sum(parameter.numel() for parameter in model.parameters())
    return size * (weights + batch * (told + said + kept + at_once)) + batch * noise


def require_memory(model: PixelSnail, batch: int) -> None:
    """Raise UserError where `memory_needed` is more than there is."""
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
