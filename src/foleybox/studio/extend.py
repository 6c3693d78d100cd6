"""A sound longer than what its instrument makes: built of neighbours of the sound, joined where nobody hears it.

A steady sound (rain, a motor) goes on in neighbours as loud as itself, each faded into the next with equal power. Of
any other sound the events follow each other, each part with its tail, the last one cut where it is quiet.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.studio.latents import near, play, point, vary
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import VARY, noise
from foleybox.studio.shape import LEAD, RELEASE, Shape, event, levels, quietest_cut, ramp
from foleybox.studio.synth import Clip, Synth

AMOUNT = {True: 0.2, False: 0.45}  # how far off the neighbours are: a steady sound stays what it is, a dog barks anew
JOINT = {True: 1.0, False: 0.15}  # seconds that two parts overlap, a quarter of a clip at most
EDGE = 0.05  # seconds of a steady clip that are left out at either end, where it comes up and goes
PAUSE = 0.3  # seconds that are kept after an event, and the shortest room worth another
LOUDER = 12.0  # dB that a neighbour is turned up or down by at most
TRIED = 4  # neighbours in a row that are passed over for being steady where the sound is not, or the other way


def finished(synth: Synth, clip: Clip, shape: Shape) -> Clip:
    """Return the clip as `shape` asks: built longer if it asks for more seconds than the instrument gives, then shaped.

    Its ends do not click: see `shape.shaped`.
    """
    samples = round((shape.seconds or 0) * clip.rate)
    return (extend(synth, clip, samples) if samples > len(clip.wave) else clip).shaped(shape, declick=True)


def steady(wave: Wave, rate: int) -> bool:
    """Say whether a sound goes on as it is: its level over 0.1 s stays within 10 dB for 85 % of the time."""
    power = np.convolve(10 ** (levels(wave, rate) / 10), np.ones(10) / 10, "valid")
    if len(power) < 10:
        return False
    low, high = np.percentile(power, [5, 90])
    return bool(low > 0.1 * high > 0)


def extend(synth: Synth, clip: Clip, samples: int) -> Clip:
    """Return a longer clip [samples] that begins with a rendered clip. Raises UserError if it is not one rendered sound."""
    make, rate, calm = clip.recipe.make, clip.rate, steady(clip.wave, clip.rate)
    joint = min(round(JOINT[calm] * rate), len(clip.wave) // 4)
    parts: list[list[int | float]] = []  # seed, stream, start in its clip, samples, place in the whole, dB
    waves: list[Wave] = []
    level, at = 0.0, 0
    for part in itertools.chain([clip], _alike(vary(synth, make, AMOUNT[calm], batch=1), calm)):
        first, wave, drawn = part is clip, part.wave, part.recipe.make
        start, end = _useful(wave, rate, calm)
        if end - start <= 2 * joint:  # a click: with what is round it
            start, end = 0, len(wave)
        loud = _level(wave[start:end], rate, calm)
        start, level = (0, loud) if first else (start, level)
        if end - start > samples - at:
            start += 0 if calm else quietest_cut(wave[start:end], rate, samples - at)
            end = start + samples - at
        db = round(min(max(level - loud, -LOUDER), LOUDER), 2)
        parts.append([*((0, 0) if first else (drawn["seed"], drawn["stream"])), start, end - start, at, db])
        waves.append(wave)
        at += end - start
        if at >= samples or (not calm and samples - at < round(PAUSE * rate)):
            break
        at -= joint
    made = {"do": "extend", "of": make, "kind": "steady" if calm else "events", "amount": AMOUNT[calm]}
    made |= {"samples": samples, "joint": joint, "parts": parts}
    return synth.clip(assemble(made, waves, rate), made)


def _alike(neighbours: Iterator[Clip], calm: bool) -> Iterator[Clip]:
    """Pass over neighbours that are steady where the sound is not, or not where it is, but never more than a few."""
    passed = 0
    for clip in neighbours:
        if passed + 1 == TRIED or steady(clip.wave, clip.rate) == calm:
            yield clip
            passed = 0
        else:
            passed += 1


def _level(wave: Wave, rate: int, calm: bool) -> float:
    """Return how loud a part is, in dB: on the whole if it is steady, else at its loudest, over 50 ms."""
    power = 10 ** (levels(wave, rate) / 10)
    return 10 * math.log10(power.mean() if calm else np.convolve(power, np.full(5, 0.2)).max())


def _useful(wave: Wave, rate: int, calm: bool) -> tuple[int, int]:
    """Return from where to where a clip is worth joining to others."""
    if calm:
        edge = min(round(EDGE * rate), len(wave) // 20)
        return edge, len(wave) - edge
    there = event(wave, rate)
    return max(0, there.start - round(LEAD * rate)), min(len(wave), there.stop + round(PAUSE * rate))


def assemble(make: Json, waves: Iterable[Wave], rate: int) -> Wave:
    """Return the whole [samples] of the waves of its parts, each joined to the next over `joint` samples."""
    whole: NDArray[np.float32] = np.zeros(make["samples"], np.float32)
    joint = np.sqrt(ramp(make["joint"]))  # of equal power: the squares of rise and fall add up to 1
    click = ramp(round(LEAD * rate))
    last = len(make["parts"]) - 1
    for place, ((_, _, start, samples, at, db), wave) in enumerate(zip(make["parts"], waves)):
        piece = wave[start : start + samples] * np.float32(10 ** (db / 20))
        # An event that was cut out of silence keeps its attack.
        rise = np.ones(0) if not place else joint if make["kind"] == "steady" or not start else click
        fall = joint if place < last else ramp(round(RELEASE * rate))
        piece[: len(rise)] *= rise[: len(piece)]
        piece[max(0, len(piece) - len(fall)) :] *= fall[::-1][-len(piece) :]
        whole[at : at + samples] += piece
    return whole


def remake(make: Json, synth: Synth) -> Wave:
    """Return the wave [samples] of an `extend`, at the instrument's rate."""
    start, shape = point(make["of"], synth), synth.instrument.latent

    def points() -> Iterator:
        yield start
        for seed, stream, *_ in make["parts"][1:]:
            yield near(start, noise(seed, shape, VARY + stream), make["amount"])

    return assemble(make, play(synth, points(), batch=1), synth.instrument.rate)
