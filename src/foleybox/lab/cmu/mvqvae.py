"""CMU's MVQVAE: a VQ-VAE of CEmbeds, with the baseline's branches and a foley head.

Letters: B batch, R rows of a CEmbed, T frames, C channels, D code width, K codes, H x W grid.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.lab.baseline.vqvae import (
    KERNELS,
    LABELS,
    Codebook,
    Extra,
    Head,
    Reconstruction,
    VqvaeConfig,
    branch,
    decoder,
    full_precision,
    straight_through,
)

# --- encoder and decoder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MvqvaeConfig(VqvaeConfig):
    """The size of the MVQVAE; the defaults are the second version's (v2), those of the first stand in brackets.

    The report states the codes and the path more; the widths and batch norm are those of the public copy of its code.
    """

    channels: int = 256
    "C"
    residual: int = 64
    "channels inside a residual block"
    width: int = 128
    "D, the width of a code's vector [64]"
    size: int = 1024
    "K, codes in a codebook [512]"
    norm: bool = True
    "batch norm after the convolutions, as in the public copy of the code; the report does not mention it"
    extra: Extra = "parallel"
    "a residual path more [none]: parallel to the blocks, as the report has it; serial: a block more, as its code does"
    stride: Literal[4, 8, 16] = 4
    "rows and frames in a place of the grid: 8 and 16 are ours, for 5,472 and 1,368 codes a clip in place of 21,600"
    depth: int = 0
    "0: a grid over rows and frames, as published. Q: Q codes a frame of the grid, each for what those before it left"
    components: int = 0
    "0: the encoder's 1,023 rows, as published. n: their n principal components in their place"


# --- the MVQVAE ---------------------------------------------------------------------------------------------------


V1 = MvqvaeConfig(width=64, size=512, extra="none")
"the public code's first version"
V2 = MvqvaeConfig()
"its second version"


class Rows(nn.Module):
    """The scale of a CEmbed's rows: raw [B, 1152, T] to what a network sees, [B, F, T], and back.

    A mean and a deviation for each row, and where there are components, those in place of the encoder's rows, which
    come first. No parameters: `fill` takes what `cembed.row_scale` and `cembed.principal_rows` found.
    """

    mean: Tensor
    deviation: Tensor
    basis: Tensor

    def __init__(self, parts: tuple[int, int], components: int = 0) -> None:
        super().__init__()
        self.parts, self.components = parts, components
        self.register_buffer("mean", torch.zeros(sum(parts)))
        self.register_buffer("deviation", torch.ones(sum(parts)))
        self.register_buffer("basis", torch.zeros(components, parts[0]))

    @property
    def scaled_parts(self) -> tuple[int, int]:
        """Rows of the encoder and of the mel that a network sees."""
        return self.components or self.parts[0], self.parts[1]

    def fill(self, mean: Tensor, deviation: Tensor, basis: Tensor | None = None) -> None:
        """Take mean and deviation [1152], and the components' directions [n, 1023] if there are components."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        if basis is not None:
            self.basis.copy_(basis)

    def forward(self, features: Tensor) -> Tensor:
        scaled = (features - self.mean[:, None]) / self.deviation[:, None]
        if not self.components:
            return scaled
        mert, mel = scaled.split(self.parts, 1)
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self.basis @ mert, mel], 1)

    def back(self, scaled: Tensor) -> Tensor:
        """Return the raw rows of scaled ones; of components, the nearest rows that have them."""
        if self.components:
            mert, mel = scaled.split(self.scaled_parts, 1)
            length = self.basis.square().sum(1, keepdim=True).clamp(min=1e-12)  # of every direction, squared
            scaled = torch.cat([(self.basis / length).T @ mert, mel], 1)
        return scaled * self.deviation[:, None] + self.mean[:, None]


