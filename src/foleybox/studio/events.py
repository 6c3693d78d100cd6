"""Lists of events: the times of sounds in a scene, from CSV, MIDI, JSON, Audacity labels, a pattern or a recording.

Every reader sorts by time and drops no event; an event that cannot be placed is an error that names its file and line.
"""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foleybox.audio import SUFFIXES, read_wave
from foleybox.errors import UserError
from foleybox.studio.onsets import find_onsets
from foleybox.studio.seeds import check_seed
from foleybox.studio.table import Table, parse_number, read_table

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


def read_events(path: str | Path, notes: Mapping[int, str] | None = None) -> list[Event]:
    """Read events in order of time, in the format that the suffix names.

    .csv .tsv   columns time[, label, velocity, seed] below a line of names; other columns are ignored
    .txt        an Audacity label track: start, end and text, separated by tabs; or one time on each line
    .json       [0.5, 1.25], or [{"time": 0.5, "label": "rain", "velocity": 0.8, "seed": 3}], or either as "events"
    .mid .midi  notes: time and velocity; `notes` gives a label by note number (36 is the bass drum)
    .wav ...    another recording or a click track: its onsets, with velocities by their levels

    Raises UserError for a file that cannot be read, an event that cannot be placed, and a file without events.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in RECORDINGS:
        events = recorded_events(path)
    elif suffix in (".csv", ".tsv"):
        events = table_events(read_table(path), str(path))
    elif suffix in (".txt", ".json", ".mid", ".midi"):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        if suffix == ".json":
            events = json_events(data, str(path))
        elif suffix == ".txt":
            events = label_events(data, str(path))
        else:
            events = midi_events(data, notes or {}, str(path))
    else:
        known = ".csv, .tsv, .txt, .json, .mid, .midi, " + ", ".join(RECORDINGS)
        raise UserError(f"cannot read onsets from {path}: expected a name that ends in {known}")
    if not events:
        raise UserError(f"{path} holds no events: expected one or more times")
    return sorted_events(events)


def sorted_events(events: Iterable[Event]) -> list[Event]:
    """Return events sorted by time; those at the same time keep their order."""
    return sorted(events, key=lambda event: event.time)


def make_event(where: str, time: Any, label: Any = "", velocity: Any = None, seed: Any = None) -> Event:
    """Return an event from JSON values, or from the cells of a table.

    Raises UserError, beginning with `where`, for values that are out of range or not numbers.
    """
    seconds, intensity, number = _number(time), 1.0 if velocity is None else _number(velocity), _number(seed)
    if seconds is None:
        raise UserError(
            f"{where}: time {_short(time)}: expected seconds such as 1.25, or minutes:seconds, each part under 60"
        )
    if not 0 <= seconds <= LATEST:
        raise UserError(f"{where}: time {_short(time)}: expected 0 to {LATEST:g} seconds")
    if intensity is None or not 0 < intensity <= 1:
        raise UserError(f"{where}: velocity {_short(velocity)}: expected above 0, up to 1 (a MIDI velocity / 127)")
    if not isinstance(label, str):
        raise UserError(f"{where}: label {_short(label)}: expected a name such as footstep")
    if seed is None:
        return Event(seconds, label.strip(), intensity, where=where)
    if number is None or number != int(number):
        raise UserError(f"{where}: seed {_short(seed)}: expected a whole number")
    try:
        return Event(seconds, label.strip(), intensity, check_seed(int(number)), where)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _number(value: Any) -> float | None:
    """Return a finite number from a number, a text with a decimal point or comma, or [hours:]minutes:seconds; else None."""
    try:
        if isinstance(value, str):
            *clock, last = value.strip().split(":")
            found = parse_number(last)
            if clock and not (0 <= found < 60 and all(part.isdecimal() for part in clock)):
                return None
            if clock[2:] or any(int(part) >= 60 for part in clock[1:]):  # only the first part may be any number
                return None
            found += sum(60**power * int(part) for power, part in enumerate(reversed(clock), 1))
        else:
            found = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except (UserError, OverflowError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- formats ------------------------------------------------------------------------------------------------------


def table_events(table: Table, where: str) -> list[Event]:
    """Return the events of a table; an empty cell stands for the default."""
    if "time" not in table.columns:
        raise UserError(
            f"{where} has the columns {', '.join(table.columns)}: expected time, optionally label, velocity, seed"
        )
    return [
        make_event(f"{where}, line {row.line}", row["time"], row["label"], row["velocity"] or None, row["seed"] or None)
        for row in table.rows
    ]


def label_events(data: bytes, where: str) -> list[Event]:
    """Return the events of an Audacity label track (start, end, text; the end is ignored), or of one time on each line."""
    events = []
    for line, text in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), 1):
        cells = text.strip().split("\t")
        if text.strip() and not text.startswith("\\"):  # a backslash: the frequencies of the label above
            events.append(make_event(f"{where}, line {line}", cells[0], cells[2] if cells[2:] else ""))
    return events


def json_events(data: bytes, where: str) -> list[Event]:
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
            events.append(make_event(at, entry))
        elif "time" in entry:
            keys = ("time", "label", "velocity", "seed")
            events.append(make_event(at, **{key: entry[key] for key in keys if key in entry}))
        else:
            raise UserError(f"{at} states no time: expected an object with time, optionally label, velocity, seed")
    return events


def midi_events(data: bytes, notes: Mapping[int, str], where: str) -> list[Event]:
    """Return an event for each note of a MIDI file, of all tracks and channels; changes of tempo are followed.

    `notes` gives a label by note number; other notes have none.
    """
    import mido

    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        if file.ticks_per_beat <= 0:
            raise UserError(f"{where} counts in film frames, not in beats: export it with ticks per beat (PPQ)")
        seconds, events = 0.0, []
        for message in file:
            seconds += message.time
            if message.type == "note_on" and message.velocity:
                label = notes.get(message.note, "")
                events.append(make_event(f"{where}, note {message.note}", seconds, label, message.velocity / 127))
    except UserError:
        raise
    except Exception as error:  # mido raises half a dozen exceptions without a common base for damaged files
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UserError(f"{where} is not a MIDI file that can be read, or is cut short ({reason})") from None
    if not events:
        raise UserError(f"{where} holds no notes: expected one or more")
    return events


def note_labels(pairs: Sequence[str]) -> dict[int, str]:
    """Return {36: "footstep"} for ["36=footstep"]. Raises UserError for a text that is not a note and a label."""
    labels = {}
    for pair in pairs:
        note, _, label = pair.partition("=")
        if not (note.isdecimal() and int(note) < 128 and label):
            raise UserError(f"notes {pair}: expected a MIDI note from 0 to 127 and a label, such as 36=footstep")
        labels[int(note)] = label
    return labels


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
    hits = [(index, HITS[step]) for index, step in enumerate(steps * repeat) if step in HITS]
    if not hits:
        raise UserError(f"pattern {pattern!r} has no hits: expected an x or more, such as x..x..x.")
    return [Event(index * sixteenth, velocity=velocity) for index, velocity in hits]
