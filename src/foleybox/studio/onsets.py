"""Where sounds begin: the rises in a recording, and the clearest one-shot of a clip.

A rise is the sample at which an event has come a quarter of the way (-12 dB) to its first peak: what is placed on a
time, and what is measured there again. All thresholds are differences of level, so a quiet recording has the same
rises as a loud one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.studio.shape import Step, apply, event, faded
from foleybox.studio.synth import Clip

RISE_DB = 9.0  # an onset: the loudest 10 ms of the next 40 are at least so much louder than the 50 ms before
FLOOR_DB = 35.0  # and at most so much quieter than the loudest 10 ms of the recording
GAP = 0.05  # seconds between two onsets: a faster one belongs to the first
ONE_SHOT = "one-shot"
PRE = 0.003  # seconds that a one-shot begins before its rise
SOONEST = 0.0015  # or this, where the clip itself begins with it: what is there is faded in, or it would click
LONGEST = 3.0  # seconds of a one-shot
SHORTEST = 0.12  # seconds before another event may end it: a step is a heel and a toe
OTHER_DB = 20.0  # an event that comes after it ends it, if at most so much quieter
SINKS_DB = 40.0  # a tail is over when it has sunk so far under its peak
TAIL = 0.08  # seconds in which it is faded out, half of it at most


class Onset(NamedTuple):
    """A rise in a recording."""

    sample: int
    rise_db: float  # how much louder the loudest 10 ms of the next 40 are than the 50 ms before
    level_db: float  # of those 10 ms (RMS, dBFS)


def find_onsets(wave: Wave, rate: int) -> list[Onset]:
    """Return the rises of a recording [L], in order; none for silence or a sound that is steady from end to end.

    Rises in energy are looked for in steps of a millisecond; the sample is where the wave itself crosses a quarter of
    the peak that follows within 45 ms (or the middle, in dB, between that peak and the noise before it).
    """
    step = max(1, rate // 1000)
    after, ahead, before, gap = 10, 30, 50, round(1000 * GAP)  # in steps
    energy = _energy(wave, step)  # [steps]
    if not energy.any():
        return []
    # A recording that begins in the middle of its noise does not rise there: before it comes more of its quietest part.
    quiet = np.percentile(_mean(energy, after), 10)
    total = np.concatenate([[0.0], np.cumsum(np.concatenate([np.full(before, quiet), energy]))])
    place = np.arange(len(energy)) + before
    level = (total[np.minimum(place + after, len(total) - 1)] - total[place]) / after
    level = np.lib.stride_tricks.sliding_window_view(np.pad(level, (0, ahead)), ahead + 1).max(axis=1)
    silence = level.max() * 1e-7  # 70 dB down
    rise = 10 * np.log10((level + silence) / ((total[place] - total[place - before]) / before + silence))
    loud = level >= level.max() * 10 ** (-FLOOR_DB / 10)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(rise, gap, constant_values=-np.inf), 2 * gap + 1)
    found: list[Onset] = []
    for candidate in np.flatnonzero((rise >= RISE_DB) & loud & (rise >= around.max(axis=1))):
        sample = _refine(wave, int(candidate) * step, rate)
        if not found or sample - found[-1].sample >= GAP * rate:
            found.append(Onset(sample, float(rise[candidate]), float(10 * np.log10(level[candidate]))))
    return found


def _energy(wave: Wave, step: int) -> NDArray[np.float64]:
    """Return the mean square of each step [ceil(L / step)] of a wave [L]."""
    padded = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)
    return np.mean(np.square(padded, dtype=np.float64), axis=1)


def _mean(energy: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Return the mean over `steps` (all, if there are fewer) from each place on."""
    steps = min(steps, len(energy))
    total = np.concatenate([[0.0], np.cumsum(energy)])
    return (total[steps:] - total[:-steps]) / steps


def _refine(wave: Wave, sample: int, rate: int) -> int:
    """Return the sample near a coarse onset at which the wave rises."""
    first, last = max(0, sample - round(0.005 * rate)), sample + round(0.045 * rate)
    near = np.abs(wave[first:last])
    peak = float(near.max(initial=0.0))
    noise = float(np.abs(wave[max(0, first - round(0.03 * rate)) : first]).max(initial=0.0))
    threshold = min(max(peak / 4, float(np.sqrt(noise * peak))), peak / 2)
    return first + int(np.argmax(near >= threshold))


