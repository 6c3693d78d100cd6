"""Sounds longer or wider than the clips of an instrument: built from variations of a clip, without an audible seam.

A steady sound (rain, a motor) continues with variations at its own level, crossfaded with equal power. Of any other
sound, the events follow one another over one background, that of the clip: each part is a variation without its own
background (`background`), with its tail; the last part is cut where it is quiet.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave, fit
from foleybox.errors import UserError
from foleybox.studio.background import background, mean_power, quiet_frames, room, without_background
from foleybox.studio.latents import neighbour, point_of, render_points, vary
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import VARY, noise
from foleybox.studio.shape import FRAME, LEAD, RELEASE, Shape, faded, find_event, levels, ramp
from foleybox.studio.synth import Clip, Synth

AMOUNT = {True: 0.2, False: 0.45}  # of the variations: small for a steady sound, larger for events
JOINT = {True: 1.0, False: 0.15}  # seconds by which two parts overlap, a quarter of a clip at most
EDGE = 0.05  # seconds at either end of a steady clip that are not used, where its level changes
SHIFT = (
    0.5  # seconds by which the side of a stereo sound is later than its variation, whose phases are like the middle's
)
SIDE = 0.5  # amplitude of the side at the width 1: 0.97 dB of the power are lost in mono
PAUSE = 0.3  # seconds that are kept after an event, and the shortest gap that is filled with another
CUT_DB = 20.0  # where a part may be cut: this much below its loudest 50 ms
MAX_GAIN_DB = 12.0  # by which the level of a variation is matched
MAX_REJECTED = {True: 3, False: 8}  # variations in a row that are rejected since they do not fit
CLEAR_DB = 30.0  # by which the events of a variation stand out from its background, which is removed


def finished(synth: Synth, clip: Clip, shape: Shape, width: float | None = None) -> Clip:
    """Return a rendered clip as `shape` asks: extended if `shape.seconds` exceeds its length, then processed.

    With a `width` it gets two channels (`widened`). Its ends do not click (`shape.shaped` with `declick`).
    """
    samples = round((shape.seconds or 0) * clip.rate)
    long = extend(synth, clip, samples) if samples > len(clip.wave) else clip
    return (long if width is None else widened(synth, clip, long, width)).shaped(shape, declick=True)


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
    for part in itertools.chain(
        [clip], _same_kind(vary(synth, make, AMOUNT[steady], batch=1, follow=0.0), clip, steady)
    ):
        first, wave, source = part is clip, part.wave, part.recipe.make
        start, end = _usable(wave, rate, steady)
        if end - start <= 2 * joint:  # a click: with its surroundings
            start, end = 0, len(wave)
        own_level = _level(wave[start:end], rate, steady)
        start, level = (0, own_level) if first else (start, level)
        if end - start > samples - position:
            end = start + samples - position if steady else quiet_end(wave, start, start + samples - position, rate)
        if end - start <= joint and not steady:
            break  # what is left is too short for an event
        db = round(min(max(level - own_level, -MAX_GAIN_DB), MAX_GAIN_DB), 2)
        parts.append([*((0, 0) if first else (source["seed"], source["stream"])), start, end - start, position, db])
        waves.append(wave)
        position += end - start
        if position >= samples or (not steady and samples - position < round(PAUSE * rate)):
            break
        position -= joint
    made = {"do": "extend", "of": make, "kind": "steady" if steady else "events", "amount": AMOUNT[steady]}
    made |= {"samples": samples, "joint": joint, "parts": parts}
    if not steady:
        made["background"] = [quiet_frames(wave, rate) for wave in waves]
    return synth.clip(assemble(made, waves, rate), made)


def quiet_end(wave: Wave, start: int, stop: int, rate: int) -> int:
    """Return the end of the quietest 50 ms in the second half of a part of a wave, where it is cut.

    `start` itself if all of it is loud: an event that would be cut within is left out.
    """
    level = np.convolve(10 ** (levels(wave[start:stop], rate) / 10), np.full(5, 0.2), "valid")
    frame, half = round(FRAME * rate), len(level) // 2
    if not half or level[half:].min() > level.max() * 10 ** (-CUT_DB / 10):
        return start
    return min(stop, start + (half + int(level[half:].argmin()) + 5) * frame)


def _same_kind(variations: Iterator[Clip], clip: Clip, steady: bool) -> Iterator[Clip]:
    """Yield the variations that continue a clip; after MAX_REJECTED others in a row any one.

    Those of a steady clip are steady. Those of another stand out from their background by CLEAR_DB, or as much as the clip
    if that is less, and by CUT_DB at the least.
    """
    rejected, clear = 0, 0.0 if steady else min(CLEAR_DB, max(CUT_DB, _clarity(clip)))
    for each in variations:
        fits = is_steady(each.wave, each.rate) == steady and (steady or _clarity(each) >= clear)
        if fits or rejected == MAX_REJECTED[steady]:
            yield each
            rejected = 0
        else:
            rejected += 1


def _clarity(clip: Clip) -> float:
    """Return by how many dB the loudest 50 ms of a clip exceed its background."""
    own = background(clip.wave, quiet_frames(clip.wave, clip.rate), clip.rate)
    return _level(clip.wave, clip.rate, steady=False) - 10 * math.log10(max(mean_power(own), 1e-20))


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
    start, end = max(0, event.start - round(LEAD * rate)), min(len(wave), event.stop + round(PAUSE * rate))
    if end == len(wave):  # the clip ends in an event, perhaps
        end = max(quiet_end(wave, start, end, rate), start + 1)
    return start, end


def assemble(make: Json, waves: Iterable[Wave], rate: int) -> Wave:
    """Return the whole [samples] from the waves of its parts; consecutive parts overlap by `joint` samples.

    With "background", the frames of the parts that are background, the parts after the first have none of their own: the
    first one's continues under them. Without it (steady sounds, and recipes of earlier versions), each part has its own.
    """
    whole: NDArray[np.float32] = np.zeros(make["samples"], np.float32)
    joint = np.sqrt(ramp(make["joint"]))  # equal power: the squares of fade-in and fade-out add up to 1
    short = ramp(round(LEAD * rate))
    last = len(make["parts"]) - 1
    for index, ((_, _, start, samples, position, db), wave) in enumerate(zip(make["parts"], waves)):
        if frames := make.get("background"):
            own = background(wave, frames[index], rate)
            if index:
                wave = without_background(wave, own, rate)
            else:
                bed = room(own, len(whole), rate)
                bed[: samples - len(joint)] = 0
                bed[samples - len(joint) : samples] *= joint
                whole += faded(bed, 0, min(round(RELEASE * rate), len(bed)))
        piece = wave[start : start + samples] * np.float32(10 ** (db / 20))
        # An event that was cut out of silence has a short fade-in, which keeps its attack.
        fade_in = np.ones(0) if not index else joint if make["kind"] == "steady" or not start else short
        fade_out = (
            joint if index < last or (frames and position + samples < len(whole)) else ramp(round(RELEASE * rate))
        )
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


# --- two channels -------------------------------------------------------------------------------------------------


Lengthen = Callable[[Synth, Clip, int], Clip]  # to a number of samples


def widened(synth: Synth, clip: Clip, long: Clip, width: float, lengthen: Lengthen = extend) -> Clip:
    """Return a steady sound in two channels [L, 2]: it in the middle, a variation of `clip` at the sides.

    `long` is the sound in the middle: `clip` itself, or made of it by `lengthen`. With the middle M and the side S, which is
    as loud as M, later by SHIFT, and does not correlate with it, the channels are M + g S and M - g S with g = `width` / 2.
    Their mean is M again. At the width 1 it has 0.97 dB less power than the channels.

    Raises UserError for a width beyond 0 to 1.
    """
    check_width(width)
    shift, samples = round(SHIFT * clip.rate), len(long.wave)
    side = next(_same_kind(vary(synth, clip.recipe.make, AMOUNT[True], batch=1, follow=0.0), clip, steady=True))
    edge = round(EDGE * clip.rate)
    side = lengthen(synth, side, max(shift + samples + edge, len(side.wave)))
    powers = [np.mean(np.square(wave, dtype=np.float64)) for wave in (long.wave, side.wave[shift : shift + samples])]
    gain = round(width * SIDE * math.sqrt(powers[0] / max(powers[1], 1e-20)), 6)
    made = {
        "do": "stereo",
        "of": long.recipe.make,
        "side": side.recipe.make,
        "start": shift,
        "edge": edge,
        "gain": gain,
    }
    return synth.clip(two_channels(made, long.wave, side.wave), made)


def two_channels(make: Json, middle: Wave, side: Wave) -> Wave:
    """Return the wave [L, 2] of a `stereo` recipe from its middle and its side."""
    side = fit(side[make["start"] :], len(middle)) * np.float32(make["gain"])
    edge = min(make["edge"], len(side) // 2)
    side = faded(side, edge, edge)
    return np.stack([middle + side, middle - side], axis=1)


def remake_stereo(make: Json, synth: Synth, remake_source: Callable[[Json, Synth], Wave]) -> Wave:
    """Return the wave [L, 2] of a `stereo` recipe, at the instrument's rate."""
    return two_channels(make, remake_source(make["of"], synth), remake_source(make["side"], synth))


def check_width(width: float, flag: str = "") -> None:
    """Raise UserError unless 0 <= width <= 1; `flag` precedes its name in the message ("--" on the command line)."""
    if not 0 <= width <= 1:
        raise UserError(f"{flag}width {width}: expected 0 (as one channel) to 1 (the widest that is not weak in mono)")
