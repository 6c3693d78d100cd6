"""Scenes: sounds at given times. Events are played as one-shots, steady labels as a surface with an intensity curve.

Each event is a one-shot cut from a rendered clip (`shots.loudest_event`), with its onset on the sample of its time. The
variations of a label are the clearest of the clips with the seeds S, S+1, ... of the scene's seed S, or of variations of
one of them. All are brought to one loudness, so that the velocity alone determines the level of an event. The choice of a
variation and the shift by `humanise` are noise of the scene's seed. A steady sound is extended (`extend`). The recipe
states every decision as numbers:

    {"do": "perform", "label": "Footstep, Rain", "seed": 7, "samples": 220500, "tracks": [
        {"label": "Footstep", "shots": [[make, start, onset, stop, dB], ...],
         "events": [[sample of the onset, samples before it, index of the shot, velocity], ...]},
        {"label": "Rain", "of": make, "db": -3.2, "curve": [[sample, intensity], ...]}]}

A scene of two channels also states "channels": 2, and its tracks of events "pans": [-1 (left) to 1 (right), ...]. An event in
the middle is as loud in each channel as in a scene of one, and its power is the same wherever it is.
"""

import csv
import io
import itertools
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from tyro.conf import arg

from foleybox.audio import Complex, Subtype, Wave, check_format, filtered, true_peak_db
from foleybox.errors import UserError
from foleybox.files import safe_name, write_text
from foleybox.studio.events import LATEST, Event, sorted_events
from foleybox.studio.extend import check_width, extend, widened
from foleybox.studio.latents import check_amount, vary
from foleybox.studio.loop import SLACK, loop_source, looped, steady_clip
from foleybox.studio.onsets import onset_near
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import check_seed, noise
from foleybox.studio.shape import Shape, apply, event_loudness, faded
from foleybox.studio.shots import cut_one_shot, loudest_event
from foleybox.studio.synth import Clip, Synth, check_temperature

LEVEL = -24.0  # LUFS of a one-shot at velocity 1, and of a surface at intensity 1
CEILING = -1.0  # dBTP of a one-shot, and of the mix
MIN_GAIN_DB, MAX_GAIN_DB = -40.0, 30.0  # of a sound, to reach LEVEL
ENDING = 0.02  # seconds of the fade where the scene ends and a sound has not
DARK_HZ, DARK_DEPTH = (
    1_200.0,
    0.8,
)  # from velocity 1 to 0, a low-pass at this frequency takes this share of the amplitude
ANCHORS = 8  # clips of which the clearest is the one that is varied, if `Style.amount` is below 1
NO_REPEAT = 4  # events of a label within which no variation is repeated
ROUND = 120.0  # seconds: a longer surface is a loop of this length
LABELS = 512  # streams of the scene's seed, one a label:
PICKS, MOVES, PANS = 512, 1024, 1536  # the variations, the shifts, the positions of events


@dataclass(frozen=True)
class Style:
    """How a scene is played."""

    variations: Annotated[int, arg(metavar="N")] = 32
    "maximum number of different sounds of a label"
    no_repeat: Annotated[
        int | None, arg(metavar="N", help_behavior_hint=f"(default: {NO_REPEAT}, or as many as the variations allow)")
    ] = None
    "number of following events of a label in which a sound is not repeated"
    humanise: Annotated[float, arg(metavar="MS")] = 0.0
    "shift each event at random by up to this many milliseconds"
    channels: Annotated[Literal[1, 2] | None, arg(help_behavior_hint="(default: 2 if an event has a pan, else 1)")] = (
        None
    )
    "1: mono, 2: stereo"
    pan: Annotated[float, arg(metavar="P")] = 0.0
    "in stereo, place events without a pan at random up to this far from the middle: 0.3 close to it, 1 anywhere"
    width: Annotated[float, arg(metavar="W")] = 1.0
    "in stereo, how wide surfaces are: from 0 (both channels alike) to 1"
    amount: float = 1.0
    "how different the sounds of a label are: 1 any sound of it, 0.3 variations of one (the same shoes)"
    temperature: float = 1.0
    "below 1: closer to the typical sound of the label; above 1: more unusual"


