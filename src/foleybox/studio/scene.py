"""Sounds at given times: events become one-shots, steady labels a surface under an intensity curve.

Each event is a one-shot cut out of a rendered clip (`onsets.clearest`), placed so that its rise falls on the sample of
its time. The variations of a label are the clearest of the clips with the seeds S, S+1, ... of the scene's seed S (those
that `generate` makes), or of neighbours of one of them; all are brought to one loudness, so that velocity alone says
how loud an event is. Which variation an event gets, and how far `humanise` moves it, is noise of the scene's seed. A
steady sound is extended by neighbours (`extend`). The recipe holds what was decided, number by number:

    {"do": "perform", "label": "Footstep, Rain", "seed": 7, "samples": 220500, "tracks": [
        {"label": "Footstep", "shots": [[make, start, rise, stop, dB], ...],
         "events": [[sample of the rise, samples before it, shot, velocity], ...]},
        {"label": "Rain", "of": make, "db": -3.2, "curve": [[sample, intensity], ...]}]}
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
from typing import Annotated, NamedTuple

import numpy as np
from tyro.conf import arg

from foleybox.audio import Subtype, Wave, check_format, true_peak_db
from foleybox.errors import UserError
from foleybox.files import safe_name, write_text
from foleybox.studio.events import LATEST, Event, in_order
from foleybox.studio.extend import extend
from foleybox.studio.latents import check_amount, vary
from foleybox.studio.loop import SLACK, looped, material, steady_clip
from foleybox.studio.onsets import clearest, cut_out, find_rise
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import check_seed, noise
from foleybox.studio.shape import Shape, apply, event_loudness, faded
from foleybox.studio.synth import Clip, Synth, check_temperature

LEVEL = -24.0  # LUFS of a one-shot of velocity 1, and of a surface of intensity 1
CEILING = -1.0  # dBTP of a one-shot, and of the whole
QUIETER_DB, LOUDER_DB = -40.0, 30.0  # that a clip is turned by at most to get there
ENDING = 0.02  # seconds in which what still sounds is faded out where the scene ends
DARK_HZ, DARK_DEPTH = 1_200.0, 0.8  # above that, a sound loses so much of its amplitude from velocity 1 to 0
ANCHORS = 8  # clips of which the clearest is the one that all are near
NO_REPEAT = 4  # events of a label in which no sound of it comes again
ROUND = 120.0  # seconds: a longer surface is a loop of so many
PICKS, MOVES, LABELS = 512, 1024, 512  # streams of the scene's seed, one a label: which variation, how far it is moved


@dataclass(frozen=True)
class Style:
    """How a scene is played."""

    variations: Annotated[int, arg(metavar="N")] = 32
    "different sounds of a label at most"
    no_repeat: Annotated[
        int | None, arg(metavar="N", help_behavior_hint=f"(default: {NO_REPEAT}, or as many as the variations allow)")
    ] = None
    "a sound is not heard again within the next so many events of its label"
    humanise: Annotated[float, arg(metavar="MS")] = 0.0
    "move each event by up to so many milliseconds, earlier or later"
    amount: float = 1.0
    "how unlike the sounds of a label are: 1 any sound of it, 0.3 all near one (the same shoes)"
    temperature: float = 1.0
    "below 1: nearer to the typical sound of the label; above 1: further out"


Curve = float | Sequence[tuple[float, float]]  # an intensity from 0 to 1, or points (seconds, intensity)


class Material(NamedTuple):
    """A sound at its full level, as it is struck hard and as it is struck softly."""

    bright: Wave
    dark: Wave

    @classmethod
    def of(cls, wave: Wave, db: float, rate: int) -> "Material":
        """Return a wave as material, turned up by some dB."""
        bright = wave * np.float32(10 ** (db / 20))
        return cls(bright, darker(bright, rate))

    def struck(self, velocity: Wave | float, here: slice = slice(None)) -> Wave:
        """Return (a part of) the sound, as loud as `velocity` (an amplitude) says, and as dark."""
        return (velocity * (velocity * self.bright[here] + (1 - velocity) * self.dark[here])).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Scene:
    """What `perform` made: stems and their mix, all with one gain, which keeps the mix under the ceiling."""

    synth: Synth
    make: Json  # see the head of this file
    materials: list[list[Material]]  # of each track: its one-shots, or its surface
    gain_db: float

    @property
    def stems(self) -> tuple[str, ...]:
        """The names of the stems: `<label>`, and `<label>_surface`."""
        return stem_names(self.make)

    def stem(self, name: str) -> Clip:
        """Return one stem at the instrument's rate. Raises UserError for a name that is none of `stems`."""
        if name not in self.stems:
            raise UserError(f"no stem {name!r}: expected one of {', '.join(self.stems)}")
        place = self.stems.index(name)
        track = self.make["tracks"][place]
        return self._clip({**self.make, "label": track["label"], "tracks": [track]}, [self.materials[place]])

    def mix(self) -> Clip:
        """Return the sum of all stems at the instrument's rate."""
        return self._clip(self.make, self.materials)

    def _clip(self, make: Json, materials: list[list[Material]]) -> Clip:
        clip = self.synth.clip(assemble(make, materials, self.synth.instrument.rate), make)
        process = ({"do": "gain", "db": self.gain_db},) if self.gain_db else ()
        return Clip(apply(process, clip.wave, clip.rate)[0], replace(clip.recipe, process=process))

    def markers(self, stem: str | None = None) -> list[Event]:
        """Return the events as they were placed, to the sample, in order: of one stem, or of all.

        Their seeds are those of their clips (None, if they are neighbours of another), so that a scene played from its
        own markers is the same scene.
        """
        rate, placed = self.synth.instrument.rate, []
        for name, track in zip(self.stems, self.make["tracks"]):
            for sample, _, shot, velocity in track.get("events", ()) if stem in (None, name) else ():
                make = track["shots"][shot][0]
                seed = make["seed"] if make["do"] == "render" else None
                placed.append(Event(sample / rate, track["label"], velocity, seed))
        return in_order(placed)

    def save(
        self,
        folder: str | Path,
        format: str = "wav",
        subtype: Subtype = "PCM_16",
        rate: int | None = None,  # Hz; None: the instrument's
    ) -> list[Path]:
        """Write mix.wav, stems/<stem>.wav, markers.csv and markers.txt (labels for Audacity); return the sound files.

        A WAV carries its markers as cue points too. Raises UserError for a format or rate that cannot be.
        """
        folder = Path(folder)
        paths = [folder / f"mix.{format}", *(folder / "stems" / f"{safe_name(name)}.{format}" for name in self.stems)]
        check_format(format, subtype, "", rate)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        for path, name in zip(paths, (None, *self.stems)):
            clip = (self.mix() if name is None else self.stem(name)).shaped(Shape(rate=rate))
            clip.save(path, subtype, cues(self.markers(name), clip.rate))
        table, labels = io.StringIO(), []
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["time", "label", "velocity", "seed"])
        for event in self.markers():
            seconds = f"{event.time:.6f}"
            writer.writerow([seconds, event.label, event.velocity, event.seed])
            labels.append(f"{seconds}\t{seconds}\t{event.label}\n")
        write_text(folder / "markers.csv", table.getvalue())
        write_text(folder / "markers.txt", "".join(labels))
        return paths

    def _repr_html_(self) -> str:
        """Return a player of the mix for notebooks."""
        return self.mix()._repr_html_()


