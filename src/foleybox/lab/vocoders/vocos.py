"""Vocos: a log-mel to a wave, one small network at the frame rate and an inverse STFT (Siuzdak 2023, arXiv 2306.00814).

Letters: B batch, M mel bands, T frames, C channels, N FFT size, K = N/2 + 1 frequencies, L = T hop samples.

All layers work at the frame rate (86 Hz), so it renders faster than a network that upsamples to the sample rate
(docs/experiments.md). 344 frames of the `dcase` mel give exactly 344 x 256 = 88,064 samples: frame t is centred on sample
t hop + hop / 2. Also here: the multi-resolution discriminator.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from foleybox.lab.core.compat import accept_old_names

# --- the inverse STFT ---------------------------------------------------------------------------------------------


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Add frames [B, T, N] at every `hop` samples and trim (N - hop) / 2 at both ends: [B, T hop].

    N must be a multiple of `hop`. Slices of `hop` samples are shifted and added, which exports to plain additions.
    """
    B, T, N = frames.shape
    count = N // hop
    slices = frames.reshape(B, T, count, hop)
    wave = F.pad(slices[:, :, 0], (0, 0, 0, count - 1))
    for index in range(1, count):
        wave = wave + F.pad(slices[:, :, index], (0, 0, index, count - 1 - index))  # [B, T + count - 1, hop]
    margin = (N - hop) // 2
    return wave.reshape(B, -1)[:, margin : margin + T * hop]


