"""PixelSNAIL (Chen et al. 2018) over a grid of codes, as the DCASE 2023 baseline has it: each code from those before it.

Letters: B batch, H x W grid (H rows of frequency, the lowest first; W columns of time), N = H W places, K codes,
C channels, E heads. Places are read row by row: all of a row's time before the next row.

Everything that is computed at a place comes from codes before it. Convolutions are held to that by masks inside the
computation of their weights (the published code writes zeros over the weights instead, which an optimiser step undoes);
the masks leave out the place itself too, which is what makes the incremental sampler (`lab/sampling.py`) fast.

With `zen` it is the Zen PixelSNAIL of CMU's track A (Pillay et al. 2023, section 2.4): the attention on coarser grids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LABELS = 7
STRIDE = 2
"of a stage of Zen mode, in height and in width"


@dataclass(frozen=True)
class PixelSnailConfig:
    """The size of the network; the defaults are the published ones."""

    height: int = 20
    "rows of codes; with `width` and `codes` this comes from the codes that are learnt"
    width: int = 86
    codes: int = 512
    channels: int = 256
    inner: int = 256
    "channels between the two convolutions of a gated block"
    kernel: int = 5
    "odd; a code sees so many columns, and so many rows up"
    blocks: int = 4
    "blocks, each with gated convolutions and one attention"
    gates: int = 4
    "gated convolutions in a block"
    heads: int = 8
    zen: int = 0
    "halvings of the grid before its attention, and doublings after: a quarter of the tokens each; 0: PixelSNAIL"
    label_width: int = 2048
    "width of the four linear layers between label and plane; 0: a table, which can say the same"
    dropout: float = 0.1
    cond_resnet: bool = False
    "also hold the network that the published code builds and never uses: 6,493,184 parameters for nothing"

    def __post_init__(self) -> None:
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel}: expected an odd number, 3 or more")
        if self.channels % (2 * self.heads):
            raise ValueError(f"channels {self.channels}: expected a multiple of twice the {self.heads} heads")
        if self.zen < 0:
            raise ValueError(f"zen {self.zen}: expected 0 or more halvings")


SMALL = PixelSnailConfig(channels=64, inner=64, blocks=2, gates=3, heads=4, label_width=0)
MEDIUM = PixelSnailConfig(channels=128, inner=128, blocks=3, gates=3, heads=4, label_width=0)
PUBLISHED = PixelSnailConfig()
CMU_V1 = PixelSnailConfig(channels=128, gates=3)
"CMU's first for track A, made to fit 16 GB; the second has the published size"
SIZES = {"small": SMALL, "medium": MEDIUM, "cmu-v1": CMU_V1, "published": PUBLISHED}


class NormedConv(nn.Module):
    """A convolution [B, C, H, W] with weight norm: w = g v / |v|, per output channel (Salimans and Kingma 2016).

    `pad` is (left, right, top, bottom). `blind` takes the kernel's last row from the middle on out of v before its norm
    is taken: whatever an optimiser leaves in v there reaches neither the weights nor their norm.
    """

    seen: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
        blind: bool = False,
        bias: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__()
        start = nn.Conv2d(inputs, outputs, kernel, bias=bias)  # torch's starting weights, as in the published code
        self.pad, self.stride = pad, stride
        self.direction = nn.Parameter(start.weight.detach())
        self.gain = nn.Parameter(start.weight.detach().flatten(1).norm(dim=1)[:, None, None, None])
        self.bias = nn.Parameter(start.bias.detach()) if start.bias is not None else None
        seen = torch.ones(kernel) if blind else None
        if seen is not None:
            seen[-1, kernel[1] // 2 :] = 0
        self.register_buffer("seen", seen, persistent=False)

    def weight(self) -> Tensor:
        """Return the weights [outputs, inputs, height, width] that the convolution uses."""
        direction = self.direction if self.seen is None else self.direction * self.seen
        return direction * (self.gain / direction.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.pad), self.weight(), self.bias, self.stride)


def pointwise(inputs: int, outputs: int) -> NormedConv:
    """A convolution that stays at its place."""
    return NormedConv(inputs, outputs)


def causal(inputs: int, outputs: int, kernel: int, stride: int = 1) -> NormedConv:
    """A convolution that sees `kernel - 1` rows up and, in its own row, the places before it: never itself.

    With a stride s, place (I, J) of what it returns is the one of (s I, s J): the grids' first places are the same, and
    no height or width has to be a multiple of s.
    """
    side = kernel // 2
    return NormedConv(inputs, outputs, (kernel, kernel), (side, side, kernel - 1, 0), blind=True, stride=stride)


class CausalTransposed(NormedConv):
    """The causal transposed convolution, [B, C, h, w] to [B, C, s h, s w]: (I, J) speaks to (s I, s J) and on, never before.

    A coarse place knows what lies before (s I, s J), so nothing may be cut at the top or left, which would move it up
    (the public copy of CMU's code cuts a row there, and so sees the future); what is over is cut at the other ends.
    As in torch's transposed convolutions, the weights [inputs, outputs, k, k] have their norms per input channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (STRIDE + 1, STRIDE + 1), stride=STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, self.weight(), self.bias, self.stride)  # [B, C, s h + 1, s w + 1]
        return y[:, :, :-1, :-1]


class Gate(nn.Module):
    """A gated residual block: ELU, convolution, ELU, dropout, convolution to twice the channels, GLU, added to x.

    `aside` channels (the attention's) join after the first convolution, the label's plane [B, 1, H, W] before the GLU.
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
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(inner, 2 * channels)
        self.plane = NormedConv(1, 2 * channels, bias=False) if plane else None

    def forward(self, x: Tensor, aside: Tensor | None = None, plane: Tensor | None = None) -> Tensor:
        y = self.conv1(F.elu(x))
        if self.aside is not None and aside is not None:
            y = y + self.aside(F.elu(aside))
        y = self.conv2(self.dropout(F.elu(y)))
        if self.plane is not None and plane is not None:
            y = y + self.plane(plane)
        return x + F.glu(y, 1)


def attend_by_rows(q: Tensor, k: Tensor, v: Tensor, dropout: float, rows: int = 128) -> Tensor:
    """Return causal attention [B, E, N, d] whose weights are dropped out, some rows of the matrix at a time.

    A processor's fused attention cannot drop; torch's other way takes four times as long as this.
    """
    parts = []
    for query in q.split(rows, 2):
        last = query.shape[2] + sum(part.shape[2] for part in parts)
        weights = query @ k[:, :, :last].transpose(2, 3) / q.shape[3] ** 0.5
        ahead = torch.ones_like(weights[0, 0], dtype=torch.bool).triu(last - query.shape[2] + 1)
        weights = F.dropout(weights.masked_fill(ahead, -torch.inf).softmax(3), dropout)
        parts.append(weights @ v[:, :, :last])
    return torch.cat(parts, 2)


class Attention(nn.Module):
    """Every place looks at all places before it, by `heads` heads; the first looks at nothing and gets 0."""

    def __init__(self, queries: int, keys: int, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = pointwise(queries, channels)
        self.key = pointwise(keys, channels)
        self.value = pointwise(keys, channels)
        self.heads, self.dropout = heads, dropout

    def _heads(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # [B, C, H, W] to [B, E, N, C / E]

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return [B, channels, H, W] for [B, queries, H, W] and [B, keys, H, W]."""
        q, k, v = (self._heads(part) for part in (self.query(query), self.key(key), self.value(key)))
        # No place sees itself: without the first query and the last key that is the square with its diagonal, which
        # the fused kernels know by name.
        q, k, v = q[:, :, 1:], k[:, :, :-1], v[:, :, :-1]
        if self.training and self.dropout and q.device.type == "cpu":
            y = attend_by_rows(q, k, v, self.dropout)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
            )
        y = F.pad(y, (0, 0, 1, 0))  # [B, E, N, C / E]
        return y.transpose(2, 3).flatten(1, 2).unflatten(2, query.shape[2:])


