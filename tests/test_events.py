"""Event lists in every format are read and sorted without losing an event; mistakes are errors of one line."""

import csv
import io
import json
from contextlib import suppress
from pathlib import Path

import mido
import numpy as np
import pytest
from helpers import clicks
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.audio import write_wave
from foleybox.errors import UserError
from foleybox.studio.events import (
    LATEST,
    Event,
    Reading,
    json_events,
    label_events,
    mapped,
    midi_events,
    note_labels,
    pattern_events,
    read_events,
)
from foleybox.studio.timecode import parse_time

EXPECTED = [Event(0.5, "Footstep", 0.8), Event(1.25, "rain", 1.0, 7)]


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- CSV ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "time,label,velocity,seed\n0.5,Footstep,0.8,\n1.25,rain,,7\n",
        "time,label,velocity,seed\n1.25,rain,1,7\n0.5,Footstep,0.8,\n",  # unsorted
        "\ufefftime;label;velocity;seed\r\n0,5;Footstep;0,8;\r\n1,25;rain;;7\r\n",  # Excel, with decimal commas
        "Time\tLabel\tSeed\tVelocity\n0.5\tFootstep\t\t0.8\n\n0:01.25\train\t7\t\n",  # a clock
        'note,velocity,seed,time,label\n"a, b",0.8,,0.5, Footstep \n,,7.0,"1,25",rain\n',  # other columns, quotes
    ],
)
def test_a_csv_is_read_in_any_order_separator_and_decimal_mark(tmp_path: Path, content: str) -> None:
    assert read_events(file(tmp_path, "on.csv", content)) == EXPECTED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("time\n-0.5\n", "line 2: time '-0.5': expected 0 to 7200 seconds"),
        ("time\n0.5\n,\n1e9\n", "line 4: time '1e9': expected 0"),
        ("time\n1:75\n", "line 2: time '1:75': expected seconds such as 1.25, or minutes:seconds, each part under 60"),
        ("time\n1:60:05\n", "line 2: time '1:60:05'"),
        ("time\n1:-5\n", "line 2: time '1:-5'"),
        ("time,seed\n1,-1\n", "line 2: seed -1: expected a whole number from 0"),
        ("time\nsoon\n", "line 2: time 'soon': expected seconds such as 1.25, or minutes:seconds"),
        ("time\n1:xx\n", "time '1:xx': expected seconds"),
        ("time\nnan\n", "time 'nan': expected seconds"),
        ("time,velocity\n1,100\n", "velocity '100': expected above 0, up to 1"),
        ("time,velocity\n1,0\n", "velocity '0': expected above 0"),
        ("time,seed\n1,2.5\n", "seed '2.5': expected a whole number"),
        ("time,seed\n1,-2\n", "seed -2: expected a whole number from 0"),
        ("start,label\n1,rain\n", "has the columns start, label: expected time"),
        ("time\n", "holds no events: expected one or more times"),
        ("", "is empty: expected a line of column names"),
    ],
)
def test_an_event_that_cannot_be_placed_is_an_error_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(UserError, match=None) as caught:
        read_events(file(tmp_path, "on.csv", content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- JSON, labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [{"time": 1.25, "label": "rain", "seed": 7}, {"time": "0,5", "label": "Footstep", "velocity": 0.8}],
        {
            "events": [
                {"time": 0.5, "label": "Footstep", "velocity": 0.8, "x": []},
                {"time": 1.25, "label": "rain", "seed": 7.0},
            ]
        },
    ],
)
def test_json_is_a_list_of_objects_by_itself_or_under_events(tmp_path: Path, content) -> None:
    assert read_events(file(tmp_path, "on.json", json.dumps(content))) == EXPECTED