def stem_names(make: Json) -> tuple[str, ...]:
    """Return the names of the stems of a scene's make."""
    return tuple(track["label"] + ("" if "events" in track else "_surface") for track in make["tracks"])


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
    intensity by label, for steady sounds that go on through the scene. The scene lasts `seconds`, or until the last
    event has died away and the last curve has ended. The same arguments make the same scene.

    Raises UserError for a label that is missing or not played by the instrument, a time that is negative or beyond the
    length, and a number out of range; no event is left out.

    `progress(total)` is a context manager that yields a function to call after each rendered sound, with its label.
    """
    by_label, beds = arranged(synth, events, label, surfaces or {}, seconds, seed, style)
    rate = synth.instrument.rate
    tracks: list[Json] = []
    materials: list[list[Material]] = []
    total = sum(_renders(own, style) for own in by_label.values()) + len(beds)
    with progress(total) if progress else nullcontext(lambda _: None) as bar:
        for name, own in by_label.items():
            track, sounds = _track(synth, name, own, seconds, seed, style, bar)
            tracks.append(track)
            materials.append(sounds)
        samples = round(seconds * rate) if seconds is not None else _end(tracks, beds, rate)
        for name, points in beds.items():
            track, sound = _surface(synth, name, points, samples, seed, style)
            tracks.append(track)
            materials.append([sound])
            bar(name)
    title = ", ".join(dict.fromkeys(track["label"] for track in tracks))
    make = {"do": "perform", "label": title, "seed": seed, "samples": samples, "tracks": tracks}
    return Scene(synth, make, materials, _gain_db(make, materials, rate))


def remake(make: Json, synth: Synth, remake_source: Callable[[Json, Synth], Wave]) -> Wave:
    """Return the wave [samples] of a scene or a stem from its recipe, at the instrument's rate.

    `remake_source` makes the sounds that the scene is made of.
    """
    rate = synth.instrument.rate
    materials = []
    for track in make["tracks"]:
        if "events" in track:
            waves = [(cut_out(remake_source(of, synth), shot, rate), db) for of, *shot, db in track["shots"]]
        else:
            waves = [(remake_source(track["of"], synth)[: make["samples"]], track["db"])]
        materials.append([Material.of(wave, db, rate) for wave, db in waves])
    return assemble(make, materials, rate)


# --- checking -----------------------------------------------------------------------------------------------------


def arranged(
    synth: Synth,
    events: Iterable[Event | float],
    label: str | None,
    surfaces: Mapping[str, Curve],
    seconds: float | None,
    seed: int,
    style: Style,
) -> tuple[dict[str, list[Event]], dict[str, list[tuple[float, float]]]]:
    """Return the events and the curves by the instrument's labels, in order of time, once all of them can be played.

    Raises UserError as `perform` does, and renders nothing.
    """
    _check(style, seconds, seed)
    named = in_order(_named(synth, event, label, seconds) for event in events)
    beds = {synth.resolve(name): _curve(name, curve) for name, curve in surfaces.items()}
    if len(beds) < len(surfaces):
        raise UserError(f"two surfaces of one label among {', '.join(surfaces)}: expected each label once")
    if not named and not beds:
        raise UserError("a scene of no events: expected one or more times, or a surface")
    if not named and seconds is None and all(len(points) < 2 for points in beds.values()):
        raise UserError("a scene of surfaces alone, each at one intensity, has no end: name its seconds")
    by_label: dict[str, list[Event]] = {}
    for event in named:
        by_label.setdefault(event.label, []).append(event)
    return by_label, beds


def _check(style: Style, seconds: float | None, seed: int) -> None:
    check_seed(seed)
    check_amount(style.amount)
    check_temperature(style.temperature)
    if seconds is not None and not 0 < seconds <= LATEST:
        raise UserError(f"a scene of {seconds} s: expected above 0, up to {LATEST:g}")
    for name, value, low, high in (
        ("variations", style.variations, 1, 10_000),
        ("no_repeat", style.no_repeat or 0, 0, 10_000),
        ("humanise", style.humanise, 0, 10_000),
    ):
        if not low <= value <= high:
            raise UserError(f"{name.replace('_', '-')} {value}: expected {low} to {high}")
    if style.no_repeat is not None and style.no_repeat >= style.variations:
        raise UserError(
            f"no-repeat {style.no_repeat} of {style.variations} variations: expected fewer than there are sounds "
            f"(0 to {style.variations - 1})"
        )


def _named(synth: Synth, event: Event | float, label: str | None, seconds: float | None) -> Event:
    """Return an event with the instrument's name of its label, once it can be placed."""
    event = event if isinstance(event, Event) else Event(float(event))
    try:
        return _checked(synth, event, label, seconds)
    except UserError as error:
        raise UserError(f"{event.where}: {error}" if event.where else str(error)) from None


