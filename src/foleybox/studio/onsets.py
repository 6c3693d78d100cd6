"""Onset detection, and one-shots: the clearest event of a clip, cut out with its tail.

An onset is the sample at which an event reaches a quarter (-12 dB) of its first peak. It is the point that a scene puts
on a time, and the point that is found there again. All thresholds are differences of level, so that a quiet recording
has the same onsets as a loud one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.studio.shape import Step, apply, faded, find_event
from foleybox.studio.synth import Clip

INCREASE_DB = 9.0  # an onset: the loudest 10 ms of the next 40 exceed the 50 ms before by this much
FLOOR_DB = 35.0  # and are at most this far below the loudest 10 ms of the recording
GAP = 0.05  # seconds between two onsets; an earlier one belongs to the first
ONE_SHOT = "one-shot"
LEAD = 0.003  # seconds that a one-shot begins before its onset
MIN_LEAD = 0.0015  # or this much, where the clip itself begins with it; the lead is faded in to avoid a click
LONGEST = 3.0  # seconds of a one-shot
SHORTEST = 0.12  # seconds before another event may end it: a footstep is a heel and a toe
NEXT_DB = 20.0  # a later event ends it if at most this much quieter
DECAY_DB = 40.0  # a tail has decayed when it is this far below its peak
TAIL = 0.08  # seconds of the fade at its end, half of the one-shot at most


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


# --- one-shots ----------------------------------------------------------------------------------------------------


class Shot(NamedTuple):
    """One event of a clip, in samples: cut from `start`, `onset`, end at `stop` (exclusive)."""

    start: int
    onset: int
    stop: int
    clarity: float  # dB: increase at the onset, plus level relative to the clip; 0 for a clip without an event


def clearest_event(wave: Wave, rate: int) -> Shot:
    """Return the event of a clip [L] with the highest clarity: a large increase, loud for the clip, a complete tail.

    The tail ends before the next event, where it has decayed by 40 dB or into the noise of the clip, or after 3 s. A clip
    without an event (a steady sound) gives its beginning, with a clarity of 0.
    """
    onsets = find_onsets(wave, rate)
    if not onsets:
        event = find_event(wave, rate)
        stop = min(event.stop, event.start + round(LONGEST * rate))
        return Shot(event.start, min(event.start + round(MIN_LEAD * rate), stop - 1), stop, 0.0)
    loudest = max(onset.level_db for onset in onsets)
    shots = []
    for index, onset in enumerate(onsets):
        stop, decayed = _stop(wave, rate, onsets, index)
        clarity = min(onset.increase_db, 30) + onset.level_db - loudest - (0 if decayed else 6)
        start = max(0, onset.sample - round(LEAD * rate))
        sample = min(max(onset.sample, start + round(MIN_LEAD * rate)), stop - 1)
        shots.append(Shot(start, sample, stop, max(clarity, 0.1)))
    return max(shots, key=lambda shot: shot.clarity)


def one_shot(clip: Clip) -> tuple[Clip, float]:
    """Return the clearest event of a clip as a clip of its own, and its clarity in dB.

    `asked` in its recipe states that it is a one-shot, so that `vary` cuts its variations alike.
    """
    start, onset, stop, clarity = clearest_event(clip.wave, clip.rate)
    fade_in, fade_out = one_shot_fades((start, onset, stop), clip.rate)
    steps: tuple[Step, ...] = (
        {"do": "cut", "start": start, "samples": stop - start},
        {"do": "fade", "in": fade_in, "out": fade_out},
    )
    recipe = replace(clip.recipe, process=steps, asked={"kind": ONE_SHOT})
    return Clip(apply(steps, clip.wave, clip.rate)[0], recipe), clarity


def one_shot_fades(shot: Sequence[int], rate: int) -> tuple[int, int]:
    """Return the samples of the fades of a one-shot (start, onset, stop): from its start to its onset, and at its end."""
    start, onset, stop = shot[:3]
    return onset - start, min(round(TAIL * rate), (stop - onset) // 2)


def cut_one_shot(wave: Wave, shot: Sequence[int], rate: int) -> Wave:
    """Return a one-shot (start, onset, stop) of a clip [L], with its fades."""
    return faded(wave[shot[0] : shot[2]], *one_shot_fades(shot, rate))


def onset_near(wave: Wave, rate: int, sample: int) -> int:
    """Return the onset of a one-shot [L] that is nearest to `sample`, as it is found when silence precedes the wave."""
    silence = np.zeros(round(0.06 * rate), wave.dtype)
    padded = np.concatenate([silence, wave[: sample + round(0.2 * rate)]])
    onsets = (onset.sample - len(silence) for onset in find_onsets(padded, rate))
    return max(0, min(onsets, key=lambda onset: abs(onset - sample), default=sample))


def _stop(wave: Wave, rate: int, onsets: list[Onset], index: int) -> tuple[int, bool]:
    """Return the end of the event of an onset, and whether it has decayed there."""
    onset = onsets[index]
    later = (
        each.sample
        for each in onsets[index + 1 :]
        if each.sample - onset.sample >= SHORTEST * rate and each.level_db >= onset.level_db - NEXT_DB
    )
    last = min(next(later, len(wave)) - round(LEAD * rate), len(wave), onset.sample + round(LONGEST * rate))
    step = max(1, rate // 1000)
    energy = _mean(np.pad(_energy(wave, step), (0, 30)), 30)  # over the next 30 ms, each millisecond
    noise = float(np.percentile(energy, 10)) * 2
    event = energy[onset.sample // step : max(last // step, onset.sample // step + 1)]
    decayed = event <= max(event.max(initial=0.0) * 10 ** (-DECAY_DB / 10), noise)
    decayed[: event.argmax() + 1] = False
    if not decayed.any():
        return max(last, onset.sample + 1), False
    return min(last, onset.sample + (int(decayed.argmax()) + 30) * step), True
