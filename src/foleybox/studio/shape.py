"""Processing of a sound after it is rendered, in this order: trim, seconds, fade, rate, lufs, peak.

`shaped` measures the wave and returns the processing as steps with explicit numbers, which the recipe keeps. `apply`
repeats such steps without measuring: a threshold might be crossed on another machine, a number is the same everywhere.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from foleybox.audio import Wave, channels_of, check_samples, fit, loudness, resample, true_peak_db
from foleybox.errors import UserError

Step = dict[str, Any]  # JSON
FRAME = 0.01  # seconds, of `levels`
LEAD, TAIL = 0.005, 0.02  # seconds that are kept before and after an event
DECLICK, RELEASE = 0.005, 0.05  # seconds of the fades at a cut, unless a fade is asked for
STEP_DB = -40.0  # relative to the peak: a wave that begins or ends above this level clicks
ATTACK, END = 0.0015, 0.005  # seconds of the fades that remove such clicks, short enough to keep an attack
SILENT = 1e-10  # a peak below -200 dBFS counts as silence
CEILING = -1.0  # dBTP, of every file without `peak`: the usual headroom for players and codecs


@dataclass(frozen=True)
class Shape:
    """Processing of each sound after it is rendered, in this order."""

    trim: Annotated[float | None, arg(metavar="DB", help_behavior_hint="(default: no)")] = None
    "remove both ends that are more than this many dB quieter than the loudest moment (40 is usual)"
    seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: the instrument's)")] = None
    "length: a shorter sound is cut where it is quiet, a longer one is built from variations (silence after --trim)"
    fade: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: no)")] = None
    "fade out over this many seconds"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: the instrument's)")] = None
    "sample rate"
    lufs: Annotated[float | None, arg(metavar="LUFS", help_behavior_hint="(default: no)")] = None
    "loudness of the event without the silence around it (BS.1770-4; broadcast -23, games -16 to -24)"
    peak: Annotated[float | None, arg(metavar="DBTP", help_behavior_hint=f"(default: {CEILING:g})")] = None
    "true-peak ceiling: a sound that exceeds it is turned down as a whole"

    def asked(self) -> Step:
        """Return the options that are not None, as the recipe keeps them."""
        return {option: value for option, value in asdict(self).items() if value is not None}


LIMITS = {
    "trim": (1, 120, "dB"),
    "seconds": (0.02, 3_600, "seconds"),
    "fade": (0, 60, "seconds"),
    "rate": (1_000, 768_000, "Hz"),
    "lufs": (-70, 0, "LUFS"),
    "peak": (-60, 0, "dBTP"),
}


def check_shape(shape: Shape, flag: str = "", seconds: float = math.inf) -> None:
    """Raise UserError for an option out of range; `flag` precedes its name in the message ("--" on the command line).

    `seconds` is the length of a sound where `shape` states none: a fade may not be longer.
    """
    for option, value in shape.asked().items():
        low, high, unit = LIMITS[option]
        if not low <= float(value) <= high:
            raise UserError(f"{flag}{option} {value}: expected {low} to {high} {unit}")
    if shape.seconds and shape.rate:
        check_samples(shape.seconds * shape.rate, f"{flag}seconds {shape.seconds:g} {flag}rate {shape.rate}: a sound")
    if shape.fade is not None and shape.fade > (length := shape.seconds or seconds):
        raise UserError(f"{flag}fade {shape.fade}: the sound has {length:g} s; expected 0 to {length:g} seconds")


# --- measuring ----------------------------------------------------------------------------------------------------


def levels(wave: Wave, rate: int) -> NDArray[np.float64]:
    """Return the power of every 10 ms [ceil(L / (rate / 100))] in dB (0 dB: constant full scale), -200 for silence."""
    frame = max(1, round(FRAME * rate))
    power = np.square(fit(wave, -(-len(wave) // frame) * frame), dtype=np.float64)
    power = power.reshape(-1, frame * channels_of(wave)).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 1e-20))


def find_event(wave: Wave, rate: int, below: float = 40.0) -> slice:
    """Return the part from the first to the last 10 ms within `below` dB of the loudest; the whole of a silent wave."""
    level, frame = levels(wave, rate), max(1, round(FRAME * rate))
    loud = np.flatnonzero(level >= level.max(initial=-200) - below)
    if not len(loud) or level.max() <= -199:
        return slice(0, len(wave))
    return slice(int(loud[0]) * frame, min(len(wave), (int(loud[-1]) + 1) * frame))


def event_loudness(wave: Wave, rate: int) -> float:
    """Return the loudness of the event in LUFS, -inf for silence: BS.1770-4 of what `find_event` finds.

    Silence around an event does not lower it: an event under 0.4 s is measured as one block of its own length. The gate
    of -70 LUFS is relative to a full-scale peak, so that 6 dB more gain is 6 LU more at any level.
    """
    event = wave[find_event(wave, rate)]
    peak = float(np.abs(event).max(initial=0))
    return loudness((event / peak).astype(np.float32), rate) + 20 * math.log10(peak) if peak > SILENT else -math.inf


def quietest_cut(wave: Wave, rate: int, samples: int) -> int:
    """Return the start of the part of `samples` samples that keeps the sound and has the quietest edges.

    Of all parts with at least 90 % of the highest energy, the one with the least energy in its first 20 ms and last 50 ms.
    """
    frame = max(1, round(FRAME * rate))
    energy = np.concatenate([[0.0], np.cumsum(10 ** (levels(wave, rate) / 10))])
    starts = np.arange(0, (len(wave) - samples) // frame + 1)
    ends = starts + max(1, samples // frame)
    kept = energy[ends] - energy[starts]
    edges = (energy[np.minimum(starts + 2, ends)] - energy[starts]) / 2 * (starts > 0)
    edges += (energy[ends] - energy[np.maximum(ends - 5, starts)]) / 5
    edges[kept < 0.9 * kept.max()] = np.inf
    return int(starts[edges.argmin()]) * frame


# --- processing ---------------------------------------------------------------------------------------------------


def shaped(wave: Wave, rate: int, shape: Shape, declick: bool = False) -> tuple[Wave, int, list[Step]]:
    """Process a wave [L] as `shape` says; return it, its rate, and the steps that repeat the processing (`apply`).

    `declick` also fades an end of the wave that is not cut and not quiet, over a few ms; not for loops, whose ends meet.
    Silence stays silent, whatever the loudness. Raises UserError for an option out of range.
    """
    check_shape(shape)
    steps: list[Step] = []
    start, end = 0, len(wave)
    if shape.trim is not None:
        event = find_event(wave, rate, shape.trim)
        start, end = max(0, event.start - round(LEAD * rate)), min(end, event.stop + round(TAIL * rate))
    samples = None if shape.seconds is None else max(1, round(shape.seconds * rate))
    if samples is not None and samples < end - start:
        start += quietest_cut(wave[start:end], rate, samples)
        end = start + samples
    if end - start < len(wave):
        steps.append({"do": "cut", "start": start, "samples": end - start})
    fade_in = min(round(DECLICK * rate), end - start) if start else 0
    fade_out = min(round(RELEASE * rate), (end - start) // 4) if end < len(wave) else 0
    if declick:
        fade_in = fade_in or clicking(wave, wave[:1], round(ATTACK * rate))
        fade_out = fade_out or clicking(wave, wave[-1:], round(END * rate))
    if shape.fade is not None:
        fade_out = min(round(shape.fade * rate), end - start)
    if fade_in or fade_out:
        steps.append({"do": "fade", "in": fade_in, "out": fade_out})
    if samples is not None and samples > end - start:  # after the fade, which ends the sound; silence follows
        steps.append({"do": "cut", "start": 0, "samples": samples})
    if shape.rate is not None and shape.rate != rate:
        steps.append({"do": "resample", "rate": shape.rate})
    wave, rate = apply(steps, wave, rate)
    if gain := _gain(wave, rate, shape):
        steps.append(gain)
        wave, rate = apply([gain], wave, rate)
    return wave, rate, steps


def clicking(wave: Wave, edge: Wave, samples: int) -> int:
    """Return the length of the fade that an end of a wave [L] needs: `samples`, or 0 if its `edge` does not click."""
    step = float(np.abs(edge).max(initial=0))
    loud = step > SILENT and step > float(np.abs(wave).max()) * 10 ** (STEP_DB / 20)
    return min(samples, len(wave) // 4) if loud else 0


def _gain(wave: Wave, rate: int, shape: Shape) -> Step | None:
    """Return the step that brings a wave to the loudness and under the ceiling, None for a gain of 0 dB.

    The gain is rounded down to 0.001 dB, so that it is exactly what the recipe states and stays under the ceiling.
    `withheld` states by how many dB the ceiling keeps the wave below the loudness.
    """
    loud = event_loudness(wave, rate)
    wanted = shape.lufs - loud if shape.lufs is not None and math.isfinite(loud) else 0.0
    ceiling = CEILING if shape.peak is None and shape.lufs is not None else shape.peak
    headroom = math.inf if ceiling is None else ceiling - true_peak_db(wave)
    db = math.floor(1000 * min(wanted, headroom)) / 1000
    withheld = {"withheld": round(wanted - headroom, 3)} if wanted > headroom and shape.lufs is not None else {}
    return {"do": "gain", "db": db, **withheld} if db else None


def peak_step(wave: Wave, ceiling: float) -> Step | None:
    """Return the gain that brings the true peak of a wave [L] down to `ceiling` dBTP, None if it is not above it."""
    excess = true_peak_db(wave) - ceiling
    return {"do": "gain", "db": math.floor(-1000 * excess - 1) / 1000} if excess > 0.0005 else None


def apply(steps: Iterable[Mapping[str, Any]], wave: Wave, rate: int) -> tuple[Wave, int]:
    """Return the wave after the steps of a recipe, and its rate in Hz. Raises UserError for an unknown step."""
    for step in steps:
        match step["do"]:
            case "cut":
                wave = fit(wave[step["start"] :], step["samples"])
            case "fade":
                wave = faded(wave, step["in"], step["out"])
            case "resample":
                wave, rate = resample(wave, rate, step["rate"]), step["rate"]
            case "gain":
                wave = wave * np.float32(10 ** (step["db"] / 20))
            case unknown:
                raise UserError(f"the recipe asks to {unknown!r}, which this foleybox does not know: update foleybox")
    return wave, rate


def faded(wave: Wave, fade_in: int, fade_out: int) -> Wave:
    """Return the wave with a raised-cosine fade over its first and last samples; each at most the whole wave."""
    wave = wave.copy()
    wave.T[..., :fade_in] *= ramp(fade_in)
    wave.T[..., len(wave) - fade_out :] *= ramp(fade_out)[::-1]
    return wave


def ramp(samples: int) -> Wave:
    """Return a raised cosine [samples] from 0 to 1, both exclusive; it and its mirror image add up to 1."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / max(1, samples))).astype(np.float32)