def _checked(synth: Synth, event: Event, label: str | None, seconds: float | None) -> Event:
    if not 0 <= event.time <= LATEST:
        raise UserError(f"an event at {event.time:g} s: expected 0 to {LATEST:g}")
    if seconds is not None and event.time >= seconds:
        raise UserError(
            f"an event at {event.time:g} s, beyond the {seconds:g} s of the scene: make it longer, or leave the event out"
        )
    if not 0 < event.velocity <= 1:
        raise UserError(f"an event of velocity {event.velocity:g}: expected above 0, up to 1")
    name = event.label or label
    if not name:
        raise UserError(f"the event at {event.time:g} s has no label: name one for all that have none")
    return replace(event, label=synth.resolve(name))


def _curve(name: str, curve: Curve) -> list[tuple[float, float]]:
    """Return an intensity as points in order of time, one or more."""
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


def _tried(events: list[Event], style: Style) -> tuple[int, int]:
    """Return how many variations some events of a label share, and of how many clips those are the clearest."""
    count = min(style.variations, sum(event.seed is None for event in events))
    return count, count + count // 2 + 2 if count else 0


def _renders(events: list[Event], style: Style) -> int:
    return _tried(events, style)[1] + len(_own_seeds(events))


def _own_seeds(events: list[Event]) -> set[int]:
    return {event.seed for event in events if event.seed is not None}