def test_json_may_be_a_list_of_times_alone() -> None:
    assert json_events(b"\xef\xbb\xbf[1, 0.5]", "x") == [Event(1), Event(0.5)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[" + "9" * 5000 + "]", "is not JSON"),
        ('"x"', "holds no list"),
        ('{"rows": []}', "holds no list"),
        ('[{"at": 1}]', "event 1 states no time"),
        ("[true]", "event 1: time True"),
        ("[null]", "event 1: time None"),
        ("[1, [2]]", "event 2: time [2]"),
        ("[NaN]", "event 1: time nan"),
        ("[1e400]", "event 1: time inf"),
        ('[{"time": 1, "label": 3}]', "event 1: label 3"),
        ('[{"time": 1, "velocity": true}]', "event 1: velocity True"),
        ('[{"time": 1, "seed": "x"}]', "event 1: seed 'x'"),
        ('[{"time": 1, "seed": 1e300}]', "expected a whole number from 0"),
    ],
)
def test_json_that_is_no_list_of_events_is_an_error(content: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        json_events(content.encode(), "on.json")
    assert words in str(caught.value)


def test_an_audacity_label_track_is_read_by_its_starts_and_texts(tmp_path: Path) -> None:
    track = "0.500000\t0.700000\tFootstep\n\\\t100\t2000\n1,250000\t1,25\train\n"
    assert [(event.time, event.label) for event in read_events(file(tmp_path, "labels.txt", track))] == [
        (0.5, "Footstep"),
        (1.25, "rain"),
    ]
    assert label_events(b"2\n\n0,5\n", "x") == [Event(2), Event(0.5)]


# --- MIDI ---------------------------------------------------------------------------------------------------------


def midi(notes: list[tuple[int, int, int]], tempo: int = 500_000, ticks: int = 480) -> bytes:
    """Return a MIDI file of notes (ticks after the one before, note, velocity)."""
    made = mido.MidiFile(ticks_per_beat=ticks)
    track = mido.MidiTrack()
    made.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=tempo))
    for after, note, velocity in notes:
        track.append(mido.Message("note_on", note=note, velocity=velocity, time=after))
    memory = io.BytesIO()
    made.save(file=memory)
    return memory.getvalue()


def test_midi_notes_become_events_at_their_times_with_their_velocity_and_label() -> None:
    # At 120 beats a minute a tick is 0.5 / 480 s; a velocity of 0 ends a note.
    data = midi([(480, 36, 127), (240, 36, 0), (240, 38, 64), (480, 40, 1)])
    events = midi_events(data, Reading(notes={36: "footstep", 38: "gunshot"}), "x")
    assert [(event.time, event.label) for event in events] == [(0.5, "footstep"), (1.0, "gunshot"), (1.5, "")]
    assert [event.velocity for event in events] == pytest.approx([1, 64 / 127, 1 / 127])


def test_midi_follows_its_changes_of_tempo() -> None:
    made = mido.MidiFile(ticks_per_beat=100)
    tempo, notes = mido.MidiTrack(), mido.MidiTrack()
    made.tracks += [tempo, notes]
    tempo.append(mido.MetaMessage("set_tempo", tempo=1_000_000, time=0))  # 60 beats a minute
    tempo.append(mido.MetaMessage("set_tempo", tempo=250_000, time=200))  # 240, from the third beat on
    notes += [mido.Message("note_on", note=36, velocity=127, time=100 * step) for step in (1, 3)]
    memory = io.BytesIO()
    made.save(file=memory)
    assert [event.time for event in midi_events(memory.getvalue(), Reading(), "x")] == pytest.approx([1.0, 2.5])


def test_midi_without_notes_or_with_film_frames_or_truncated_is_an_error(tmp_path: Path) -> None:
    whole = midi([(480, 36, 127)])
    frames = bytearray(whole)
    frames[12:14] = b"\xe7\x28"  # 25 frames a second, 40 ticks a frame
    for content, words in (
        (midi([]), "holds no notes: expected one or more"),
        (bytes(frames), "counts in film frames"),
        (whole[:30], "is not a MIDI file that can be read, or is cut short"),
        (b"RIFF", "is not a MIDI file"),
        (b"", "is not a MIDI file"),
    ):
        with pytest.raises(UserError) as caught:
            read_events(file(tmp_path, "on.mid", content))
        assert words in str(caught.value)


def two_tracks(type: int = 1) -> bytes:
    """Return a MIDI file with a track of tempo, and the tracks "Left" (a note at 1 s) and "Right" (at 2.25 s and 3.25 s)."""
    made = mido.MidiFile(type=type, ticks_per_beat=100)
    for name, notes in (("Tempo", ()), ("Left", (100,)), ("Right", (300, 400))):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
        track += [mido.Message("note_on", note=36, velocity=127, time=time) for time in notes[:1]]
        track += [mido.Message("note_on", note=38, velocity=127, time=400) for _ in notes[1:]]
        made.tracks.append(track)
    made.tracks[0].append(mido.MetaMessage("set_tempo", tempo=1_000_000, time=0))
    made.tracks[0].append(mido.MetaMessage("set_tempo", tempo=250_000, time=200))
    memory = io.BytesIO()
    made.save(file=memory)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("track", "times"), [("", [1, 2.25, 3.25]), ("left", [1]), ("2", [1]), ("Right", [2.25, 3.25])]
)
def test_one_track_of_a_midi_file_is_read_at_its_times(tmp_path: Path, track: str, times: list[float]) -> None:
    path = file(tmp_path, "on.mid", two_tracks())
    assert [event.time for event in read_events(path, Reading(track=track))] == pytest.approx(times)