class Zen(nn.Module):
    """Attention on a grid coarser by `STRIDE` to the `stages`, in height and in width.

    Query and key, which the value is made of, go down by strided causal convolutions, what was attended comes back by
    causal transposed ones. Fine (y, x) hears of coarse (y // s, x // s) and those before; these know of no place from
    (s (y // s), s (x // s)) on, which is not after (y, x).
    """

    def __init__(self, queries: int, keys: int, channels: int, heads: int, dropout: float, stages: int) -> None:
        super().__init__()
        down = partial(causal, kernel=STRIDE + 1, stride=STRIDE)
        self.queries = nn.ModuleList(down(queries, queries) for _ in range(stages))
        self.keys = nn.ModuleList(down(keys, keys) for _ in range(stages))
        self.attention = Attention(queries, keys, channels, heads, dropout)
        self.back = nn.ModuleList(CausalTransposed(channels) for _ in range(stages))  # from the coarsest on

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return [B, channels, H, W] for [B, queries, H, W] and [B, keys, H, W]."""
        sizes = []
        for narrow_query, narrow_key in zip(self.queries, self.keys):
            if sizes:
                query, key = F.gelu(query), F.gelu(key)
            sizes.append(query.shape[2:])
            query, key = narrow_query(query), narrow_key(key)
        y = self.attention(query, key)
        for index, back in enumerate(self.back):
            height, width = sizes.pop()
            y = back(F.gelu(y) if index else y)[:, :, :height, :width]
        return y


class Block(nn.Module):
    """Gated causal convolutions, then attention, whose keys also know the block's input; all know where they are."""

    def __init__(self, config: PixelSnailConfig) -> None:
        super().__init__()
        C, dropout, conv = config.channels, config.dropout, partial(causal, kernel=config.kernel)
        self.gates = nn.ModuleList(Gate(C, config.inner, dropout, conv, plane=True) for _ in range(config.gates))
        self.key = Gate(2 * C + 2, C, dropout)
        self.query = Gate(C + 2, C, dropout)
        attention = partial(Zen, stages=config.zen) if config.zen else Attention
        self.attention = attention(C + 2, 2 * C + 2, C // 2, config.heads, dropout)
        self.out = Gate(C, C, dropout, aside=C // 2)

    def forward(self, x: Tensor, where: Tensor, plane: Tensor) -> Tensor:
        y = x
        for gate in self.gates:
            y = gate(y, plane=plane)
        attended = self.attention(self.query(torch.cat([y, where], 1)), self.key(torch.cat([x, y, where], 1)))
        return self.out(y, aside=attended)


class PixelSnail(nn.Module):
    """Codes [B, h, W] of the first h <= H rows and labels [B] to logits [B, K, h, W]: place p's from the codes before p."""

    where: Tensor

    def __init__(self, config: PixelSnailConfig) -> None:
        super().__init__()
        self.config = config
        H, W, K, C, k = config.height, config.width, config.codes, config.channels, config.kernel
        side = k // 2
        self.above = NormedConv(K, C, (side, k), (side, side, side - 1, 0))  # shifted down: sees the rows above only
        self.before = NormedConv(K, C, (side + 1, side), (side - 1, 0, side, 0))  # shifted right: the columns before
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.out = pointwise(C, K)
        if config.label_width:  # no non-linearity between them: a map of rank 7, as published
            widths = [LABELS, *[config.label_width] * 3, H * W]
            self.plane = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))
        else:
            self.plane = nn.Embedding(LABELS, H * W)
            nn.init.normal_(self.plane.weight, std=0.05)  # about as small as the linear layers begin
        if config.cond_resnet:
            beside = partial(NormedConv, kernel=(3, 3), pad=(1, 1, 1, 1))
            gates = (Gate(config.inner, config.inner, config.dropout, beside) for _ in range(3))
            self.cond_resnet = nn.Sequential(beside(K, config.inner), *gates).requires_grad_(False)
        rows, columns = ((torch.arange(size) - size / 2) / size for size in (H, W))
        self.register_buffer("where", torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None], persistent=False)

    def label_plane(self, label: Tensor) -> Tensor:
        """Return the plane [B, 1, H, W] through which labels [B] enter every gated convolution."""
        shown = label if isinstance(self.plane, nn.Embedding) else F.one_hot(label, LABELS).to(self.where.dtype)
        return self.plane(shown).unflatten(1, (1, self.config.height, self.config.width))

    def forward(self, codes: Tensor, label: Tensor) -> Tensor:
        B, h, _ = codes.shape
        x = F.one_hot(codes, self.config.codes).permute(0, 3, 1, 2).to(self.where.dtype)
        x = F.pad(self.above(x), (0, 0, 1, -1)) + F.pad(self.before(x), (1, -1, 0, 0))
        where, plane = self.where[:, :, :h].expand(B, -1, -1, -1), self.label_plane(label)[:, :, :h]
        for block in self.blocks:
            x = block(x, where, plane)
        return self.out(F.elu(x))
