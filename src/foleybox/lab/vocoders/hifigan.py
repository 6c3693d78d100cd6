"""HiFi-GAN: a log-mel to a wave by transposed convolutions (Kong et al. 2020, arXiv 2010.05646; jik876/hifi-gan).

Letters: B batch, M mel bands, T frames, C channels, L = T hop samples, P period.

V1 is the vocoder of the DCASE 2023 Task 7 baseline. Also here: the multi-period discriminator, which Vocos is trained
against too, the multi-scale discriminator, and the names of our weights in the official checkpoints.

Layers have torch's default initialisation. The official code draws N(0, 0.01) into tensors that its weight norm
overwrites at the first forward pass, so its networks begin with the default too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from foleybox.lab.core.compat import accept_old_names


@dataclass(frozen=True)
class HifiganConfig:
    """Sizes of the generator. Defaults: V1, 13,936,130 parameters with weight norm, 13,926,017 without."""

    bands: int = 80
    width: int = 512
    "channels before the first upsampling, which halves them, as does each further one"
    rates: tuple[int, ...] = (8, 8, 2, 2)
    "upsampling factors; their product is the hop"
    kernels: tuple[int, ...] = (16, 16, 4, 4)
    "of the transposed convolutions"
    residual_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    "of each residual kernel's stack"
    plain: bool = True
    "a plain convolution after each dilated one (the official resblock 1); False: resblock 2"

    @property
    def hop(self) -> int:
        return math.prod(self.rates)


V1 = HifiganConfig()
V2 = HifiganConfig(width=128)  # 928,514 with weight norm, 925,985 without
V3 = HifiganConfig(  # 1,464,322 with weight norm, 1,462,273 without
    width=256,
    rates=(8, 8, 4),
    kernels=(16, 16, 8),
    residual_kernels=(3, 5, 7),
    dilations=((1, 2), (2, 6), (3, 12)),
    plain=False,
)
VERSIONS = {"hifigan-v1": V1, "hifigan-v2": V2, "hifigan-v3": V3}

SLOPE = 0.1  # of the leaky ReLUs; the last one has torch's 0.01, as in the official code


def _conv(channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    return weight_norm(nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2))


class ResidualStack(nn.Module):
    """[B, C, T] to the same: a dilated and a plain convolution per dilation (the official resblock 1)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(_conv(channels, kernel, dilation) for dilation in dilations)
        self.plain = nn.ModuleList(_conv(channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class LightStack(nn.Module):
    """[B, C, T] to the same: a dilated convolution per dilation (the official resblock 2)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(_conv(channels, kernel, dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated in self.dilated:
            x = x + dilated(F.leaky_relu(x, SLOPE))
        return x


class Hifigan(nn.Module):
    """Natural-log mel [B, M, T] to wave [B, T hop] in (-1, 1)."""

    OLD_NAMES: ClassVar = {"rises.": "upsamplers."}

    def __init__(self, config: HifiganConfig = V1) -> None:
        super().__init__()
        self.config = config
        stack = ResidualStack if config.plain else LightStack
        self.first = weight_norm(nn.Conv1d(config.bands, config.width, 7, padding=3))
        self.upsamplers = nn.ModuleList()
        self.stacks = nn.ModuleList()
        channels = config.width
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            upsampler = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.upsamplers.append(weight_norm(upsampler))
            channels //= 2
            shapes = zip(config.residual_kernels, config.dilations, strict=True)
            self.stacks.append(nn.ModuleList(stack(channels, k, dilations) for k, dilations in shapes))
        self.last = weight_norm(nn.Conv1d(channels, 1, 7, padding=3))
        accept_old_names(self)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first(mel)
        for upsampler, stacks in zip(self.upsamplers, self.stacks, strict=True):
            x = upsampler(F.leaky_relu(x, SLOPE))
            assert isinstance(stacks, nn.ModuleList)
            x = torch.stack([stack(x) for stack in stacks]).mean(0)
        return torch.tanh(self.last(F.leaky_relu(x))).squeeze(1)

    def remove_weight_norm(self) -> None:
        """Fold the weight norms into plain weights, in place, for rendering and export."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                remove_parametrizations(module, "weight")


# --- the official checkpoints -------------------------------------------------------------------------------------


def official_names(config: HifiganConfig) -> dict[str, str]:
    """Return {name of a weight of a generator with weight norm: its name in an official checkpoint}."""
    layers = {"first": "conv_pre", "last": "conv_post"}
    kinds = {"dilated": "convs1", "plain": "convs2"} if config.plain else {"dilated": "convs"}
    for i in range(len(config.rates)):
        layers[f"upsamplers.{i}"] = f"ups.{i}"
        for j, dilations in enumerate(config.dilations):
            theirs = f"resblocks.{i * len(config.dilations) + j}"
            for mine, kind in kinds.items():
                layers |= {f"stacks.{i}.{j}.{mine}.{n}": f"{theirs}.{kind}.{n}" for n in range(len(dilations))}
    values = {  # length and direction of the weight norm, and the bias
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
        "bias": "bias",
    }
    return {f"{m}.{mine}": f"{t}.{theirs}" for m, t in layers.items() for mine, theirs in values.items()}


# --- the multi-period discriminator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeriodConfig:
    """Settings of the multi-period discriminator."""

    width: int = 32
    "channels of the first layer; the layers have 1, 4, 16, 32 and 32 times as many"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    "samples"


class PeriodDiscriminator(nn.Module):
    """Discriminate a wave [B, L] folded into rows of one period: (scores [B, 1, L', P], the activations before them)."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        channels = [1, *(width * factor for factor in (1, 4, 16, 32, 32))]
        strides = (3, 3, 3, 3, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(channels[i], channels[i + 1], (5, 1), (stride, 1), padding=(2, 0)))
            for i, stride in enumerate(strides)
        )
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.pad(wave[:, None], (0, -wave.shape[-1] % self.period), mode="reflect")
        x = x.reshape(len(x), 1, -1, self.period)  # [B, 1, L / P, P]
        activations = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            activations.append(x)
        return self.score(x), activations


class MultiPeriodDiscriminator(nn.Module):
    """Discriminate a wave [B, L] at several periods: (list of scores, list of lists of activations)."""

    def __init__(self, config: PeriodConfig | None = None) -> None:
        super().__init__()
        self.config = config or PeriodConfig()
        self.parts = nn.ModuleList(PeriodDiscriminator(period, self.config.width) for period in self.config.periods)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        scores, activations = zip(*(part(wave) for part in self.parts), strict=True)
        return list(scores), list(activations)


# --- the multi-scale discriminator --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleConfig:
    """Settings of the multi-scale discriminator."""

    width: int = 128
    "channels of the first layer; the layers have 1, 1, 2, 4, 8, 8 and 8 times as many"
    scales: int = 3
    "the wave, and averages of it at a half and a quarter of the rate"


class ScaleDiscriminator(nn.Module):
    """Discriminate a wave [B, L] by long grouped convolutions: (scores [B, 1, L / 64], the activations before them)."""

    def __init__(self, width: int, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        channels = [width * factor for factor in (1, 1, 2, 4, 8, 8)]
        layers = zip(channels, channels[1:], (4, 16, 16, 16, 16), (2, 2, 4, 4, 1), strict=False)
        self.convs = nn.ModuleList(
            [
                norm(nn.Conv1d(1, width, 15, padding=7)),
                *(  # at the published width the greatest common divisor is the published number of groups
                    norm(nn.Conv1d(i, o, 41, stride, padding=20, groups=math.gcd(groups, i)))
                    for i, o, groups, stride in layers
                ),
                norm(nn.Conv1d(channels[-1], channels[-1], 5, padding=2)),
            ]
        )
        self.score = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = wave[:, None]
        activations = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            activations.append(x)
        return self.score(x), activations


class MultiScaleDiscriminator(nn.Module):
    """Discriminate a wave [B, L] at several scales: (list of scores, list of lists of activations).

    The first scale, the wave itself, has spectral norm, which keeps the training stable; the others have weight norm.
    """

    def __init__(self, config: ScaleConfig | None = None) -> None:
        super().__init__()
        self.config = config or ScaleConfig()
        norms = [spectral_norm] + [weight_norm] * (self.config.scales - 1)
        self.parts = nn.ModuleList(ScaleDiscriminator(self.config.width, norm) for norm in norms)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        scores, activations = [], []
        for index, part in enumerate(self.parts):
            if index:
                wave = F.avg_pool1d(wave[:, None], 4, 2, padding=2)[:, 0]
            score, layers = part(wave)
            scores.append(score)
            activations.append(layers)
        return scores, activations