@pytest.mark.parametrize(
    ("track", "kind", "words"),
    [
        ("4", 1, "--track 4: .*on.mid has the tracks 1 Tempo, 2 Left, 3 Right; expected a number"),
        ("drums", 1, "--track drums: .*has the tracks 1 Tempo"),
        ("1", 1, "holds no notes in track 1"),
        ("", 2, "on.mid is a MIDI file of type 2 .independent patterns.: export it as type 0 or 1"),
    ],
)
def test_a_midi_track_that_is_absent_and_a_file_of_type_2_are_errors(
    tmp_path: Path, track: str, kind: int, words
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_events(file(tmp_path, "on.mid", two_tracks(kind)), Reading(track=track))
    assert "\n" not in str(caught.value)


def test_notes_are_given_labels_by_number_or_name() -> None:
    assert note_labels(["36=footstep", "38=gun shot"]) == {36: "footstep", 38: "gun shot"}
    named = note_labels(["C4=a", "C2=b", "F#1=c", "Bb2=d", "C-1=e", "G9=f"])
    assert named == {60: "a", 36: "b", 30: "c", 46: "d", 0: "e", 127: "f"}
    for wrong in ("footstep", "128=rain", "36=", "x=rain", "-1=rain", "G#9=rain", "H2=rain", "C=rain", "C2="):
        with pytest.raises(UserError, match="expected a MIDI note from 0 to 127 or C-1 to G9, and a label"):
            note_labels([wrong])


# --- times in frames, labels of one's own ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fps", "seconds"),
    [
        ("00:00:10:12", 25, 10.48),
        ("01:00:00:00", 24, 3600),
        ("01:00:00:00", 23.976, 3603.6),  # without drop-frame, an hour of timecode is longer than an hour
        ("01:00:00;00", 29.97, 3599.9964),  # with drop-frame, it is not
        ("00:01:00;02", 29.97, 1800 / (30000 / 1001)),  # the first number after 00:00:59;29
        ("00:10:00;00", 29.97, 17982 / (30000 / 1001)),
        ("00:01:00;04", 59.94, 3600 / (60000 / 1001)),
        ("120f", 24, 5),
        ("1:02.5", None, 62.5),
        ("1:00:02,5", 25, 3602.5),
    ],
)
def test_times_are_seconds_or_frames(text: str, fps: float | None, seconds: float) -> None:
    assert parse_time(text, fps) == pytest.approx(seconds, abs=1e-4)


