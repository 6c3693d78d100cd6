"""Spectra to compare sounds by: levels of a few bands, how fast they change, how far apart two sounds are. numpy only."""

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave

BANDS = 24  # from 60 Hz to the highest: some three an octave, as coarse as hearing is
LOWEST_HZ = 60.0
HOP, WINDOW = 0.01, 0.03  # seconds
RANGE_DB = 50.0  # what is further below the loudest band is not heard beside it
HIGHEST_HZ = 16_000.0

Levels = NDArray[np.float64]  # [T, BANDS], dB


def band_levels(wave: Wave, rate: int) -> Levels:
    """Return the level of each band in dB [T, BANDS]: frame t is the 30 ms around t * 10 ms; silence is -200.

    A frame is as if silence came before and after the wave. Bands are even in log frequency, with a bin at least.
    """
    hop, size = max(1, round(HOP * rate)), max(4, round(WINDOW * rate))
    padded = np.pad(wave, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[: len(wave) : hop]
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    places = np.geomspace(LOWEST_HZ, min(HIGHEST_HZ, rate / 2), BANDS + 1) * size / rate  # in bins
    edges = np.maximum.accumulate(np.rint(places).astype(int))
    edges = np.minimum(np.maximum(edges[:-1], 1), size // 2)
    power = np.empty((len(frames), BANDS))
    for start in range(0, len(frames), 1024):  # a long recording's frames at once would fill the memory
        spectrum = np.fft.rfft(frames[start : start + 1024] * window)
        squared = (np.square(spectrum.real) + np.square(spectrum.imag)) / np.square(window.sum()) * 4
        power[start : start + 1024] = np.add.reduceat(squared, edges, axis=1)
    return 10 * np.log10(np.maximum(power, 1e-20))


def flux(levels: Levels) -> NDArray[np.float64]:
    """Return how much each frame is above the frame before [T], in dB, the mean over bands; the first is 0.

    Only what rises counts (a click, a jump in level), and only as far as it is heard (50 dB under the loudest band).
    """
    shown = np.maximum(levels, levels.max(initial=-200) - RANGE_DB)
    return np.concatenate([[0.0], np.maximum(np.diff(shown, axis=0), 0).mean(axis=1)])[: len(levels)]


def distance(a: Levels, b: Levels) -> float:
    """Return how far apart two sounds are in dB, 0 for the same one: the root mean square over frames and bands.

    Loudness does not count (both are brought to the same loudest band); the shorter one goes on in silence.
    """
    frames = max(len(a), len(b))
    shown = []
    for levels in (a, b):
        whole = np.pad(levels, ((0, frames - len(levels)), (0, 0)), constant_values=-200)
        shown.append(np.maximum(whole - whole.max(), -RANGE_DB))
    heard = np.maximum(*shown) > -RANGE_DB
    return float(np.sqrt(np.mean(np.square(shown[0] - shown[1])[heard]))) if heard.any() else 0.0
