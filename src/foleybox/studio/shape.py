"""What is done to a sound after it is rendered: trim, seconds, fade, rate, lufs, peak, in this order. wave -> wave.

`shaped` measures and decides; what it did comes back as steps with plain numbers in them, which the recipe keeps, and
`apply` does the same steps again without measuring: a threshold could tip over on another machine, a number cannot.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import arg

from foleybox.audio import Wave, fit, loudness, resample, true_peak_db
from foleybox.errors import UserError

Step = dict[str, Any]  # JSON
FRAME = 0.01  # seconds, of `levels`
LEAD, TAIL = 0.005, 0.02  # seconds that are left before and after an event, for its attack and its end
DECLICK, RELEASE = 0.005, 0.05  # seconds that a cut fades in and out over, where no --fade is asked for
STEP_DB = -40.0  # of the peak: an end that is louder begins or stops with a step that clicks
ATTACK, END = 0.0015, 0.005  # seconds that such ends are faded over: an attack stays sharp
SILENT = 1e-10  # a peak under -200 dB: nothing to be made louder
CEILING = -1.0  # dBTP, with --lufs and no --peak: what players and codecs need


@dataclass(frozen=True)
class Shape:
    """What is done to each sound after it is rendered, in this order."""

    trim: Annotated[float | None, arg(metavar="DB", help_behavior_hint="(default: no)")] = None
    "cut off both ends what is quieter than the loudest moment by more than this many dB (40 is usual)"
    seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: the instrument's)")] = None
    "length: shorter is cut where it is quiet, longer is built of further variations, after --trim filled with silence"
    fade: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: no)")] = None
    "fade out over the last so many seconds"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: the instrument's)")] = None
    "resample to so many Hz"
    lufs: Annotated[float | None, arg(metavar="LUFS", help_behavior_hint="(default: no)")] = None
    "loudness of the event, without the silence round it (BS.1770-4; broadcast -23, games -16 to -24)"
    peak: Annotated[float | None, arg(metavar="DBTP", help_behavior_hint="(default: no)")] = None
    "true-peak ceiling: a sound that goes above is turned down as a whole; with --lufs -1 if none is given"

    def asked(self) -> Step:
        """Return what is asked for, without what is not."""
        return {knob: value for knob, value in asdict(self).items() if value is not None}


LIMITS = {
    "trim": (1, 120, "dB"),
    "seconds": (0.02, 3_600, "seconds"),
    "fade": (0, 60, "seconds"),
    "rate": (1_000, 768_000, "Hz"),
    "lufs": (-70, 0, "LUFS"),
    "peak": (-60, 0, "dBTP"),
}


def check_shape(shape: Shape, flag: str = "", seconds: float = math.inf) -> None:
    """Raise UserError for a knob out of range; `flag` stands before its name: "--".

    `seconds` is how long a sound is where no length is asked for: a fade may not be longer.
    """
    for knob, value in shape.asked().items():
        low, high, unit = LIMITS[knob]
        if not low <= float(value) <= high:
            raise UserError(f"{flag}{knob} {value}: expected {low} to {high} {unit}")
    if shape.fade is not None and shape.fade > (length := shape.seconds or seconds):
        raise UserError(f"{flag}fade {shape.fade}: the sound has {length:g} s; expected 0 to {length:g} seconds")


# --- measuring ----------------------------------------------------------------------------------------------------


def levels(wave: Wave, rate: int) -> NDArray[np.float64]:
    """Return the power of every 10 ms [ceil(L / (rate / 100))] in dB (0 dB: full scale throughout), -200 for silence."""
    frame = max(1, round(FRAME * rate))
    power = np.square(fit(wave, -(-len(wave) // frame) * frame), dtype=np.float64).reshape(-1, frame).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 1e-20))


def event(wave: Wave, rate: int, below: float = 40.0) -> slice:
    """Return where the sound is: from the first to the last 10 ms within `below` dB of the loudest. Silence: all of it."""
    level, frame = levels(wave, rate), max(1, round(FRAME * rate))
    there = np.flatnonzero(level >= level.max(initial=-200) - below)
    if not len(there) or level.max() <= -199:
        return slice(0, len(wave))
    return slice(int(there[0]) * frame, min(len(wave), (int(there[-1]) + 1) * frame))


def event_loudness(wave: Wave, rate: int) -> float:
    """Return the loudness of the event in LUFS, -inf for silence: BS.1770-4 of `event`, gated as the standard gates.

    An event under 0.4 s is one block as long as the event: a click of 50 ms in 4 s of silence is as loud as the click.
    The standard's gate of -70 LUFS is counted from a full-scale peak, so that turning a sound up by 6 dB makes it 6 LU
    louder however quiet it was.
    """
    there = wave[event(wave, rate)]
    peak = float(np.abs(there).max(initial=0))
    return loudness((there / peak).astype(np.float32), rate) + 20 * math.log10(peak) if peak > SILENT else -math.inf


def quietest_cut(wave: Wave, rate: int, samples: int) -> int:
    """Return where to begin a cut of `samples`: it keeps the sound, and its edges are quiet.

    Of all cuts with nine tenths of the energy that any can have, the one whose first 20 ms and last 50 ms have least.
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


