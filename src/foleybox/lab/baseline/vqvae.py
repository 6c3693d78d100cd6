"""The official baseline's VQ-VAE: a log-mel becomes a grid of codes, and the codes become a log-mel.

Letters: B batch, N clips, M mel bands, T frames, H x W latent grid (a quarter of M x T: 20 x 86 for 80 x 344),
C channels, D code width, K codes in the codebook, P points (positions of the grid, over a batch).

Liu et al. 2021 and the baseline of DCASE 2023 Task 7, after van den Oord et al. 2017 and Razavi et al. 2019 (VQ-VAE-2,
its bottom level alone). The classification head is that of Pillay et al. 2023, section 2.3.1. Log-mels go in and come
out as they are: natural logarithm, not normalised. CMU's MVQVAE (cmu/mvqvae.py) is built of the same parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.labels import LABELS as TASK_LABELS

LABELS = len(TASK_LABELS)
POINTS_AT_ONCE = 65_536  # compared with a codebook; a batch of CEmbeds has 345,600
KERNELS = {2: 0, 4: 1, 6: 2, 8: 3}  # kernel size of a branch -> padding with which it halves even sizes exactly
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
    "k-means: initialised from data, unused codes are replaced. faithful: the baseline's, which explodes at step 1"


PUBLISHED = VqvaeConfig()
SIZES = {"tiny": VqvaeConfig(channels=8, residual=4, width=8, size=16), "published": PUBLISHED}


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


class ParallelResidual(nn.Module):
    """The residual blocks and, parallel to all of them, one more residual path: blocks(x) + body(ReLU(x))."""

    def __init__(self, config: VqvaeConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks)))
        self.body = ResidualBlock(config).body

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) + self.body(F.relu(x))


def middle_layers(config: VqvaeConfig, extra: Extra) -> list[nn.Module]:
    if extra == "parallel":
        return [ParallelResidual(config)]
    return [ResidualBlock(config) for _ in range(config.blocks + (extra == "serial"))]


def branch(kernel: int, config: VqvaeConfig, extra: Extra = "none", stride: int = 4) -> nn.Sequential:
    """Return one of the encoder's parallel branches, [B, 1, M, T] to [B, C, M / stride, T / stride]."""
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
    """Return the decoder, [B, D, H, W] to [B, 1, stride H, stride W]."""
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
    """Return the index of the vector of [K, D] nearest to each point of [P, D], int64 [P]; the lowest of equals."""
    lengths = vectors.square().sum(1)
    return torch.cat([(lengths - 2 * part @ vectors.T).argmin(1) for part in points.split(POINTS_AT_ONCE)])


