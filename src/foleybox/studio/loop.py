"""Seamless loops, wrapped where the two sides of the wrap are most alike.

The material after the end of the loop is crossfaded into its beginning, so that the wave continues at the wrap as it did
in the material x:

    loop[n] = (sin(a) x[start + n] + cos(a) x[start + samples + n]) / sqrt(1 + alike sin(2 a))    for n < fade
    loop[n] = x[start + n]                                                                        for n >= fade
    a = pi/2 (n + 1/2) / fade

`alike` is the correlation of the two sides. The divisor keeps the power, whether they are noise (0: the equal-power
crossfade) or a hum in phase with itself (1). Of a sound that is not steady, the loop contains the loudest moment.
"""

import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave, mono, peak_db
from foleybox.errors import UserError
from foleybox.labels import find_label
from foleybox.studio.extend import extend, is_steady
from foleybox.studio.recipe import Json
from foleybox.studio.shape import Step, apply, levels
from foleybox.studio.spectra import HOP, WINDOW, band_levels, flux
from foleybox.studio.synth import Clip, Synth

FADE = 0.25  # seconds of the crossfade, a quarter of the loop at most
SLACK = 0.025  # seconds by which the length may differ, so that a hum wraps in phase
IN_PHASE = 0.3  # correlation from which the two sides count as a hum, not as noise
EDGE = 0.06  # seconds at either end of a rendered sound that are not used, where its level changes
EXTRA = 1.5  # seconds of material beyond the loop, to choose the start from
CANDIDATES = 8  # starts that are tried and measured
EVENT_DB = 3.0  # what is this close to the highest level is the loudest moment
QUIETEST = -60.0  # dBFS: a sound of a lower peak is silent
FLUX_DEVIATIONS = 6.5  # of the flux in stationary noise, at most 1 % of seams have more
ORDER, CLICK, CLICK_SECONDS = 16, 6.0, 0.004  # of the prediction, of its error, on either side of the wrap
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
    """What happens at the wrap of a loop, and what may happen there, see `measure_seam`."""

    wrap: float  # the highest spectral flux around the wrap, dB a frame
    inside: float  # what it does not exceed inside the loop
    click: float  # the highest prediction error at the wrap, relative to the usual one
    clicks: float  # what it does not exceed inside the loop

    @property
    def inaudible(self) -> bool:
        return self.excess <= 1

    @property
    def excess(self) -> float:
        """The larger of both measurements relative to its limit: up to 1 for an inaudible seam."""
        return max(self.wrap / max(self.inside, 1e-6), self.click / self.clicks)


