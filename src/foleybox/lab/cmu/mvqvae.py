"""CMU's MVQVAE (Pillay et al. 2023, section 2.3.2): a CEmbed becomes a grid of codes, and the codes become a CEmbed.

The baseline's VQ-VAE (baseline/vqvae.py) with one more residual path, behind a scale for each row.

Letters: B batch, F rows of a CEmbed, T frames, C channels, D code width, K codes, H x W grid.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

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
    reconstruct,
)

Stride = Literal[4, 8, 16]


@dataclass(frozen=True)
class MvqvaeConfig(VqvaeConfig):
    """The size of the MVQVAE; the defaults are those of its second version, those of the first are in brackets.

    The report states the codes and the additional path; the widths and batch norm are those of the public copy of its code.
    """

    channels: int = 256
    "C"
    residual: int = 64
    "channels inside a residual block"
    width: int = 128
    "D, the width of a code's vector [64]"
    size: int = 1024
    "K, codes in the codebook [512]"
    norm: bool = True
    "batch norm after the convolutions, as in the public copy of the code; the report does not mention it"
    extra: Extra = "parallel"
    "one more residual path [none]: parallel to the blocks (the report), or one more block after them (its code): serial"
    stride: Stride = 4
    "rows and frames per position of the grid; above 4 is ours: 5,472 or 1,368 codes per clip instead of 21,600"
    components: int = 0
    "principal components instead of the encoder's 1,023 rows; 0: the rows, as published"

    REMOVED: ClassVar[dict[str, Any]] = {"depth": 0}
    "settings of earlier versions, with the value that this version implies"


V1 = MvqvaeConfig(width=64, size=512, extra="none")
"the public code's first version"
V2 = MvqvaeConfig()
"its second version"
TINY = replace(V2, channels=8, residual=4, width=4, size=16)
"for trying the commands"
SIZES = {"tiny": TINY, "cmu-v1": V1, "published": V2}


class Rows(nn.Module):
    """The scale of a CEmbed's rows: raw [B, 1152, T] to the input of a network, [B, F, T], and back.

    A mean and a standard deviation for each row. With components, those replace the encoder's rows, which come first. No
    parameters: `fill` takes the results of `cembed.row_scale` and `cembed.principal_rows`.
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
        """Scaled rows of the encoder and of the mel."""
        return self.components or self.parts[0], self.parts[1]

    def fill(self, mean: Tensor, deviation: Tensor, basis: Tensor | None = None) -> None:
        """Set mean and deviation [1152] and, with components, their directions [components, 1023]."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
        if basis is not None:
            self.basis.copy_(basis)

    def forward(self, features: Tensor) -> Tensor:
        scaled = (features - self.mean[:, None]) / self.deviation[:, None]
        if not self.components:
            return scaled
        encoder, mel = scaled.split(self.parts, 1)
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self.basis @ encoder, mel], 1)

    def back(self, scaled: Tensor) -> Tensor:
        """Return the raw rows of scaled ones; for components, the nearest rows with those components."""
        if self.components:
            encoder, mel = scaled.split(self.scaled_parts, 1)
            length = self.basis.square().sum(1, keepdim=True).clamp(min=1e-12)  # squared, of every direction
            scaled = torch.cat([(self.basis / length).T @ encoder, mel], 1)
        return scaled * self.deviation[:, None] + self.mean[:, None]


class Mvqvae(nn.Module):
    """Raw CEmbeds [B, 1152, 300] to codes [B, 288, 75] (with a stride of 4, without components) and back to raw CEmbeds.

    The output of `forward` has scaled rows, in which the error is measured (`rows` has the scale). The head is that of
    `Vqvae`. Rows and frames are padded to multiples of the stride by repeating the last one, and cropped afterwards.
    """

    head: Head

    def __init__(
        self, config: MvqvaeConfig, head: Head = "none", parts: tuple[int, int] = (1023, 129), frames: int = 300
    ) -> None:
        super().__init__()
        self.config, self.head, self.frames = config, head, frames
        self.rows = Rows(parts, config.components)
        self.grid = (-(-sum(self.rows.scaled_parts) // config.stride), -(-frames // config.stride))
        self.branches = nn.ModuleList(branch(kernel, config, config.extra, config.stride) for kernel in KERNELS)
        self.narrow = nn.Conv2d(config.channels, config.width, 1)
        self.decoder = decoder(config, config.extra, config.stride)
        self.codebook = Codebook(config)
        self.classifier = None if head == "none" else nn.Linear(config.width, LABELS)

    def encode(self, features: Tensor) -> Tensor:
        """Return the encoder's outputs [B, D, H, W] of raw CEmbeds [B, 1152, T]."""
        scaled = self.rows(features)
        stride, (count, T) = self.config.stride, scaled.shape[1:]
        x = F.pad(scaled[:, None], (0, -T % stride, 0, -count % stride), mode="replicate")
        return full_precision(self.narrow(torch.stack([branch(x) for branch in self.branches]).sum(0)))

    def decode_scaled(self, quantised: Tensor) -> Tensor:
        """Return the scaled CEmbeds [B, F, T] of vectors [B, D, H, W]."""
        return full_precision(self.decoder(quantised)[:, 0])[:, : sum(self.rows.scaled_parts), : self.frames]

    def decode(self, quantised: Tensor) -> Tensor:
        """Return the raw CEmbeds [B, 1152, T] of vectors [B, D, H, W]."""
        return self.rows.back(self.decode_scaled(quantised))

    def forward(self, features: Tensor) -> Reconstruction:
        return reconstruct(self, self.encode(features), self.decode_scaled)
