"""Lists of events: the times of sounds in a scene, from CSV, MIDI, JSON, Audacity labels, a pattern or a recording.

Every reader sorts by time and drops no event; an event that cannot be placed is an error that names its file and line.
"""

import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foleybox.audio import SUFFIXES, read_wave
from foleybox.errors import UserError
from foleybox.labels import canonical
from foleybox.studio.onsets import find_onsets
from foleybox.studio.seeds import check_seed
from foleybox.studio.table import Table, parse_number, read_table
from foleybox.studio.timecode import parse_time

LATEST = 2 * 3600.0  # seconds: a later time is probably a mistake of units
HITS = {"X": 1.0, "x": 0.7, "o": 0.4}  # characters of a pattern, and their velocities
RESTS = ".-_"
RECORDINGS = (*SUFFIXES, ".aif", ".aiff", ".mp3")


@dataclass(frozen=True)
class Event:
    """One sound of a scene."""

    time: float  # of its onset, in seconds from the start of the scene
    label: str = ""  # in any spelling; "": the label of the scene
    velocity: float = 1.0  # above 0, up to 1: its intensity, as in MIDI
    seed: int | None = None  # of its clip; None: one of the label's variations
    where: str = field(default="", compare=False, repr=False)  # the file and line that it was read from, for messages
    pan: float | None = None  # -1 (left) to 1 (right); None: as the scene places its events


@dataclass(frozen=True)
class Reading:
    """How the times of a list are read."""

    fps: float | None = None  # frames a second, of times in frames and timecodes (`timecode.parse_time`)
    start: str = ""  # the time at which the scene begins
    notes: Mapping[int, str] = field(default_factory=dict)  # the label of each MIDI note
    track: str = ""  # the MIDI track whose notes are read: its number from 1, or its name; "": all


