"""Losses that several systems share: pure functions of tensors.

Letters: B batch, M mel bands, T frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mel_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean absolute difference of two log-mels [..., M, T], natural logarithm (HiFi-GAN, equation 3)."""
    return (real - fake).abs().mean()


def squares_discriminator(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the sum over discriminators of mean (1 - D(x))^2 + mean D(G(m))^2 (HiFi-GAN, equations 1 and 8)."""
    return torch.stack([((1 - r) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True)]).sum()


def squares_generator(fake: list[Tensor]) -> Tensor:
    """Return the sum over discriminators of mean (1 - D(G(m)))^2 (HiFi-GAN, equations 2 and 7)."""
    return torch.stack([((1 - f) ** 2).mean() for f in fake]).sum()


def feature_matching(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Return the sum over layers of discriminators of mean |D_i(x) - D_i(G(m))| (HiFi-GAN, equation 4).

    The activations of the real wave are the target: no gradient flows into them.
    """
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r, f, strict=True)]
    return torch.stack([(r.detach() - f).abs().mean() for r, f in pairs]).sum()


def roughness(mel: Tensor) -> Tensor:
    """Return mean |m[t + 1] - m[t]| of log-mels [..., M, T]: the strength of their fine structure in time."""
    return (mel[..., 1:] - mel[..., :-1]).abs().mean()


def moving_mean(x: Tensor, reach: int) -> Tensor:
    """Return the mean of each element of x [..., N] and the `reach` elements on both sides, fewer at the ends."""
    N = x.shape[-1]
    index = torch.arange(N, device=x.device)
    first, last = (index - reach).clamp(min=0), (index + reach + 1).clamp(max=N)
    sums = F.pad(x.double().cumsum(-1), (1, 0))  # the cost does not depend on `reach`; float32 would lose digits
    return ((sums[..., last] - sums[..., first]) / (last - first)).to(x.dtype)


def repetition(wave: Tensor, shortest: int = 200, longest: int = 2000) -> Tensor:
    """Return how far each wave [B, L] repeats itself, [B], from 0 to 1; 0 for silence.

    The largest |autocorrelation| at lags from `shortest` to `longest` samples (9 to 91 ms at 22,050 Hz) of the whitened
    wave. Noise has little (0.02 for four seconds of rain), a tone much. Noise that a vocoder makes from the same pattern
    in every frame has much too, and buzzes; distances of mels do not measure it.
    """
    x = wave - wave.mean(1, keepdim=True)
    power = torch.fft.rfft(x, 2 * x.shape[1]).abs().square()
    correlation = torch.fft.irfft(power / moving_mean(power, 1000).clamp(min=1e-12))
    return correlation[:, shortest:longest].abs().amax(1) / correlation[:, 0].clamp(min=1e-6)
