"""`foleybox loop`: a seamless loop of a steady sound, wrapped where its two ends are most alike.

What follows the loop's end in the recording is faded into its beginning: at the wrap the wave goes on as it did there.

    loop[n] = (in(n) x[start + n] + out(n) x[start + samples + n]) / sqrt(1 + alike sin(2 a)),   a = pi/2 (n + 1/2) / fade
    in(n) = sin a, out(n) = cos a                                                                for n < fade, else x[start + n]

which has the power of its sides whether they are noise (alike = 0: the equal-power crossfade) or a hum in phase with
itself (alike = 1). `alike` is their correlation.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.errors import UserError
from foleybox.studio.extend import extend, steady
from foleybox.studio.recipe import Json
from foleybox.studio.shape import Step, apply
from foleybox.studio.spectra import HOP, WINDOW, band_levels, flux
from foleybox.studio.synth import Clip, Synth

FADE = 0.25  # seconds of the crossfade, a quarter of the loop at most
SLACK = 0.025  # seconds that the loop may be longer or shorter, for a hum to meet itself in phase
IN_PHASE = 0.3  # correlation from which the sides are a hum and not noise
EDGE = 0.06  # seconds of a rendered sound at either end, where it comes up and goes
ROOM = 1.5  # seconds of material beyond the loop, to look for the best place in
CANDIDATES = 8  # places that are tried and measured
STEADY_TRIED = 16  # seeds that are looked through for a steady clip
NEAR = 5.0  # seconds on either side of the wrap that count as its inside
SECONDS = 4.0  # of a loop whose length is not asked for
SHORTEST, LONGEST = 0.1, 600.0  # seconds


class Wrap(NamedTuple):
    """Where a loop lies in its material, in samples, and how alike its two sides are (-1 to 1)."""

    start: int
    samples: int
    fade: int
    alike: float


class Seam(NamedTuple):
    """How much rises at the wrap, and inside: spectral flux in dB a frame (see `measure_seam`)."""

    wrap: float
    inside: float

    @property
    def inaudible(self) -> bool:
        return self.wrap <= self.inside


def find_wrap(wave: Wave, rate: int, samples: int, fade: int, multiple: int = 1) -> Wrap:
    """Return the best place in a wave [L] for a loop of about so many samples (a multiple of `multiple`).

    The crossfade has `fade` samples, a quarter of the loop at most.

    The places where the bands of the two sides are most alike over the crossfade are tried; where the sides correlate
    the length is moved by up to 25 ms until they are in phase. The one with the least flux at its wrap is taken.

    Raises UserError if the wave is too short.
    """
    samples = max(1, round(samples / multiple)) * multiple
    slack, wanted, fade = round(SLACK * rate), fade, max(1, min(fade, samples // 4))
    needed = samples + fade + slack
    if len(wave) < needed:
        raise UserError(
            f"{len(wave) / rate:.2f} s of sound: a loop of {samples / rate:.2f} s needs {needed / rate:.2f} s with its "
            f"crossfade; the longest has {longest(len(wave), rate, wanted, multiple):.2f} s"
        )
    levels, hop = np.maximum(band_levels(wave, rate), -100), max(1, round(HOP * rate))
    apart = round(samples / hop)
    unlike = np.abs(levels[apart:] - levels[:-apart]).mean(axis=1)  # of frame t and the one a loop later
    width = max(1, fade // hop)
    total = np.concatenate([[0.0], np.cumsum(unlike)])
    cost = (total[width:] - total[:-width]) / width
    cost = cost[: (len(wave) - needed) // hop + 1]
    found: list[tuple[float, Wrap]] = []
    for _ in range(CANDIDATES):
        place = int(cost.argmin())
        if not math.isfinite(cost[place]):
            break
        cost[max(0, place - width // 2) : place + width // 2 + 1] = math.inf
        wrap = _in_phase(wave, place * hop, samples, fade, slack // multiple * multiple, multiple)
        seam = measure_seam(wrapped(wave, wrap), rate, fade)
        found.append((seam.wrap / max(seam.inside, 1e-6), wrap))
    return min(found)[1]


def longest(length: int, rate: int, fade: int, multiple: int = 1) -> float:
    """Return how many seconds a loop of `length` samples may have, to a hundredth below, beside its crossfade."""
    rest = length - round(SLACK * rate) - multiple // 2
    samples = max(rest - fade, min(rest * 4 // 5, 4 * fade))  # the crossfade is a quarter of the loop at most
    return max(0, math.floor(100 * samples / rate)) / 100


def _in_phase(wave: Wave, start: int, samples: int, fade: int, slack: int, multiple: int) -> Wrap:
    """Return the loop at `start` whose sides correlate most, if they do at all, else the one of `samples`."""
    head = wave[start : start + fade].astype(np.float64)
    first = max(1, samples - slack)
    tail = wave[start + first : start + samples + slack + fade].astype(np.float64)
    energy = np.concatenate([[0.0], np.cumsum(tail * tail)])
    norm = np.sqrt((energy[fade:] - energy[:-fade]) * np.sum(head * head))
    alike = np.correlate(tail, head, "valid") / np.maximum(norm, 1e-12)
    lengths = first + np.arange(len(alike))
    alike[lengths % multiple != 0] = -1
    best = int(alike.argmax())
    if alike[best] < IN_PHASE:
        best = samples - first
    return Wrap(start, int(lengths[best]), fade, round(float(np.clip(alike[best], -0.5, 1)), 4))


def wrapped(wave: Wave, wrap: Wrap) -> Wave:
    """Return the loop [samples]; see the head of this file."""
    start, samples, fade, alike = wrap
    loop = wave[start : start + samples].copy()
    angle = np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)
    both = np.sin(angle) * loop[:fade] + np.cos(angle) * wave[start + samples : start + samples + fade]
    loop[:fade] = both / np.sqrt(1 + alike * np.sin(2 * angle))
    return loop


def measure_seam(loop: Wave, rate: int, fade: int) -> Seam:
    """Return the largest flux from before the wrap to behind the crossfade, and that of a stretch as long inside.

    The latter is what 95 % of all stretches inside stay below, within five seconds of the wrap. The loop is heard
    round: the wrap has a before.
    """
    hop, window = max(1, round(HOP * rate)), round(WINDOW * rate)
    lead = min(math.ceil(len(loop) / 2 / hop), round(NEAR / HOP)) * hop
    rises = flux(band_levels(np.concatenate([loop[-lead:], loop[:lead]]), rate))
    wrap, before, behind = lead // hop, math.ceil(window / hop), math.ceil((fade + window) / hop)
    inside = (rises[before : wrap - before], rises[wrap + behind : len(rises) - before])
    stretches = np.concatenate([_highest(part, before + behind) for part in inside])
    if not len(stretches):  # too short a loop for an inside
        stretches = rises[before:]
    return Seam(float(rises[wrap - before : wrap + behind].max()), float(np.percentile(stretches, 95)))


def _highest(rises: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the highest of each stretch of `width` frames; of all, if there are fewer."""
    if not len(rises):
        return rises
    return np.lib.stride_tricks.sliding_window_view(rises, min(width, len(rises))).max(axis=1)