def count_and_sum(points: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return (the number of points [K] with each code, the sums of those points [K, D])."""
    counts = torch.bincount(codes, minlength=size).to(points.dtype)
    return counts, points.new_zeros(size, points.shape[1]).index_add_(0, codes, points)


def draw_far(points: Tensor, vectors: Tensor, count: int) -> Tensor:
    """Draw `count` of the points [P, D], with probabilities proportional to squared distances from their vectors [P, D].

    As in k-means++ (Arthur and Vassilvitskii 2007): badly coded points get a code of their own, while the many equal
    points of digital silence, at distance 0, get no second one. Uses torch's global generator.
    """
    distance = (points - vectors).square().sum(1).clamp(min=1e-30)
    return points[torch.multinomial(distance, count, replacement=True)]


def k_means(points: Tensor, size: int, rounds: int = 10) -> Tensor:
    """Return `size` centres [K, D] of points [P, D]; a centre without points is drawn again in every round."""
    centres = points[torch.randint(len(points), (size,), device=points.device)]
    for _ in range(rounds):
        codes = nearest(points, centres)
        counts, sums = count_and_sum(points, codes, size)
        empty = counts == 0
        centres = sums / counts.clamp(min=1)[:, None]
        if empty.any():
            centres[empty] = draw_far(points, centres[codes], int(empty.sum()))
    return centres


class Codebook(nn.Module):
    """K vectors, each a moving average of the encoder's outputs assigned to it; no parameters, always float32.

    N <- .99 N + .01 n and m <- .99 m + .01 sum z for each code, where n of the batch's outputs z have that code; its
    vector is m / N, with N smoothed by Laplace's rule (van den Oord et al. 2017, appendix A.1; Razavi et al. 2019, equation 3).

    faithful: N starts at 0 as published, so that at the first step the vector of every code without points is divided
    by about 1e-5 and lost (a test in tests/test_vqvae.py).
    k-means: `initialise` puts the vectors among the first outputs, with N = 1; `update` replaces a code that is used less
    than DEAD times as often as the mean; and .99 is (1 + step) / (10 + step) up to step 890, because the outputs of an
    encoder at the start of its training move faster than a slow average.
    """

    DECAY, EPS = 0.99, 1e-5
    DEAD, REPLACED = 0.02, 0.1  # of the mean N: below it a code is replaced, and then has this N

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

    def forward(self, latent: Tensor) -> Tensor:
        """Return the codes [B, H, W] of the encoder's outputs [B, D, H, W]."""
        points = points_of(latent)
        return nearest(points, self.vectors).view(latent.shape[0], *latent.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors [B, D, H, W] of codes [B, H, W]."""
        return F.embedding(codes, self.vectors).permute(0, 3, 1, 2)

    @torch.no_grad()
    def initialise(self, latent: Tensor) -> None:
        """Set the vectors by k-means of the outputs [B, D, H, W] of the first batch; `faithful`: leave them."""
        if self.config.codebook == "k-means":
            points = points_of(latent)
            self.vectors.copy_(k_means(points[:: -(-len(points) // POINTS_AT_ONCE)], self.config.size))
            self.sums.copy_(self.vectors)

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor, step: int) -> int:
        """Move the vectors toward a step's outputs [B, D, H, W] with codes [B, H, W]; return how many were replaced."""
        faithful = self.config.codebook == "faithful"
        decay = self.DECAY if faithful else min(self.DECAY, (1 + step) / (10 + step))
        points, codes = points_of(latent), codes.flatten()
        counts, sums = count_and_sum(points, codes, self.config.size)
        self.counts.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.EPS) / (total + self.config.size * self.EPS) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        if faithful:
            return 0
        dead = self.counts < self.DEAD * self.counts.mean()
        replaced = int(dead.sum())
        if replaced:
            self.vectors[dead] = draw_far(points, self.vectors[codes], replaced)
            self.counts[dead] = self.REPLACED * self.counts.mean()
            self.sums[dead] = self.vectors[dead] * self.counts[dead, None]
        return replaced


def points_of(latent: Tensor) -> Tensor:
    """Return [B, D, H, W] as points [P, D]."""
    return latent.permute(0, 2, 3, 1).flatten(0, 2)


# --- the model ----------------------------------------------------------------------------------------------------


class Reconstruction(NamedTuple):
    """The outputs of a VQ-VAE for a batch."""

    output: Tensor
    "log-mels [B, M, T]; of an MVQVAE, scaled rows of CEmbeds"
    latent: Tensor
    "[B, D, H, W] float32, the encoder's outputs"
    quantised: Tensor
    "[B, D, H, W] the vectors of their codes; gradients pass straight through to `latent`"
    codes: Tensor
    "int64 [B, H, W]"
    logits: Tensor | None
    "[B, 7] of the classification head, if there is one"


class Vqvae(nn.Module):
    """Log-mels [B, M, T] to codes and back; M and T must be multiples of 4.

    `head`: "pre" predicts the label from the means over the grid of the encoder's output (the report), "post" from those
    of the quantised one (the public copy of CMU's code). The label is the head's target, never an input: the codes of an
    unlabelled mel are the same.
    """

    head: Head

    def __init__(self, config: VqvaeConfig, head: Head = "none") -> None:
        super().__init__()
        self.config, self.head = config, head
        self.branches = nn.ModuleList([branch(kernel, config) for kernel in KERNELS])  # their outputs are summed
        self.narrow = nn.Conv2d(config.channels, config.width, 1)
        self.codebook = Codebook(config)
        self.decoder = decoder(config)
        self.classifier = None if head == "none" else nn.Linear(config.width, LABELS)

    def encode(self, mel: Tensor) -> Tensor:
        """Return the encoder's outputs [B, D, H, W], float32 under autocast too."""
        summed = torch.stack([branch(mel[:, None]) for branch in self.branches]).sum(0)
        return full_precision(self.narrow(summed))

    def decode(self, quantised: Tensor) -> Tensor:
        """Return the log-mels [B, M, T] of vectors [B, D, H, W]."""
        return full_precision(self.decoder(quantised))[:, 0]

    def forward(self, mel: Tensor) -> Reconstruction:
        return reconstruct(self, self.encode(mel), self.decode)


def reconstruct(model: "Quantiser", latent: Tensor, decode: Callable[[Tensor], Tensor]) -> Reconstruction:
    """Quantise the encoder's outputs [B, D, H, W] in float32, apply the classification head, and decode."""
    with torch.autocast(latent.device.type, enabled=False):
        codes = model.codebook(latent)
        quantised = straight_through(latent, model.codebook.lookup(codes))
        head_input = quantised if model.head == "post" else latent
        logits = model.classifier(head_input.mean((2, 3))) if model.classifier is not None else None
    return Reconstruction(decode(quantised), latent, quantised, codes, logits)


class Quantiser(Protocol):
    """A model with a codebook: the baseline's VQ-VAE or CMU's MVQVAE."""

    codebook: Codebook
    config: Any
    head: Head
    classifier: nn.Linear | None
    training: bool

    def encode(self, mel: Tensor, /) -> Tensor: ...

    def decode(self, quantised: Tensor, /) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """Return the value of `quantised` with the gradient of `latent` (van den Oord et al. 2017, section 3.2)."""
    return latent + (quantised - latent).detach()


def full_precision(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
