"""Onset detection.

An onset is the sample at which an event reaches a quarter (-12 dB) of its first peak. It is the point that a scene puts
on a time, and the point that is found there again. All thresholds are differences of level, so that a quiet recording
has the same onsets as a loud one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave

INCREASE_DB = 9.0  # an onset: the loudest 10 ms of the next 40 exceed the 50 ms before by this much
FLOOR_DB = 35.0  # and are at most this far below the loudest 10 ms of the recording
GAP = 0.05  # seconds between two onsets; an earlier one belongs to the first


class Onset(NamedTuple):
    """An onset in a recording."""

    sample: int
    increase_db: float  # of the loudest 10 ms of the next 40 over the 50 ms before
    level_db: float  # of those 10 ms (RMS, dBFS)


def find_onsets(wave: Wave, rate: int) -> list[Onset]:
    """Return the onsets of a recording [L] at `rate` Hz, in order; none for silence or a steady sound.

    Increases of energy are looked for in steps of a millisecond. The sample is where the wave itself crosses a quarter of
    the peak that follows within 45 ms (or the middle, in dB, between that peak and the noise before it).
    """
    step = max(1, rate // 1000)
    after, ahead, before, gap = 10, 30, 50, round(1000 * GAP)  # in steps
    energy = _energy(wave, step)  # [steps]
    if not energy.any():
        return []
    # A recording that begins with noise has no onset there: it is extended to the left by its quietest level.
    quiet = np.percentile(_mean(energy, after), 10)
    total = np.concatenate([[0.0], np.cumsum(np.concatenate([np.full(before, quiet), energy]))])
    index = np.arange(len(energy)) + before
    level = (total[np.minimum(index + after, len(total) - 1)] - total[index]) / after
    level = np.lib.stride_tricks.sliding_window_view(np.pad(level, (0, ahead)), ahead + 1).max(axis=1)
    silence = level.max() * 1e-7  # 70 dB down
    increase = 10 * np.log10((level + silence) / ((total[index] - total[index - before]) / before + silence))
    loud = level >= level.max() * 10 ** (-FLOOR_DB / 10)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(increase, gap, constant_values=-np.inf), 2 * gap + 1)
    found: list[Onset] = []
    for candidate in np.flatnonzero((increase >= INCREASE_DB) & loud & (increase >= around.max(axis=1))):
        sample = _refine(wave, int(candidate) * step, rate)
        if not found or sample - found[-1].sample >= GAP * rate:
            found.append(Onset(sample, float(increase[candidate]), float(10 * np.log10(level[candidate]))))
    return found


def _energy(wave: Wave, step: int) -> NDArray[np.float64]:
    """Return the mean square of each step [ceil(L / step)] of a wave [L]."""
    padded = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)
    return np.mean(np.square(padded, dtype=np.float64), axis=1)


def _mean(energy: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Return the running mean over the next `steps` (over all, if there are fewer)."""
    steps = min(steps, len(energy))
    total = np.concatenate([[0.0], np.cumsum(energy)])
    return (total[steps:] - total[:-steps]) / steps


def _refine(wave: Wave, sample: int, rate: int) -> int:
    """Return the sample near a coarse onset at which the wave crosses the threshold."""
    first, last = max(0, sample - round(0.005 * rate)), sample + round(0.045 * rate)
    near = np.abs(wave[first:last])
    peak = float(near.max(initial=0.0))
    noise = float(np.abs(wave[max(0, first - round(0.03 * rate)) : first]).max(initial=0.0))
    threshold = min(max(peak / 4, float(np.sqrt(noise * peak))), peak / 2)
    return first + int(np.argmax(near >= threshold))


def onset_near(wave: Wave, rate: int, sample: int) -> int:
    """Return the onset of a one-shot [L] that is nearest to `sample`, as it is found when silence precedes the wave."""
    silence = np.zeros(round(0.06 * rate), wave.dtype)
    padded = np.concatenate([silence, wave[: sample + round(0.2 * rate)]])
    onsets = (onset.sample - len(silence) for onset in find_onsets(padded, rate))
    return max(0, min(onsets, key=lambda onset: abs(onset - sample), default=sample))
