"""Zen PixelSNAIL of CMU's track A (Pillay et al. 2023, section 2.4): PixelSNAIL's attention on a coarser grid.

The network of baseline/pixelsnail.py with another attention module: query and key go to a grid that is halved in height
and width once or several times, attention runs there, and its output comes back by transposed convolutions. All of it is
causal. The second part draws from it position by position, for baseline/sampling.py: a coarse position belongs to the
first of its fine positions in raster order, (s I, s J). Everything it depends on lies before that one, in every block,
so it is computed there, for all blocks at once, and used from there on.

Letters as in baseline/pixelsnail.py; s = STRIDE, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.lab.baseline.pixelsnail import Attention, Block, NormedConv, PixelSnail, PixelSnailConfig, causal
from foleybox.lab.baseline.sampling import (
    AttentionMemory,
    AttentionState,
    CausalLayers,
    Pointwise,
    attention_memory,
    attention_state,
)

STRIDE = 2
"of a halving, in height and in width"


@dataclass(frozen=True)
class ZenConfig(PixelSnailConfig):
    """The size of a Zen PixelSNAIL."""

    zen: int = 1
    "halvings of the grid before its attention, and doublings after it: a quarter of the positions each"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zen < 1:
            raise ValueError(f"zen {self.zen}: expected 1 or more halvings")


# --- the model ----------------------------------------------------------------------------------------------------


class CausalTransposed(NormedConv):
    """A causal transposed convolution, [B, C, h, w] to [B, C, s h, s w]: (I, J) affects (s I, s J) and later only.

    A coarse position knows what lies before (s I, s J), so nothing may be cropped at the top or left, which would move
    it up (the public copy of CMU's code crops a row there and so sees the future). The surplus is cropped at the bottom
    and right. As in torch's transposed convolutions, weights [inputs, outputs, k, k] have their norms per input channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (STRIDE + 1, STRIDE + 1), stride=STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, self.weight(), self.bias, self.stride)  # [B, C, s h + 1, s w + 1]
        return y[:, :, :-1, :-1]


class ZenAttention(nn.Module):
    """Attention on a grid that is coarser by `STRIDE` to the power of `stages`, in height and in width.

    Query and key (of which the value is made) go down by strided causal convolutions, the output comes back by causal
    transposed ones. Fine (y, x) depends on coarse (y // s, x // s) and earlier ones; these depend on no position from
    (s (y // s), s (x // s)) on, which is not after (y, x).
    """

    def __init__(self, queries: int, keys: int, channels: int, heads: int, dropout: float, stages: int) -> None:
        super().__init__()
        down = partial(causal, kernel=STRIDE + 1, stride=STRIDE)
        self.queries = nn.ModuleList(down(queries, queries) for _ in range(stages))
        self.keys = nn.ModuleList(down(keys, keys) for _ in range(stages))
        self.attention = Attention(queries, keys, channels, heads, dropout)
        self.back = nn.ModuleList(CausalTransposed(channels) for _ in range(stages))  # the coarsest first

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return [B, channels, H, W] for [B, queries, H, W] and [B, keys, H, W]."""
        sizes = []
        for query_down, key_down in zip(self.queries, self.keys):
            if sizes:
                query, key = F.gelu(query), F.gelu(key)
            sizes.append(query.shape[2:])
            query, key = query_down(query), key_down(key)
        y = self.attention(query, key)
        for index, back in enumerate(self.back):
            height, width = sizes.pop()
            y = back(F.gelu(y) if index else y)[:, :, :height, :width]
        return y


class ZenPixelSnail(PixelSnail):
    """PixelSNAIL whose attention runs on a coarser grid."""

    config: ZenConfig

    def __init__(self, config: ZenConfig) -> None:
        super().__init__(config, zen_attention)


def zen_attention(config: PixelSnailConfig) -> ZenAttention:
    """Return the attention of a block."""
    C, stages = config.channels, cast(ZenConfig, config).zen
    return ZenAttention(C + 2, 2 * C + 2, C // 2, config.heads, config.attention_dropout, stages)


def make_pixelsnail(config: PixelSnailConfig, zen: int) -> PixelSnail:
    """Return a PixelSNAIL of that size: the baseline's for `zen` 0, else a Zen PixelSNAIL with so many halvings."""
    return ZenPixelSnail(ZenConfig(**vars(config), zen=zen)) if zen else PixelSnail(config)


# --- drawing from it ----------------------------------------------------------------------------------------------


class PointwiseLayers:
    """L pointwise convolutions at once, of [L, B, inputs]."""

    def __init__(self, layers: Sequence[Pointwise]) -> None:
        self.weight = torch.stack([layer.weight for layer in layers])
        self.bias = torch.stack([layer.bias for layer in layers])[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class ZenState:
    """The Zen attention of all blocks while a batch is drawn. Level 0 is the grid of codes; the next are each halved."""

    def __init__(self, model: ZenPixelSnail) -> None:
        self.config = model.config
        modules = [cast(ZenAttention, block.attention) for block in cast(list[Block], list(model.blocks))]
        self.stages, self.heads = len(modules[0].queries), modules[0].attention.heads
        self.queries, self.keys, self.back = [], [], []
        for stage in range(self.stages):  # from level `stage` down, and back to it
            self.queries.append(CausalLayers([cast(NormedConv, each.queries[stage]) for each in modules]))
            self.keys.append(CausalLayers([cast(NormedConv, each.keys[stage]) for each in modules]))
            backs = [cast(NormedConv, each.back[self.stages - 1 - stage]) for each in modules]
            weights = torch.stack([back.weight().permute(0, 2, 3, 1).flatten(1) for back in backs])
            self.back.append((weights, torch.stack([cast(Tensor, back.bias) for back in backs])))
        self.query = PointwiseLayers([Pointwise(each.attention.query) for each in modules])
        self.key_value = PointwiseLayers([Pointwise(each.attention.key, each.attention.value) for each in modules])

    def reset(self, batch: int) -> None:
        """Start `batch` clips."""
        L, _, channels = self.query.weight.shape
        new, height = self.query.weight.new_zeros, self.config.height
        self.widths, self.outputs = [self.config.width], []
        for queries, keys in zip(self.queries, self.keys):
            queries.reset(batch, self.widths[-1])
            keys.reset(batch, self.widths[-1])
            self.widths.append(-(-self.widths[-1] // STRIDE))
            # Outputs of the fine rows of the current coarse row, and of the first row of the next: [L, B, s + 1, W, C].
            self.outputs.append(new(L, batch, STRIDE + 1, STRIDE * self.widths[-1] + 1, channels))
            height = -(-height // STRIDE)
        self.memory = new(2, L * batch, self.heads, height * self.widths[-1], channels // self.heads)

    def start_row(self, row: int) -> None:
        """Start a row of codes, and the coarser rows that start with it."""
        for queries, keys, outputs, (_, bias) in zip(self.queries, self.keys, self.outputs, self.back):
            starts = row % STRIDE == 0
            queries.start_row(starts)
            keys.start_row(starts)
            if not starts:
                break
            outputs[:, :, 0] = outputs[:, :, -1] if row else bias[:, None, None]  # what the coarse row above added
            outputs[:, :, 1:] = bias[:, None, None, None]
            row //= STRIDE

    def start_position(self, row: int, column: int) -> None:
        """Compute the outputs of all blocks, [L, B, C]."""
        self.attended = self._output(row, column, 0)

    def attend(self, block: int, row: int, column: int, query: Tensor, key: Tensor) -> Tensor:
        """Return a block's output; keep its query and key for later positions."""
        self.queries[0].store(column, slice(block, block + 1), query)
        self.keys[0].store(column, slice(block, block + 1), key)
        return self.attended[block]

    def _output(self, row: int, column: int, level: int) -> Tensor:
        """Return the outputs [L, B, C] at a position of a level; the first of a coarse position computes that one."""
        y, x = row % STRIDE, column % STRIDE
        if y == 0 and x == 0:
            weights, _ = self.back[level]
            part = self._coarse(row // STRIDE, column // STRIDE, level + 1) @ weights
            part = part.unflatten(2, (STRIDE + 1, STRIDE + 1, -1))
            self.outputs[level][:, :, :, column : column + STRIDE + 1] += part
        return self.outputs[level][:, :, y, column]

    def _coarse(self, row: int, column: int, level: int) -> Tensor:
        query, key = self.queries[level - 1].output(column), self.keys[level - 1].output(column)
        if level < self.stages:
            self.queries[level].store(column, slice(None), F.gelu(query))
            self.keys[level].store(column, slice(None), F.gelu(key))
            return F.gelu(self._output(row, column, level))
        position = row * self.widths[level] + column
        key_value = self.key_value(key).unflatten(2, (2, self.heads, -1))  # [L, B, 2, E, d]
        self.memory[:, :, :, position] = key_value.flatten(0, 1).transpose(0, 1)
        q = self.query(query)  # [L, B, C]
        if not position:
            return torch.zeros_like(q)
        keys, values = self.memory[:, :, :, :position]
        heads = q.unflatten(2, (self.heads, 1, -1)).flatten(0, 1)  # [L B, E, 1, d]
        return F.scaled_dot_product_attention(heads, keys, values).reshape(q.shape)


@attention_state.register
def _(model: ZenPixelSnail) -> AttentionState:
    return ZenState(model)


@attention_memory.register
def _(model: ZenPixelSnail) -> AttentionMemory:
    c, wide = model.config, model.config.width + model.config.kernel - 1
    memory = c.blocks * c.channels * -(-c.height // STRIDE**c.zen) * -(-c.width // STRIDE**c.zen)
    # Three rows of queries and keys that go down, and of outputs; all levels together are at most twice the first.
    rows = 2 * c.blocks * (3 * (3 * c.channels + 4) + 3 * c.channels // 2) * wide
    from_above = c.blocks * (3 * c.channels + 4) * c.width
    return AttentionMemory(memory + rows + from_above, (STRIDE + 1) ** 2 * (2 * c.channels + 2) * wide)
