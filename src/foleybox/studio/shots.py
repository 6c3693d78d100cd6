"""One-shots: the loudest event of a clip, or the one asked for, whole, cut out with its tail.

The event contains the loudest 10 ms of the clip, or of the part asked for (`event_tops`). With P the level there and B that
of the clip's background (the quietest tenth of its 30 ms levels, and 3 dB),

* it begins at its attack: the first onset (`find_onsets`) after the clip was last below P - 30 dB, or below B; without one,
  the steepest rise of at least 6 dB; an impulse whose loudest moment is in the first 20 ms of the clip begins with the clip;
* it ends where it has decayed to P - 40 dB, or to B; or just before the next event, if it has decayed to P - 30 dB there
  (otherwise the next event is part of it: the toe after the heel); or 3 s after its attack, where it is faded out;
* a fragment is no event: what is loud from the first sample of the clip on, without an attack, or loud at its last.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.studio.onsets import find_onsets
from foleybox.studio.shape import Step, apply, faded
from foleybox.studio.synth import Clip

ONE_SHOT = "one-shot"
APART_DB = 30.0  # two events are separate if the level between them is this far below the louder one
DECAY_DB = 40.0  # a tail has decayed when it is this far below its peak
BACKGROUND_DB = 3.0  # above the quietest tenth of the clip
LEAD = 0.003  # seconds that a one-shot begins before its onset
MIN_LEAD = 0.0015  # or this much, where the clip itself begins with it; the lead is faded in to avoid a click
SHORTEST, LONGEST = 0.15, 3.0  # seconds of a one-shot
AFTER = 0.5  # of these, at least for what follows the loudest moment
TAIL = 0.08  # seconds of the fade at its end, half of the one-shot at most
IMPULSE = 0.02  # seconds: a loudest moment that early is an attack at the first sample of the clip
MIN_RISE_DB = 6.0  # of the level of 20 ms over that of the 20 ms before: an attack
MIN_CLARITY_DB = 6.0  # by which an event exceeds what precedes it
AT_START, AT_END, UNCLEAR, TOO_FEW = (
    "cut off by the start of the clip",
    "cut off by the end of the clip",
    "without a clear event",
    "with fewer events",
)
MOST_EVENTS = 100  # that can be asked for


class Shot(NamedTuple):
    """One event of a clip, in samples: cut from `start`, `onset`, end at `stop` (exclusive)."""

    start: int
    onset: int
    stop: int
    clarity: float  # dB by which it exceeds what precedes it and the background; 0 if it has a problem
    problem: str = ""  # why it is no one-shot: AT_START, AT_END, UNCLEAR or TOO_FEW


def loudest_event(wave: Wave, rate: int, number: int = 0) -> Shot:
    """Return the event of a clip [L] at `rate` Hz that contains its loudest moment; the head of this file defines it.

    `number` asks for another one: 1 is the first event of the clip. A clip with fewer gives its last, and the `problem`. A clip
    without one (silence, a steady sound) gives the 3 s from where it begins, or what is nearest to an event, and the
    `problem`.
    """
    step = max(1, rate // 1000)
    short, long = (_running_db(wave, step, size) for size in (10, 30))  # [steps] of a millisecond
    onsets = [onset.sample for onset in find_onsets(wave, rate)]
    tops = event_tops(short, long, [each // step for each in onsets]) if number else []
    top = tops[min(number, len(tops)) - 1] if tops else int(short.argmax())
    peak, background = float(short[top]), float(np.percentile(long, 10)) + BACKGROUND_DB
    apart = max(peak - APART_DB, background)
    quiet = np.flatnonzero(long[: max(0, top - 30)] <= apart)  # the 30 ms from there end before the loudest moment
    first = int(quiet[-1]) + 25 if len(quiet) else 0
    first = max(first, top - round(1000 * (LONGEST - AFTER)))
    onset = next((each for each in onsets if first * step <= each <= (top + 10) * step and each >= step), None)
    if top * step > IMPULSE * rate and (
        onset is None or not _steepest_rise(wave, step, onset // step, onset // step + 10)
    ):
        onset = step * _steepest_rise(wave, step, first, top) or onset
    attack = (onset is not None and onset >= step) or top * step <= IMPULSE * rate
    onset = min(onset or 0, len(wave) - 1)
    tail = long[top:]
    decayed = np.flatnonzero(tail <= max(peak - DECAY_DB, background))
    stop = (top + int(decayed[0]) + 30) * step if len(decayed) else len(wave)
    soon = max(top * step + round(0.04 * rate), onset + round(SHORTEST * rate))
    following = (each for each in onsets if each > soon and long[each // step - 32] <= apart)
    stop = min(stop, next(following, len(wave)) - round(LEAD * rate), onset + round(LONGEST * rate))
    stop = min(max(stop, onset + round(SHORTEST * rate)), len(wave))
    if not attack:
        stop = min(len(wave), onset + round(LONGEST * rate))
    start = max(0, onset - round(LEAD * rate))
    preceding = float(long[max(0, onset // step - 32)]) if onset > 32 * step else -200.0
    clarity = min(peak - preceding, peak - float(np.percentile(long, 10)))
    problem = ""
    if not attack:
        problem = AT_START if long[0] > apart else UNCLEAR
    elif clarity < MIN_CLARITY_DB:
        problem = UNCLEAR
    elif stop == len(wave) and float(long[-30:].max()) > apart:
        problem = AT_END
    elif number > len(tops):
        problem = TOO_FEW
    sample = min(max(onset, start + round(MIN_LEAD * rate)), stop - 1)
    return Shot(start, sample, stop, 0.0 if problem else clarity, problem)


def event_tops(short: NDArray[np.float64], long: NDArray[np.float64], onsets: Sequence[int]) -> list[int]:
    """Return the step of the loudest 10 ms of each event of a clip, in order, from its running levels and its onsets, in steps.

    An onset begins a new event if the level falls to APART_DB below the louder of both between them, or to the background.
    """
    background = float(np.percentile(long, 10)) + BACKGROUND_DB
    tops: list[int] = []
    for onset, following in zip(onsets, [*onsets[1:], len(short) + 10]):
        top = onset + int(
            short[onset : max(following - 10, onset + 1)].argmax()
        )  # each is the level of the 10 ms that follow
        if tops:
            louder = max(short[tops[-1]], short[top])
            between = float(long[tops[-1] : max(tops[-1] + 1, onset - 30)].min())
            if between > max(louder - APART_DB, background):
                tops[-1] = max(tops[-1], top, key=lambda each: short[each])
                continue
        tops.append(top)
    return tops


def _steepest_rise(wave: Wave, step: int, first: int, top: int) -> int:
    """Return where the level of 20 ms exceeds that of the 20 ms before most, in steps from `first` to `top`; 0 if under 6 dB."""
    level = _running_db(wave, step, 20)
    rise = level[20 : top + 1] - level[: max(0, min(top + 1, len(level)) - 20)]  # at step 20 and after
    rise[: max(0, first - 20)] = -np.inf
    return 20 + int(rise.argmax()) if len(rise) and rise.max() >= MIN_RISE_DB else 0


def _running_db(wave: Wave, step: int, steps: int) -> NDArray[np.float64]:
    """Return the level in dB of the `steps` steps from each step on [ceil(L / step)]; at the end, of those that are left."""
    padded = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)
    total = np.concatenate([[0.0], np.cumsum(np.mean(np.square(padded, dtype=np.float64), axis=1))])
    index = np.arange(len(padded))
    ends = np.minimum(index + steps, len(padded))
    return 10 * np.log10(np.maximum((total[ends] - total[index]) / (ends - index), 1e-20))


def one_shot(clip: Clip, event: int = 0) -> tuple[Clip, str]:
    """Return an event of a clip as a clip of its own, and its problem ("" for a whole, clear event).

    `event` 0 is the loudest one, 1 the first, 2 the second. `asked` in its recipe states that it is a one-shot, and of which
    event, so that `vary` cuts its variations alike.
    """
    start, onset, stop, _, problem = loudest_event(clip.wave, clip.rate, event)
    fade_in, fade_out = one_shot_fades((start, onset, stop), clip.rate)
    steps: tuple[Step, ...] = (
        {"do": "cut", "start": start, "samples": stop - start},
        {"do": "fade", "in": fade_in, "out": fade_out},
    )
    recipe = replace(clip.recipe, process=steps, asked={"kind": ONE_SHOT} | ({"event": event} if event else {}))
    return Clip(apply(steps, clip.wave, clip.rate)[0], recipe), problem


def one_shot_fades(shot: Sequence[int], rate: int) -> tuple[int, int]:
    """Return the samples of the fades of a one-shot (start, onset, stop): from its start to its onset, and at its end."""
    start, onset, stop = shot[:3]
    return onset - start, min(round(TAIL * rate), (stop - onset) // 2)


def cut_one_shot(wave: Wave, shot: Sequence[int], rate: int) -> Wave:
    """Return a one-shot (start, onset, stop) of a clip [L], with its fades."""
    return faded(wave[shot[0] : shot[2]], *one_shot_fades(shot, rate))
