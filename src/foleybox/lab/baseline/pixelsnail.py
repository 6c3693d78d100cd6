"""PixelSNAIL (Chen et al. 2018) over a grid of codes, as in the DCASE 2023 baseline: each code given those before it.

Letters: B batch, H x W grid (H rows of frequency, the lowest first; W columns of time), N = H W positions, K codes,
C channels, E heads. Positions are in raster order: all columns of a row before the next row.

Features at a position depend on earlier codes only. Causal convolutions get this from masks inside the computation of
their weights (the published code writes zeros into the weights, which the next optimiser step undoes). The masks also
exclude the position itself, which is what makes the incremental sampler (sampling.py) fast.

CMU's Zen PixelSNAIL (cmu/zen.py) passes another attention module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.labels import LABELS as TASK_LABELS

LABELS = len(TASK_LABELS)


@dataclass(frozen=True)
class PixelSnailConfig:
    """The size of the network; the defaults are the published ones."""

    height: int = 20
    "rows of codes; height, width and codes are those of the codes that the model is trained on"
    width: int = 86
    codes: int = 512
    channels: int = 256
    inner: int = 256
    "channels between the two convolutions of a gated block"
    kernel: int = 5
    "odd; size of the causal convolutions"
    blocks: int = 4
    "blocks, each with gated convolutions and one attention"
    gates: int = 4
    "gated convolutions in a block"
    heads: int = 8
    label_width: int = 2048
    "width of the four linear layers between label and plane"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    "dropout of the attention weights; without it a CPU uses fused attention"
    cond_resnet: bool = False
    "also hold the 6,493,184 parameters that the published code builds and never uses"

    REMOVED: ClassVar[dict[str, Any]] = {"zen": 0}
    "settings of earlier versions, with the value that this version implies"

    def __post_init__(self) -> None:
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel}: expected an odd number, 3 or more")
        if self.channels % (2 * self.heads):
            raise ValueError(f"channels {self.channels}: expected a multiple of twice the {self.heads} heads")
        if self.label_width < 1:
            raise ValueError(f"label_width {self.label_width}: expected 1 or more")


TINY = PixelSnailConfig(channels=16, inner=16, kernel=3, blocks=1, gates=1, heads=1, label_width=16)
"for trying the commands: trains in seconds and makes noise"
SMALL = PixelSnailConfig(channels=64, inner=64, blocks=2, gates=3, heads=2, label_width=256, attention_dropout=0.0)
MEDIUM = PixelSnailConfig(channels=128, inner=128, blocks=3, gates=3, heads=4, label_width=256, attention_dropout=0.0)
PUBLISHED = PixelSnailConfig()
CMU_V1 = PixelSnailConfig(channels=128, gates=3)
"CMU's first version for track A, made to fit 16 GB; the second has the published size"
SIZES = {"tiny": TINY, "small": SMALL, "medium": MEDIUM, "cmu-v1": CMU_V1, "published": PUBLISHED}


class Dropout(nn.Module):
    """Dropout that draws 16 random bits per element on a CPU, which takes a third of the time of torch's.

    The share is rounded to a multiple of 1 / 65,536.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        return drop_out(x, self.share)


def drop_out(x: Tensor, share: float) -> Tensor:
    """Return x with a share of its elements 0 and the others scaled by 1 / (1 - share)."""
    if x.device.type != "cpu":
        return F.dropout(x, share)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # 64 random bits each
    kept = words.view(torch.int16)[: x.numel()] >= round(share * 2**16) - 2**15
    scale = kept.to(x.dtype).mul_(1 / (1 - share))
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):  # elements in the order of memory
        B, C, H, W = x.shape
        return x * scale.view(B, H, W, C).permute(0, 3, 1, 2)
    return x * scale.view(x.shape)


