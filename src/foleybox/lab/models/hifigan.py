"""HiFi-GAN: a log-mel to a wave by transposed convolutions (Kong et al. 2020, arXiv 2010.05646; jik876/hifi-gan).

Letters: B batch, M mel bands, T frames, C channels, L = T hop samples, P period.

The baseline of DCASE 2023 Task 7 renders with V1; here it is that system's vocoder and the yardstick beside Vocos.
Also here: the multi-period discriminator, which both vocoders train against.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations


@dataclass(frozen=True)
class HifiganConfig:
    """Sizes of a generator. Defaults: V1, 13,936,130 parameters with weight norm, 13,926,017 without."""

    bands: int = 80
    width: int = 512
    "channels before the first upsampling; halved by each"
    rates: tuple[int, ...] = (8, 8, 2, 2)
    "upsampling factors; their product is the hop"
    kernels: tuple[int, ...] = (16, 16, 4, 4)
    "of the transposed convolutions"
    residual_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)

    @property
    def hop(self) -> int:
        return math.prod(self.rates)


V1 = HifiganConfig()
V2 = HifiganConfig(width=128)

SLOPE = 0.1  # of the leaky ReLUs; the last one has torch's 0.01, as in the official code


class ResidualStack(nn.Module):
    """The official "resblock 1", [B, C, T] to the same: a dilated and a plain convolution for each dilation."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2))
            for d in dilations
        )
        self.plain = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2)) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class Hifigan(nn.Module):
    """Natural-log mel [B, M, T] to wave [B, T hop] in (-1, 1)."""

    def __init__(self, config: HifiganConfig = V1) -> None:
        super().__init__()
        self.config = config
        self.first = weight_norm(nn.Conv1d(config.bands, config.width, 7, padding=3))
        self.rises = nn.ModuleList()
        self.stacks = nn.ModuleList()
        channels = config.width
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            rise = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.rises.append(weight_norm(rise))
            channels //= 2
            self.stacks.append(
                nn.ModuleList(ResidualStack(channels, k, config.dilations) for k in config.residual_kernels)
            )
        self.last = weight_norm(nn.Conv1d(channels, 1, 7, padding=3))
        for module in (*self.rises.modules(), *self.stacks.modules(), self.last):
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                module.weight = torch.randn_like(module.weight) * 0.01  # sets the parametrisation

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first(mel)
        for rise, stacks in zip(self.rises, self.stacks, strict=True):
            x = rise(F.leaky_relu(x, SLOPE))
            assert isinstance(stacks, nn.ModuleList)
            x = torch.stack([stack(x) for stack in stacks]).mean(0)
        return torch.tanh(self.last(F.leaky_relu(x))).squeeze(1)

    def remove_weight_norm(self) -> None:
        """Fold the weight norms into plain weights, in place, for rendering and export."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                remove_parametrizations(module, "weight")


# --- the multi-period discriminator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeriodConfig:
    """Settings of the multi-period discriminator."""

    width: int = 32
    "channels of the first layer; the layers have 1, 4, 16, 32 and 32 times as many"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    "samples"


class PeriodDiscriminator(nn.Module):
    """Judge a wave [B, L] folded into columns of one period: (scores [B, 1, L', P], the activations before them)."""

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
        seen = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            seen.append(x)
        return self.score(x), seen


class MultiPeriodDiscriminator(nn.Module):
    """Several periods of one wave [B, L]: (list of scores, list of lists of activations)."""

    def __init__(self, config: PeriodConfig | None = None) -> None:
        super().__init__()
        self.config = config or PeriodConfig()
        self.parts = nn.ModuleList(PeriodDiscriminator(period, self.config.width) for period in self.config.periods)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        scores, seen = zip(*(part(wave) for part in self.parts), strict=True)
        return list(scores), list(seen)