def _track(
    synth: Synth,
    label: str,
    events: list[Event],
    seconds: float | None,
    seed: int,
    style: Style,
    bar: Callable[[str], None],
) -> tuple[Json, list[Material]]:
    """Return which shots the events of a label get, and where they are placed; and the sounds of the shots.

    Where a sound rises is measured as it is struck: a soft one may rise a little later.
    """
    rate = synth.instrument.rate
    shots, sounds, numbers = _shots(synth, label, events, seed, style, bar)
    moves = np.clip(noise(seed, (len(events),), MOVES + synth.labels.index(label) % LABELS) / 2, -1, 1)
    last = max(0, round((LATEST if seconds is None else seconds) * rate) - 1)
    rises: dict[tuple[int, float], int] = {}
    placed = []
    for event, shot, move in zip(events, numbers, moves.tolist()):
        at, velocity = round((event.time + style.humanise / 1000 * move) * rate), float(event.velocity)
        if (shot, velocity) not in rises:
            near = shots[shot][2] - shots[shot][1]
            struck = sounds[shot].struck(velocity, slice(near + round(0.2 * rate)))
            rises[shot, velocity] = find_rise(struck, rate, near)
        placed.append([min(max(at, 0), last), rises[shot, velocity], shot, velocity])
    return {"label": label, "shots": shots, "events": placed}, sounds


def _shots(
    synth: Synth, label: str, events: list[Event], seed: int, style: Style, bar: Callable[[str], None]
) -> tuple[list[list], list[Material], list[int]]:
    """Return the shots of a label ([make, start, rise, stop, dB]), their sounds, and the number of each event's shot."""
    rate = synth.instrument.rate
    count, tried = _tried(events, style)
    own = {each: count + place for place, each in enumerate(sorted(_own_seeds(events)))}
    asked = synth.render_many(((label, each) for each in own), temperature=style.temperature)
    found = []
    for clip in itertools.chain(_clips(synth, label, tried, seed, style), asked):
        start, rise, stop, clarity = clearest(clip.wave, rate)
        db = _level_db(clip.wave[start:stop], rate)
        sound = Material.of(cut_out(clip.wave, (start, rise, stop), rate), db, rate)
        found.append((clarity, [clip.recipe.make, start, rise, stop, db], sound))
        bar(label)
    clearest_first = sorted(range(tried), key=lambda place: -found[place][0])
    kept = [*sorted(clearest_first[:count]), *range(tried, len(found))]
    picks = _picks(synth, label, count, seed, style)
    numbers = [next(picks) if event.seed is None else own[event.seed] for event in events]
    return [found[place][1] for place in kept], [found[place][2] for place in kept], numbers


