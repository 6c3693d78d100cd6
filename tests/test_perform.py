"""`foleybox perform` from end to end: what its flags do, and one line for a mistake before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import clicks, toy_instrument
from test_events import midi

from foleybox.audio import read_channels, read_wave, write_wave
from foleybox.cli import main
from foleybox.commands.perform import read_curve
from foleybox.errors import UserError
from foleybox.studio.events import read_events


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_instrument(tmp_path_factory.mktemp("perform") / "toy"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_pattern_becomes_a_mix_a_stem_and_markers_that_verify(here: Path, toy: str, capsys) -> None:
    command = ["perform", "--bpm", "120", "--pattern", "x.X.", "--label", "dog_bark", "--instrument", toy, "-o", "s"]
    assert main(command) == 0
    assert "played 2 events in" in capsys.readouterr().out
    assert files(here / "s") == ["markers.csv", "markers.txt", "mix.wav", "stems/DogBark.wav"]
    placed = read_events(here / "s/markers.csv")
    assert [(event.time, event.label, event.velocity) for event in placed] == [
        (0, "DogBark", 0.7),
        (0.25, "DogBark", 1),
    ]
    assert main(["verify", "s", "--instrument", toy]) == 0
    before = (here / "s/mix.wav").read_bytes()
    assert main(command) == 2
    assert "s/mix.wav and 3 more exist already: add --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert (here / "s/mix.wav").read_bytes() == before


def test_a_forced_scene_leaves_nothing_of_the_one_before_but_what_others_wrote(here: Path, toy: str) -> None:
    beat = ["perform", "--bpm", "120", "--instrument", toy, "-o", "s"]
    assert main([*beat, "--label", "dog_bark", "--surface", "rain=0.5", "--format", "flac"]) == 0
    write_wave(here / "s/stems/mine.wav", clicks([0.1], 0.5), 8_000)
    (here / "s/stems/Rain.flac").write_bytes(b"mine too")
    assert main([*beat, "--label", "gunshot", "--force"]) == 0
    assert files(here / "s") == [
        "markers.csv", "markers.txt", "mix.wav", "stems/GunShot.wav", "stems/Rain.flac", "stems/mine.wav"
    ]  # fmt: skip


def test_a_scene_of_another_format_is_not_removed_without_force(here: Path, toy: str, capsys) -> None:
    beat = ["perform", "--bpm", "120", "--instrument", toy, "-o", "s", "--label", "dog_bark"]
    assert main([*beat, "--format", "flac"]) == 0
    for markers in (here / "s").glob("markers.*"):
        markers.unlink()
    capsys.readouterr()
    assert main(beat) == 2
    assert "s/mix.flac and 1 more exist already: add --force" in capsys.readouterr().err
    assert files(here / "s") == ["mix.flac", "stems/DogBark.flac"]


def test_a_stem_whose_rises_are_followed_is_not_removed_with_the_scene_it_was_of(here: Path, toy: str) -> None:
    (here / "x.csv").write_text("time\n0.2\n0.7\n")
    assert main(["perform", "x.csv", "--label", "dog", "--instrument", toy, "-o", "s"]) == 0
    follow = ["perform", "s/stems/DogBark.wav", "--label", "gun", "--instrument", toy, "-o", "s", "--force"]
    assert main(follow) == 0
    assert "stems/DogBark.wav" in files(here / "s")


@pytest.mark.parametrize("kind", ["csv", "json", "txt", "mid", "wav"])
def test_every_kind_of_list_is_played_at_its_times(here: Path, toy: str, kind: str) -> None:
    times = [0.25, 0.75, 1.5]
    path = here / f"Türen & Schritte.{kind}"
    if kind == "mid":
        path.write_bytes(midi([(240, 36, 100), (480, 36, 100), (720, 36, 100)]))
    elif kind == "wav":
        write_wave(path, clicks(times, 2.0), 8_000)
    else:
        rows = {"csv": "time\n", "json": "[0.75, ", "txt": ""}[kind]
        path.write_text(rows + ("0.25, 1.5]" if kind == "json" else "0.75\n0.25\n1.5\n"))
    assert main(["perform", str(path), "--label", "rain", "--instrument", toy]) == 0
    assert [event.time for event in read_events(here / "scene/markers.csv")] == pytest.approx(times, abs=0.005)


def test_midi_notes_are_played_as_their_labels(here: Path, toy: str) -> None:
    (here / "x.mid").write_bytes(midi([(240, 36, 100), (480, 38, 50), (10, 40, 50)]))
    flags = ["--notes", "36=footstep", "38=gun", "--label", "rain"]
    assert main(["perform", "x.mid", *flags, "--instrument", toy, "--json", "-o", "s"]) == 0
    assert [event.label for event in read_events(here / "s/markers.csv")] == ["Footstep", "GunShot", "Rain"]
    assert files(here / "s/stems") == ["Footstep.wav", "GunShot.wav", "Rain.wav"]


def test_surfaces_lie_under_events_for_as_long_as_asked(here: Path, toy: str, capsys) -> None:
    (here / "rain.csv").write_text("time;intensity\n0;0,2\n1,5;1\n")
    flags = ["--surface", "rain=rain.csv", "motor=0,4", "--seconds", "2", "--rate", "16000", "--json"]
    assert main(["perform", "--bpm", "60", "--label", "rain", *flags, "--instrument", toy]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stem"] for line in lines] == ["", "Rain", "Rain_surface", "MovingMotorVehicle_surface"]
    for line in lines:
        wave, rate = read_wave(line["file"])
        assert (len(wave), rate) == (32_000, 16_000)


def test_a_label_of_any_spelling_and_name_is_one_stem_in_its_folder(here: Path, tmp_path: Path) -> None:
    labels = ("Tür/auf", "x/..", "Rain")
    folder = str(toy_instrument(tmp_path / "odd", labels=labels))
    rows = "\n".join(["time,label", '0.1,"tür AUF"', "0.2,rain"])
    (here / "x.csv").write_text(rows)
    assert main(["perform", "x.csv", "--instrument", folder, "-o", "s"]) == 0
    assert files(here / "s/stems") == ["Rain.wav", "Tür_auf.wav"]


def test_a_guide_plays_events_by_its_onsets_and_rain_by_its_level(here: Path, toy: str) -> None:
    write_wave(here / "table.wav", clicks([0.25, 0.75, 1.5], 2.0), 8_000)
    assert (
        main(["perform", "--guide", "table.wav", "--label", "dog", "--surface", "rain", "--instrument", toy, "-o", "s"])
        == 0
    )
    placed = read_events(here / "s/markers.csv")
    assert [event.time for event in placed] == pytest.approx([0.25, 0.75, 1.5], abs=0.005)
    assert files(here / "s/stems") == ["DogBark.wav", "Rain_surface.wav"]
    rain, rate = read_wave(here / "s/stems/Rain_surface.wav")
    assert len(rain) >= 2 * rate
    assert (
        np.abs(rain[round(0.26 * rate) : round(0.29 * rate)]).max() > 5 * np.abs(rain[rate : round(1.4 * rate)]).max()
    )
    assert main(["perform", "--guide", "table.wav", "--label", "rain", "--instrument", toy, "-o", "r"]) == 0
    assert files(here / "r/stems") == ["Rain_surface.wav"]
    assert main(["perform", "--surface", "rain=table.wav", "--instrument", toy, "-o", "c"]) == 0
    assert (here / "c/mix.wav").read_bytes() == (here / "r/mix.wav").read_bytes()
    assert main(["verify", "s", "r", "--instrument", toy]) == 0


def test_timecode_texts_and_pans_are_played(here: Path, toy: str) -> None:
    (here / "spot.csv").write_text("time,label,pan\n01:00:00:12,left foot,-1\n01:00:01:06,right foot,1\n")
    flags = ["--fps", "24", "--start", "01:00:00:00", "--map", "left foot=footstep", "right foot=gun"]
    assert main(["perform", "spot.csv", *flags, "--instrument", toy, "-o", "s"]) == 0
    placed = [(event.time, event.label, event.pan) for event in read_events(here / "s/markers.csv")]
    assert placed == [(0.5, "Footstep", -1), (1.25, "GunShot", 1)]
    left, right = read_channels(here / "s/stems/Footstep.wav")[0].T
    assert np.abs(left).max() > 0.05
    assert not right.any()
    assert main(["verify", "s", "--instrument", toy]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to play: expected ONSETS, or --bpm and --pattern, or --surface"),
        (["a.csv"], "a.csv has 2 events without a label: name one with --label"),
        (["a.mid"], "has 1 events without a label: name one with --label (or --notes NOTE=LABEL)"),
        (["a.csv", "--bpm", "100"], "a.csv and --bpm: expected one of the two"),
        (["a.csv", "--label", "piano"], "a.csv, line 3: unknown label 'piano'"),
        (["bad.csv"], "bad.csv, line 3: unknown label 'piano'"),
        (["bad.json"], "bad.json, event 1: seed -1: expected a whole number from 0"),
        (["bad.csv"], '--map "TEXT=LABEL" replaces a text'),
        (["bad.csv", "--map", "dog=rain"], "map dog=rain: no event has the label 'dog'; there are piano, rain"),
        (["a.csv", "--label", "rain", "--fps", "29.5"], "fps 29.5: expected a whole number"),
        (["a.csv", "--label", "rain", "--track", "2"], "--track with a.csv: expected a MIDI file"),
        (["a.mid", "--label", "rain", "--track", "9"], "--track 9: a.mid has the tracks 1"),
        (["--bpm", "100", "--label", "rain", "--fps", "25"], "--fps without ONSETS"),
        (["--guide", "a.csv", "--label", "rain"], "a.csv is not a sound file"),
        (["--guide", "none.wav", "--label", "rain"], "none.wav"),
        (["a.csv", "--label", "rain", "--pan", "3"], "pan 3: expected 0 (the middle) to 1"),
        (["--bpm", "100"], "--bpm 100 without a label: name the sound with --label"),
        (["a.csv", "--label", "rain", "--variations", "2", "--no-repeat", "5"], "no-repeat 5 of 2 variations"),
        (
            ["a.csv", "--label", "rain", "--format", "ogg", "--subtype", "PCM_24"],
            "OGG is Vorbis, which has no bit depth",
        ),
        (["a.csv", "--label", "rain", "-o", "x.wav"], "-o x.wav is a sound file's name: expected a folder"),
        (["a.csv", "--label", "rain", "--notes", "36=rain"], "--notes with a.csv: expected a MIDI file"),
        (["a.csv", "--label", "rain", "--seconds", "0.5"], "an event at 2 s, beyond the 0.5 s of the scene"),
        (["none.csv", "--label", "rain"], "cannot read none.csv"),
        (["empty.csv", "--label", "rain"], "empty.csv holds no events"),
        (["a.csv", "--label", "rain", "--surface", "rain"], "--surface rain: expected a label and a curve"),
        (["a.csv", "--label", "rain", "--surface", "rain=a.csv"], "a.csv has no column intensity"),
        (["a.csv", "--label", "rain", "--surface", "rain=2"], "intensity 2 of rain"),
        (["--surface", "rain=1", "rain=0.5"], "expected each label once"),
        (["--surface", "rain=1", "Rain=0.5"], "two surfaces of one label"),
        (["--surface", "rain=0.5"], "has no end: name its seconds"),
        (["--bpm", "0", "--label", "rain"], "bpm 0: expected 1 to 1000"),
        (["a.csv", "--label", "rain", "--rate", "5"], "--rate 5: expected 1000"),
        (["a.csv", "--label", "rain", "--variations", "0"], "variations 0: expected 1"),
        (["a.csv", "--label", "rain", "--amount", "-1"], "amount -1"),
        (["a.csv", "--label", "rain", "--seed", "-1"], "seed -1"),
        (["a.csv", "--label", "rain", "--format", "flac", "--subtype", "FLOAT"], "FLAC holds integers"),
        (["a.csv", "--label", "rain", "-o", "a.csv"], "a.csv"),
    ],
)
def test_a_mistake_is_reported_in_one_line_and_nothing_is_written(
    here: Path, toy: str, capsys, arguments, words
) -> None:
    (here / "a.csv").write_text("time\n2\n0.1\n")
    (here / "empty.csv").write_text("time,label\n")
    (here / "bad.csv").write_text("time,label\n1,rain\n0.5,piano\n")
    (here / "bad.json").write_text('[{"time": 0.5, "label": "rain", "seed": -1}]')
    (here / "a.mid").write_bytes(midi([(240, 36, 100)]))
    assert main(["perform", *arguments, "--instrument", toy]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert sorted(path.name for path in here.iterdir()) == [
        "a.csv",
        "a.mid",
        "bad.csv",
        "bad.json",
        "empty.csv",
    ]  # not a folder either


def test_a_curve_with_a_bad_line_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("time,intensity\n0,1\n1,much\n")
    with pytest.raises(UserError, match=r"c.csv, line 3: 'much': expected a number"):
        read_curve(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("intensity;time\n0,5;1\n0;0\n")
    assert read_curve(tmp_path / "c.csv") == [(1.0, 0.5), (0.0, 0.0)]
