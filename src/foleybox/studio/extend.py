"""Sounds longer than the clips of an instrument: built from variations of a clip, joined without an audible seam.

A steady sound (rain, a motor) continues with variations at its own level, crossfaded with equal power. Of any other
sound, the events follow one another, each part with its tail; the last part is cut where it is quiet.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.studio.latents import neighbour, point_of, render_points, vary
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import VARY, noise
from foleybox.studio.shape import LEAD, RELEASE, Shape, find_event, levels, quietest_cut, ramp
from foleybox.studio.synth import Clip, Synth

AMOUNT = {True: 0.2, False: 0.45}  # of the variations: small for a steady sound, larger for events
JOINT = {True: 1.0, False: 0.15}  # seconds by which two parts overlap, a quarter of a clip at most
EDGE = 0.05  # seconds at either end of a steady clip that are not used, where its level changes
PAUSE = 0.3  # seconds that are kept after an event, and the shortest gap that is filled with another
MAX_GAIN_DB = 12.0  # by which the level of a variation is matched
MAX_REJECTED = 3  # variations in a row that are rejected for being steady where the sound is not, or the reverse


def finished(synth: Synth, clip: Clip, shape: Shape) -> Clip:
    """Return a rendered clip as `shape` asks: extended if `shape.seconds` exceeds its length, then processed.

    Its ends do not click (`shape.shaped` with `declick`).
    """
    samples = round((shape.seconds or 0) * clip.rate)
    return (extend(synth, clip, samples) if samples > len(clip.wave) else clip).shaped(shape, declick=True)


def is_steady(wave: Wave, rate: int) -> bool:
    """Return whether a sound is steady: its level over 0.1 s stays within 10 dB for 85 % of the time."""
    power = np.convolve(10 ** (levels(wave, rate) / 10), np.ones(10) / 10, "valid")
    if len(power) < 10:
        return False
    low, high = np.percentile(power, [5, 90])
    return bool(low > 0.1 * high > 0)


def extend(synth: Synth, clip: Clip, samples: int) -> Clip:
    """Return a longer clip [samples] that begins with a rendered clip. Raises UserError if `clip` is not one."""
    make, rate, steady = clip.recipe.make, clip.rate, is_steady(clip.wave, clip.rate)
    joint = min(round(JOINT[steady] * rate), len(clip.wave) // 4)
    parts: list[list[int | float]] = []  # seed, stream, start in its clip, samples, position in the whole, dB
    waves: list[Wave] = []
    level, position = 0.0, 0
    for part in itertools.chain([clip], _same_kind(vary(synth, make, AMOUNT[steady], batch=1), steady)):
        first, wave, source = part is clip, part.wave, part.recipe.make
        start, end = _usable(wave, rate, steady)
        if end - start <= 2 * joint:  # a click: with its surroundings
            start, end = 0, len(wave)
        own_level = _level(wave[start:end], rate, steady)
        start, level = (0, own_level) if first else (start, level)
        if end - start > samples - position:
            start += 0 if steady else quietest_cut(wave[start:end], rate, samples - position)
            end = start + samples - position
        db = round(min(max(level - own_level, -MAX_GAIN_DB), MAX_GAIN_DB), 2)
        parts.append([*((0, 0) if first else (source["seed"], source["stream"])), start, end - start, position, db])
        waves.append(wave)
        position += end - start
        if position >= samples or (not steady and samples - position < round(PAUSE * rate)):
            break
        position -= joint
    made = {"do": "extend", "of": make, "kind": "steady" if steady else "events", "amount": AMOUNT[steady]}
    made |= {"samples": samples, "joint": joint, "parts": parts}
    return synth.clip(assemble(made, waves, rate), made)


def _same_kind(variations: Iterator[Clip], steady: bool) -> Iterator[Clip]:
    """Yield the variations that are steady, or those that are not; after MAX_REJECTED others in a row any one."""
    rejected = 0
    for clip in variations:
        if rejected == MAX_REJECTED or is_steady(clip.wave, clip.rate) == steady:
            yield clip
            rejected = 0
        else:
            rejected += 1


def _level(wave: Wave, rate: int, steady: bool) -> float:
    """Return the level of a part in dB: its mean if it is steady, else its highest over 50 ms."""
    power = 10 ** (levels(wave, rate) / 10)
    return 10 * math.log10(power.mean() if steady else np.convolve(power, np.full(5, 0.2)).max())


def _usable(wave: Wave, rate: int, steady: bool) -> tuple[int, int]:
    """Return the first and last sample (exclusive) of the part of a clip that is joined to others."""
    if steady:
        edge = min(round(EDGE * rate), len(wave) // 20)
        return edge, len(wave) - edge
    event = find_event(wave, rate)
    return max(0, event.start - round(LEAD * rate)), min(len(wave), event.stop + round(PAUSE * rate))


def assemble(make: Json, waves: Iterable[Wave], rate: int) -> Wave:
    """Return the whole [samples] from the waves of its parts; consecutive parts overlap by `joint` samples."""
    whole: NDArray[np.float32] = np.zeros(make["samples"], np.float32)
    joint = np.sqrt(ramp(make["joint"]))  # equal power: the squares of fade-in and fade-out add up to 1
    short = ramp(round(LEAD * rate))
    last = len(make["parts"]) - 1
    for index, ((_, _, start, samples, position, db), wave) in enumerate(zip(make["parts"], waves)):
        piece = wave[start : start + samples] * np.float32(10 ** (db / 20))
        # An event that was cut out of silence has a short fade-in, which keeps its attack.
        fade_in = np.ones(0) if not index else joint if make["kind"] == "steady" or not start else short
        fade_out = joint if index < last else ramp(round(RELEASE * rate))
        piece[: len(fade_in)] *= fade_in[: len(piece)]
        piece[max(0, len(piece) - len(fade_out)) :] *= fade_out[::-1][-len(piece) :]
        whole[position : position + samples] += piece
    return whole


def remake(make: Json, synth: Synth) -> Wave:
    """Return the wave [samples] of an `extend` recipe, at the instrument's rate."""
    start, shape = point_of(make["of"], synth), synth.instrument.latent

    def points() -> Iterator:
        yield start
        for seed, stream, *_ in make["parts"][1:]:
            yield neighbour(start, noise(seed, shape, VARY + stream), make["amount"])

    return assemble(make, render_points(synth, points(), batch=1), synth.instrument.rate)