def smpl(samples: int, rate: int) -> bytes:
    """Return a `smpl` chunk: one loop, forwards, for ever, from the first sample to the last (inclusive, as it counts)."""
    return struct.pack("<9I", 0, 0, round(1e9 / rate), 60, 0, 0, 0, 1, 0) + struct.pack(
        "<6I", 0, 0, 0, samples - 1, 0, 0
    )


def looped(
    source: Clip, seconds: float | None, *, rate: int | None = None, fade: float = FADE, rounds: int = 1
) -> tuple[Clip, Wrap]:
    """Return a loop of a clip, that many times round, at `rate` Hz (None: the clip's), and where it lies.

    It is resampled as a loop: each round goes on into the next. Raises UserError if the clip is too short, or was
    resampled after it was made (loop it first).
    """
    if any(step["do"] == "resample" for step in source.recipe.process):
        raise UserError(
            "it was resampled after it was made: loop it at the instrument's rate, and give the loop a rate"
        )
    rate = rate or source.rate
    multiple = source.rate // math.gcd(source.rate, rate)
    length, faded = len(source.wave), round(fade * source.rate)
    seconds = seconds or min(SECONDS, longest(length, source.rate, faded, multiple))
    if seconds < SHORTEST:
        raise UserError(
            f"{length / source.rate:.2f} s of sound: too short for a loop, which has {SHORTEST:g} s or more"
        )
    wrap = find_wrap(source.wave, source.rate, round(seconds * source.rate), faded, multiple)
    return _round(source, wrap, rate, rounds), wrap


def _round(source: Clip, wrap: Wrap, rate: int, rounds: int) -> Clip:
    """Return a loop `rounds` times round. To be resampled it gets another round on either side, which is cut off again."""
    spare = 2 if rate != source.rate else 0
    make = {"do": "loop", "label": source.label, "seed": source.seed, "of": source.recipe.make}
    make |= {"steps": list(source.recipe.process), **wrap._asdict(), "rounds": rounds + spare}
    wave = np.tile(wrapped(source.wave, wrap), rounds + spare)
    samples = wrap.samples * rate // source.rate
    process: tuple[Step, ...] = ()
    if spare:
        process = ({"do": "resample", "rate": rate}, {"do": "cut", "start": samples, "samples": rounds * samples})
    wave, _ = apply(process, wave, source.rate)
    return Clip(wave, replace(source.recipe, make=make, process=process, asked={}, rate=rate))


def remake(make: Json, synth: Synth, remake_source: Callable[[Json, Synth], Wave]) -> Wave:
    """Return the wave of a loop from its recipe, at the instrument's rate; `remake_source` makes the sound that is looped."""
    wave, _ = apply(make["steps"], remake_source(make["of"], synth), synth.instrument.rate)
    return np.tile(wrapped(wave, Wrap(make["start"], make["samples"], make["fade"], make["alike"])), make["rounds"])


def steady_clip(synth: Synth, label: str, seed: int, temperature: float = 1.0) -> Clip:
    """Return the clip of the first steady seed from `seed` on; of `seed` itself, if none of sixteen is."""
    first: Clip | None = None
    for clip in synth.render_many(((label, seed + place) for place in range(STEADY_TRIED)), temperature=temperature):
        if steady(clip.wave, clip.rate):
            return clip
        first = first or clip
    assert first is not None
    return first


def material(synth: Synth, clip: Clip, seconds: float, fade: float = FADE) -> Clip:
    """Return a rendered sound without its very ends, extended if needed to look for a loop of so many seconds in."""
    edge = round(EDGE * clip.rate)
    needed = round((seconds + min(fade, seconds / 4) + SLACK) * clip.rate) + 2 * edge
    if needed > len(clip.wave):
        clip = extend(synth, clip, needed + round(ROOM * clip.rate))
    cut: tuple[Step, ...] = ({"do": "cut", "start": edge, "samples": len(clip.wave) - 2 * edge},)
    return Clip(apply(cut, clip.wave, clip.rate)[0], replace(clip.recipe, process=cut))
