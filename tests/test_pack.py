"""`foleybox pack`: equally loud sounds below the ceiling, without near-duplicates, with names and texts for engines."""

import base64
import csv
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import TRAINING_CLIPS, Drawn, clicks, toy_instrument, toy_manifest

from foleybox.audio import Wave, read_wave, true_peak_db, wav_chunk, write_wave
from foleybox.cli import main
from foleybox.commands.info import describe_sound
from foleybox.licences import TrainingClips
from foleybox.studio.engines import UNITY_PLAYER, engine_files
from foleybox.studio.onsets import find_onsets
from foleybox.studio.pack import licence_text, ucs_name
from foleybox.studio.recipe import read_recipe
from foleybox.studio.remake import rerender
from foleybox.studio.shape import event_loudness, levels
from foleybox.studio.spectra import band_levels, distance
from foleybox.studio.synth import Synth

RATE = 8_000


class Steps(Drawn):
    """An instrument of steps: a click and 30 ms of noise, of a colour and loudness that its noise decides."""

    def draw(self, label: int, z: np.ndarray) -> Wave:
        rng = np.random.default_rng(int(abs(z[0]) * 1e6))
        wave = clicks([0.3], self.instrument.samples / RATE, seed=int(rng.integers(1_000_000)), noise_db=-80)
        wave[2400:] = np.convolve(wave[2400:], rng.standard_normal(24) / 4, "same")
        return (wave * rng.uniform(0.05, 0.5)).astype(np.float32)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Synth:
    """Let every command play the instrument of steps."""
    synth = Steps(toy_manifest(samples=8_000), Path("nowhere"))
    monkeypatch.setattr("foleybox.studio.synth.Synth.load", lambda *_: synth)
    return synth


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_instrument(tmp_path_factory.mktemp("pack") / "toy"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the sounds ---------------------------------------------------------------------------------------------------


def test_one_shots_are_equally_loud_under_the_ceiling_trimmed_and_verify(steps: Synth, here: Path) -> None:
    assert main(["pack", "footstep", "--count", "12", "--lufs", "-20", "--peak", "-2"]) == 0
    rows = manifest(here / "pack")
    assert len(rows) == 12
    for row in rows:
        wave, rate = read_wave(here / "pack" / row["file"])
        assert abs(event_loudness(wave, rate) + 20) <= 0.5
        assert true_peak_db(wave) <= -2 + 0.01
        assert float(row["seconds"]) == pytest.approx(len(wave) / rate, abs=1e-4)
        assert len(wave) < 0.3 * rate  # of clips of a second
        assert find_onsets(wave, rate)[0].sample < 0.005 * rate
        recipe = read_recipe(here / "pack" / row["file"])
        assert recipe is not None
        assert recipe.seed == int(row["seed"])
        np.testing.assert_allclose(rerender(recipe, steps)[0], wave, atol=2**-15)


def test_no_two_sounds_of_a_pack_are_nearly_the_same(steps: Synth, here: Path, capsys, monkeypatch) -> None:
    draw = Steps.draw
    monkeypatch.setattr(Steps, "draw", lambda self, label, z: draw(self, label, np.floor(3 * np.abs(z))))
    assert main(["pack", "footstep", "--count", "4"]) == 0
    assert "near-duplicates" in capsys.readouterr().out
    levels = [band_levels(*read_wave(here / "pack" / row["file"])) for row in manifest(here / "pack")]
    assert min(distance(a, b) for a, b in itertools.combinations(levels, 2)) >= 2.5


def test_sounds_whose_peaks_would_pass_the_ceiling_are_replaced_and_too_few_exit_with_1(
    steps: Synth, here: Path, capsys
) -> None:
    assert main(["pack", "footstep", "--count", "3", "--lufs", "-3"]) == 1
    assert "0 of 3 sounds of Footstep (of 12 candidates: 12 too peaky); try a lower --lufs" in capsys.readouterr().err
    assert manifest(here / "pack") == []
    assert main(["pack", "footstep", "--count", "3", "--lufs", "-20", "--force"]) == 0


def test_steady_labels_become_loops_with_loop_points(toy: str, here: Path) -> None:
    assert main(["pack", "rain", "--count", "2", "--seconds", "0.3", "--instrument", toy]) in (0, 1)
    rows = manifest(here / "pack")
    assert {row["kind"] for row in rows} == {"loop"}
    for row in rows:
        wave, rate = read_wave(here / "pack" / row["file"])
        assert abs(len(wave) / rate - 0.3) < 0.026
        assert wav_chunk(here / "pack" / row["file"], b"smpl") is not None
        recipe = read_recipe(here / "pack" / row["file"])
        assert recipe is not None
        assert "fade" not in [step["do"] for step in recipe.process]  # its ends meet
        assert abs(event_loudness(wave, rate) + 24) <= 0.5
    assert main(["verify", "pack", "--instrument", toy]) == 0


def test_of_a_sound_that_swells_and_fades_its_steady_part_is_looped(here: Path, monkeypatch) -> None:
    class Passing(Drawn):
        def draw(self, label: int, z: np.ndarray) -> Wave:
            noise = np.random.default_rng(int(abs(z[0]) * 1e6)).standard_normal(self.instrument.samples)
            db = np.interp(np.arange(len(noise)) / RATE, [0, 1, 1.2, 3.2, 3.4, 4], [-90, -80, -20, -20, -80, -90])
            return (10 ** (db / 20) * noise).astype(np.float32)

    synth = Passing(toy_manifest(samples=32_000), Path("nowhere"))
    monkeypatch.setattr("foleybox.studio.synth.Synth.load", lambda *_: synth)
    assert main(["pack", "motor", "--count", "4", "--rate", "16000"]) == 0
    for row in manifest(here / "pack"):
        wave, rate = read_wave(here / "pack" / row["file"])
        assert 1.4 < len(wave) / rate < 2.3
        assert np.ptp(levels(wave, rate)) < 12
        recipe = read_recipe(here / "pack" / row["file"])
        assert recipe is not None
        np.testing.assert_allclose(rerender(recipe, synth)[0], wave, atol=2**-15)


def test_a_clip_without_a_clear_event_is_passed_over(toy: str, here: Path, capsys) -> None:
    assert main(["pack", "dog_bark", "--count", "2", "--instrument", toy]) == 1  # the toy hisses, it does not bark
    assert re.search(
        "0 of 2 sounds of DogBark .of 8 candidates: [67] without a clear event, [12] cut off by the start",
        capsys.readouterr().err,
    )


def test_the_same_pack_twice_is_the_same_bytes(steps: Synth, here: Path) -> None:
    for folder in ("a", "b"):
        assert main(["pack", "footstep", "gun", "--count", "3", "--engine", "godot", "-o", folder]) == 0
    names = [path.relative_to(here / "a") for path in (here / "a").rglob("*") if path.is_file()]
    assert len(names) == 6 + 2 + 4
    for name in names:
        assert (here / "a" / name).read_bytes() == (here / "b" / name).read_bytes()


# --- siblings, and a pack over a pack -----------------------------------------------------------------------------


def test_siblings_of_a_one_shot_are_one_shots_as_loud(steps: Synth, here: Path, monkeypatch) -> None:
    monkeypatch.setattr("foleybox.studio.synth.Synth.of", lambda *_: steps)
    assert main(["pack", "footstep", "--count", "1", "--lufs", "-24"]) == 0
    (row,) = manifest(here / "pack")
    source = str(here / "pack" / row["file"])
    assert main(["vary", source, "-n", "2", "-o", "v"]) == 0
    assert main(["walk", source, "-n", "2", "-o", "v"]) == 0
    assert main(["morph", source, "footstep:3", "-n", "2", "-o", "v"]) == 0
    assert len(list((here / "v").iterdir())) == 6
    for path in (here / "v").iterdir():
        wave, rate = read_wave(path)
        assert len(wave) < 0.3 * rate  # of clips of a second
        assert abs(event_loudness(wave, rate) + 24) < 0.1
        recipe = read_recipe(path)
        assert recipe is not None
        assert recipe.asked["kind"] == "one-shot"
        np.testing.assert_allclose(rerender(recipe, steps)[0], wave, atol=2**-15)
    # The first of a walk is the sound itself.
    (first,) = (here / "v").glob("*_w0.wav")
    assert read_wave(first)[0].tolist() == read_wave(source)[0].tolist()


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("then", [["footstep", "-n", "2", "--seed", "50"], ["dog_bark", "-n", "2"]])
def test_a_forced_pack_is_what_its_manifest_says_and_leaves_what_others_wrote(
    steps: Synth, here: Path, then: list[str]
) -> None:
    assert main(["pack", "footstep", "-n", "4", "--engine", "godot"]) == 0
    edited = here / "pack" / manifest(here / "pack")[3]["file"]
    write_wave(edited, read_wave(edited)[0], RATE)  # an editor's: without the recipe
    (here / "pack/Footstep/mine.wav").write_bytes(b"mine")
    assert main(["pack", *then, "--force"]) == 0
    rows = {row["file"] for row in manifest(here / "pack")}
    assert len(rows) == 2
    mine = {f"Footstep/{edited.name}", "Footstep/mine.wav"}
    assert everything(here / "pack") == rows | mine | {"manifest.csv", "index.html", "LICENSE.txt"}


def test_folders_that_a_forced_pack_empties_go_and_a_manifest_cannot_reach_out_of_its_folder(
    steps: Synth, here: Path
) -> None:
    assert main(["pack", "footstep", "gun", "-n", "2", "--engine", "unity"]) == 0
    outside = here / "x" / "theirs.wav"
    outside.parent.mkdir()
    outside.write_bytes((here / "pack" / manifest(here / "pack")[0]["file"]).read_bytes())
    with (here / "pack/manifest.csv").open("a") as file:
        file.write("../x/theirs.wav,Footstep,one-shot\n../theirs.wav,Footstep,one-shot\n")
    assert main(["pack", "dog_bark", "-n", "2", "--force"]) == 0
    assert outside.exists()
    assert {path.name for path in (here / "pack").iterdir()} == {"DogBark", "manifest.csv", "index.html", "LICENSE.txt"}


def test_what_a_stopped_pack_left_is_in_the_way_and_goes_with_force_whatever_made_it(
    steps: Synth, here: Path, capsys, monkeypatch
) -> None:
    assert main(["pack", "footstep", "-n", "3"]) == 0
    for name in ("manifest.csv", "index.html", "LICENSE.txt"):  # a pack that was stopped has none
        (here / "pack" / name).unlink()
    left = sorted((here / "pack/Footstep").iterdir())
    (here / "pack/Footstep/mine.wav").write_bytes(left[0].read_bytes())  # somebody's copy, by a name of theirs
    capsys.readouterr()
    assert main(["pack", "dog_bark", "-n", "2"]) == 2
    assert "exist already: add --force" in capsys.readouterr().err
    assert main(["pack", "dog_bark", "-n", "2", "--force"]) == 0
    assert {path.name for path in (here / "pack/Footstep").iterdir()} == {"mine.wav"}


def test_the_advice_is_about_what_was_wrong(steps: Synth, here: Path, capsys) -> None:
    assert main(["pack", "footstep", "--count", "2", "--kind", "loop"]) == 1
    assert "(of 8 candidates: 8 not steady); try --kind one-shot or another --seed" in capsys.readouterr().err


# --- names --------------------------------------------------------------------------------------------------------


def test_names_follow_the_universal_category_system() -> None:
    assert ucs_name("Footstep", 7, 50, "foleybox", "foley") == "FEETHmn_Footstep-07_foleybox_foley"
    assert ucs_name("Sneeze_Cough", 7, 500, "Me", "x") == "HMNCough_Sneeze-Cough-007_Me_x"
    assert ucs_name("GunShot", 1, 1, "Me", "x", "GUNPis") == "GUNPis_GunShot-01_Me_x"
    assert ucs_name("Tür/auf: zu", 1, 1, "my name", "a_b") == "Tür-auf-zu-01_my-name_a-b"


def test_odd_labels_stay_inside_the_pack(here: Path, monkeypatch) -> None:
    labels = ("Tür/auf: zu", "../up", "a b")
    synth = Steps(toy_manifest(samples=8_000, labels=labels), Path("nowhere"))
    monkeypatch.setattr("foleybox.studio.synth.Synth.load", lambda *_: synth)
    assert main(["pack", "all", "--count", "2", "-o", "p/q", "--engine", "wwise"]) == 0
    files = [path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()]
    assert all(name.startswith("p/q/") for name in files)
    assert sum(name.endswith(".wav") for name in files) == 6
    for row in manifest(here / "p/q"):
        assert (here / "p/q" / row["file"]).is_file()


# --- engines ------------------------------------------------------------------------------------------------------

SETS = {"Footstep": ["A_1.wav", "A_2.wav"], "Rain": ["B's_1.wav"]}


def test_godot_gets_a_randomizer_of_each_folder_that_names_each_sound_in_it_once() -> None:
    files = engine_files("godot", SETS, frozenset({"Rain"}))
    text = files["Footstep/Footstep.tres"]
    assert text.startswith('[gd_resource type="AudioStreamRandomizer" load_steps=3 format=3]')
    named = dict(re.findall(r'\[ext_resource type="AudioStream" path="([^"]+)" id="([^"]+)"\]', text))
    used = re.findall(r'stream_(\d+)/stream = ExtResource\("([^"]+)"\)', text)
    assert list(named) == SETS["Footstep"]
    assert used == [("0", named["A_1.wav"]), ("1", named["A_2.wav"])]
    assert "streams_count = 2\n" in text
    assert "playback_mode = 0\n" in text  # AudioStreamRandomizer.PLAYBACK_RANDOM_NO_REPEATS
    assert set(files) == {"Footstep/Footstep.tres", "Rain/Rain.tres", "README.txt"}


def test_wwise_gets_a_container_of_each_folder_and_loops_that_loop() -> None:
    rows = list(
        csv.reader(io.StringIO(engine_files("wwise", SETS, frozenset({"Rain"}))["wwise_import.tsv"]), delimiter="\t")
    )
    assert rows == [
        ["Audio File", "Object Path", "Property[IsLoopingEnabled]"],
        ["Footstep\\A_1.wav", "<Random Container>Footstep\\<Sound SFX>A_1", "false"],
        ["Footstep\\A_2.wav", "<Random Container>Footstep\\<Sound SFX>A_2", "false"],
        ["Rain\\B's_1.wav", "<Random Container>Rain\\<Sound SFX>B's_1", "true"],
    ]


def test_unreal_gets_a_script_that_imports_each_sound_and_sets_loops(monkeypatch, tmp_path: Path) -> None:
    """Run the script against a stand-in for Unreal's module that writes down what it is asked."""
    import sys
    from types import SimpleNamespace

    imported, looping = [], []

    class Task(SimpleNamespace):
        @property
        def imported_object_paths(self):
            return [self.destination_path]

    tools = SimpleNamespace(import_asset_tasks=lambda tasks: imported.extend(tasks))
    wave = SimpleNamespace(set_editor_property=lambda name, value: looping.append((name, value)))
    unreal = SimpleNamespace(
        AssetImportTask=Task,
        AssetToolsHelpers=SimpleNamespace(get_asset_tools=lambda: tools),
        load_asset=lambda _: wave,
        EditorAssetLibrary=SimpleNamespace(save_loaded_asset=lambda _: None),
    )
    monkeypatch.setitem(sys.modules, "unreal", unreal)
    script = engine_files("unreal", SETS, frozenset({"Rain"}))["import_to_unreal.py"]
    exec(compile(script, "import_to_unreal.py", "exec"), {"__file__": str(tmp_path / "import_to_unreal.py")})
    assert [Path(task.filename).relative_to(tmp_path).as_posix() for task in imported] == [
        "Footstep/A_1.wav", "Footstep/A_2.wav", "Rain/B's_1.wav",
    ]  # fmt: skip
    assert {task.destination_path for task in imported} == {"/Game/Foleybox/Footstep", "/Game/Foleybox/Rain"}
    assert looping == [("looping", True)]


def test_unity_gets_a_player_whose_brackets_close_and_no_engine_gets_nothing() -> None:
    files = engine_files("unity", SETS, frozenset())
    assert files["FoleyboxPlayer.cs"] == UNITY_PLAYER
    for left, right in ("{}", "()", "[]"):
        assert UNITY_PLAYER.count(left) == UNITY_PLAYER.count(right)
    assert engine_files("none", SETS, frozenset()) == {}


# --- texts --------------------------------------------------------------------------------------------------------


def test_the_licence_text_states_terms_reasons_and_every_source() -> None:
    text = licence_text(
        toy_manifest(training_clips=(*TRAINING_CLIPS, TrainingClips("Rain", "open", "CC BY 3.0", 4, "somebody/sounds")))
    )
    assert "Terms of the instrument: CC-BY-NC-4.0" in text
    assert "2 clips licensed for non-commercial use only" in text
    for line in ("3  (not stated): Somewhere: CC0", "4  somebody/sounds: CC BY 3.0"):
        assert line in text


def test_a_pack_prints_the_terms_of_its_instrument_in_one_line(here: Path, monkeypatch, capsys) -> None:
    synth = Steps(
        toy_manifest(samples=8_000, training_clips=(TrainingClips("Rain", "unclear", "?", 1),)), Path("nowhere")
    )
    monkeypatch.setattr("foleybox.studio.synth.Synth.load", lambda *_: synth)
    assert main(["pack", "footstep", "--count", "1"]) == 0
    assert (
        "sounds of toy are not for distribution, do not publish them; foleybox info toy says why\n"
        in capsys.readouterr().err
    )
    assert "not for distribution" in (here / "pack/LICENSE.txt").read_text()


def test_the_contact_sheet_is_one_page_that_holds_every_sound_and_picture(steps: Synth, here: Path) -> None:
    assert main(["pack", "footstep", "--count", "3"]) == 0
    page = (here / "pack/index.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 6
    assert all(source.startswith("data:") for source in sources)
    assert "href" not in page
    assert "http" not in page
    rows = manifest(here / "pack")
    for row, source in zip(rows, sources[1::2]):
        assert base64.b64decode(source.partition(",")[2]) == (here / "pack" / row["file"]).read_bytes()
        assert Path(row["file"]).stem in page
    pictures = [base64.b64decode(source.partition(",")[2]) for source in sources[::2]]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 3


def test_the_manifest_states_each_file_as_it_is(steps: Synth, here: Path, capsys) -> None:
    assert main(["pack", "footstep", "--count", "3", "--rate", "16000", "--subtype", "PCM_24", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = manifest(here / "pack")
    assert [line["file"] for line in lines] == [row["file"] for row in rows]
    for row in rows:
        about = describe_sound(here / "pack" / row["file"])
        assert about["rate"] == int(row["rate"]) == 16_000
        assert about["format"] == "WAV PCM_24"
        assert about["true_peak_db"] == pytest.approx(float(row["true_peak_db"]), abs=0.02)
        assert row["licence"] == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no label: expected one or more of DogBark"),
        (["piano"], "unknown label 'piano'"),
        (["rain", "--count", "0"], "--count 0"),
        (["rain", "--lufs", "3"], "--lufs 3.0: expected -70 to 0 LUFS"),
        (["rain", "--peak", "1"], "--peak 1.0: expected -60 to 0 dBTP"),
        (["rain", "--seconds", "0"], "--seconds 0.0"),
        (["rain", "--rate", "1"], "--rate 1"),
        (["rain", "--apart", "-1"], "--apart -1.0"),
        (["rain", "--creator", "a/b"], "--creator 'a/b': expected letters, digits and hyphens"),
        (["rain", "--ucs", ""], "--ucs ''"),
        (["rain", "--ucs", "foo"], "--ucs foo: expected a CatID such as GUNPis or RAIN"),
        (["rain", "gun", "--ucs", "GUNPis"], "--ucs GUNPis with Rain, GunShot: a category is of one label"),
        (["rain", "-o", "p.mp3"], "-o p.mp3 is a sound file's name: expected a folder"),
        (["rain", "--seed", "-1"], "seed -1"),
        (["rain", "--temperature", "-1"], "temperature -1"),
        (["rain", "-o", "there"], "there/Rain/x.wav and 1 more exist already: add --force"),
        (["gun", "-o", "mine", "--engine", "godot"], "mine/LICENSE.txt and 1 more exist already: add --force"),
    ],
)
def test_a_mistake_is_reported_in_one_line_and_nothing_is_written(
    toy: str, here: Path, capsys, arguments, words
) -> None:
    (here / "there" / "Rain").mkdir(parents=True)
    (here / "there" / "Rain" / "x.wav").write_bytes(b"mine")
    (here / "mine").mkdir()
    for name in ("there/manifest.csv", "mine/LICENSE.txt", "mine/README.txt"):
        (here / name).write_bytes(b"mine")
    assert main(["pack", *arguments, "--instrument", toy]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert not (here / "pack").exists()
    assert (here / "there" / "Rain" / "x.wav").read_bytes() == b"mine"