class NormedConv(nn.Module):
    """A convolution [B, C, H, W] with weight norm: w = g v / |v|, per output channel (Salimans and Kingma 2016).

    `pad` is (left, right, top, bottom). `masked` removes the kernel's last row from its middle on from v before the norm
    is taken: values that an optimiser leaves there affect neither the weights nor their norm.
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
        masked: bool = False,
        bias: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__()
        initial = nn.Conv2d(inputs, outputs, kernel, bias=bias)  # torch's initial weights, as in the published code
        self.pad, self.stride = pad, stride
        self.direction = nn.Parameter(initial.weight.detach())
        self.gain = nn.Parameter(initial.weight.detach().flatten(1).norm(dim=1)[:, None, None, None])
        self.bias = nn.Parameter(initial.bias.detach()) if initial.bias is not None else None
        mask = torch.ones(kernel) if masked else None
        if mask is not None:
            mask[-1, kernel[1] // 2 :] = 0
        self.register_buffer("mask", mask, persistent=False)

    def weight(self) -> Tensor:
        """Return the weights [outputs, inputs, height, width] of the convolution."""
        direction = self.direction if self.mask is None else self.direction * self.mask
        return direction * (self.gain / direction.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.pad), self.weight(), self.bias, self.stride)


def pointwise(inputs: int, outputs: int) -> NormedConv:
    """Return a 1 x 1 convolution."""
    return NormedConv(inputs, outputs)


def causal(inputs: int, outputs: int, kernel: int, stride: int = 1) -> NormedConv:
    """Return a convolution over `kernel - 1` rows above and the earlier columns of the same row, not the position itself.

    With a stride s, output (I, J) is the one of position (s I, s J): both grids begin at (0, 0), and height and width
    need not be multiples of s.
    """
    side = kernel // 2
    return NormedConv(inputs, outputs, (kernel, kernel), (side, side, kernel - 1, 0), masked=True, stride=stride)


class Gate(nn.Module):
    """A gated residual block: ELU, convolution, ELU, dropout, convolution to twice the channels, GLU, added to x.

    `aside` is an auxiliary input (the attention's output) added after the first convolution; the label's plane
    [B, 1, H, W] is added before the GLU.
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        dropout: float,
        conv: Callable[[int, int], NormedConv] = pointwise,
        aside: int = 0,
        plane: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = conv(channels, inner)
        self.aside = pointwise(aside, inner) if aside else None
        self.dropout = Dropout(dropout)
        self.conv2 = conv(inner, 2 * channels)
        self.plane = NormedConv(1, 2 * channels, bias=False) if plane else None

    def forward(self, x: Tensor, aside: Tensor | None = None, plane: Tensor | None = None) -> Tensor:
        y = self.conv1(F.elu(x))
        if self.aside is not None and aside is not None:
            y = y + self.aside(F.elu(aside))
        y = self.conv2(self.dropout(F.elu(y)))
        if self.plane is not None and plane is not None:
            y = y + self.plane(plane)
        # Over the last dimension of the channels-last layout, where the GLU's gradient is several times faster.
        return x + F.glu(y.permute(0, 2, 3, 1), 3).permute(0, 3, 1, 2)


def attend_in_parts(q: Tensor, k: Tensor, v: Tensor, dropout: float, rows: int = 128) -> Tensor:
    """Return causal attention [B, E, N, d] with dropout of its weights, computed for some rows of the matrix at a time.

    The fused attention of a CPU has no dropout, and torch's fallback takes four times as long as this.
    """
    parts, start = [], 0
    for query in q.split(rows, 2):
        count = query.shape[2]
        scores = query @ k[:, :, : start + count].transpose(2, 3) / q.shape[3] ** 0.5
        later = torch.ones(count, count, dtype=torch.bool, device=q.device).triu(1)
        diagonal = scores[..., start:].masked_fill(later, -torch.inf)  # only this square holds later positions
        weights = drop_out(torch.cat([scores[..., :start], diagonal], 3).softmax(3), dropout)
        parts.append(weights @ v[:, :, : start + count])
        start += count
    return torch.cat(parts, 2)


class Attention(nn.Module):
    """Multi-head attention of every position to all positions before it; position 0 has none and gets 0."""

    def __init__(self, queries: int, keys: int, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = pointwise(queries, channels)
        self.key = pointwise(keys, channels)
        self.value = pointwise(keys, channels)
        self.heads, self.dropout = heads, dropout

    def _heads(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, E, N, C / E]

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return [B, channels, H, W] for [B, queries, H, W] and [B, keys, H, W]."""
        q, k, v = (self._heads(part) for part in (self.query(query), self.key(key), self.value(key)))
        # No position attends to itself. Without the first query and the last key the mask is the usual causal one,
        # which fused kernels support.
        q, k, v = q[:, :, 1:], k[:, :, :-1], v[:, :, :-1]
        dropout = self.dropout if self.training else 0.0
        if dropout and q.device.type == "cpu":
            y = attend_in_parts(q, k, v, dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        y = F.pad(y.transpose(1, 2).flatten(2), (0, 0, 1, 0))  # [B, N, channels]
        return y.unflatten(1, query.shape[2:]).permute(0, 3, 1, 2)


def plain_attention(config: PixelSnailConfig) -> Attention:
    """Return the attention of a block."""
    C = config.channels
    return Attention(C + 2, 2 * C + 2, C // 2, config.heads, config.attention_dropout)


AttentionFactory = Callable[[PixelSnailConfig], nn.Module]
"""Makes the attention of a block: (query [B, C + 2, H, W], key [B, 2 C + 2, H, W]) -> [B, C / 2, H, W], causal."""


class Block(nn.Module):
    """Gated causal convolutions, then attention. Keys also see the block's input; both also see the coordinates."""

    def __init__(self, config: PixelSnailConfig, attention: AttentionFactory = plain_attention) -> None:
        super().__init__()
        C, dropout, conv = config.channels, config.dropout, partial(causal, kernel=config.kernel)
        self.gates = nn.ModuleList(Gate(C, config.inner, dropout, conv, plane=True) for _ in range(config.gates))
        self.key = Gate(2 * C + 2, C, dropout)
        self.query = Gate(C + 2, C, dropout)
        self.attention = attention(config)
        self.out = Gate(C, C, dropout, aside=C // 2)

    def forward(self, x: Tensor, where: Tensor, plane: Tensor) -> Tensor:
        y = x
        for gate in self.gates:
            y = gate(y, plane=plane)
        attended = self.attention(self.query(torch.cat([y, where], 1)), self.key(torch.cat([x, y, where], 1)))
        return self.out(y, aside=attended)


class PixelSnail(nn.Module):
    """Codes [B, h, W] of the first h <= H rows and labels [B] to logits [B, K, h, W], each from the codes before it."""

    where: Tensor

    def __init__(self, config: PixelSnailConfig, attention: AttentionFactory = plain_attention) -> None:
        super().__init__()
        self.config = config
        H, W, K, C, k = config.height, config.width, config.codes, config.channels, config.kernel
        side = k // 2
        self.above = NormedConv(K, C, (side, k), (side, side, side - 1, 0))  # output moved down: the rows above only
        self.before = NormedConv(K, C, (side + 1, side), (side - 1, 0, side, 0))  # output moved right: earlier columns
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.blocks))
        self.out = pointwise(C, K)
        widths = [LABELS, *[config.label_width] * 3, H * W]  # as published: no non-linearity between, a map of rank 7
        self.plane = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))
        if config.cond_resnet:
            conv = partial(NormedConv, kernel=(3, 3), pad=(1, 1, 1, 1))
            gates = (Gate(config.inner, config.inner, config.dropout, conv) for _ in range(3))
            self.cond_resnet = nn.Sequential(conv(K, config.inner), *gates).requires_grad_(False)
        rows, columns = ((torch.arange(size) - size / 2) / size for size in (H, W))
        self.register_buffer("where", torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None], persistent=False)

    def label_plane(self, label: Tensor) -> Tensor:
        """Return the plane [B, 1, H, W] through which labels [B] enter every gated convolution."""
        plane = self.plane(F.one_hot(label, LABELS).to(self.where.dtype))
        return plane.unflatten(1, (1, self.config.height, self.config.width))

    def code_table(self) -> Tensor:
        """Return the features that a code adds through each kernel element of `above` and then of `before`.

        [elements K + 1, C]: a row for each element and code, elements in raster order, and a last row of zeros.
        """
        tables = [conv.weight().permute(2, 3, 1, 0).flatten(0, 2) for conv in (self.above, self.before)]
        return F.pad(torch.cat(tables), (0, 0, 0, 1))

    def embed(self, codes: Tensor, table: Tensor) -> Tensor:
        """Return the input features [B, C, h, W] of codes [B, h, W]; -1 stands for no code. `table`: `code_table`.

        They are the published above(one-hot) moved down by a row plus before(one-hot) moved right by a column, without
        the one-hot convolutions: the sum of a row of the table for each kernel element. Zeros move in at the edges, so
        the first row lacks the bias of `above`, and the first column that of `before`.
        """
        side, K = self.config.kernel // 2, self.config.codes
        _, h, W = codes.shape
        offsets = [(row, column) for row in range(side) for column in range(2 * side + 1)]  # elements of `above`
        offsets += [(row, column) for row in range(side + 1) for column in range(side)]  # of `before`
        padded = F.pad(codes, (side, side, side, 0), value=-1)
        near = torch.stack([padded[:, row : row + h, column : column + W] for row, column in offsets], 3)
        first_rows = K * torch.arange(len(offsets), device=codes.device)
        index = torch.where(near < 0, len(table) - 1, near + first_rows)  # [B, h, W, elements]
        x = F.embedding_bag(index.flatten(0, 2), table, mode="sum").unflatten(0, codes.shape).permute(0, 3, 1, 2)
        below_first, after_first = ((torch.arange(size, device=x.device) > 0).to(x.dtype) for size in (h, W))
        biases = [bias[:, None, None] for bias in (self.above.bias, self.before.bias) if bias is not None]
        return x + biases[0] * below_first[:, None] + biases[1] * after_first

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        B, h, _ = codes.shape
        x = self.embed(codes, self.code_table())
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # the features between the convolutions in 16 bits too
        where, plane = self.where[:, :, :h].expand(B, -1, -1, -1).to(x.dtype), self.label_plane(label)[:, :, :h]
        for block in self.blocks:
            x = block(x, where, plane)
        return self.out(F.elu(x))
