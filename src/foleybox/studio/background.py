"""The background of a recorded sound: measured, removed from an event, and continued for any length.

The background is what remains between the events of a clip (the noise of a room, of a recording). Its power spectrum is the
mean of the quietest frames. Events of other clips, without their own backgrounds (spectral subtraction), are laid over
noise of one spectrum, so that all of them are in the same room.

Letters: L samples, T frames of 93 ms, K frequencies.
"""

import math

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave, fit
from foleybox.studio.seeds import ROOM, noise

FRAME = 0.093  # seconds of a frame, rounded to a power of 2 in samples; a quarter from one to the next
QUIET = 0.2  # share of the frames that count as background: the quietest
SILENCE = 1e-9  # mean square below which a frame is digital silence
CLEAR_DB = 35.0  # by which a background is below the loudest frame; what decays above that is the end of an event
SUBTRACTED = 2.0  # the power of the background is removed this many times: more than once, since it fluctuates
BLOCK = 2**20  # samples of a background that are made at once: a multiple of every frame
SMOOTH = 3  # frames and frequencies over which the power of a sound is averaged to compare it with the background

Spectrum = NDArray[np.float64]  # [K] power


def quiet_frames(wave: Wave, rate: int) -> list[int]:
    """Return the frames of a wave [L] that are background: the quietest fifth.

    Digital silence after the sound does not count, unless what is left is not CLEAR_DB below the loudest frame.
    """
    size, hop = _sizes(rate)
    power = np.square(np.abs(_frames(wave, rate))).sum(axis=1) / size**2
    edge = size // hop - 1  # frames that are padded in part
    inside = np.arange(len(power))[edge : len(power) - edge] if len(power) > 2 * edge else np.arange(len(power))
    sounding = inside[: 1 + np.flatnonzero(power[inside] > SILENCE).max(initial=-1)]
    quiet = _quietest(power, sounding)
    if not len(quiet) or power[quiet].mean() > power.max() * 10 ** (-CLEAR_DB / 10):
        quiet = _quietest(power, inside)
    return sorted(quiet.tolist())


def _quietest(power: NDArray[np.float64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
    return frames[np.argsort(power[frames], kind="stable")[: math.ceil(QUIET * len(frames))]]


def background(wave: Wave, frames: list[int], rate: int) -> Spectrum:
    """Return the mean power spectrum [K] of some frames of a wave [L]."""
    return np.square(np.abs(_frames(wave, rate)[frames])).mean(axis=0)


def mean_power(spectrum: Spectrum) -> float:
    """Return the mean square of a wave of a power spectrum [K]."""
    size = 2 * (len(spectrum) - 1)
    return float(2 * spectrum[1:-1].sum() + spectrum[0] + spectrum[-1]) / size / (size / 2)


def room(spectrum: Spectrum, samples: int, rate: int, seed: int = 0) -> Wave:
    """Return stationary noise [samples] of a power spectrum [K]; a longer one begins with a shorter one."""
    size, _ = _sizes(rate)
    gain = np.sqrt(spectrum / np.hanning(size + 1)[:-1].sum())
    whole = np.empty(samples, np.float32)
    for start in range(0, samples, BLOCK):
        first, stop = max(0, start - size), min(start + BLOCK, samples)
        white = noise(seed, (stop + size - first,), ROOM, skip=first)
        whole[start:stop] = _wave(_frames(white, rate) * gain, len(white), rate)[start - first : stop - first]
    return whole


def without_background(wave: Wave, spectrum: Spectrum, rate: int) -> Wave:
    """Return a wave [L] without a background of that power spectrum (spectral subtraction, Boll 1979)."""
    frames = _frames(wave, rate)
    power = _averaged(_averaged(np.square(np.abs(frames)), 0), 1)
    return _wave(frames * np.maximum(1 - SUBTRACTED * spectrum / np.maximum(power, 1e-20), 0), len(wave), rate)


def _averaged(power: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the running mean over SMOOTH neighbours along an axis; the ends are repeated."""
    widths = [(SMOOTH // 2, SMOOTH // 2) if each == axis else (0, 0) for each in range(2)]
    padded = np.pad(power, widths, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, SMOOTH, axis=axis).mean(axis=-1)


def _sizes(rate: int) -> tuple[int, int]:
    """Return the samples of a frame, and from one frame to the next."""
    size = 2 ** max(4, round(math.log2(FRAME * rate)))
    return size, size // 4


def _frames(wave: Wave, rate: int) -> NDArray[np.complex128]:
    """Return the short-time Fourier transform [T, K] of a wave [L], windowed by the root of a Hann window."""
    size, hop = _sizes(rate)
    padded = np.pad(wave.astype(np.float64), (size - hop, size - hop + -len(wave) % hop))
    window = np.sqrt(np.hanning(size + 1)[:-1])
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window)


def _wave(frames: NDArray[np.complex128], samples: int, rate: int) -> Wave:
    """Return the wave [samples] of a short-time Fourier transform [T, K]."""
    size, hop = _sizes(rate)
    window = np.sqrt(np.hanning(size + 1)[:-1]) / 2  # Hann windows a quarter apart add up to 2
    whole = np.zeros((len(frames) - 1) * hop + size)
    for index, piece in enumerate(np.fft.irfft(frames, size) * window):
        whole[index * hop : index * hop + size] += piece
    return fit(whole[size - hop :].astype(np.float32), samples)
