"""Band spectra for comparing sounds: levels in a few bands, their rate of change, the distance of two sounds."""

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave

BANDS = 24  # about three an octave, close to the resolution of hearing
LOWEST_HZ, HIGHEST_HZ = 60.0, 16_000.0
HOP, WINDOW = 0.01, 0.03  # seconds
RANGE_DB = 50.0  # levels further below the loudest band count as inaudible

Levels = NDArray[np.float64]  # [T, BANDS], dB


def band_levels(wave: Wave, rate: int) -> Levels:
    """Return the level of each band in dB [T, BANDS]; frame t is the 30 ms around t * 10 ms. Silence is -200.

    The wave is zero-padded at both ends. Bands are equally wide in log frequency, at least one bin wide.
    """
    hop, size = max(1, round(HOP * rate)), max(4, round(WINDOW * rate))
    padded = np.pad(wave, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[: len(wave) : hop]
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    edges = np.geomspace(LOWEST_HZ, min(HIGHEST_HZ, rate / 2), BANDS + 1) * size / rate  # in bins
    bins = np.maximum.accumulate(np.rint(edges).astype(int))
    bins = np.minimum(np.maximum(bins[:-1], 1), size // 2)
    power = np.empty((len(frames), BANDS))
    for start in range(0, len(frames), 1024):  # in blocks: the frames of a long recording would fill the memory
        spectrum = np.fft.rfft(frames[start : start + 1024] * window)
        squared = (np.square(spectrum.real) + np.square(spectrum.imag)) / np.square(window.sum()) * 4
        power[start : start + 1024] = np.add.reduceat(squared, bins, axis=1)
    return 10 * np.log10(np.maximum(power, 1e-20))


def flux(levels: Levels) -> NDArray[np.float64]:
    """Return the spectral flux [T]: by how many dB each frame exceeds the one before, averaged over bands; first 0.

    Only increases count (a click, a step in level), and only within 50 dB of the loudest band.
    """
    clipped = np.maximum(levels, levels.max(initial=-200) - RANGE_DB)
    return np.concatenate([[0.0], np.maximum(np.diff(clipped, axis=0), 0).mean(axis=1)])[: len(levels)]


def distance(a: Levels, b: Levels) -> float:
    """Return the root mean square difference of two sounds in dB, over frames and bands; 0 for identical sounds.

    Independent of loudness: the loudest band of both is brought to one level. The shorter sound is padded with silence.
    """
    frames = max(len(a), len(b))
    relative = []
    for levels in (a, b):
        padded = np.pad(levels, ((0, frames - len(levels)), (0, 0)), constant_values=-200)
        relative.append(np.maximum(padded - padded.max(), -RANGE_DB))
    audible = np.maximum(*relative) > -RANGE_DB
    return float(np.sqrt(np.mean(np.square(relative[0] - relative[1])[audible]))) if audible.any() else 0.0