def test_every_drop_frame_timecode_of_an_hour_is_one_frame_after_the_one_before() -> None:
    rate, frame = 30000 / 1001, 0
    for minute in (0, 1, 2, 9, 10, 11):
        found = [
            parse_time(f"00:{minute:02}:{second:02};{number:02}", 29.97)
            for second in range(60)
            for number in range(2 if minute % 10 and not second else 0, 30)
        ]
        frame = 1800 * minute - 2 * (minute - minute // 10)
        frames = [None if each is None else round(each * rate, 6) for each in found]
        assert frames == [frame + index + (2 if minute % 10 else 0) for index in range(len(found))]


@pytest.mark.parametrize(
    ("text", "fps", "words"),
    [
        ("00:00:10:12", None, "counts frames: add --fps"),
        ("12f", None, "counts frames: add --fps"),
        ("00:00:10:25", 25, "expected HH:MM:SS:FF with fewer than 60, 60 and 25 at 25 fps"),
        ("00:60:10:00", 25, "expected HH:MM:SS:FF with fewer than 60"),
        ("00:00:10;00", 25, "is drop-frame at 25 fps: expected 29.97"),
        ("00:01:00;01", 29.97, "does not exist in drop-frame: the minute begins with frame 2"),
        ("00:00:01:00", 29.5, "fps 29.5: expected a whole number from 1 to 240, or 23.976"),
    ],
)
def test_a_timecode_that_does_not_exist_is_an_error(text: str, fps: float | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_time(text, fps)


def test_a_list_in_timecode_begins_at_its_start_and_a_column_of_frames_is_read(tmp_path: Path) -> None:
    path = file(
        tmp_path, "on.csv", "time,label,pan\n01:00:01:00,left foot,-1\n01:00:02:12,Right Foot,0.5\n01:00:03:00,,\n"
    )
    events = read_events(path, Reading(fps=24, start="01:00:00:00"))
    assert [(event.time, event.pan) for event in events] == [(1, -1), (2.5, 0.5), (3, None)]
    labels = [event.label for event in mapped(events, ["LEFT-FOOT=footstep", "right foot=gun"])]
    assert labels == ["footstep", "gun", ""]
    with pytest.raises(UserError, match=r"line 2: time '01:00:01:00' is before --start 02:00:00:00"):
        read_events(path, Reading(fps=24, start="02:00:00:00"))
    with pytest.raises(UserError, match="a timecode that begins later needs --start"):
        read_events(file(tmp_path, "late.csv", "time\n10:00:00:00\n"), Reading(fps=24))
    with pytest.raises(
        UserError, match="map foot=footstep: no event has the label 'foot'; there are left foot, Right Foot"
    ):
        mapped(events, ["foot=footstep"])
    with pytest.raises(UserError, match="map left foot: expected a text and a label"):
        mapped(events, ["left foot"])
    with pytest.raises(UserError, match=r"line 2: pan '2': expected -1 .left. to 1"):
        read_events(file(tmp_path, "pan.csv", "time,pan\n1,2\n"))
    frames = file(tmp_path, "frames.csv", "frame;label\n48;rain\n12;dog\n")
    assert [event.time for event in read_events(frames, Reading(fps=24))] == [0.5, 2]


# --- patterns, recordings -----------------------------------------------------------------------------------------


def test_a_pattern_is_sixteenths_with_three_velocities_and_can_be_repeated() -> None:
    events = pattern_events(60, "X. xo | -_..", 2)
    assert [(event.time, event.velocity) for event in events] == [
        (0, 1.0), (0.5, 0.7), (0.75, 0.4), (2, 1.0), (2.5, 0.7), (2.75, 0.4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bpm", "pattern", "repeat", "words"),
    [
        (0, "x", 1, "bpm 0: expected 1 to 1000"),
        (float("nan"), "x", 1, "bpm nan"),
        (100, "....", 1, "has no hits"),
        (100, "", 1, "has no hits"),
        (100, "x.y", 1, "has the character 'y'"),
        (100, "x", 0, "repeat 0"),
    ],
)
def test_a_pattern_that_cannot_be_played_is_an_error(bpm: float, pattern: str, repeat: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pattern_events(bpm, pattern, repeat)


def test_a_recording_gives_its_onsets_with_their_levels(tmp_path: Path) -> None:
    wave = clicks([0.5, 1.0, 1.5], 2.0)
    wave[10_000:] *= 0.5  # the third
    write_wave(tmp_path / "click.wav", wave, 8_000)
    events = read_events(tmp_path / "click.wav")
    assert [event.time for event in events] == pytest.approx([0.5, 1.0, 1.5], abs=0.005)
    assert max(event.velocity for event in events) == 1.0
    assert 0.1 < events[2].velocity < 0.8
    write_wave(tmp_path / "hum.wav", np.full(8_000, 0.1, np.float32), 8_000)
    with pytest.raises(UserError, match="has no onsets"):
        read_events(tmp_path / "hum.wav")


def test_a_missing_file_or_one_of_another_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read onsets from x.xlsx: expected a name that ends in .csv"):
        read_events("x.xlsx")
    for name in ("no.csv", "no.json", "no.mid", "no.wav", "no.txt"):
        with pytest.raises(UserError, match="no"):
            read_events(tmp_path / name)


# --- any file at all ----------------------------------------------------------------------------------------------

BYTES = st.binary(max_size=300)
TEXTS = st.text(st.sampled_from('0123456789.,;:\t\n"-+eE[]{}\\timelabvcysd \ufeff'), max_size=120).map(str.encode)
SUFFIX = st.sampled_from([".csv", ".tsv", ".txt", ".json", ".mid", ".wav", ".flac", ".ogg"])


@settings(deadline=None, max_examples=120)
@given(SUFFIX, BYTES | TEXTS)
def test_any_bytes_are_events_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    try:
        events = read_events(path)
    except UserError:
        return
    assert events == sorted(events, key=lambda event: event.time)
    assert all(0 <= event.time <= LATEST and 0 < event.velocity <= 1 for event in events)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_a_damaged_midi_file_is_events_or_an_error_of_one_line(data) -> None:
    content = bytearray(midi([(480, 36, 127), (100, 38, 9), (50, 40, 70)]))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UserError):
        midi_events(bytes(content[: data.draw(st.integers(0, len(content)))]), Reading(), "x.mid")


EVENTS = st.builds(
    Event,
    time=st.floats(0, LATEST).map(lambda time: round(time, 4)),
    label=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12).map(str.strip),
    velocity=st.floats(0.001, 1).map(lambda velocity: round(velocity, 4)),
    seed=st.none() | st.integers(0, 2**53 - 1),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(EVENTS, min_size=1, max_size=20))
def test_events_written_as_csv_and_json_come_back(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    in_order = sorted(events, key=lambda event: event.time)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t")
    writer.writerow(["time", "label", "velocity", "seed"])
    writer.writerows(
        [event.time, event.label, event.velocity, "" if event.seed is None else event.seed] for event in events
    )
    assert read_events(file(folder, "all.csv", text.getvalue())) == in_order
    rows = [{**vars(event)} for event in events]
    assert read_events(file(folder, "all.json", json.dumps(rows))) == in_order