Curve = float | Sequence[tuple[float, float]]  # an intensity from 0 to 1, or points (seconds, intensity)


class Sound(NamedTuple):
    """A one-shot [L] or a surface [L] or [L, 2] at LEVEL, in two versions: for velocity 1, and for velocity 0."""

    bright: Wave
    dark: Wave

    @classmethod
    def of(cls, wave: Wave, db: float, rate: int) -> "Sound":
        """Return both versions of a wave [L] or [L, 2] after a gain in dB."""
        bright = wave * np.float32(10 ** (db / 20))
        if bright.ndim == 1:
            return cls(bright, darkened(bright, rate))
        return cls(bright, np.stack([darkened(channel, rate) for channel in bright.T], axis=1))

    def at_velocity(self, velocity: Wave | float, part: slice = slice(None)) -> Wave:
        """Return (a part of) the sound: its amplitude is multiplied by `velocity`, and its treble fades with it."""
        return (velocity * (velocity * self.bright[part] + (1 - velocity) * self.dark[part])).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Scene:
    """The result of `perform`: stems and their mix, all with one gain, which keeps the mix under CEILING."""

    synth: Synth
    make: Json  # the recipe, see the head of this file
    sounds: list[list[Sound]]  # of each track: its one-shots, or its surface
    gain_db: float

    @property
    def stems(self) -> tuple[str, ...]:
        """The names of the stems: `<label>`, and `<label>_surface`."""
        return stem_names(self.make)

    def stem(self, name: str) -> Clip:
        """Return one stem at the instrument's rate. Raises UserError for a name that is not in `stems`."""
        if name not in self.stems:
            raise UserError(f"no stem {name!r}: expected one of {', '.join(self.stems)}")
        index = self.stems.index(name)
        track = self.make["tracks"][index]
        return self._clip({**self.make, "label": track["label"], "tracks": [track]}, [self.sounds[index]])

    def mix(self) -> Clip:
        """Return the sum of all stems at the instrument's rate."""
        return self._clip(self.make, self.sounds)

    def _clip(self, make: Json, sounds: list[list[Sound]]) -> Clip:
        clip = self.synth.clip(assemble(make, sounds, self.synth.instrument.rate), make)
        process = ({"do": "gain", "db": self.gain_db},) if self.gain_db else ()
        return Clip(apply(process, clip.wave, clip.rate)[0], replace(clip.recipe, process=process))

    def markers(self, stem: str | None = None) -> list[Event]:
        """Return the events as they were placed, to the sample, in order of time: those of one stem, or of all.

        Their seeds are those of their clips (None for variations of another clip), so that performing the markers of a
        scene gives the same scene.
        """
        rate, placed = self.synth.instrument.rate, []
        for name, track in zip(self.stems, self.make["tracks"]):
            pans = track.get("pans")
            events: list[list] = track.get("events", []) if stem in (None, name) else []
            for index, (sample, _, shot, velocity) in enumerate(events):
                make = track["shots"][shot][0]
                seed = make["seed"] if make["do"] == "render" else None
                pan = pans[index] if pans else None
                placed.append(Event(sample / rate, track["label"], velocity, seed, pan=pan))
        return sorted_events(placed)

    def save(
        self,
        folder: str | Path,
        format: str = "wav",
        subtype: Subtype = "PCM_16",
        rate: int | None = None,  # Hz; None: the instrument's
    ) -> list[Path]:
        """Write mix.wav, stems/<stem>.wav, markers.csv and markers.txt (Audacity labels); return the sound files.

        A WAV also has its markers as cue points. Raises UserError for a format that cannot hold the subtype or rate.
        """
        folder = Path(folder)
        paths = [folder / f"mix.{format}", *(folder / "stems" / f"{safe_name(name)}.{format}" for name in self.stems)]
        check_format(format, subtype, "", rate)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        for path, name in zip(paths, (None, *self.stems)):
            clip = (self.mix() if name is None else self.stem(name)).shaped(Shape(rate=rate))
            clip.save(path, subtype, cue_chunks(self.markers(name), clip.rate))
        table, labels = io.StringIO(), []
        writer = csv.writer(table, lineterminator="\n")
        stereo = channels_of(self.make) == 2
        writer.writerow(["time", "label", "velocity", "seed", *(["pan"] if stereo else [])])
        for event in self.markers():
            seconds = f"{event.time:.6f}"
            writer.writerow([seconds, event.label, event.velocity, event.seed, *([event.pan] if stereo else [])])
            labels.append(f"{seconds}\t{seconds}\t{event.label}\n")
        write_text(folder / "markers.csv", table.getvalue())
        write_text(folder / "markers.txt", "".join(labels))
        return paths

    def _repr_html_(self) -> str:
        """Return an audio player of the mix, for notebooks."""
        return self.mix()._repr_html_()