class Codebooks(nn.Module):
    """Q codebooks one after another, each coding what those before it left (Zeghidour et al. 2021, algorithm 1).

    The interface is that of one `Codebook`, for outputs [B, D, 1, W] and codes [B, Q, W].
    """

    def __init__(self, config: VqvaeConfig, depth: int) -> None:
        super().__init__()
        self.books = nn.ModuleList([Codebook(config) for _ in range(depth)])

    def _each(self, before: Tensor) -> list[tuple[Codebook, Tensor, Tensor]]:
        """Return (codebook, what it is to code [B, D, 1, W], its codes [B, 1, W]) of every codebook."""
        found = []
        for book in self.books:
            assert isinstance(book, Codebook)
            codes = book(before)
            found.append((book, before, codes))
            before = before - book.look_up(codes)
        return found

    def forward(self, before: Tensor) -> Tensor:
        return torch.cat([codes for _, _, codes in self._each(before)], 1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the sums [B, D, 1, W] of the vectors of codes [B, Q, W]."""
        vectors = [book.look_up(codes[:, [i]]) for i, book in enumerate(self.books) if isinstance(book, Codebook)]
        return torch.stack(vectors).sum(0)

    @torch.no_grad()
    def start(self, before: Tensor) -> None:
        """Start one codebook after another on what those before it leave of the first outputs."""
        for book in self.books:
            assert isinstance(book, Codebook)
            book.start(before)
            before = before - book.look_up(book(before))

    @torch.no_grad()
    def follow(self, before: Tensor, codes: Tensor, step: int) -> int:
        """Move every codebook; `codes` are those of `before`. Return how many vectors were drawn anew."""
        return sum(book.follow(left, mine, step) for book, left, mine in self._each(before))


class TimeBlock(nn.Module):
    """A residual block over time alone, [B, C, T] to the same."""

    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        C, inner = config.channels, config.residual
        self.body = nn.Sequential(nn.ReLU(), nn.Conv1d(C, inner, 3, padding=1), nn.ReLU(), nn.Conv1d(inner, C, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def time_encoder(rows: int, config: MvqvaeConfig) -> nn.Sequential:
    """Return the way from scaled rows [B, F, T] as channels to [B, D, T / stride]."""
    C = config.channels
    halves = [[nn.Conv1d(C, C, 4, 2, 1), nn.ReLU()] for _ in range(config.stride.bit_length() - 1)]
    return nn.Sequential(
        nn.Conv1d(rows, C, 7, padding=3),
        nn.ReLU(),
        *(layer for layers in halves for layer in layers),
        *(TimeBlock(config) for _ in range(config.blocks)),
        nn.ReLU(),
        nn.Conv1d(C, config.width, 1),
    )


def time_decoder(rows: int, config: MvqvaeConfig) -> nn.Sequential:
    """Return the way back, [B, D, T / stride] to [B, F, T]."""
    C = config.channels
    doubles = [[nn.ReLU(), nn.ConvTranspose1d(C, C, 4, 2, 1)] for _ in range(config.stride.bit_length() - 1)]
    return nn.Sequential(
        nn.Conv1d(config.width, C, 3, padding=1),
        *(TimeBlock(config) for _ in range(config.blocks)),
        *(layer for layers in doubles for layer in layers),
        nn.ReLU(),
        nn.Conv1d(C, rows, 7, padding=3),
    )


class Mvqvae(nn.Module):
    """CEmbeds [B, 1152, 300] to codes [B, 288, 75] and back: raw rows go in and come out, scaled ones lie between.

    `forward` gives scaled rows, in which the error is measured (`rows` has the scale); the head is that of `Vqvae`. What
    the stride does not divide is padded at the end with the last row and frame, and cut off again.
    """

    def __init__(
        self, config: MvqvaeConfig, head: Head = "none", parts: tuple[int, int] = (1023, 129), frames: int = 300
    ) -> None:
        super().__init__()
        self.config, self.head, self.frames = config, head, frames
        self.rows = Rows(parts, config.components)
        count = sum(self.rows.scaled_parts)
        W = -(-frames // config.stride)
        self.grid = (config.depth, W) if config.depth else (-(-count // config.stride), W)
        if config.depth:
            self.encoder, self.decoder = time_encoder(count, config), time_decoder(count, config)
            self.codebook = Codebooks(config, config.depth)
        else:
            ways = (branch(kernel, config, config.extra, config.stride) for kernel in KERNELS)
            self.branches = nn.ModuleList(ways)
            self.narrow = nn.Conv2d(config.channels, config.width, 1)
            self.decoder = decoder(config, config.extra, config.stride)
            self.codebook = Codebook(config)
        self.classifier = None if head == "none" else nn.Linear(config.width, LABELS)

    def _encode(self, scaled: Tensor) -> Tensor:
        stride, (count, T) = self.config.stride, scaled.shape[1:]
        x = scaled[:, None]
        if self.config.depth:
            x = F.pad(x, (0, -T % stride, 0, 0), mode="replicate")
            return full_precision(self.encoder(x[:, 0])[:, :, None])
        x = F.pad(x, (0, -T % stride, 0, -count % stride), mode="replicate")
        return full_precision(self.narrow(torch.stack([way(x) for way in self.branches]).sum(0)))

    def _decode(self, after: Tensor) -> Tensor:
        made = self.decoder(after[:, :, 0]) if self.config.depth else self.decoder(after)[:, 0]
        return full_precision(made)[:, : sum(self.rows.scaled_parts), : self.frames]

    def encode(self, features: Tensor) -> Tensor:
        """Return what enters quantisation, [B, D, H, W] ([B, D, 1, W] with `depth`), of raw CEmbeds [B, 1152, T]."""
        return self._encode(self.rows(features))

    def decode(self, after: Tensor) -> Tensor:
        """Return the raw CEmbeds [B, 1152, T] of vectors [B, D, H, W]."""
        return self.rows.back(self._decode(after))

    def forward(self, features: Tensor) -> Reconstruction:
        before = self.encode(features)
        with torch.autocast(features.device.type, enabled=False):
            codes = self.codebook(before)
            after = straight_through(before, self.codebook.look_up(codes))
            seen = after if self.head == "post" else before
            logits = self.classifier(seen.mean((2, 3))) if self.classifier is not None else None
        return Reconstruction(self._decode(after), before, after, codes, logits)

    def tally(self, codes: Tensor) -> Tensor:
        """Return how often each codebook's codes occur in codes [B, H, W], int64 [Q, K]; one codebook, unless `depth`."""
        books = codes.transpose(0, 1).flatten(1) if self.config.depth else codes.flatten()[None]
        return torch.stack([book.bincount(minlength=self.config.size) for book in books])
