"""The latents of our own system: principal components of patches of a log-mel, and a decoder that adds fine structure.

Letters: B batch, M mel bands, T frames, P frames of a patch, N = T / P patches, C channels, D latent width.

A patch of 4 frames of 100 bands is 400 numbers, most of them the fine structure of noise, which cannot be predicted and
need not be reproduced exactly. Its first 64 principal components, the latents, hold 98 % of the variance. A network turns
them back into a mel and adds the missing fine structure, which it makes of input noise and learns against a
discriminator. The model that draws latents (transformer.py) therefore has a sixth of the numbers to draw.

The analysis is linear and fitted at the first step. A learned encoder (ConvNeXt, noisy latents of unit variance) was
still worse after a thousand steps (docs/experiments.md).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from foleybox.lab.core.compat import accept_old_names


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder."""

    bands: int = 100
    "M: those of the `wide` mel"
    patch: int = 4
    "P: frames per latent"
    latent: int = 64
    "D: numbers per latent"
    width: int = 256
    "channels at the patch rate"
    fine: int = 192
    "channels at the frame rate"
    coarse_layers: int = 4
    "blocks at the patch rate"
    fine_layers: int = 3
    "blocks at the frame rate"
    noise: int = 8
    "noise channels per frame, the decoder's input for the fine structure"

    REMOVED: ClassVar = {"decoder_patch": 0, "decoder_latent": 0}
    "settings of earlier versions, with the value that this version implies"


SIZES = {
    "base": AutoencoderConfig(),
    "tiny": AutoencoderConfig(latent=8, width=16, fine=16, coarse_layers=1, fine_layers=1, noise=2),
}
"base: the released instruments'; tiny: to try the commands"