def stem_names(make: Json) -> tuple[str, ...]:
    """Return the names of the stems of a scene's recipe: `<label>`, and `<label>_surface`."""
    return tuple(track["label"] + ("" if "events" in track else "_surface") for track in make["tracks"])


def channels_of(make: Json) -> int:
    """Return the number of channels of a scene's recipe."""
    return make.get("channels", 1)


def perform(
    synth: Synth,
    events: Iterable[Event | float],
    label: str | None = None,
    *,
    surfaces: Mapping[str, Curve] | None = None,
    seconds: float | None = None,
    seed: int = 0,
    style: Style = Style(),
    progress: Callable[[int], AbstractContextManager[Callable[[str], None]]] | None = None,
) -> Scene:
    """Play events at their times; return the scene.

    `events` are times in seconds or `Event`s, in any order; those without a label get `label`. `surfaces` gives an
    intensity by label (`Curve`), for steady sounds throughout the scene. The scene lasts `seconds`, or until the last
    event has decayed and the last curve has ended. The same arguments give the same scene.

    Raises UserError for a label that is missing or unknown to the instrument, a time that is negative or beyond
    `seconds`, and a number out of range; no event is dropped.

    `progress(total)` is a context manager that yields a function, which is called with the label of each rendered sound.
    """
    by_label, curves = arrange(synth, events, label, surfaces or {}, seconds, seed, style)
    rate = synth.instrument.rate
    stereo = channels_asked(style, itertools.chain(*by_label.values())) == 2
    tracks: list[Json] = []
    sounds: list[list[Sound]] = []
    total = sum(_clip_counts(each, style)[1] + len(_seeds(each)) for each in by_label.values()) + len(curves)
    with progress(total) if progress else nullcontext(lambda _: None) as report:
        for name, events_of_label in by_label.items():
            track, shots = _track(synth, name, events_of_label, seconds, seed, style, report, stereo)
            tracks.append(track)
            sounds.append(shots)
        samples = round(seconds * rate) if seconds is not None else _end(tracks, curves, rate)
        for name, points in curves.items():
            track, sound = _surface(synth, name, points, samples, seed, style, stereo)
            tracks.append(track)
            sounds.append([sound])
            report(name)
    title = ", ".join(dict.fromkeys(track["label"] for track in tracks))
    make = {"do": "perform", "label": title, "seed": seed, "samples": samples, "tracks": tracks}
    make |= {"channels": 2} if stereo else {}
    return Scene(synth, make, sounds, _gain_db(make, sounds, rate))