# --- doing --------------------------------------------------------------------------------------------------------


def shaped(wave: Wave, rate: int, shape: Shape, declick: bool = False) -> tuple[Wave, int, list[Step]]:
    """Return the wave [L] as `shape` asks, its rate, and the steps that were done to it, for `apply`.

    `declick`: an end that is not cut, and is no silence, is faded too, over a few ms. Not for a loop, whose ends meet.
    Raises UserError for a knob out of range. Silence is left silent, whatever the loudness asked for.
    """
    check_shape(shape)
    steps: list[Step] = []
    start, end = 0, len(wave)
    if shape.trim is not None:
        there = event(wave, rate, shape.trim)
        start, end = max(0, there.start - round(LEAD * rate)), min(end, there.stop + round(TAIL * rate))
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
    if samples is not None and samples > end - start:  # after the fade: the sound ends there, and silence follows
        steps.append({"do": "cut", "start": 0, "samples": samples})
    if shape.rate is not None and shape.rate != rate:
        steps.append({"do": "resample", "rate": shape.rate})
    wave, rate = apply(steps, wave, rate)
    if gain := _gain(wave, rate, shape):
        steps.append(gain)
        wave, rate = apply([gain], wave, rate)
    return wave, rate, steps


def clicking(wave: Wave, edge: Wave, samples: int) -> int:
    """Return how many samples an end of a wave [L] is to be faded over: 0 unless it is a step that clicks."""
    step = float(np.abs(edge).max(initial=0))
    loud = step > SILENT and step > float(np.abs(wave).max()) * 10 ** (STEP_DB / 20)
    return min(samples, len(wave) // 4) if loud else 0


def _gain(wave: Wave, rate: int, shape: Shape) -> Step | None:
    """Return the step to the loudness and under the ceiling, None where there is nothing to do.

    Rounded down to a thousandth of a dB, so that what is done is what the recipe says and never above the ceiling.
    `withheld` says by how many dB the ceiling keeps a sound below the loudness asked for.
    """
    loud = event_loudness(wave, rate)
    wanted = shape.lufs - loud if shape.lufs is not None and math.isfinite(loud) else 0.0
    ceiling = CEILING if shape.peak is None and shape.lufs is not None else shape.peak
    room = math.inf if ceiling is None else ceiling - true_peak_db(wave)
    db = math.floor(1000 * min(wanted, room)) / 1000
    withheld = {"withheld": round(wanted - room, 3)} if wanted > room and shape.lufs is not None else {}
    return {"do": "gain", "db": db, **withheld} if db else None


def apply(steps: Iterable[Mapping[str, Any]], wave: Wave, rate: int) -> tuple[Wave, int]:
    """Return the wave [L] after the steps of a recipe, and its rate in Hz. Raises UserError for an unknown step."""
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
    """Return the wave with its first and last samples faded, as a raised cosine; each at most the whole wave."""
    wave = wave.copy()
    wave[:fade_in] *= ramp(fade_in)
    wave[len(wave) - fade_out :] *= ramp(fade_out)[::-1]
    return wave


def ramp(samples: int) -> Wave:
    """Return a raised cosine from 0 to 1, both outside: with its own mirror image it adds up to 1."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(samples) + 0.5) / max(1, samples))).astype(np.float32)
