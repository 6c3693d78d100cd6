"""Log-mel spectrograms and their parameters.

Letters: B batch, L samples, T frames, M mel bands, N FFT size.

The front end is that of the official baseline and HiFi-GAN: reflect padding of
(n_fft - hop) / 2 on both sides, Hann window, magnitude sqrt(re^2 + im^2 + 1e-9), Slaney mel filters with area
normalisation, natural logarithm of max(mel, 1e-5). Four seconds at 22,050 Hz are exactly 344 frames.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.errors import UserError

MEL_MINIMUM = 1e-5  # linear mel magnitudes are clamped here before the logarithm
SILENCE = math.log(MEL_MINIMUM)  # log-mel of digital silence: -11.5129


@dataclass(frozen=True)
class MelConfig:
    """Parameters of a log-mel; every model that makes or reads mels has one. The defaults are those of `dcase`."""

    rate: int = 22_050
    "Hz"
    n_fft: int = 1024
    "samples per window"
    hop: int = 256
    "samples between frames"
    bands: int = 80
    "mel bands"
    low: float = 0.0
    "lower edge of the lowest band, Hz"
    high: float = 8_000.0
    "upper edge of the highest band, Hz"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise UserError(
                f"mel bands from {self.low:g} to {self.high:g} Hz at a rate of {self.rate} Hz: "
                f"expected 0 <= low < high <= {self.rate / 2:g}"
            )

    def times(self, factor: int) -> "MelConfig":
        """Return the mel of the same bands and frames for waves at `factor` times the rate."""
        return replace(self, rate=self.rate * factor, n_fft=self.n_fft * factor, hop=self.hop * factor)

    def frames(self, samples: int) -> int:
        """Return the frames of a wave of `samples` samples: 344 for 88,200 (dcase), 300 for 96,000 (cembed)."""
        return samples // self.hop  # (samples + (n_fft - hop) - n_fft) // hop + 1


DCASE = MelConfig()
WIDE = MelConfig(bands=100, high=11_025.0)
CEMBED = MelConfig(rate=24_000, hop=320, bands=129, high=10_000.0)
MELS = {"dcase": DCASE, "wide": WIDE, "cembed": CEMBED}


def slaney_filters(config: MelConfig) -> Tensor:
    """Return triangular mel filters [M, N/2+1], each of unit area in Hz (librosa's default, Slaney 1998)."""
    # Slaney's scale: linear to 1 kHz (15 mels), then 27 steps for each factor of 6.4.
    knee, mel_per_hz, log_step = 1000.0, 3 / 200, math.log(6.4) / 27

    def to_mel(hz: Tensor) -> Tensor:
        above = knee * mel_per_hz + torch.log(hz.clamp(min=knee) / knee) / log_step
        return torch.where(hz < knee, hz * mel_per_hz, above)

    def to_hz(mel: Tensor) -> Tensor:
        above = knee * torch.exp(log_step * (mel - knee * mel_per_hz))
        return torch.where(mel < knee * mel_per_hz, mel / mel_per_hz, above)

    edges = torch.tensor([config.low, config.high], dtype=torch.float64)
    low, high = to_mel(edges).tolist()
    corners = to_hz(torch.linspace(low, high, config.bands + 2, dtype=torch.float64))  # [M + 2] Hz
    bins = torch.linspace(0, config.rate / 2, config.n_fft // 2 + 1, dtype=torch.float64)  # [N/2 + 1] Hz
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return (triangles * (2 / (right - left))).float()


class LogMel(nn.Module):
    """Waves [..., L] in [-1, 1] to log-mels [..., M, T], natural logarithm, floor ln 1e-5 = -11.5129."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig = DCASE) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("filters", slaney_filters(config), persistent=False)

    def magnitude(self, wave: Tensor) -> Tensor:
        """Return the STFT magnitude [..., N/2+1, T]."""
        config = self.config
        margin = (config.n_fft - config.hop) // 2
        padded = F.pad(wave.reshape(-1, wave.shape[-1]), (margin, margin), mode="reflect")
        spectrum = torch.stft(
            padded, config.n_fft, config.hop, window=self.window, center=False, return_complex=True
        )  # [B, N/2+1, T]
        magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
        return magnitude.reshape(*wave.shape[:-1], *magnitude.shape[1:])

    def forward(self, wave: Tensor) -> Tensor:
        return torch.log(torch.clamp(self.filters @ self.magnitude(wave), min=MEL_MINIMUM))
