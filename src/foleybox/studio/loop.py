"""Seamless loops of steady sounds, wrapped where the two sides of the wrap are most alike.

The material after the end of the loop is crossfaded into its beginning, so that the wave continues at the wrap as it did
in the material x:

    loop[n] = (sin(a) x[start + n] + cos(a) x[start + samples + n]) / sqrt(1 + alike sin(2 a))    for n < fade
    loop[n] = x[start + n]                                                                        for n >= fade
    a = pi/2 (n + 1/2) / fade

`alike` is the correlation of the two sides. The divisor keeps the power, whether they are noise (0: the equal-power
crossfade) or a hum in phase with itself (1).
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
from foleybox.studio.extend import extend, is_steady
from foleybox.studio.recipe import Json
from foleybox.studio.shape import Step, apply
from foleybox.studio.spectra import HOP, WINDOW, band_levels, flux
from foleybox.studio.synth import Clip, Synth

FADE = 0.25  # seconds of the crossfade, a quarter of the loop at most
SLACK = 0.025  # seconds by which the length may differ, so that a hum wraps in phase
IN_PHASE = 0.3  # correlation from which the two sides count as a hum, not as noise
EDGE = 0.06  # seconds at either end of a rendered sound that are not used, where its level changes
EXTRA = 1.5  # seconds of material beyond the loop, to choose the start from
CANDIDATES = 8  # starts that are tried and measured
STEADY_TRIED = 16  # seeds that are searched for a steady clip
NEAR = 5.0  # seconds on either side of the wrap with which it is compared
SECONDS = 4.0  # length of a loop by default
SHORTEST, LONGEST = 0.1, 600.0  # seconds


class Wrap(NamedTuple):
    """Position of a loop in its material; the names are keys of the recipe."""

    start: int  # sample
    samples: int  # length of the loop
    fade: int  # samples of the crossfade
    alike: float  # correlation of the two sides, -1 to 1


class Seam(NamedTuple):
    """Spectral flux of a loop in dB a frame, see `measure_seam`."""

    wrap: float  # the highest around the wrap
    inside: float  # what the flux elsewhere rarely exceeds

    @property
    def inaudible(self) -> bool:
        return self.wrap <= self.inside


def find_wrap(wave: Wave, rate: int, samples: int, fade: int, multiple: int = 1) -> Wrap:
    """Return the best position in a wave [L] for a loop of about `samples` samples, a multiple of `multiple`.

    The crossfade has `fade` samples, a quarter of the loop at most. Candidates are the starts where the band levels of
    the two sides differ least over the crossfade. If the sides correlate, the length is changed by up to 25 ms until they
    are in phase. The candidate with the least flux at its wrap is chosen.

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
    difference = np.abs(levels[apart:] - levels[:-apart]).mean(axis=1)  # of frame t and the frame one loop later
    width = max(1, fade // hop)
    total = np.concatenate([[0.0], np.cumsum(difference)])
    cost = (total[width:] - total[:-width]) / width
    cost = cost[: (len(wave) - needed) // hop + 1]
    found: list[tuple[float, Wrap]] = []
    for _ in range(CANDIDATES):
        frame = int(cost.argmin())
        if not math.isfinite(cost[frame]):
            break
        cost[max(0, frame - width // 2) : frame + width // 2 + 1] = math.inf
        wrap = _in_phase(wave, frame * hop, samples, fade, slack // multiple * multiple, multiple)
        seam = measure_seam(wrapped(wave, wrap), rate, fade)
        found.append((seam.wrap / max(seam.inside, 1e-6), wrap))
    return min(found)[1]


def longest(length: int, rate: int, fade: int, multiple: int = 1) -> float:
    """Return the seconds of the longest loop in `length` samples with its crossfade, rounded down to a hundredth."""
    usable = length - round(SLACK * rate) - multiple // 2
    samples = max(usable - fade, min(usable * 4 // 5, 4 * fade))  # the crossfade is a quarter of the loop at most
    return max(0, math.floor(100 * samples / rate)) / 100


def _in_phase(wave: Wave, start: int, samples: int, fade: int, slack: int, multiple: int) -> Wrap:
    """Return the loop at `start` whose sides correlate most; if that is below IN_PHASE, the one of `samples`."""
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
    """Return the loop [samples] in a wave, by the equation at the head of this file."""
    start, samples, fade, alike = wrap
    loop = wave[start : start + samples].copy()
    angle = np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)
    both = np.sin(angle) * loop[:fade] + np.cos(angle) * wave[start + samples : start + samples + fade]
    loop[:fade] = both / np.sqrt(1 + alike * np.sin(2 * angle))
    return loop


def measure_seam(loop: Wave, rate: int, fade: int) -> Seam:
    """Return the highest flux around the wrap of a loop [L], from just before it to the end of the crossfade.

    It is compared with the 95th percentile of the highest flux in stretches of the same length, within five seconds of
    the wrap. The loop is measured as it repeats: the end of a round precedes the wrap.
    """
    hop, window = max(1, round(HOP * rate)), round(WINDOW * rate)
    lead = min(math.ceil(len(loop) / 2 / hop), round(NEAR / HOP)) * hop
    change = flux(band_levels(np.concatenate([loop[-lead:], loop[:lead]]), rate))
    wrap, before, after = lead // hop, math.ceil(window / hop), math.ceil((fade + window) / hop)
    inside = (change[before : wrap - before], change[wrap + after : len(change) - before])
    stretches = np.concatenate([_highest(part, before + after) for part in inside])
    if not len(stretches):  # the loop is too short
        stretches = change[before:]
    return Seam(float(change[wrap - before : wrap + after].max()), float(np.percentile(stretches, 95)))


def _highest(change: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the maximum of every stretch of `width` frames, or of all frames if there are fewer."""
    if not len(change):
        return change
    return np.lib.stride_tricks.sliding_window_view(change, min(width, len(change))).max(axis=1)


def smpl_chunk(samples: int, rate: int) -> bytes:
    """Return the content of a `smpl` chunk: one endless forward loop from the first to the last sample (inclusive)."""
    return struct.pack("<9I", 0, 0, round(1e9 / rate), 60, 0, 0, 0, 1, 0) + struct.pack(
        "<6I", 0, 0, 0, samples - 1, 0, 0
    )


def looped(
    source: Clip, seconds: float | None, *, rate: int | None = None, fade: float = FADE, rounds: int = 1
) -> tuple[Clip, Wrap]:
    """Return a loop of a clip, repeated `rounds` times, at `rate` Hz (None: the clip's), and its position in the clip.

    `seconds` None: SECONDS, or as many as the clip allows. The loop is resampled as a loop: each round continues into the
    next. Raises UserError if the clip is too short, or has been resampled (loop it first).
    """
    if any(step["do"] == "resample" for step in source.recipe.process):
        raise UserError(
            "it was resampled after it was made: make it at the instrument's rate, and give the loop a rate"
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
    return repeated(source, wrap, rate, rounds), wrap


def repeated(source: Clip, wrap: Wrap, rate: int, rounds: int) -> Clip:
    """Return a loop repeated `rounds` times. For resampling it gets one more round on either side, cut off afterwards."""
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
    """Return the wave of a `loop` recipe, at the instrument's rate; `remake_source` renders the sound that is looped."""
    wave, _ = apply(make["steps"], remake_source(make["of"], synth), synth.instrument.rate)
    return np.tile(wrapped(wave, Wrap(make["start"], make["samples"], make["fade"], make["alike"])), make["rounds"])


def steady_clip(synth: Synth, label: str, seed: int, temperature: float = 1.0) -> Clip:
    """Return the first steady clip of a label from `seed` on; the clip of `seed` itself if none of sixteen is steady."""
    first: Clip | None = None
    for clip in synth.render_many(((label, seed + offset) for offset in range(STEADY_TRIED)), temperature=temperature):
        if is_steady(clip.wave, clip.rate):
            return clip
        first = first or clip
    assert first is not None
    return first


def loop_source(synth: Synth, clip: Clip, seconds: float, fade: float = FADE) -> Clip:
    """Return a rendered clip without its ends, extended if needed to contain a loop of `seconds` seconds."""
    edge = round(EDGE * clip.rate)
    needed = round((seconds + min(fade, seconds / 4) + SLACK) * clip.rate) + 2 * edge
    if needed > len(clip.wave):
        clip = extend(synth, clip, needed + round(EXTRA * clip.rate))
    cut: tuple[Step, ...] = ({"do": "cut", "start": edge, "samples": len(clip.wave) - 2 * edge},)
    return Clip(apply(cut, clip.wave, clip.rate)[0], replace(clip.recipe, process=cut))