def _clips(synth: Synth, label: str, tried: int, seed: int, style: Style) -> Iterator[Clip]:
    """Return clips of a label: those of the seeds S, S+1, ..., or neighbours of the clearest of the first eight."""
    if not tried:
        return iter(())
    pairs = ((label, seed + place) for place in range(tried if style.amount == 1 else ANCHORS))
    clips = synth.render_many(pairs, temperature=style.temperature)
    if style.amount == 1:
        return clips
    anchor = max(clips, key=lambda clip: clearest(clip.wave, clip.rate).clarity)
    return itertools.islice(vary(synth, anchor.recipe.make, style.amount, seed), tried)


def _picks(synth: Synth, label: str, count: int, seed: int, style: Style) -> Iterator[int]:
    """Yield one of `count` shots at random, again and again, but none of the last `no_repeat` while there are others."""
    window = min(NO_REPEAT if style.no_repeat is None else style.no_repeat, count - 1)
    size, stream = count + count % 2, PICKS + synth.labels.index(label) % LABELS
    recent: list[int] = []
    for place in itertools.count():
        draw = noise(seed, (count,), stream, skip=place * size)
        draw[recent] = np.inf
        pick = int(draw.argmin())
        recent = [*recent, pick][-window:] if window else []
        yield pick


def _end(tracks: list[Json], beds: Mapping[str, list[tuple[float, float]]], rate: int) -> int:
    """Return the sample by which all events have died away and all curves have ended."""
    ends = [round(points[-1][0] * rate) for points in beds.values()]
    for track in tracks:
        ends += [at - lead + track["shots"][shot][3] - track["shots"][shot][1] for at, lead, shot, _ in track["events"]]
    return max(1, *ends)


def _surface(
    synth: Synth, label: str, points: list[tuple[float, float]], samples: int, seed: int, style: Style
) -> tuple[Json, Material]:
    """Return a steady sound of a label that lasts as long as the scene, at one level."""
    clip = steady_clip(synth, label, seed, style.temperature)
    if samples > round(ROUND * clip.rate):
        clip, _ = looped(material(synth, clip, ROUND), ROUND, rounds=math.ceil(samples / (ROUND - SLACK) / clip.rate))
    elif samples > len(clip.wave):
        clip = extend(synth, clip, samples)
    wave = clip.wave[:samples]
    db = _level_db(wave[: round(ROUND * clip.rate)], clip.rate)
    curve = [[round(at * clip.rate), intensity] for at, intensity in points]
    return {"label": label, "of": clip.recipe.make, "db": db, "curve": curve}, Material.of(wave, db, clip.rate)


def _level_db(wave: Wave, rate: int) -> float:
    """Return what brings a sound to LEVEL, not above CEILING; silence stays."""
    db = min(LEVEL - event_loudness(wave, rate), CEILING - _true_peak_db(wave))
    return math.floor(np.clip(db, QUIETER_DB, LOUDER_DB) * 1000) / 1000 if math.isfinite(db) else 0.0


def _gain_db(make: Json, materials: list[list[Material]], rate: int) -> float:
    """Return what brings the mix and every stem under the ceiling; 0 if they are."""
    mix = np.zeros(make["samples"], np.float32)
    loudest = -math.inf
    for track, waves in zip(make["tracks"], materials):
        stem = assemble({**make, "tracks": [track]}, [waves], rate)
        loudest = max(loudest, _true_peak_db(stem))
        mix += stem
    loudest = max(loudest, _true_peak_db(mix))
    return math.floor((CEILING - loudest) * 1000) / 1000 if loudest > CEILING else 0.0