def remake(make: Json, synth: Synth, remake_source: Callable[[Json, Synth], Wave]) -> Wave:
    """Return the wave [samples] of a `perform` recipe, at the instrument's rate; `remake_source` renders its sounds."""
    rate = synth.instrument.rate
    sounds = []
    for track in make["tracks"]:
        if "events" in track:
            waves = [(cut_one_shot(remake_source(of, synth), shot, rate), db) for of, *shot, db in track["shots"]]
        else:
            waves = [(remake_source(track["of"], synth)[: make["samples"]], track["db"])]
        sounds.append([Sound.of(wave, db, rate) for wave, db in waves])
    return assemble(make, sounds, rate)


def channels_asked(style: Style, events: Iterable[Event]) -> int:
    """Return the number of channels of a scene: as its style says, or 2 if it places an event off the centre."""
    return style.channels or (2 if style.pan or any(event.pan for event in events) else 1)


# --- checking -----------------------------------------------------------------------------------------------------


def arrange(
    synth: Synth,
    events: Iterable[Event | float],
    label: str | None,
    surfaces: Mapping[str, Curve],
    seconds: float | None,
    seed: int,
    style: Style,
) -> tuple[dict[str, list[Event]], dict[str, list[tuple[float, float]]]]:
    """Check the arguments of `perform`; return events and curves by the instrument's labels, in order of time.

    Raises UserError as `perform` does; nothing is rendered.
    """
    _check(style, seconds, seed)
    placed = sorted_events(_labelled(synth, event, label, seconds) for event in events)
    curves = {synth.resolve(name): _points(name, curve) for name, curve in surfaces.items()}
    if len(curves) < len(surfaces):
        raise UserError(f"two surfaces of one label among {', '.join(surfaces)}: expected each label once")
    if not placed and not curves:
        raise UserError("a scene of no events: expected one or more times, or a surface")
    if not placed and seconds is None and all(len(points) < 2 for points in curves.values()):
        raise UserError("a scene of surfaces alone, each at one intensity, has no end: name its seconds")
    by_label: dict[str, list[Event]] = {}
    for event in placed:
        by_label.setdefault(event.label, []).append(event)
    return by_label, curves


def _check(style: Style, seconds: float | None, seed: int) -> None:
    check_seed(seed)
    check_amount(style.amount)
    check_temperature(style.temperature)
    if seconds is not None and not 0 < seconds <= LATEST:
        raise UserError(f"a scene of {seconds} s: expected above 0, up to {LATEST:g}")
    check_width(style.width)
    if not 0 <= style.pan <= 1:
        raise UserError(f"pan {style.pan:g}: expected 0 (the middle) to 1 (anywhere between left and right)")
    for name, value, low in (("variations", style.variations, 1), ("humanise", style.humanise, 0)):
        if not low <= value <= 10_000:
            raise UserError(f"{name} {value}: expected {low} to 10000")
    if not 0 <= (style.no_repeat or 0) < style.variations:
        raise UserError(
            f"no-repeat {style.no_repeat} of {style.variations} variations: expected 0 to {style.variations - 1}, "
            "fewer than there are sounds"
        )


def _labelled(synth: Synth, event: Event | float, label: str | None, seconds: float | None) -> Event:
    """Return an event with the instrument's name of its label. Raises UserError for one that cannot be placed."""
    event = event if isinstance(event, Event) else Event(float(event))
    at, name = f"event at {event.time:g} s", event.label or label
    try:
        if not 0 <= event.time <= LATEST:
            raise UserError(f"an {at}: expected 0 to {LATEST:g}")
        if seconds is not None and event.time >= seconds:
            raise UserError(f"an {at}, beyond the {seconds:g} s of the scene: make it longer, or remove the event")
        if not 0 < event.velocity <= 1:
            raise UserError(f"an event of velocity {event.velocity:g}: expected above 0, up to 1")
        if not -1 <= (event.pan or 0) <= 1:
            raise UserError(f"an event of pan {event.pan:g}: expected -1 (left) to 1 (right)")
        if not name:
            raise UserError(f"the {at} has no label: name one for all that have none")
        return replace(event, label=synth.resolve(name))
    except UserError as error:
        raise UserError(f"{event.where}: {error}" if event.where else str(error)) from None