# --- one-shots ----------------------------------------------------------------------------------------------------


class Shot(NamedTuple):
    """One event of a clip, in samples: cut from `start`, risen at `rise`, over at `stop`."""

    start: int
    rise: int
    stop: int
    clarity: float  # dB: how far it stands out; a clip without any event has 0


def clearest(wave: Wave, rate: int) -> Shot:
    """Return the event of a clip [L] that stands out most: a high rise, loud for the clip, its tail not cut off.

    The tail ends before the next event, where it has sunk by 40 dB or into the noise of the clip, or after 3 s. A clip
    without an event (a steady sound) is one from where it begins on, with a clarity of 0.
    """
    onsets = find_onsets(wave, rate)
    if not onsets:
        there = event(wave, rate)
        stop = min(there.stop, there.start + round(LONGEST * rate))
        return Shot(there.start, min(there.start + round(SOONEST * rate), stop - 1), stop, 0.0)
    loudest = max(onset.level_db for onset in onsets)
    shots = []
    for place, onset in enumerate(onsets):
        stop, alone = _stop(wave, rate, onsets, place)
        clarity = min(onset.rise_db, 30) + onset.level_db - loudest - (0 if alone else 6)
        start = max(0, onset.sample - round(PRE * rate))
        rise = min(max(onset.sample, start + round(SOONEST * rate)), stop - 1)
        shots.append(Shot(start, rise, stop, max(clarity, 0.1)))
    return max(shots, key=lambda shot: shot.clarity)


def one_shot(clip: Clip) -> tuple[Clip, float]:
    """Return the clearest event of a clip as a clip of its own, and its clarity; `asked` says so, for its siblings."""
    start, rise, stop, clarity = clearest(clip.wave, clip.rate)
    fade_in, fade_out = fades((start, rise, stop), clip.rate)
    steps: tuple[Step, ...] = (
        {"do": "cut", "start": start, "samples": stop - start},
        {"do": "fade", "in": fade_in, "out": fade_out},
    )
    recipe = replace(clip.recipe, process=steps, asked={"kind": ONE_SHOT})
    return Clip(apply(steps, clip.wave, clip.rate)[0], recipe), clarity


def fades(shot: Sequence[int], rate: int) -> tuple[int, int]:
    """Return how many samples of a one-shot (start, rise, stop) are faded: those before its rise, and at its end."""
    start, rise, stop = shot[:3]
    return rise - start, min(round(TAIL * rate), (stop - rise) // 2)


def cut_out(wave: Wave, shot: Sequence[int], rate: int) -> Wave:
    """Return a one-shot (start, rise, stop) of a clip, faded in and out."""
    return faded(wave[shot[0] : shot[2]], *fades(shot, rate))


def find_rise(wave: Wave, rate: int, near: int) -> int:
    """Return the sample, of those near, at which a one-shot [L] rises when it comes out of silence."""
    silence = np.zeros(round(0.06 * rate), wave.dtype)
    heard = np.concatenate([silence, wave[: near + round(0.2 * rate)]])
    rises = (onset.sample - len(silence) for onset in find_onsets(heard, rate))
    return max(0, min(rises, key=lambda sample: abs(sample - near), default=near))


def _stop(wave: Wave, rate: int, onsets: list[Onset], place: int) -> tuple[int, bool]:
    """Return where the event ends, and whether it died away by itself."""
    onset = onsets[place]
    later = (
        each.sample
        for each in onsets[place + 1 :]
        if each.sample - onset.sample >= SHORTEST * rate and each.level_db >= onset.level_db - OTHER_DB
    )
    last = min(next(later, len(wave)) - round(PRE * rate), len(wave), onset.sample + round(LONGEST * rate))
    step = max(1, rate // 1000)
    energy = _mean(np.pad(_energy(wave, step), (0, 30)), 30)  # over 30 ms from each millisecond on
    noise = float(np.percentile(energy, 10)) * 2
    there = energy[onset.sample // step : max(last // step, onset.sample // step + 1)]
    over = there <= max(there.max(initial=0.0) * 10 ** (-SINKS_DB / 10), noise)
    over[: there.argmax() + 1] = False
    if not over.any():
        return max(last, onset.sample + 1), False
    return min(last, onset.sample + (int(over.argmax()) + 30) * step), True