def read_events(path: str | Path, reading: Reading = Reading()) -> list[Event]:
    """Read events in order of time, in the format that the suffix names.

    .csv .tsv   columns time or frame[, label, velocity, seed, pan] below a line of names; other columns are ignored
    .txt        an Audacity label track: start, end and text, separated by tabs; or one time on each line
    .json       [0.5, 1.25], or [{"time": 0.5, "label": "rain", "velocity": 0.8, "seed": 3, "pan": -1}], or either as "events"
    .mid .midi  notes: time and velocity
    .wav ...    another recording or a click track: its onsets, with velocities by their levels

    Raises UserError for a file that cannot be read, an event that cannot be placed, and a file without events.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in RECORDINGS:
        events = recorded_events(path)
    elif suffix in (".csv", ".tsv"):
        events = table_events(read_table(path), str(path), reading)
    elif suffix in (".txt", ".json", ".mid", ".midi"):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        if suffix == ".json":
            events = json_events(data, str(path), reading)
        elif suffix == ".txt":
            events = label_events(data, str(path), reading)
        else:
            events = midi_events(data, reading, str(path))
    else:
        known = ".csv, .tsv, .txt, .json, .mid, .midi, " + ", ".join(RECORDINGS)
        raise UserError(f"cannot read onsets from {path}: expected a name that ends in {known}")
    if not events:
        raise UserError(f"{path} holds no events: expected one or more times")
    return sorted_events(events)


def sorted_events(events: Iterable[Event]) -> list[Event]:
    """Return events sorted by time; those at the same time keep their order."""
    return sorted(events, key=lambda event: event.time)


def make_event(
    where: str,
    time: Any,
    label: Any = "",
    velocity: Any = None,
    seed: Any = None,
    pan: Any = None,
    reading: Reading = Reading(),
) -> Event:
    """Return an event from JSON values, or from the cells of a table.

    Raises UserError, beginning with `where`, for values that are out of range or not numbers.
    """
    seconds, intensity, number = (
        _time(where, time, reading),
        1.0 if velocity is None else _number(velocity),
        _number(seed),
    )
    if seconds is None:
        raise UserError(
            f"{where}: time {_short(time)}: expected seconds such as 1.25, or minutes:seconds, each part under 60, or "
            "frames: HH:MM:SS:FF or 120f"
        )
    if seconds < 0 and reading.start:
        raise UserError(f"{where}: time {_short(time)} is before --start {reading.start}: expected a later time")
    if not 0 <= seconds <= LATEST:
        hint = "; a timecode that begins later needs --start" if seconds > LATEST and not reading.start else ""
        raise UserError(f"{where}: time {_short(time)}: expected 0 to {LATEST:g} seconds{hint}")
    if intensity is None or not 0 < intensity <= 1:
        raise UserError(f"{where}: velocity {_short(velocity)}: expected above 0, up to 1 (a MIDI velocity / 127)")
    if not isinstance(label, str):
        raise UserError(f"{where}: label {_short(label)}: expected a name such as footstep")
    side = None if pan is None else _number(pan)
    if pan is not None and (side is None or not -1 <= side <= 1):
        raise UserError(f"{where}: pan {_short(pan)}: expected -1 (left) to 1 (right)")
    if seed is None:
        return Event(seconds, label.strip(), intensity, None, where, side)
    if number is None or number != int(number):
        raise UserError(f"{where}: seed {_short(seed)}: expected a whole number")
    try:
        return Event(seconds, label.strip(), intensity, check_seed(int(number)), where, side)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _time(where: str, value: Any, reading: Reading) -> float | None:
    """Return the seconds of a time after the start of the scene, None for a value that is none."""
    try:
        found = parse_time(value, reading.fps) if isinstance(value, str) else _number(value)
        start = parse_time(reading.start, reading.fps) if reading.start else 0.0
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if start is None:
        raise UserError(f"start {reading.start}: expected a time such as 3600, 1:00:00 or 01:00:00:00")
    return None if found is None or not math.isfinite(found) else round(found - start, 9)


def _number(value: Any) -> float | None:
    """Return a finite number from a number, or a text with a decimal point or comma; else None."""
    try:
        found = parse_number(value) if isinstance(value, str) else value
    except UserError:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        return float(found) if math.isfinite(found) else None
    except OverflowError:
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- formats ------------------------------------------------------------------------------------------------------


def table_events(table: Table, where: str, reading: Reading = Reading()) -> list[Event]:
    """Return the events of a table; an empty cell stands for the default."""
    if "time" not in table.columns and "frame" not in table.columns:
        raise UserError(
            f"{where} has the columns {', '.join(table.columns)}: expected time or frame, optionally label, velocity, seed, pan"
        )
    return [
        make_event(
            f"{where}, line {row.line}",
            row["time"] if "time" in table.columns else f"{row['frame']}f",
            row["label"],
            row["velocity"] or None,
            row["seed"] or None,
            row["pan"] or None,
            reading,
        )
        for row in table.rows
    ]


def label_events(data: bytes, where: str, reading: Reading = Reading()) -> list[Event]:
    """Return the events of an Audacity label track (start, end, text; the end is ignored), or of one time on each line."""
    events = []
    for line, text in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), 1):
        cells = text.strip().split("\t")
        if text.strip() and not text.startswith("\\"):  # a backslash: the frequencies of the label above
            label = cells[2] if cells[2:] else ""
            events.append(make_event(f"{where}, line {line}", cells[0], label, reading=reading))
    return events


def json_events(data: bytes, where: str, reading: Reading = Reading()) -> list[Event]:
    """Return the events of a JSON list of times or objects, or of such a list as the value of "events"."""
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a number of thousands of digits
        raise UserError(f"{where} is not JSON ({error}): expected a list of times or of events") from None
    content = content.get("events") if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise UserError(f'{where} holds no list: expected [0.5, 1.25], or [{{"time": 0.5, "label": "rain"}}]')
    events = []
    for count, entry in enumerate(content, 1):
        at = f"{where}, event {count}"
        if not isinstance(entry, dict):
            events.append(make_event(at, entry, reading=reading))
        elif "time" in entry:
            keys = ("time", "label", "velocity", "seed", "pan")
            events.append(make_event(at, **{key: entry[key] for key in keys if key in entry}, reading=reading))
        else:
            raise UserError(f"{at} states no time: expected an object with time, optionally label, velocity, seed, pan")
    return events


def midi_events(data: bytes, reading: Reading, where: str) -> list[Event]:
    """Return an event for each note of a MIDI file, of all channels; changes of tempo are followed.

    `reading.notes` gives a label by note number; other notes have none.
    """
    import mido

    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        if file.type == 2:
            raise UserError(f"{where} is a MIDI file of type 2 (independent patterns): export it as type 0 or 1")
        if file.ticks_per_beat <= 0:
            raise UserError(f"{where} counts in film frames, not in beats: export it with ticks per beat (PPQ)")
        if reading.track:
            kept = _track(file, reading.track, where)
            for index, track in enumerate(file.tracks):  # others keep their tempo, and the time from message to message
                if index != kept:
                    track[:] = [each if each.is_meta else mido.MetaMessage("marker", time=each.time) for each in track]
        seconds, events = 0.0, []
        for message in file:
            seconds += message.time
            if message.type == "note_on" and message.velocity:
                label = reading.notes.get(message.note, "")
                events.append(make_event(f"{where}, note {message.note}", seconds, label, message.velocity / 127))
    except UserError:
        raise
    except Exception as error:  # mido raises half a dozen exceptions without a common base for damaged files
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UserError(f"{where} is not a MIDI file that can be read, or is cut short ({reason})") from None
    if not events:
        of_track = f" in track {reading.track}" if reading.track else ""
        raise UserError(f"{where} holds no notes{of_track}: expected one or more")
    return events


def _track(file: Any, wanted: str, where: str) -> int:
    """Return the index of a track by its number from 1, or by its name. Raises UserError if there is none."""
    names = [track.name.strip() for track in file.tracks]
    matching = [index for index, name in enumerate(names) if name.casefold() == wanted.strip().casefold()]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    if len(matching) != 1:
        known = ", ".join(f"{number} {name}".strip() for number, name in enumerate(names, 1))
        raise UserError(f"--track {wanted}: {where} has the tracks {known}; expected a number, or a name that one has")
    return matching[0]


NOTES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C
NOTE = re.compile(r"([A-Ga-g])([#b]?)(-?\d+)")


def note_number(text: str) -> int | None:
    """Return the number of a MIDI note: "36", or "C2" (middle C, number 60, is C4); None for a text that is none."""
    if match := NOTE.fullmatch(text):
        number = NOTES[match[1].upper()] + {"": 0, "#": 1, "b": -1}[match[2]] + 12 * (int(match[3][:4]) + 1)
    else:
        number = int(text) if text.isdecimal() and len(text) < 4 else -1
    return number if 0 <= number < 128 else None


def note_labels(pairs: Sequence[str]) -> dict[int, str]:
    """Return {36: "footstep"} for ["C2=footstep"]. Raises UserError for a text that is not a note and a label."""
    labels = {}
    for pair in pairs:
        note, _, label = pair.partition("=")
        number = note_number(note)
        if number is None or not label:
            raise UserError(
                f"notes {pair}: expected a MIDI note from 0 to 127 or C-1 to G9, and a label, such as 36=footstep or C2=footstep"
            )
        labels[number] = label
    return labels


def mapped(events: Sequence[Event], pairs: Sequence[str]) -> list[Event]:
    """Return events with labels replaced: ["left foot=footstep"]; case, spaces and punctuation do not count.

    Raises UserError for a text that is not two labels, and for a label that no event has.
    """
    labels, found = {}, {canonical(event.label) for event in events}
    for pair in pairs:
        name, _, label = pair.partition("=")
        if not (name.strip() and label.strip()):
            raise UserError(f'map {pair}: expected a text and a label, such as "left foot=footstep"')
        if canonical(name) not in found:
            known = ", ".join(dict.fromkeys(event.label or "(none)" for event in events))
            known = known if len(known) <= 200 else known[:197] + "..."
            raise UserError(f"map {pair}: no event has the label {name!r}; there are {known}")
        labels[canonical(name)] = label.strip()
    return [replace(event, label=labels.get(canonical(event.label), event.label)) for event in events]


def recorded_events(path: Path) -> list[Event]:
    """Return an event for each onset of a recording; velocity is amplitude relative to the loudest onset."""
    wave, rate = read_wave(path)
    onsets = find_onsets(wave, rate)
    if not onsets:
        raise UserError(f"{path} has no onsets: expected clicks or other separate sounds; a steady sound has none")
    loudest = max(onset.level_db for onset in onsets)
    return [Event(onset.sample / rate, velocity=max(0.05, 10 ** ((onset.level_db - loudest) / 20))) for onset in onsets]


def pattern_events(bpm: float, pattern: str, repeat: int = 1) -> list[Event]:
    """Return the events of a pattern at `bpm` beats a minute (1 to 1000), played `repeat` times (1 to 100,000).

    Each character is a sixteenth (a quarter of a beat): `x` a hit, `X` a hard one, `o` a soft one; `.`, `-` and `_` are
    rests; `|` and spaces are ignored. Raises UserError for another character and for a pattern without hits.

    >>> [event.time for event in pattern_events(120, "x..x", 2)]
    [0.0, 0.375, 0.5, 0.875]
    """
    if not 1 <= bpm <= 1000:
        raise UserError(f"bpm {bpm:g}: expected 1 to 1000 beats a minute")
    if not 1 <= repeat <= 100_000:
        raise UserError(f"repeat {repeat}: expected 1 to 100000")
    steps = [step for step in pattern if step not in "| "]
    unknown = next((step for step in steps if step not in HITS and step not in RESTS), None)
    if unknown is not None:
        raise UserError(
            f"pattern {pattern!r} has the character {unknown!r}: expected {', '.join(HITS)} for hits, . for rests"
        )
    sixteenth = 60 / bpm / 4
    if len(steps) * repeat * sixteenth > LATEST:
        length = f"{len(steps)} signs at {bpm:g} bpm, {repeat} times"
        raise UserError(f"pattern of {length}: {len(steps) * repeat * sixteenth:,.0f} s; expected {LATEST:g} at most")
    hits = [(index, HITS[step]) for index, step in enumerate(steps * repeat) if step in HITS]
    if not hits:
        raise UserError(f"pattern {pattern!r} has no hits: expected an x or more, such as x..x..x.")
    return [Event(index * sixteenth, velocity=velocity) for index, velocity in hits]