def _points(name: str, curve: Curve) -> list[tuple[float, float]]:
    """Return an intensity curve as one or more points in order of time."""
    points = (
        [(0.0, float(curve))] if isinstance(curve, int | float) else sorted((float(at), float(i)) for at, i in curve)
    )
    if not points:
        raise UserError(f"the intensity curve of {name} has no points: expected one or more")
    for at, intensity in points:
        if not (0 <= at <= LATEST and 0 <= intensity <= 1):
            raise UserError(f"intensity {intensity:g} of {name} at {at:g} s: expected 0 to 1, at 0 to {LATEST:g} s")
    return points


# --- deciding -----------------------------------------------------------------------------------------------------


def _clip_counts(events: list[Event], style: Style) -> tuple[int, int]:
    """Return how many variations the events of a label share, and from how many clips the clearest are chosen."""
    count = min(style.variations, sum(event.seed is None for event in events))
    return count, count + count // 2 + 2 if count else 0


def _seeds(events: list[Event]) -> list[int]:
    """Return the seeds that events state, each once."""
    return sorted({event.seed for event in events if event.seed is not None})


def _track(
    synth: Synth,
    label: str,
    events: list[Event],
    seconds: float | None,
    seed: int,
    style: Style,
    report: Callable[[str], None],
    stereo: bool,
) -> tuple[Json, list[Sound]]:
    """Return the track of a label, with the shot and the sample of each event, and the sounds of its shots.

    The onset of a shot is measured at each velocity, since a soft sound may reach its threshold a little later.
    """
    rate = synth.instrument.rate
    shots, sounds, indices = _shots(synth, label, events, seed, style, report)
    shifts = np.clip(noise(seed, (len(events),), MOVES + synth.labels.index(label) % LABELS) / 2, -1, 1)
    last = max(0, round((LATEST if seconds is None else seconds) * rate) - 1)
    onsets: dict[tuple[int, float], int] = {}
    placed = []
    for event, shot, shift in zip(events, indices, shifts.tolist()):
        sample, velocity = round((event.time + style.humanise / 1000 * shift) * rate), float(event.velocity)
        if (shot, velocity) not in onsets:
            near = shots[shot][2] - shots[shot][1]
            beginning = sounds[shot].at_velocity(velocity, slice(near + round(0.2 * rate)))
            onsets[shot, velocity] = onset_near(beginning, rate, near)
        placed.append([min(max(sample, 0), last), onsets[shot, velocity], shot, velocity])
    track = {"label": label, "shots": shots, "events": placed}
    if stereo:
        sides = np.clip(noise(seed, (len(events),), PANS + synth.labels.index(label) % LABELS) / 2, -1, 1) * style.pan
        pans = (side if event.pan is None else event.pan for event, side in zip(events, sides.tolist()))
        track["pans"] = [round(float(pan), 4) + 0.0 for pan in pans]
    return track, sounds


def _shots(
    synth: Synth, label: str, events: list[Event], seed: int, style: Style, report: Callable[[str], None]
) -> tuple[list[list], list[Sound], list[int]]:
    """Return the shots of a label ([make, start, onset, stop, dB]), their sounds, and the index of each event's shot."""
    rate = synth.instrument.rate
    count, candidates = _clip_counts(events, style)
    own = {each: count + index for index, each in enumerate(_seeds(events))}
    asked = synth.render_many(((label, each) for each in own), temperature=style.temperature)
    found = []
    for clip in itertools.chain(_clips(synth, label, candidates, seed, style), asked):
        start, onset, stop, clarity, _ = loudest_event(clip.wave, rate)
        db = _level_db(clip.wave[start:stop], rate)
        sound = Sound.of(cut_one_shot(clip.wave, (start, onset, stop), rate), db, rate)
        found.append((clarity, [clip.recipe.make, start, onset, stop, db], sound))
        report(label)
    by_clarity = sorted(range(candidates), key=lambda index: -found[index][0])
    kept = [*sorted(by_clarity[:count]), *range(candidates, len(found))]
    picks = _picks(synth, label, count, seed, style)
    indices = [next(picks) if event.seed is None else own[event.seed] for event in events]
    return [found[index][1] for index in kept], [found[index][2] for index in kept], indices