def _true_peak_db(wave: Wave, block: int = 2**20) -> float:
    """Return the true peak in dBTP, block by block: 4x oversampled at once, minutes would fill the memory."""
    lead = 256
    starts = range(0, max(1, len(wave)), block)
    return max(true_peak_db(wave[max(0, start - lead) : start + block + lead]) for start in starts)


# --- doing --------------------------------------------------------------------------------------------------------


def darker(wave: Wave, rate: int) -> Wave:
    """Return the wave [L] with less of what is bright: a one-pole low-pass at DARK_HZ takes DARK_DEPTH of it away.

    As products of spectra, in pieces, each led in by what came before: the filter has died away by then.
    """
    pole = math.exp(-2 * math.pi * DARK_HZ / rate)
    lead, piece = math.ceil(20 / (1 - pole)), max(1, min(2**18, len(wave)))
    size = 2 ** math.ceil(math.log2(2 * lead + piece))
    response = (1 - DARK_DEPTH) + DARK_DEPTH * (1 - pole) / (1 - pole * np.exp(-2j * np.pi * np.fft.rfftfreq(size)))
    dark = np.empty_like(wave)
    for start in range(0, len(wave), piece):
        first = max(0, start - lead)
        filtered = np.fft.irfft(np.fft.rfft(wave[first : start + piece], size) * response, size)
        dark[start : start + piece] = filtered[start - first :][: len(wave[start : start + piece])]
    return dark


def assemble(make: Json, materials: list[list[Material]], rate: int) -> Wave:
    """Return the sum [samples] of the tracks of a scene, from their one-shots and surfaces."""
    whole = np.zeros(make["samples"], np.float32)
    for track, sounds in zip(make["tracks"], materials):
        if "events" in track:
            _add_events(whole, track, sounds, rate)
        else:
            _add_surface(whole, track, sounds[0], rate)
    return whole


def _add_events(whole: Wave, track: Json, sounds: list[Material], rate: int) -> None:
    for at, lead, shot, velocity in track["events"]:
        first, length = at - lead, len(sounds[shot].bright)
        begin, end = max(0, -first), min(length, len(whole) - first)
        piece = sounds[shot].struck(velocity, slice(begin, end))
        if end < length:
            piece = faded(piece, 0, min(round(ENDING * rate), len(piece)))
        whole[first + begin : first + end] += piece


def _add_surface(whole: Wave, track: Json, sound: Material, rate: int) -> None:
    places, intensities = zip(*track["curve"])
    samples, ending = len(sound.bright), round(ENDING * rate)
    block = 2**20  # the curve of minutes at once, in double precision, would fill the memory
    for start in range(0, samples, block):
        place = np.arange(start, min(start + block, samples))
        curve = np.interp(place, places, intensities) * np.clip(np.minimum(place + 1, samples - place) / ending, 0, 1)
        whole[start : start + block] += sound.struck(curve.astype(np.float32), slice(start, start + block))


def cues(events: Iterable[Event], rate: int) -> dict[bytes, bytes]:
    """Return the RIFF chunks that mark some events in a WAV at `rate` Hz: cue points, and their labels."""
    points, texts = [], []
    for number, event in enumerate(events, 1):
        sample = round(event.time * rate)
        points.append(struct.pack("<II4sIII", number, sample, b"data", 0, 0, sample))
        text = event.label.encode() + b"\0"
        texts.append(struct.pack("<4sII", b"labl", 4 + len(text), number) + text + b"\0" * (len(text) % 2))
    if not points:
        return {}
    return {b"cue ": struct.pack("<I", len(points)) + b"".join(points), b"LIST": b"adtl" + b"".join(texts)}
