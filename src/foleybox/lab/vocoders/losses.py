"""Losses of our Vocos vocoder: pure functions of waves or mels, each with its source.

Letters: B batch, L samples, M mel bands, T frames, K frequencies. No loss weights here: the loop multiplies.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foleybox.lab.core.losses import moving_mean, repetition


def texture_distance(real: Tensor, fake: Tensor, bands: int = 5, frames: int = 16) -> Tensor:
    """Return the distance of the textures of two log-mels [B, M, T]: 0 for equal ones, small for two draws of one noise.

    In overlapping cells of `bands` x `frames` four statistics are compared, each by its mean absolute difference: the
    mean, the standard deviation, and the mean absolute difference of neighbours in time and in frequency (McDermott &
    Simoncelli 2011: a texture is recognised by such statistics, not by its samples). The L1 distance of mels is least
    where noise is smoothed away; this distance is least where its statistics are right.
    """

    def pooled(x: Tensor) -> Tensor:
        return F.avg_pool2d(x[:, None], (min(bands, x.shape[1]), min(frames, x.shape[2])), (bands, frames // 2))

    def statistics(mel: Tensor) -> list[Tensor]:
        mean = pooled(mel)
        deviation = (pooled(mel.square()) - mean.square()).clamp(min=1e-4).sqrt()
        return [mean, deviation, pooled(mel.diff(dim=2).abs()), pooled(mel.diff(dim=1).abs())]

    pairs = zip(statistics(real), statistics(fake), strict=True)
    return torch.stack([(x - y).abs().mean() for x, y in pairs]).sum()


def spectral_texture_distance(real: Tensor, fake: Tensor, factor: int = 1) -> Tensor:
    """Return the mean texture distance of the log-magnitude spectra of waves [B, L] in windows of 186, 93 and 46 ms.

    `factor` is the waves' rate over 22,050 Hz, here and below.

    Mels do not show whether noise repeats itself, and a vocoder trained on their textures alone repeats every other hop,
    which buzzes. In a long window repeated noise is a set of lines: rough in frequency and smooth in time.
    """
    distances = []
    for n_fft in (4096, 2048, 1024):
        x, y = (_magnitudes(wave, n_fft * factor, n_fft * factor // 4, 1e-3).log() for wave in (real, fake))
        distances.append(texture_distance(x, y, bands=n_fft // 64, frames=8))
    return torch.stack(distances).mean()


def attack_distance(real: Tensor, fake: Tensor, factor: int = 1) -> Tensor:
    """Return the distance of two waves [B, L] around the attacks of the real one, in nepers of power; 0 without attacks.

    A mel's window is 46 ms long, and a vocoder trained on distances of such spectra begins a click 20 ms early. Here the
    levels of the octaves above 689 Hz are compared in windows of 6 ms, from 35 ms before to 17 ms after each rise by more
    than 10 dB within 20 ms. Steady noise has no such rises; its fine levels are random and are not compared.
    """
    real_level, fake_level = (_fine_levels(wave, factor) for wave in (real, fake))  # [B, octaves, T]
    weight = _near_attacks(real_level)
    return (weight * (real_level - fake_level).abs()).sum() / weight.sum().clamp(min=1)


def mean_spectrum_distance(real: Tensor, fake: Tensor, factor: int = 1) -> Tensor:
    """Return how far the `fake` waves [B, L] deviate from the `real` ones in the same way in the whole batch, in nepers.

    The mean over frequencies of |mean over the batch of ln(fake power / real power)|. Between the bands of a mel a
    vocoder is free, and may give every sound the same ripples of 2 dB over frequency, which are audible in noise.
    """
    n_fft = 1024 * factor
    levels = [_magnitudes(wave, n_fft, n_fft // 4, 1e-3).square().mean(2).log() for wave in (real, fake)]  # [B, K]
    return (levels[1] - levels[0]).mean(0).abs().mean()


def _fine_levels(wave: Tensor, factor: int) -> Tensor:
    """Return the natural logarithm of the power [B, octaves, T] in the octaves from 689 Hz up, in windows of 6 ms."""
    n_fft = 128 * factor
    power = _magnitudes(wave, n_fft, n_fft // 4, 1e-3).square()
    edges = [4 << octave for octave in range(4 + factor.bit_length())]
    return torch.stack([power[:, low:high].mean(1) for low, high in itertools.pairwise(edges)], 1).log()


def _near_attacks(level: Tensor) -> Tensor:
    """Return a weight from 0 to 1 near attacks in fine levels [B, octaves, T]: 0 for a rise by 10 dB or less, 1 from 20 dB on.

    The rise is measured against the largest level 4 to 16 frames before.
    """
    before = F.max_pool1d(F.pad(level, (16, 0), value=torch.inf)[..., :-4], 13, 1)
    rise = (level - before) * (10 / math.log(10))  # dB
    return F.max_pool1d(F.pad(((rise - 10) / 10).clamp(0, 1), (12, 24)), 37, 1)


def _magnitudes(wave: Tensor, n_fft: int, hop: int, floor: float) -> Tensor:
    """Return the STFT magnitude [B, K, T], at least `floor`, so that silence has a finite logarithm and gradient."""
    window = torch.hann_window(n_fft, device=wave.device)
    spectrum = torch.stft(wave, n_fft, hop, window=window, return_complex=True)
    return torch.sqrt((spectrum.real**2 + spectrum.imag**2).clamp(min=floor**2))


def multi_resolution_stft(
    real: Tensor, fake: Tensor, windows: tuple[int, ...] = (2048, 1024, 512, 128), floor: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Return (spectral convergence, log magnitude distance) of waves [B, L], each the mean over the `windows`.

    Convergence is |X - Y|_F / |X|_F of each item, log magnitude the mean of |ln X - ln Y| (Yamamoto et al. 2020,
    Parallel WaveGAN, equations 4 to 6). Magnitudes are at least `floor`: 16-bit rounding noise is about 2e-4 in a window
    of 1024 samples, and should not be learned.
    """
    convergence, distance = real.new_zeros(()), real.new_zeros(())
    for n_fft in windows:
        x, y = (_magnitudes(wave, n_fft, n_fft // 4, floor) for wave in (real, fake))
        convergence = convergence + ((x - y).norm(dim=(1, 2)) / x.norm(dim=(1, 2))).mean()
        distance = distance + (x.log() - y.log()).abs().mean()
    return convergence / len(windows), distance / len(windows)


def equalise_loudness(wave: Tensor, reach: int = 512) -> Tensor:
    """Return waves [B, L] divided by their local level (within `reach` samples, floor at -20 dB), clipped at 3.

    Without this a click or a loud beginning makes the rest of an autocorrelation small, and a network learns to click.
    """
    power = wave.square()
    local = moving_mean(power, reach) + 0.01 * power.mean(1, keepdim=True) + 1e-12
    return (wave * local.rsqrt()).clamp(-3, 3)


def excess_repetition(real: Tensor, fake: Tensor, factor: int = 1) -> Tensor:
    """Return by how much waves `fake` [B, L] repeat themselves more than the `real` ones, at least 0; the mean.

    Measured after `equalise_loudness`, at lags from 9 to 363 ms or the length of the crop: a vocoder penalised at
    short lags only learns to repeat itself later.
    """
    shortest, longest = 200 * factor, min(8000 * factor, real.shape[1])
    theirs, mine = (repetition(equalise_loudness(wave, 512 * factor), shortest, longest) for wave in (real, fake))
    return (mine - theirs).relu().mean()
