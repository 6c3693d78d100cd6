"""The official baseline's VQ-VAE: a log-mel becomes a grid of codes, and the codes a log-mel again. CMU's MVQVAE: a
CEmbed does.

Letters: B batch, N clips, M mel bands, T frames, H x W latent grid (a quarter of M x T: 20 x 86 for 80 x 344),
C channels, D code width, K codes in the codebook, P points (places of the grid, over a batch), F rows of a CEmbed,
Q codebooks one after another.

Liu et al. 2021 and the baseline of DCASE 2023 Task 7, after van den Oord et al. 2017 and Razavi et al. 2019 (VQ-VAE-2,
its bottom level alone); the foley head is that of Pillay et al. 2023, 2.3.1 (design: systems-baseline-cmu.md 2.2, 3.1).
Mels go in and come out as they are: natural logarithm, not normalised. The MVQVAE is the same network with a path
more, behind a scale for each row (same report, 2.3.2; design 3.3).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LABELS = 7
MANY = 65_536  # points compared with a codebook at once; a batch of CEmbeds has 345,600
KERNELS = {2: 0, 4: 1, 6: 2, 8: 3}  # kernel of a branch -> its padding: every branch halves even sizes exactly
Head = Literal["none", "pre", "post"]
Extra = Literal["none", "parallel", "serial"]


@dataclass(frozen=True)
class VqvaeConfig:
    """The size of the VQ-VAE; the defaults are the baseline's."""

    channels: int = 128
    "C"
    blocks: int = 2
    "residual blocks in each of the encoder's branches and in the decoder"
    residual: int = 32
    "channels inside a residual block"
    width: int = 64
    "D, the width of a code's vector"
    size: int = 512
    "K, codes in the codebook"
    norm: bool = False
    "batch norm after the convolutions, as in the public copy of CMU's code; their report does not mention it"
    codebook: Literal["k-means", "faithful"] = "k-means"
    "k-means: starts on the data, and unused codes are placed anew. faithful: the baseline's, which explodes at step 1"


class ResidualBlock(nn.Module):
    """ReLU, 3 x 3, ReLU, 1 x 1, added to ReLU(x) and not to x: the published first ReLU works in place."""

    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        C, inner = config.channels, config.residual
        self.body = nn.Sequential(
            nn.Conv2d(C, inner, 3, padding=1),
            *norm_layers(inner, config),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, C, 1),
            *norm_layers(C, config),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x + self.body(x)


def norm_layers(channels: int, config: VqvaeConfig) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if config.norm else []


class Beside(nn.Module):
    """The residual blocks, and parallel to them all one residual path more: blocks(x) + body(ReLU(x))."""

    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks)))
        self.body = ResidualBlock(config).body

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + self.body(F.relu(x))


def middle_layers(config: VqvaeConfig, extra: Extra) -> list[nn.Module]:
    if extra == "parallel":
        return [Beside(config)]
    return [ResidualBlock(config) for _ in range(config.blocks + (extra == "serial"))]


