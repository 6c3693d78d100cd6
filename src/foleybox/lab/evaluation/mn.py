"""MobileNetV3 for AudioSet tags and embeddings: EfficientAT's `mn04` (Schmid et al., arXiv 2211.04772).

Letters: B windows, L samples at 32 kHz, M = 128 mel bands, T frames, C channels.

The weights are published by the authors (MIT); parameter names follow their file, so that it loads strictly. The front
end is theirs as well: pre-emphasis 0.97, symmetric Hann of 800 samples in an FFT of 1024, hop 320, power, Kaldi-style
mel filters from 0 to 15,000 Hz, ln(x + 1e-5), (x + 4.5) / 5.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

RATE = 32_000
TAGS = 527  # AudioSet classes


@dataclass(frozen=True)
class MNConfig:
    """One size of the family; 0.4 is `mn04`: 0.99 M parameters, 384-d embedding."""

    width: float = 0.4
    "multiplier of MobileNetV3-Large's channel counts"
    blocks: tuple[tuple[int, int, int, bool, bool, int], ...] = (
        # kernel, expanded channels, channels, squeeze-excite, hard swish, stride (MobileNetV3 paper, Table 1)
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    )


def round_channels(count: float) -> int:
    """Round to a multiple of 8, never below 8 or below 90 % of `count`.

    >>> [round_channels(0.4 * channels) for channels in (16, 24, 40, 960)]
    [8, 16, 16, 384]
    """
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * count else rounded


def conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: nn.Module | None
) -> nn.Sequential:
    """Convolution, batch norm, activation: entries 0, 1 and 2 in the published file."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([activation] if activation else []))


class SqueezeExcite(nn.Module):
    """Scale channels by what the whole window holds."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, round_channels(channels // 4))
        self.fc2 = nn.Linear(self.fc1.out_features, channels)

    def forward(self, maps: Tensor) -> Tensor:
        pooled = maps.mean((2, 3))  # [B, C]
        return maps * self.fc2(self.fc1(pooled).relu()).sigmoid()[:, :, None, None]


class ConcurrentSqueezeExcite(nn.Module):
    """The published file's wrapper round its squeeze-excite layers; `mn04` has one, over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcite(channels)])

    def forward(self, maps: Tensor) -> Tensor:
        return self.conc_se_layers[0](maps)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, squeeze-excite, project; add the input where the shape is kept."""

    def __init__(self, inputs: int, kernel: int, expanded: int, outputs: int, excite: bool, swish: bool, stride: int):
        super().__init__()
        activation = nn.Hardswish() if swish else nn.ReLU()
        layers = [conv(inputs, expanded, 1, 1, 1, activation)] if expanded != inputs else []
        layers.append(conv(expanded, expanded, kernel, stride, expanded, activation))
        squeeze = [ConcurrentSqueezeExcite(expanded)] if excite else []
        self.block = nn.Sequential(*layers, *squeeze, conv(expanded, outputs, 1, 1, 1, None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.block(maps) if self.residual else self.block(maps)


class MN(nn.Module):
    """Waves [B, L] at 32 kHz -> embedding [B, 384] and AudioSet logits [B, 527]."""

    def __init__(self, config: MNConfig | None = None):
        super().__init__()
        config = config or MNConfig()
        channels = round_channels(16 * config.width)
        layers: list[nn.Module] = [conv(1, channels, 3, 2, 1, nn.Hardswish())]
        for kernel, expanded, outputs, excite, swish, stride in config.blocks:
            wide, narrow = round_channels(expanded * config.width), round_channels(outputs * config.width)
            layers.append(InvertedResidual(channels, kernel, wide, narrow, excite, swish, stride))
            channels = narrow
        self.width = 6 * channels
        layers.append(conv(channels, self.width, 1, 1, 1, nn.Hardswish()))
        self.features = nn.Sequential(*layers)
        hidden = round_channels(1280 * config.width)
        self.classifier = nn.Sequential(
            nn.Identity(),  # pooling and flattening, done in `forward`
            nn.Identity(),
            nn.Linear(self.width, hidden),
            nn.Hardswish(),
            nn.Identity(),  # dropout
            nn.Linear(hidden, TAGS),
        )
        self.mel = KaldiLogMel()

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        mel = self.mel(waves)[:, None]  # [B, 1, M, T]
        maps = self.features(mel.contiguous(memory_format=torch.channels_last))  # [B, C, M / 32, T / 32]
        embedding = maps.mean((2, 3))  # [B, 384]
        return embedding, self.classifier(embedding)

    def fuse(self) -> "MN":
        """Fold every batch norm into the convolution before it: the same function, a third faster."""
        self.eval()
        for module in list(self.modules()):
            layers = list(module) if isinstance(module, nn.Sequential) else []
            if len(layers) > 1 and isinstance(layers[0], nn.Conv2d) and isinstance(layers[1], nn.BatchNorm2d):
                assert isinstance(module, nn.Sequential)
                module[0], module[1] = fuse_conv_bn_eval(layers[0], layers[1]), nn.Identity()
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class KaldiLogMel(nn.Module):
    """Waves [B, L] at 32 kHz -> normalised log-mel [B, 128, 1 + (L - 1) // 320]."""

    filters: Tensor
    window: Tensor

    def __init__(self, bands: int = 128, n_fft: int = 1024, window: int = 800, hop: int = 320, high: float = 15_000.0):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(window, periodic=False), persistent=False)
        self.register_buffer("filters", kaldi_filters(bands, n_fft, RATE, 0.0, high), persistent=False)

    def forward(self, waves: Tensor) -> Tensor:
        waves = waves[:, 1:] - 0.97 * waves[:, :-1]
        spectrum = torch.stft(waves, self.n_fft, self.hop, len(self.window), self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, n_fft / 2 + 1, T]
        return ((self.filters @ power + 1e-5).log() + 4.5) / 5


def kaldi_filters(bands: int, n_fft: int, rate: int, low: float, high: float) -> Tensor:
    """Return Kaldi's mel filters [bands, n_fft / 2 + 1]: triangles in mel = 1127 ln(1 + f / 700), Nyquist left out."""
    hertz = torch.arange(n_fft // 2, dtype=torch.float64) * rate / n_fft
    mel = 1127 * (1 + hertz / 700).log()
    first, last = (1127 * math.log(1 + end / 700) for end in (low, high))
    edges = torch.linspace(first, last, bands + 2, dtype=torch.float64)[:, None]
    step = edges[1] - edges[0]
    filters = torch.minimum((mel - edges[:-2]) / step, (edges[2:] - mel) / step).clamp(min=0)
    return F.pad(filters, (0, 1)).float()
