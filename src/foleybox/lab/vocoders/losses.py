"""Losses of our Vocos vocoder: pure functions of waves or mels, each with its source.

Letters: B batch, L samples, M mel bands, T frames. No loss weights here: the loop multiplies.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foleybox.lab.core.losses import mean_around, repetition


def texture_distance(real: Tensor, fake: Tensor, bands: int = 5, frames: int = 16) -> Tensor:
    """Return how far apart the textures of two log-mels [B, M, T] are: 0 for the same, little for a second draw of a noise.

    In overlapping places of `bands` x `frames` four statistics are compared, each by its mean absolute difference: the
    mean, the standard deviation, and the mean |difference| of neighbours in time and in frequency. Noise is known by such
    statistics and not by its samples (McDermott & Simoncelli 2011); the distance of the mels themselves has its least
    value where all noise is smoothed away, this one where there is as much of it as in the real one.
    """

    def pooled(x: Tensor) -> Tensor:
        return F.avg_pool2d(x[:, None], (min(bands, x.shape[1]), min(frames, x.shape[2])), (bands, frames // 2))

    def statistics(mel: Tensor) -> list[Tensor]:
        mean = pooled(mel)
        deviation = (pooled(mel.square()) - mean.square()).clamp(min=1e-4).sqrt()
        return [mean, deviation, pooled(mel.diff(dim=2).abs()), pooled(mel.diff(dim=1).abs())]

    pairs = zip(statistics(real), statistics(fake), strict=True)
    return torch.stack([(x - y).abs().mean() for x, y in pairs]).sum()


def texture_of_waves(real: Tensor, fake: Tensor, windows: tuple[int, ...] = (4096, 2048, 1024)) -> Tensor:
    """Return the mean distance of textures of the log-magnitude spectra of waves [B, L], over long `windows`.

    Mels do not see whether noise repeats itself; a vocoder that is asked for rough mels alone learns to repeat every other
    hop, which buzzes. Repeated noise is lines in a long window: rough in frequency, and not at all in time.
    """
    distances = []
    for n_fft in windows:
        x, y = (_magnitudes(wave, n_fft, n_fft // 4, 1e-3).log() for wave in (real, fake))
        distances.append(texture_distance(x, y, bands=n_fft // 64, frames=8))
    return torch.stack(distances).mean()


def attack_distance(real: Tensor, fake: Tensor, n_fft: int = 128, hop: int = 32) -> Tensor:
    """Return how far apart two waves [B, L] are around the attacks of the real one, in nepers of power; 0 if it has none.

    A mel's window is 46 ms long, and a vocoder that learned by distances of such spectra begins a click 20 ms before it
    sounds. Here levels of four bands above 500 Hz are compared in windows of 6 ms, but only from 35 ms before to 17 ms after
    a rise by more than 10 dB within 20 ms: steady noise has none of these, and no fine levels of its own to be compared with.
    """
    mine, theirs = (_fine_levels(wave, n_fft, hop) for wave in (real, fake))  # [B, 4, T]
    weight = _near_attacks(mine)
    return (weight * (mine - theirs).abs()).sum() / weight.sum().clamp(min=1)


def own_colour(real: Tensor, fake: Tensor, n_fft: int = 1024) -> Tensor:
    """Return how much colour `fake` waves [B, L] have that the `real` ones have not and that is the same in all, in nepers.

    The mean over frequencies of |mean over the batch of ln(power of the fake one / of the real one)|. Between two bands of a
    mel a vocoder is free, and may give every sound the same ripples of 2 dB, which noise makes audible; of one noise such
    levels are chance, so what is the same in many of them is asked for.
    """
    levels = [_magnitudes(wave, n_fft, n_fft // 4, 1e-3).square().mean(2).log() for wave in (real, fake)]  # [B, K]
    return (levels[1] - levels[0]).mean(0).abs().mean()


def _fine_levels(wave: Tensor, n_fft: int, hop: int) -> Tensor:
    """Return the natural logarithm of the power [B, 4, T] in four octaves below half the rate."""
    power = _magnitudes(wave, n_fft, hop, 1e-3).square()
    edges = [n_fft // 2 >> octave for octave in (4, 3, 2, 1, 0)]
    return torch.stack([power[:, low:high].mean(1) for low, high in itertools.pairwise(edges)], 1).log()


def _near_attacks(level: Tensor) -> Tensor:
    """Return how much each of the fine levels [B, 4, T] is near an attack, 0 to 1: a rise by 10 dB counts nothing, by 20 all.

    A level has risen when it is above all levels 4 to 16 frames before.
    """
    before = F.max_pool1d(F.pad(level, (16, 0), value=torch.inf)[..., :-4], 13, 1)
    rise = (level - before) * (10 / math.log(10))  # dB
    return F.max_pool1d(F.pad(((rise - 10) / 10).clamp(0, 1), (12, 24)), 37, 1)


def _magnitudes(wave: Tensor, n_fft: int, hop: int, floor: float) -> Tensor:
    """Return the STFT magnitude [B, N/2+1, T], floored: silence has a finite logarithm and gradient."""
    window = torch.hann_window(n_fft, device=wave.device)
    spectrum = torch.stft(wave, n_fft, hop, window=window, return_complex=True)
    return torch.sqrt((spectrum.real**2 + spectrum.imag**2).clamp(min=floor**2))


def multi_resolution_stft(
    real: Tensor, fake: Tensor, windows: tuple[int, ...] = (2048, 1024, 512, 128), floor: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Return (spectral convergence, log magnitude distance) of waves [B, L], each the mean over the `windows`.

    Convergence is |X - Y|_F / |X|_F of each item, log magnitude the mean of |ln X - ln Y| (Yamamoto et al. 2020,
    Parallel WaveGAN, equations 4 to 6). Magnitudes are floored at `floor`: 16-bit rounding noise is about 2e-4 in a
    window of 1024 samples, and what lies below it should not be learned.
    """
    convergence, distance = real.new_zeros(()), real.new_zeros(())
    for n_fft in windows:
        x, y = (_magnitudes(wave, n_fft, n_fft // 4, floor) for wave in (real, fake))
        convergence = convergence + ((x - y).norm(dim=(1, 2)) / x.norm(dim=(1, 2))).mean()
        distance = distance + (x.log() - y.log()).abs().mean()
    return convergence / len(windows), distance / len(windows)


def evened(wave: Tensor, reach: int = 512) -> Tensor:
    """Return waves [B, L] with the same loudness everywhere (that of `reach` samples around, to a floor at -20 dB), cut at 3.

    Without this a click or a loud beginning makes all the rest of an autocorrelation small, and a network learns to click.
    """
    power = wave.square()
    around = mean_around(power, reach) + 0.01 * power.mean(1, keepdim=True) + 1e-12
    return (wave * around.rsqrt()).clamp(-3, 3)


def more_repetition(real: Tensor, fake: Tensor, longest: int = 8000) -> Tensor:
    """Return by how much waves `fake` [B, L] repeat themselves more than the `real` ones, 0 where they do not; the mean.

    Up to a later lag than `repetition` counts, where a crop is so long: a buzz that may not come back soon learns to come
    back later. And of waves that were `evened`.
    """
    longest = min(longest, real.shape[1])
    return (repetition(evened(fake), longest=longest) - repetition(evened(real), longest=longest)).relu().mean()