def find_wraps(
    wave: Wave, rate: int, samples: int, fade: int, multiple: int = 1, events: bool = False
) -> list[tuple[Wrap, Seam]]:
    """Return positions in a wave [L] or [L, C] for a loop of about `samples` samples, a multiple of `multiple`; best first.

    The crossfade has `fade` samples, a quarter of the loop at most. Candidates are the starts where the band levels of
    the two sides differ least over the crossfade. If the sides correlate, the length is changed by up to 25 ms until they
    are in phase. Candidates are sorted by what their seams measure. With `events`, a loop contains the loudest moment.

    Raises UserError if the wave is too short.
    """
    whole, wave = wave, _middle(wave)
    samples = max(1, round(samples / multiple)) * multiple
    slack, wanted, fade = round(SLACK * rate), fade, max(1, min(fade, samples // 4))
    needed = samples + fade + slack
    if len(wave) < needed:
        raise UserError(
            f"{len(wave) / rate:.2f} s of sound: a loop of {samples / rate:.2f} s needs {needed / rate:.2f} s with its "
            f"crossfade; the longest has {longest(len(wave), rate, wanted, multiple):.2f} s"
        )
    bands, hop = np.maximum(band_levels(wave, rate), -100), max(1, round(HOP * rate))
    apart = round(samples / hop)
    difference = np.abs(bands[apart:] - bands[:-apart]).mean(axis=1)  # of frame t and the frame one loop later
    width = max(1, fade // hop)
    total = np.concatenate([[0.0], np.cumsum(difference)])
    cost = (total[width:] - total[:-width]) / width
    cost = cost[: (len(wave) - needed) // hop + 1]
    if events:
        loudest = np.flatnonzero((level := levels(wave, rate)) >= level.max() - EVENT_DB)
        starts = np.arange(len(cost))
        kept = np.any((loudest >= starts[:, None] + width) & (loudest < starts[:, None] + apart), axis=1)
        cost[~kept] = math.inf
    found: list[tuple[Wrap, Seam]] = []
    for _ in range(CANDIDATES):
        frame = int(cost.argmin())
        if not math.isfinite(cost[frame]):
            break
        cost[max(0, frame - width // 2) : frame + width // 2 + 1] = math.inf
        wrap = _in_phase(wave, frame * hop, samples, fade, slack // multiple * multiple, multiple)
        found.append((wrap, measure_seam(wrapped(whole, wrap), rate, fade)))
    if not found:
        raise UserError(
            f"no loop of {samples / rate:.2f} s contains its loudest moment: expected fewer --seconds, or a longer sound"
        )
    return sorted(found, key=lambda each: each[1].excess)


def find_wrap(wave: Wave, rate: int, samples: int, fade: int, multiple: int = 1) -> Wrap:
    """Return the best position of `find_wraps`."""
    return find_wraps(wave, rate, samples, fade, multiple)[0][0]


def _middle(wave: Wave) -> Wave:
    """Return the mean of the channels of a wave [L] or [L, C]; the first channel if they cancel each other."""
    middle = mono(wave)
    return middle if 10 * np.square(middle).mean() > np.square(wave).mean() else np.ascontiguousarray(wave[:, 0])


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
    """Return the loop [samples] or [samples, C] in a wave, by the equation at the head of this file."""
    start, samples, fade, alike = wrap
    loop = wave[start : start + samples].copy()
    angle = np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)
    both = np.sin(angle) * loop[:fade].T + np.cos(angle) * wave[start + samples : start + samples + fade].T
    loop[:fade] = (both / np.sqrt(1 + alike * np.sin(2 * angle))).T
    return loop


def measure_seam(loop: Wave, rate: int, fade: int) -> Seam:
    """Measure the wrap of a loop [L] or [L, C]: of several channels the one whose seam is the worst.

    The highest spectral flux from just before the wrap to the end of the crossfade is compared with what it is inside, within
    five seconds of the wrap: the mean and FLUX_DEVIATIONS standard deviations, or 95 % of stretches of the same length if
    that is more. The loop is measured as it repeats: the end of a round precedes the wrap.

    A click is an error of linear prediction (of order ORDER) within 4 ms of the wrap. It is compared with CLICK times the
    usual error (its median, scaled to the standard deviation of Gaussian noise), or 99 % of stretches of 8 ms if that is
    more. Both limits are calibrated: results/seams.md.
    """
    if loop.ndim > 1:
        return max((measure_seam(channel.copy(), rate, fade) for channel in loop.T), key=lambda seam: seam.excess)
    hop, window = max(1, round(HOP * rate)), round(WINDOW * rate)
    lead = min(math.ceil(len(loop) / 2 / hop), round(NEAR / HOP)) * hop
    change = flux(band_levels(np.concatenate([loop[-lead:], loop[:lead]]), rate))
    wrap, before, after = lead // hop, math.ceil(window / hop), math.ceil((fade + window) / hop)
    inside = (change[before : wrap - before], change[wrap + after : len(change) - before])
    stretches = np.concatenate([_highest(part, before + after) for part in inside])
    frames = np.concatenate(inside)
    if not len(stretches):  # the loop is too short
        stretches = frames = change[before:]
    usual = frames.mean() + FLUX_DEVIATIONS * frames.std()
    limit = max(float(np.percentile(stretches, 95)), float(usual))
    return Seam(float(change[wrap - before : wrap + after].max()), limit, *_click(loop, rate))


def _click(loop: Wave, rate: int) -> tuple[float, float]:
    """Return the highest prediction error at the wrap of a loop [L], and its limit, both relative to the usual error."""
    spectrum = np.fft.rfft(loop.astype(np.float64))
    alike = np.fft.irfft(np.square(np.abs(spectrum)), len(loop))[: ORDER + 1]  # circular: the loop repeats
    if len(alike) <= ORDER or alike[0] <= 0:
        return 0.0, CLICK
    order = np.arange(ORDER)
    matrix = alike[np.abs(order[:, None] - order)] + 1e-9 * alike[0] * np.eye(ORDER)
    predictor = np.concatenate([[1.0], -np.linalg.solve(matrix, alike[1:])])
    error = np.abs(np.fft.irfft(spectrum * np.fft.rfft(predictor, len(loop)), len(loop)))
    error /= max(float(np.median(error)) / 0.6745, 1e-9 * float(np.abs(loop).max()), 1e-30)
    near = max(1, min(round(CLICK_SECONDS * rate), len(loop) // 4))
    stretches = _highest(error[near : len(error) - near], 2 * near)
    return float(max(error[:near].max(), error[-near:].max())), max(CLICK, float(np.percentile(stretches, 99)))


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
    source: Clip,
    seconds: float | None,
    *,
    rate: int | None = None,
    fade: float = FADE,
    rounds: int = 1,
    candidate: int = 0,
) -> tuple[Clip, Wrap]:
    """Return a loop of a clip, repeated `rounds` times, at `rate` Hz (None: the clip's), and its position in the clip.

    `seconds` None: SECONDS, or as many as the clip allows. The loop is resampled as a loop: each round continues into the
    next. `candidate` 0 is the best position, 1 the second best. Of a clip that is not steady, the loop contains the loudest
    moment. Raises UserError if the clip is silent or too short, or has been resampled (loop it first), and for a candidate
    that does not exist.
    """
    if any(step["do"] == "resample" for step in source.recipe.process):
        raise UserError(
            "it was resampled after it was made: make it at the instrument's rate, and give the loop a rate"
        )
    if (peak := peak_db(source.wave)) < QUIETEST:
        raise UserError(f"it is silent (its peak is {peak:.0f} dBFS): expected a sound of {QUIETEST:g} dBFS or more")
    rate = rate or source.rate
    multiple = source.rate // math.gcd(source.rate, rate)
    length, faded = len(source.wave), round(fade * source.rate)
    seconds = seconds or min(SECONDS, longest(length, source.rate, faded, multiple))
    if seconds < SHORTEST:
        raise UserError(
            f"{length / source.rate:.2f} s of sound: too short for a loop, which has {SHORTEST:g} s or more"
        )
    events = not is_steady(mono(source.wave), source.rate)
    wraps = find_wraps(source.wave, source.rate, round(seconds * source.rate), faded, multiple, events)
    if candidate >= len(wraps):
        raise UserError(
            f"it has {len(wraps)} different loops of {seconds:g} s: expected a --count of {len(wraps)} at most"
        )
    wrap, _ = wraps[candidate]
    return repeated(source, wrap, rate, rounds), wrap


def repeated(source: Clip, wrap: Wrap, rate: int, rounds: int) -> Clip:
    """Return a loop repeated `rounds` times. For resampling it gets one more round on either side, cut off afterwards."""
    spare = 2 if rate != source.rate else 0
    make = {"do": "loop", "label": source.label, "seed": source.seed, "of": source.recipe.make}
    make |= {"steps": list(source.recipe.process), **wrap._asdict(), "rounds": rounds + spare}
    wave = _tiled(wrapped(source.wave, wrap), rounds + spare)
    samples = wrap.samples * rate // source.rate
    process: tuple[Step, ...] = ()
    if spare:
        process = ({"do": "resample", "rate": rate}, {"do": "cut", "start": samples, "samples": rounds * samples})
    wave, _ = apply(process, wave, source.rate)
    return Clip(wave, replace(source.recipe, make=make, process=process, asked={}, rate=rate))


def remake(make: Json, synth: Synth, remake_source: Callable[[Json, Synth], Wave]) -> Wave:
    """Return the wave of a `loop` recipe, at the instrument's rate; `remake_source` renders the sound that is looped."""
    wave, _ = apply(make["steps"], remake_source(make["of"], synth), synth.instrument.rate)
    return _tiled(wrapped(wave, Wrap(make["start"], make["samples"], make["fade"], make["alike"])), make["rounds"])


def _tiled(loop: Wave, rounds: int) -> Wave:
    return np.concatenate([loop] * rounds)


def steady_clip(synth: Synth, label: str, seed: int, temperature: float = 1.0) -> Clip:
    """Return the first steady clip of a label from `seed` on; the clip of `seed` itself if none of sixteen is steady."""
    return next(loop_clips(synth, label, seed, temperature))


def loop_clips(synth: Synth, label: str, seed: int, temperature: float = 1.0) -> Iterator[Clip]:
    """Yield the clips of a label that may be looped, from `seed` on: of a steady label those that are steady.

    If none of sixteen in a row is steady, the first of these is yielded.
    """
    known = find_label(label)
    for first in itertools.count(seed, STEADY_TRIED):
        clips = synth.render_many(
            ((label, each) for each in range(first, first + STEADY_TRIED)), temperature=temperature
        )
        if known and not known.steady:
            yield from clips
            continue
        other: Clip | None = None
        found = False
        for clip in clips:
            if is_steady(clip.wave, clip.rate):
                found = True
                yield clip
            other = other or clip
        if not found:
            assert other is not None
            yield other


def loop_source(synth: Synth, clip: Clip, seconds: float, fade: float = FADE) -> Clip:
    """Return a rendered clip without its ends, extended if needed to contain a loop of `seconds` seconds."""
    edge = round(EDGE * clip.rate)
    needed = round((seconds + min(fade, seconds / 4) + SLACK) * clip.rate) + 2 * edge
    if needed > len(clip.wave):
        clip = extend(synth, clip, needed + round(EXTRA * clip.rate))
    cut: tuple[Step, ...] = ({"do": "cut", "start": edge, "samples": len(clip.wave) - 2 * edge},)
    return Clip(apply(cut, clip.wave, clip.rate)[0], replace(clip.recipe, process=cut))