def _clips(synth: Synth, label: str, count: int, seed: int, style: Style) -> Iterator[Clip]:
    """Return `count` clips of a label: of the seeds S, S+1, ..., or variations of the clearest of the first eight."""
    if not count:
        return iter(())
    pairs = ((label, seed + offset) for offset in range(count if style.amount == 1 else ANCHORS))
    clips = synth.render_many(pairs, temperature=style.temperature)
    if style.amount == 1:
        return clips
    anchor = max(clips, key=lambda clip: loudest_event(clip.wave, clip.rate).clarity)
    return itertools.islice(vary(synth, anchor.recipe.make, style.amount, seed), count)


def _picks(synth: Synth, label: str, count: int, seed: int, style: Style) -> Iterator[int]:
    """Yield endless random indices of `count` shots, each different from the last `no_repeat` as far as possible."""
    window = min(NO_REPEAT if style.no_repeat is None else style.no_repeat, count - 1)
    size, stream = count + count % 2, PICKS + synth.labels.index(label) % LABELS
    recent: list[int] = []
    for event in itertools.count():
        scores = noise(seed, (count,), stream, skip=event * size)
        scores[recent] = np.inf
        pick = int(scores.argmin())
        recent = [*recent, pick][-window:] if window else []
        yield pick


def _end(tracks: list[Json], curves: Mapping[str, list[tuple[float, float]]], rate: int) -> int:
    """Return the sample at which all events have decayed and all curves have ended."""
    ends = [round(points[-1][0] * rate) for points in curves.values()]
    for track in tracks:
        for sample, lead, shot, _ in track["events"]:
            _, start, _, stop, _ = track["shots"][shot]
            ends.append(sample - lead + stop - start)
    return max(1, *ends)


def _surface(
    synth: Synth,
    label: str,
    points: list[tuple[float, float]],
    samples: int,
    seed: int,
    style: Style,
    stereo: bool,
) -> tuple[Json, Sound]:
    """Return the track of a steady sound that lasts as long as the scene, and the sound at LEVEL."""
    clip = steady_clip(synth, label, seed, style.temperature)
    long = _lasting(synth, clip, samples)
    db = _level_db(long.wave[: min(samples, round(ROUND * clip.rate))], clip.rate)
    made = widened(synth, clip, long, style.width, _lasting) if stereo else long
    curve = [[round(seconds * clip.rate), intensity] for seconds, intensity in points]
    return {"label": label, "of": made.recipe.make, "db": db, "curve": curve}, Sound.of(
        made.wave[:samples], db, clip.rate
    )


def _lasting(synth: Synth, clip: Clip, samples: int) -> Clip:
    """Return a steady sound of at least so many samples: extended, or a loop of ROUND if that is longer."""
    if samples > round(ROUND * clip.rate):
        rounds = math.ceil(samples / (ROUND - SLACK) / clip.rate)
        return looped(loop_source(synth, clip, ROUND), ROUND, rounds=rounds)[0]
    return extend(synth, clip, samples) if samples > len(clip.wave) else clip


def _level_db(wave: Wave, rate: int) -> float:
    """Return the gain in dB that brings a sound to LEVEL, with its true peak under CEILING; 0 for silence."""
    db = min(LEVEL - event_loudness(wave, rate), CEILING - true_peak_db(wave))
    return math.floor(np.clip(db, MIN_GAIN_DB, MAX_GAIN_DB) * 1000) / 1000 if math.isfinite(db) else 0.0