class InverseSTFT(nn.Module):
    """Real and imaginary parts [B, T, K] to the wave [B, T hop] whose STFT they are (framed as by `mel.LogMel`).

    The inverse of each frame is a sum of cosines, which is even in time, and one of sines, which is odd: frame[N - n] =
    even[n] - odd[n]. Both have a second symmetry, about N / 4, apart for the even and the odd frequencies, so that four real
    products of N/4 x N/4 are enough: an eighth of the full basis. In training the frames come from `torch.fft.irfft`, which
    is faster but cannot be exported.
    """

    window: Tensor
    cosines_even: Tensor
    cosines_odd: Tensor
    sines_even: Tensor
    sines_odd: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        if n_fft % hop or n_fft % 4:
            raise ValueError(f"n_fft {n_fft} and hop {hop}: expected an n_fft that is a multiple of 4 and of hop")
        self.n_fft, self.hop = n_fft, hop
        k = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi / n_fft * k[:, None] * k[: n_fft // 4 + 1]  # [K, N/4 + 1]: frequency by sample
        weight = torch.ones(len(k), 1, dtype=torch.float64)
        weight[0] = weight[-1] = 0.5  # 0 Hz and Nyquist have no conjugate
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        for name, basis in (("cosines", weight * torch.cos(angles)), ("sines", -weight * torch.sin(angles))):
            self.register_buffer(f"{name}_even", basis[::2].float(), persistent=False)
            self.register_buffer(f"{name}_odd", basis[1::2].float(), persistent=False)

    def frames_by_products(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return the windowed frames [B, T, N] by matrix products, as in the exported graph."""
        a, b = real[..., ::2] @ self.cosines_even, real[..., 1::2] @ self.cosines_odd  # [B, T, N/4 + 1] each
        c, d = imaginary[..., ::2] @ self.sines_even, imaginary[..., 1::2] @ self.sines_odd
        even = torch.cat([a + b, (a - b)[..., :-1].flip(-1)], -1)  # [B, T, K]
        odd = torch.cat([c + d, (d - c)[..., :-1].flip(-1)], -1)
        frames = torch.cat([even + odd, (even - odd)[..., 1:-1].flip(-1)], -1)
        return (frames * self.window) * (2 / self.n_fft)  # not in the basis, whose numbers are exported in 16 bits

    def frames_by_fft(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Return the windowed frames [B, T, N] by FFT, as in training."""
        return torch.fft.irfft(torch.complex(real, imaginary), n=self.n_fft) * self.window

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        frames = (self.frames_by_fft if self.training else self.frames_by_products)(real, imaginary)
        envelope = (self.window**2).expand(1, frames.shape[1], self.n_fft)
        return overlap_add(frames, self.hop) / overlap_add(envelope, self.hop)


# --- the generator ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VocosConfig:
    """The input and the size of a vocoder. Defaults: the `dcase` mel, the small size."""

    bands: int = 80
    n_fft: int = 1024
    "samples per window of the inverse STFT"
    hop: int = 256
    "samples between frames"
    width: int = 192
    "channels between blocks"
    inner: int = 576
    "channels inside a block"
    layers: int = 6
    mel_mean: float = -6.0
    "subtracted from the natural-log mel"
    mel_scale: float = 3.0
    "then divided by this"


SMALL = VocosConfig()  # 1,650,882 parameters
MEDIUM = VocosConfig(width=256, inner=512)  # 2,002,690 parameters: the released instruments'
BASE = VocosConfig(width=512, inner=1536, layers=8)  # 13,459,970 parameters: the published size
SIZES = {"small": SMALL, "medium": MEDIUM, "base": BASE}


class Block(nn.Module):
    """ConvNeXt block in one dimension, [B, C, T] to the same (Liu et al. 2022): depthwise over time, then per frame."""

    OLD_NAMES: ClassVar = {"rise.": "fc1.", "fall.": "fc2."}

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(config.width, config.width, 7, padding=3, groups=config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.fc1 = nn.Linear(config.width, config.inner)
        self.fc2 = nn.Linear(config.inner, config.width)
        self.scale = nn.Parameter(torch.full((config.width,), 1 / config.layers))
        accept_old_names(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))  # [B, T, C]
        y = self.fc2(F.gelu(self.fc1(y))) * self.scale
        return x + y.transpose(1, 2)


class Vocos(nn.Module):
    """Natural-log mel [B, M, T] to wave [B, T hop], for any T and B."""

    def __init__(self, config: VocosConfig = SMALL) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv1d(config.bands, config.width, 7, padding=3)
        self.norm_in = nn.LayerNorm(config.width, eps=1e-6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.n_fft + 2)
        self.inverse = InverseSTFT(config.n_fft, config.hop)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.embed((mel - self.config.mel_mean) / self.config.mel_scale)
        x = self.norm_in(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x.transpose(1, 2))  # [B, T, C]
        kind = mel.device.type
        precise = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with precise:  # bfloat16 is too coarse for a phase
            log_magnitude, phase = self.head(x.float()).chunk(2, -1)  # [B, T, K] each
            # A Hann window sums to N / 2: no wave in [-1, 1] has a larger magnitude.
            magnitude = torch.exp(log_magnitude.clamp(max=math.log(self.config.n_fft / 2)))
            return self.inverse(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def widened(state: Mapping[str, Tensor], n_fft: int) -> dict[str, Tensor]:
    """Return the weights of a Vocos with a head for windows of `n_fft` samples, its bins as far apart in Hz as before.

    The bins that exist keep their weights; a window of twice the samples doubles the magnitude of a sinusoid. Those above
    begin as copies of the upper half of the old ones, 20 dB lower. Weights of that size are returned as they are.
    """
    old = (len(state["head.bias"]) - 2) // 2  # of the old bins, the one at half the old rate
    new = n_fft // 2
    if old >= new:
        return dict(state)
    bins = torch.arange(new + 1)
    source = torch.where(bins <= old, bins, old // 2 + (bins - old - 1) % (old // 2))
    rows = torch.cat([source, source + old + 1])  # log magnitudes, then phases
    bias = state["head.bias"][rows].clone()
    bias[: new + 1] += math.log(new / old)
    bias[old + 1 : new + 1] -= math.log(10)
    return {**state, "head.weight": state["head.weight"][rows], "head.bias": bias}


# --- the multi-resolution discriminator ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ResolutionConfig:
    """Settings of the multi-resolution discriminator."""

    width: int = 32
    "channels of each layer"
    windows: tuple[int, ...] = (2048, 1024, 512)
    "FFT sizes, samples; the hop is a quarter"
    input: Literal["complex", "log"] = "complex"
    "complex: real and imaginary parts; log: the logarithm of the magnitude, and the position of each frequency"


class ResolutionDiscriminator(nn.Module):
    """Discriminate one spectrogram of a wave [B, L]: (scores [B, 1, T, K'], the activations before them).

    UnivNet's layers (Jang et al. 2021), on real and imaginary parts as in EnCodec (Defossez et al. 2022), or on log
    magnitudes: without phase, and soft sounds count as much as loud ones. A narrow discriminator learns within a hundred
    steps on log magnitudes, and not within a thousand on real and imaginary parts (docs/experiments.md).
    """

    window: Tensor

    def __init__(self, n_fft: int, width: int, input: Literal["complex", "log"] = "complex") -> None:
        super().__init__()
        self.n_fft, self.input = n_fft, input
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        strides = (2, 2, 2, 2)  # over frequency; UnivNet begins with 1, at twice the cost
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(2 if i == 0 else width, width, (3, 9), (1, stride), padding=(1, 4)))
            for i, stride in enumerate(strides)
        )
        self.convs.append(weight_norm(nn.Conv2d(width, width, 3, padding=1)))
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = torch.stft(
            wave, self.n_fft, self.n_fft // 4, window=self.window, normalized=True, return_complex=True
        )  # [B, K, T]
        if self.input == "log":
            level = (spectrum.abs().clamp(min=1e-4).log() + 4) / 2
            position = torch.linspace(-1, 1, level.shape[1], device=wave.device)[:, None].expand_as(level)
            x = torch.stack([level, position], 1)
        else:
            x = torch.stack([spectrum.real, spectrum.imag], 1)
        x = x.transpose(2, 3)  # [B, 2, T, K]
        activations = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            activations.append(x)
        return self.score(x), activations


class MultiResolutionDiscriminator(nn.Module):
    """Discriminate several resolutions of a wave [B, L]: (list of scores, list of lists of activations)."""

    def __init__(self, config: ResolutionConfig | None = None) -> None:
        super().__init__()
        self.config = config or ResolutionConfig()
        width, input = self.config.width, self.config.input
        self.parts = nn.ModuleList(ResolutionDiscriminator(n_fft, width, input) for n_fft in self.config.windows)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        scores, activations = zip(*(part(wave) for part in self.parts), strict=True)
        return list(scores), list(activations)