def branch(kernel: int, config: VqvaeConfig, extra: Extra = "none", stride: int = 4) -> nn.Sequential:
    """Return one of the encoder's parallel ways, [B, 1, M, T] to [B, C, H, W]."""
    C, padding = config.channels, KERNELS[kernel]
    coarser = [
        [nn.Conv2d(C, C, 4, 2, 1), *norm_layers(C, config), nn.ReLU(inplace=True)]
        for _ in range(stride.bit_length() - 3)
    ]
    return nn.Sequential(
        nn.Conv2d(1, C // 2, kernel, 2, padding),
        *norm_layers(C // 2, config),
        nn.ReLU(inplace=True),
        nn.Conv2d(C // 2, C, kernel, 2, padding),
        *norm_layers(C, config),
        nn.ReLU(inplace=True),
        *(layer for layers in coarser for layer in layers),
        nn.Conv2d(C, C, 3, padding=1),
        *norm_layers(C, config),
        *middle_layers(config, extra),
        nn.ReLU(inplace=True),
    )


def decoder(config: VqvaeConfig, extra: Extra = "none", stride: int = 4) -> nn.Sequential:
    """Return the way back, [B, D, H, W] to [B, 1, M, T]."""
    C = config.channels
    finer = [[nn.ConvTranspose2d(C, C, 4, 2, 1), nn.ReLU(inplace=True)] for _ in range(stride.bit_length() - 3)]
    return nn.Sequential(
        nn.Conv2d(config.width, C, 3, padding=1),
        *middle_layers(config, extra),
        nn.ReLU(inplace=True),
        *(layer for layers in finer for layer in layers),
        nn.ConvTranspose2d(C, C // 2, 4, 2, 1),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(C // 2, 1, 4, 2, 1),
    )


# --- the codebook -------------------------------------------------------------------------------------------------


def nearest(points: Tensor, vectors: Tensor) -> Tensor:
    """Return the number of the vector of [K, D] nearest to each point of [P, D], int64 [P]; the lowest of equals."""
    lengths = vectors.square().sum(1)
    return torch.cat([(lengths - 2 * part @ vectors.T).argmin(1) for part in points.split(MANY)])


def tally(points: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return (how many points have each code [K], the sums of those points [K, D])."""
    counts = torch.bincount(codes, minlength=size).to(points.dtype)
    return counts, points.new_zeros(size, points.shape[1]).index_add_(0, codes, points)


def draw_far(points: Tensor, homes: Tensor, count: int) -> Tensor:
    """Draw `count` of the points [P, D], each with the chance of its squared distance from its home [P, D].

    That is k-means++ (Arthur and Vassilvitskii 2007): what is coded badly gets a code, and the many equal points of
    digital silence, which lie on their code, get no second one. Draws from torch's global generator.
    """
    distance = (points - homes).square().sum(1).clamp(min=1e-30)
    return points[torch.multinomial(distance, count, replacement=True)]


def k_means(points: Tensor, size: int, rounds: int = 10) -> Tensor:
    """Return `size` centres [K, D] of points [P, D]; a centre without points is drawn anew in every round."""
    centres = points[torch.randint(len(points), (size,), device=points.device)]
    for _ in range(rounds):
        codes = nearest(points, centres)
        counts, sums = tally(points, codes, size)
        alone = counts == 0
        centres = sums / counts.clamp(min=1)[:, None]
        if alone.any():
            centres[alone] = draw_far(points, centres[codes], int(alone.sum()))
    return centres


class Codebook(nn.Module):
    """K vectors, each a moving average of the encoder's outputs that are mapped to it; no parameters, always float32.

    N <- .99 N + .01 n and m <- .99 m + .01 sum z for each code, where n of the batch's outputs z have it; its vector is
    m / N, with N smoothed by Laplace's rule (van den Oord et al. 2017, appendix A.1; Razavi et al. 2019, equation 3).

    faithful: N starts at 0 as published, so that at the first step the vector of every code without points is divided
    by about 1e-5 and lost: tests/test_vqvae.py shows it.
    k-means: `start` puts the vectors among the first outputs, with N = 1; `follow` draws a code anew that is used less
    than DEAD times as often as the mean; and .99 is (1 + step) / (10 + step) up to step 890, because an encoder that has
    just begun runs away from a slow codebook.
    """

    DECAY, EPS = 0.99, 1e-5
    DEAD, REVIVED = 0.02, 0.1  # of the mean N: below it a code is drawn anew, and then given this N

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        self.config = config
        vectors = torch.randn(config.size, config.width)
        self.register_buffer("vectors", vectors)
        self.register_buffer("counts", torch.full((config.size,), 0.0 if config.codebook == "faithful" else 1.0))
        self.register_buffer("sums", vectors.clone())

    def forward(self, before: Tensor) -> Tensor:
        """Return the codes [B, H, W] of the encoder's outputs [B, D, H, W]."""
        points = points_of(before)
        return nearest(points, self.vectors).view(before.shape[0], *before.shape[2:])

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the vectors [B, D, H, W] of codes [B, H, W]."""
        return F.embedding(codes, self.vectors).permute(0, 3, 1, 2)

    @torch.no_grad()
    def start(self, before: Tensor) -> None:
        """Put the vectors where the outputs [B, D, H, W] of the first batch are; `faithful` stays as it is."""
        if self.config.codebook == "k-means":
            points = points_of(before)
            self.vectors.copy_(k_means(points[:: -(-len(points) // MANY)], self.config.size))
            self.sums.copy_(self.vectors)

    @torch.no_grad()
    def follow(self, before: Tensor, codes: Tensor, step: int) -> int:
        """Move the vectors toward a step's outputs [B, D, H, W] with codes [B, H, W]; return how many were drawn anew."""
        faithful = self.config.codebook == "faithful"
        decay = self.DECAY if faithful else min(self.DECAY, (1 + step) / (10 + step))
        points, codes = points_of(before), codes.flatten()
        counts, sums = tally(points, codes, self.config.size)
        self.counts.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.EPS) / (total + self.config.size * self.EPS) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        if faithful:
            return 0
        dead = self.counts < self.DEAD * self.counts.mean()
        drawn = int(dead.sum())
        if drawn:
            self.vectors[dead] = draw_far(points, self.vectors[codes], drawn)
            self.counts[dead] = self.REVIVED * self.counts.mean()
            self.sums[dead] = self.vectors[dead] * self.counts[dead, None]
        return drawn


def points_of(before: Tensor) -> Tensor:
    """[B, D, H, W] to [P, D]."""
    return before.permute(0, 2, 3, 1).flatten(0, 2)


# --- the model ----------------------------------------------------------------------------------------------------


class Reconstruction(NamedTuple):
    """What the VQ-VAE makes of a batch of mels."""

    mel: Tensor
    "[B, M, T]; the MVQVAE's scaled rows [B, F, T]"
    before: Tensor
    "[B, D, H, W] float32, the encoder's outputs"
    after: Tensor
    "[B, D, H, W] their codes' vectors; the gradient goes straight through to `before`"
    codes: Tensor
    "int64 [B, H, W]"
    logits: Tensor | None
    "[B, 7] the foley head's, if there is one"


class Vqvae(nn.Module):
    """Log-mels [B, M, T] to codes and back; M and T divide by 4.

    `head`: "pre" reads the label from the means over the grid of what enters quantisation (the report), "post" from
    those of what leaves it (the public copy of CMU's code). The label is the head's target and never an input: the
    codes of an unlabelled mel are the same.
    """

    def __init__(self, config: VqvaeConfig, head: Head = "none") -> None:
        super().__init__()
        self.config, self.head = config, head
        self.branches = nn.ModuleList([branch(kernel, config) for kernel in KERNELS])  # their outputs are summed
        self.narrow = nn.Conv2d(config.channels, config.width, 1)
        self.codebook = Codebook(config)
        self.decoder = decoder(config)
        self.classifier = None if head == "none" else nn.Linear(config.width, LABELS)

    def encode(self, mel: Tensor) -> Tensor:
        """Return what enters quantisation, [B, D, H, W], float32 under autocast too."""
        summed = torch.stack([way(mel[:, None]) for way in self.branches]).sum(0)
        return full_precision(self.narrow(summed))

    def decode(self, after: Tensor) -> Tensor:
        """Return the mels [B, M, T] of vectors [B, D, H, W]."""
        return full_precision(self.decoder(after))[:, 0]

    def forward(self, mel: Tensor) -> Reconstruction:
        before = self.encode(mel)
        with torch.autocast(mel.device.type, enabled=False):
            codes = self.codebook(before)
            after = straight_through(before, self.codebook.look_up(codes))
            seen = after if self.head == "post" else before
            logits = self.classifier(seen.mean((2, 3))) if self.classifier is not None else None
        return Reconstruction(self.decode(after), before, after, codes, logits)


def straight_through(before: Tensor, after: Tensor) -> Tensor:
    """Return `after` in value, with the gradient of `before` (van den Oord et al. 2017, 3.2)."""
    return before + (after - before).detach()


def full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