def _gain_db(make: Json, sounds: list[list[Sound]], rate: int) -> float:
    """Return the gain in dB that brings the mix and every stem under CEILING, 0 if they are."""
    mix, highest = np.float32(0), -math.inf
    for track, of_track in zip(make["tracks"], sounds):
        stem = assemble({**make, "tracks": [track]}, [of_track], rate)
        highest = max(highest, true_peak_db(stem))
        mix = mix + stem
    highest = max(highest, true_peak_db(np.asarray(mix)))
    return math.floor((CEILING - highest) * 1000) / 1000 if highest > CEILING else 0.0


# --- assembling ---------------------------------------------------------------------------------------------------


def darkened(wave: Wave, rate: int) -> Wave:
    """Return the wave [L] with DARK_DEPTH of its treble removed by a one-pole low-pass at DARK_HZ."""
    pole = math.exp(-2 * math.pi * DARK_HZ / rate)

    def response(z: Complex) -> Complex:
        return (1 - DARK_DEPTH) + DARK_DEPTH * (1 - pole) / (1 - pole * z)

    return filtered(wave, response, lead=math.ceil(20 / (1 - pole))).astype(np.float32)


def assemble(make: Json, sounds: list[list[Sound]], rate: int) -> Wave:
    """Return the sum [samples] or [samples, 2] of the tracks of a scene, from the one-shots or the surface of each."""
    whole = np.zeros((make["samples"], 2) if channels_of(make) == 2 else make["samples"], np.float32)
    for track, of_track in zip(make["tracks"], sounds):
        if "events" in track:
            _add_events(whole, track, of_track, rate)
        else:
            _add_surface(whole, track, of_track[0], rate)
    return whole


def _add_events(whole: Wave, track: Json, shots: list[Sound], rate: int) -> None:
    pans = track.get("pans", itertools.repeat(None))
    for (sample, lead, shot, velocity), pan in zip(track["events"], pans):
        start, length = sample - lead, len(shots[shot].bright)
        first, stop = max(0, -start), min(length, len(whole) - start)
        piece = shots[shot].at_velocity(velocity, slice(first, stop))
        if stop < length:
            piece = faded(piece, 0, min(round(ENDING * rate), len(piece)))
        piece = piece if pan is None else piece[:, None] * pan_gains(pan)
        whole[start + first : start + stop] += piece


def pan_gains(pan: float) -> Wave:
    """Return the gains [2] of left and right for a pan from -1 to 1: both 1 in the middle, of constant power."""
    angle = math.pi / 4 * (pan + 1)
    return np.array([math.cos(angle), math.sin(angle)], np.float32) * np.float32(math.sqrt(2))


def _add_surface(whole: Wave, track: Json, sound: Sound, rate: int) -> None:
    positions, intensities = zip(*track["curve"])
    samples, ending = len(sound.bright), round(ENDING * rate)
    block = 2**20  # in blocks: the curve of minutes in double precision would fill the memory
    for start in range(0, samples, block):
        index = np.arange(start, min(start + block, samples))
        edges = np.clip(np.minimum(index + 1, samples - index) / ending, 0, 1)
        curve = (np.interp(index, positions, intensities) * edges).astype(np.float32)
        curve = curve if whole.ndim == 1 else curve[:, None]
        whole[start : start + block] += sound.at_velocity(curve, slice(start, start + block))


def cue_chunks(events: Iterable[Event], rate: int) -> dict[bytes, bytes]:
    """Return the RIFF chunks that mark events in a WAV at `rate` Hz: cue points, and their labels."""
    points, labels = [], []
    for number, event in enumerate(events, 1):
        sample = round(event.time * rate)
        points.append(struct.pack("<II4sIII", number, sample, b"data", 0, 0, sample))
        text = event.label.encode() + b"\0"
        labels.append(struct.pack("<4sII", b"labl", 4 + len(text), number) + text + b"\0" * (len(text) % 2))
    if not points:
        return {}
    return {b"cue ": struct.pack("<I", len(points)) + b"".join(points), b"LIST": b"adtl" + b"".join(labels)}