class Block(nn.Module):
    """ConvNeXt block in one dimension, [B, C, T] to the same (Liu et al. 2022): depthwise over time, then per frame."""

    OLD_NAMES: ClassVar = {"rise.": "fc1.", "fall.": "fc2."}

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 3 * width)
        self.fc2 = nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1 / layers))
        accept_old_names(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))  # [B, T, C]
        y = self.fc2(F.gelu(self.fc1(y))) * self.scale
        return x + y.transpose(1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, T]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def fold(x: Tensor, patch: int) -> Tensor:
    """Stack the P frames of each patch: [B, C, T] to [B, P C, N]."""
    B, C, T = x.shape
    return x.reshape(B, C, T // patch, patch).permute(0, 3, 1, 2).reshape(B, patch * C, T // patch)


def unfold(x: Tensor, patch: int) -> Tensor:
    """Undo `fold`: [B, P C, N] to [B, C, T]."""
    B, _, N = x.shape
    return x.reshape(B, patch, -1, N).permute(0, 2, 3, 1).reshape(B, -1, N * patch)


class Components(nn.Module):
    """Principal components of patches: log-mels [B, M, T] to latents [B, N, D] and back. T is a multiple of P.

    Component k has a standard deviation s_k over the patches. It is divided by sqrt(s_k) times a common factor: latents
    have variance 1 on average, and components of more variance stay larger, so the flow determines them first.
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.register_buffer("mean", torch.zeros(config.bands * config.patch))
        self.register_buffer("axes", torch.eye(config.bands * config.patch)[:, : config.latent].contiguous())
        self.register_buffer("scale", torch.ones(config.latent))

    @torch.no_grad()
    def fit(self, mels: Tensor) -> None:
        """Compute the components of the patches of mels [B, M, T], without patches of digital silence."""
        patches = fold(mels, self.patch).transpose(1, 2).flatten(0, 1)
        patches = patches[patches.amax(1) > patches.min() + 0.1].double()
        self.mean.copy_(patches.mean(0))
        variance, axes = torch.linalg.eigh((patches - self.mean).T @ (patches - self.mean) / len(patches))
        D = len(self.scale)
        axes, deviation = axes[:, -D:].flip(1), variance[-D:].flip(0).clamp(min=1e-6).sqrt()
        self.axes.copy_(axes * axes.sum(0).sign())  # the sign of an axis is arbitrary: louder is positive
        self.scale.copy_(deviation.sqrt() * deviation.mean().sqrt())

    def encode(self, mel: Tensor) -> Tensor:
        return (fold(mel, self.patch).transpose(1, 2) - self.mean) @ self.axes / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        return unfold(((latents * self.scale) @ self.axes.T + self.mean).transpose(1, 2), self.patch)


class MelDecoder(nn.Module):
    """Latents [B, N, D] and noise [B, T, noise] to the residual [B, M, T] that the components lack; any N, B."""

    OLD_NAMES: ClassVar = {"grain.": "noise_embed."}

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        width, fine = config.width, config.fine
        self.embed = nn.Conv1d(config.latent, width, 3, padding=1)
        self.norm_in = ChannelNorm(width)
        self.blocks = nn.Sequential(*(Block(width, config.coarse_layers) for _ in range(config.coarse_layers)))
        self.unfold = nn.Conv1d(width, fine * config.patch, 1)
        self.noise_embed = nn.Conv1d(config.noise, fine, 3, padding=1)
        self.norm_fine = ChannelNorm(fine)
        self.fine_blocks = nn.Sequential(*(Block(fine, config.fine_layers) for _ in range(config.fine_layers)))
        self.norm_out = ChannelNorm(fine)
        self.head = nn.Conv1d(fine, config.bands, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.002)
        accept_old_names(self)

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        rows = latents.transpose(1, 2)  # [B, D, N]
        x = unfold(self.unfold(self.blocks(self.norm_in(self.embed(rows)))), self.config.patch)  # [B, C, T]
        x = self.norm_fine(x + self.noise_embed(noise.transpose(1, 2)))
        return self.head(self.norm_out(self.fine_blocks(x)))


class Autoencoder(nn.Module):
    """The components and the decoder."""

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.components = Components(self.config)
        self.decoder = MelDecoder(self.config)

    def encode(self, mel: Tensor) -> Tensor:
        """Return the latents [B, N, D] of natural-log mels [B, M, T]."""
        return self.components.encode(mel)

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return natural-log mels [B, M, T] of latents [B, N, D] and standard normal `noise` [B, T, noise]."""
        return self.components.decode(latents) + self.decoder(latents, noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Return natural-log mels [B, M, T], their fine structure made of noise from torch's generator."""
        B, N, _ = latents.shape
        noise = torch.randn(B, N * self.config.patch, self.config.noise, device=latents.device)
        return self(latents, noise)

    @torch.no_grad()
    def reconstruct(self, mels: Tensor, batch: int = 16) -> Tensor:
        """Return the reconstructions of natural-log mels [N, M, T], on the CPU, computed `batch` at a time."""
        device = next(self.parameters()).device
        return torch.cat([self.decode(self.encode(part.to(device))).cpu() for part in mels.split(batch)])


# --- the discriminator --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MelDiscriminatorConfig:
    """Size of the mel discriminator."""

    width: int = 24
    "channels of the first layer; the others have 2, 4 and 4 times as many"


class MelDiscriminator(nn.Module):
    """PatchGAN discriminator of mels [B, M, T] (Isola et al. 2017): (scores [B, 1, M', T'], the activations before them).

    A second input channel holds the position of each band, since low and high bands differ. A score depends on 54
    frames (0.63 s) of 54 bands: on fine structure and edges, not on whole clips.
    """

    def __init__(self, config: MelDiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or MelDiscriminatorConfig()
        C = self.config.width
        shape = ((2, C, 2), (C, 2 * C, 2), (2 * C, 4 * C, 2), (4 * C, 4 * C, 1))
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, 4 if stride == 2 else 3, stride, padding=1))
            for before, after, stride in shape
        )
        self.score = weight_norm(nn.Conv2d(4 * C, 1, 3, padding=1))

    def forward(self, mel: Tensor) -> tuple[Tensor, list[Tensor]]:
        B, M, T = mel.shape
        position = torch.linspace(-1, 1, M, device=mel.device, dtype=mel.dtype)[None, :, None].expand(B, M, T)
        x = torch.stack([(mel + 6) / 3, position], 1)  # [B, 2, M, T]
        activations = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            activations.append(x)
        return self.score(x), activations
