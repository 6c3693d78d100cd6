"""The command line from end to end: the files it writes, one line for a mistake, and its exit codes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import TRAINING_CLIPS, toy_instrument

import foleybox
from foleybox import cli
from foleybox.audio import peak_db, read_wave, true_peak_db
from foleybox.cli import VERBS, main
from foleybox.labels import LABELS
from foleybox.studio.recipe import from_json, read_recipe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(foleybox.__file__).parents[1]), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_instrument(tmp_path_factory.mktemp("cli") / "toy"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOLEYBOX_DEBUG", raising=False)
    return tmp_path


def command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foleybox", *arguments],
        **{"capture_output": True, "text": True, "env": ENVIRONMENT, "timeout": 60, **options},
    )


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, words: str) -> str:
    """Run a command that must fail with 2, one line on stderr that holds `words`, and nothing on stdout."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("foleybox: ")
    assert err.count("\n") == 1
    assert words in err
    return err


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- generate -----------------------------------------------------------------------------------------------------


def test_generate_writes_each_label_and_seed_where_it_says(here: Path, toy: str, capsys) -> None:
    assert (
        main(["generate", "dog_bark", "Rain", "0", "--count", "2", "--seed", "5", "--instrument", toy, "-o", "o"]) == 0
    )
    names = [f"{label}/{label}_s{seed}.wav" for label in ("DogBark", "Rain") for seed in (5, 6)]
    assert files(here / "o") == names
    assert "wrote 4 sounds of 0.225 s to o/" in capsys.readouterr().out
    for name in names:
        recipe = read_recipe(here / "o" / name)
        assert recipe is not None
        assert name == f"{recipe.label}/{recipe.label}_s{recipe.seed}.wav"


def test_all_is_every_label_and_no_o_means_out(here: Path, toy: str) -> None:
    assert main(["generate", "all", "--instrument", toy]) == 0
    assert files(here) == sorted(f"out/{label.name}/{label.name}_s0.wav" for label in LABELS)


@pytest.mark.parametrize("name", ["r.wav", "deep/er/r.FLAC", "r.ogg"])
def test_one_sound_goes_to_the_very_file_that_o_names(here: Path, toy: str, name: str, capsys) -> None:
    make = ["generate", "rain", "--seed", "3", "--instrument", toy, "-o", name]
    assert main(make) == 0
    assert files(here) == [name]
    assert f"of 0.225 s to {name}\n" in capsys.readouterr().out
    recipe = read_recipe(here / name)
    assert recipe is not None
    assert (recipe.label, recipe.seed) == ("Rain", 3)
    before = (here / name).stat().st_mtime_ns
    assert main(make) == 0  # it is what the command makes
    assert (here / name).stat().st_mtime_ns == before
    capsys.readouterr()
    make[make.index("3")] = "4"
    fails(capsys, *make, words=f"{name} exists already")


def test_several_sounds_or_another_format_do_not_go_to_one_file(here: Path, toy: str, capsys) -> None:
    make = ["generate", "rain", "--instrument", toy, "-o", "r.wav"]
    fails(capsys, *make, "--count", "2", words="-o r.wav is one file, and 2 sounds were asked for: name a folder")
    fails(capsys, *make, "--format", "ogg", words="-o r.wav and --format ogg: expected the same format")
    assert files(here) == []


def test_the_same_command_twice_gives_the_same_bytes(here: Path, toy: str) -> None:
    for folder in ("a", "b"):
        assert command("generate", "rain", "-n", "3", "--instrument", toy, "-o", folder, cwd=here).returncode == 0
    for name in files(here / "a"):
        assert (here / "a" / name).read_bytes() == (here / "b" / name).read_bytes()


@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])
def test_format_rate_and_sheet_are_as_asked(here: Path, toy: str, format: str, capsys) -> None:
    flags = ["--format", format, "--rate", "48000", "--sheet", "pictures/s.png", "--json"]
    assert main(["generate", "rain", "--count", "2", "--instrument", toy, *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["seed"] for line in lines] == [0, 1]
    wave, rate = read_wave(lines[1]["file"])
    assert rate == 48_000
    assert len(wave) / rate == pytest.approx(0.225, abs=1e-3)
    assert (here / "pictures" / "s.png").read_bytes().startswith(b"\x89PNG")


def test_json_says_the_peak_that_the_file_has_which_is_below_the_ceiling_without_a_warning(here: Path, capsys) -> None:
    loud = str(toy_instrument(here / "loud"))
    make = ["generate", "rain", "--rate", "32000", "--instrument", loud, "--json"]  # resampled, it passes full scale
    for ceiling in (
        [],
        ["--peak", "0", "-o", "hot"],
        ["--format", "ogg", "-o", "lossy"],
        ["--subtype", "FLOAT", "-o", "f"],
    ):
        assert main([*make, "--count", "4", *ceiling]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        peaks = []
        for line in map(json.loads, out.splitlines()):
            wave, _ = read_wave(line["file"])
            peaks.append(true_peak_db(wave))
            assert line["peak_db"] == pytest.approx(peak_db(wave), abs=0.01 if "ogg" not in ceiling else 2)
        assert max(peaks) == pytest.approx(0 if "--peak" in ceiling else -1, abs=0.01 if "ogg" not in ceiling else 0.5)
        assert max(peaks) <= (0 if "--peak" in ceiling else -1) + 0.001
    assert main(["verify", "out", "hot", "lossy", "f", "--instrument", loud]) == 0
    assert "16 identical" in capsys.readouterr().out


def test_a_sound_neither_begins_nor_ends_with_a_click_and_verifies(here: Path, toy: str) -> None:
    assert main(["generate", "rain", "-n", "4", "--instrument", toy]) == 0
    assert main(["vary", "rain:1", "-n", "4", "--instrument", toy]) == 0
    for name in files(here):
        wave, _ = read_wave(name)
        assert max(abs(wave[0]), abs(wave[-1])) < 0.01 * np.abs(wave).max()
    raw = foleybox.load(toy).render("rain", 0).wave  # which is not so by itself
    assert max(abs(raw[0]), abs(raw[-1])) > 0.1 * np.abs(raw).max()
    assert main(["verify", "out", "--instrument", toy]) == 0


def test_the_same_command_keeps_what_is_there_and_whole_and_makes_the_rest(here: Path, toy: str, capsys) -> None:
    make = ["generate", "rain", "dog", "-n", "3", "--lufs", "-30", "--sheet", "s.png", "--instrument", toy]
    assert main(make) == 0
    whole = {name: (here / "out" / name).read_bytes() for name in files(here / "out")}
    (here / "out/Rain/Rain_s1.wav").unlink()
    (here / "out/DogBark/DogBark_s2.wav").unlink()
    kept = (here / "out/Rain/Rain_s0.wav").stat().st_mtime_ns
    capsys.readouterr()
    assert main(make) == 0
    assert "wrote 6 sounds" in (out := capsys.readouterr().out)
    assert "4 of them existed" in out
    assert {name: (here / "out" / name).read_bytes() for name in files(here / "out")} == whole
    assert (here / "out/Rain/Rain_s0.wav").stat().st_mtime_ns == kept
    cut = here / "out/Rain/Rain_s2.wav"
    cut.write_bytes(cut.read_bytes()[:-9000])
    for other in (make, [*make[:5], *make[7:]], [*make, "--subtype", "PCM_24"], [*make, "--temperature", "0.9"]):
        assert main(other) == 2
        assert "already: add --force" in capsys.readouterr().err
    assert main([*make, "--force"]) == 0
    assert {name: (here / "out" / name).read_bytes() for name in files(here / "out")} == whole
    (here / "s.png").write_bytes(b"somebody's picture")
    assert main(make) == 2
    assert "s.png exists and is no contact sheet" in capsys.readouterr().err


def test_a_name_and_a_format_that_differ_are_refused_and_one_sound_goes_to_stdout(here: Path, toy: str, capsys) -> None:
    for name, format in (("y.flac", "wav"), ("z.wav", "flac"), ("z.wav", "ogg")):
        assert main(["generate", "rain", "-o", name, "--format", format, "--instrument", toy]) == 2
        assert f"-o {name} and --format {format}: expected the same format" in capsys.readouterr().err
    assert main(["generate", "rain", "-o", "y.flac", "--format", "flac", "--instrument", toy]) == 0
    assert main(["generate", "rain", "-n", "2", "-o", "-", "--instrument", toy]) == 2
    assert main(["vary", "rain:1", "-o", "-", "--instrument", toy]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    piped = command("generate", "rain", "-o", "-", "--format", "flac", "--instrument", toy, cwd=here, text=False)
    assert piped.returncode == 0
    assert piped.stdout == (here / "y.flac").read_bytes()
    assert files(here) == ["y.flac"]


# --- generate, of a recipe ----------------------------------------------------------------------------------------


def test_a_recipe_or_its_file_makes_the_very_sound_again(here: Path, toy: str, capsys) -> None:
    assert main(["generate", "rain", "--seed", "9", "--lufs", "-30", "--trim", "20", "--instrument", toy]) == 0
    assert main(["vary", "rain:9", "-n", "1", "--seconds", "1", "--instrument", toy]) == 0
    for name in ("out/Rain/Rain_s9.wav", "out/Rain_s9_v0.wav"):
        capsys.readouterr()
        assert main(["info", name, "--recipe"]) == 0
        (here / "bark.json").write_text(capsys.readouterr().out, encoding="utf-8")
        assert main(["generate", "bark.json", "--instrument", toy, "-o", "again", "--force"]) == 0
        assert (here / "again/bark.wav").read_bytes() == (here / name).read_bytes()
        assert main(["generate", name, "--instrument", toy, "-o", "x.flac", "--force"]) == 0
        assert main(["verify", "x.flac", "--instrument", toy]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json"], "no file none.json: expected a sound file made by foleybox, or a recipe"),
        (["x.json", "rain"], "rain next to recipes: expected either labels or recipes"),
        (["x.json", "--seed", "3"], "--seed with a recipe, which contains it: leave it out"),
        (["x.json", "--lufs", "-20"], "--lufs with a recipe"),
        (["x.json", "in/x.json"], "several recipes named x"),
        (["x.json", "-o", "there"], "there/x.wav exists already: add --force"),
        (["x.json", "in/y.json", "-o", "x.wav"], "-o x.wav is one file, and 2 sounds were asked for"),
        (["x.json", "--instrument", "foley"], "made with the instrument toy"),
        (["lost.wav"], "lost.wav: it lost its recipe"),
    ],
)
def test_a_recipe_that_cannot_be_rendered_is_reported(here: Path, toy: str, capsys, arguments, words: str) -> None:
    clip = foleybox.load(toy).render("rain", 1)
    for name in ("x.json", "in/x.json", "in/y.json"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(clip.recipe.to_json(), encoding="utf-8")
    clip.save(here / "lost.wav")
    (here / "lost.wav").write_bytes((here / "lost.wav").read_bytes().replace(b"fbrc", b"xxxx"))
    (here / "there").mkdir()
    (here / "there/x.wav").write_bytes(b"mine")
    before = files(here)
    instrument = [] if "--instrument" in arguments else ["--instrument", toy]
    fails(capsys, "generate", *arguments, *instrument, words=words)
    assert files(here) == before


def test_every_knob_reaches_the_file_and_its_recipe(here: Path, toy: str, capsys) -> None:
    flags = ["--trim", "40", "--seconds", "0.5", "--fade", "0.1", "--rate", "16000", "--lufs", "-40", "--peak", "-50"]
    assert main(["generate", "rain", "--count", "2", "--temperature", "0.7", "--instrument", toy, *flags]) == 0
    out, err = capsys.readouterr()
    assert "wrote 2 sounds of 0.5 s" in out
    assert "2 of 2 sounds are up to " in err
    wave, rate = read_wave(here / "out/Rain/Rain_s1.wav")
    assert (len(wave), rate) == (8_000, 16_000)
    assert true_peak_db(wave) <= -49.9
    recipe = read_recipe(here / "out/Rain/Rain_s1.wav")
    assert recipe is not None
    assert recipe.asked == {"trim": 40.0, "seconds": 0.5, "fade": 0.1, "rate": 16_000, "lufs": -40.0, "peak": -50.0}
    assert recipe.make["of"]["temperature"] == 0.7


def test_a_trimmed_set_says_from_how_long_to_how_long(here: Path, toy: str, capsys) -> None:
    assert main(["generate", "all", "-n", "4", "--trim", "6", "--instrument", toy]) == 0
    words = capsys.readouterr().out.split(" s to out/")[0].split("sounds of ")[1].split(" to ")
    assert 0 < float(words[0]) < float(words[1]) <= 0.225


def test_a_label_is_never_a_path(here: Path) -> None:
    own = str(toy_instrument(here / "own", labels=("Über ../../alles", "CON:/x")))
    assert main(["generate", "all", "--instrument", own, "-o", "o"]) == 0
    assert files(here / "o") == ["CON__x/CON__x_s0.wav", "Über .._.._alles/Über .._.._alles_s0.wav"]
    assert main(["generate", "all", "--instrument", own, "-o", "o", "--subtype", "PCM_24"]) == 2


def test_existing_files_stay_unless_forced(here: Path, toy: str, capsys) -> None:
    make = ["generate", "rain", "--instrument", toy, "--count", "3"]
    assert main(make) == 0
    capsys.readouterr()
    first = here / "out/Rain/Rain_s0.wav"
    first.write_bytes(b"mine")
    fails(capsys, *make, words="out/Rain/Rain_s0.wav exists already: add --force")
    assert first.read_bytes() == b"mine"
    assert main([*make, "--force"]) == 0
    assert first.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["catt"], "unknown label 'catt': instrument toy plays dog_bark, footstep"),
        ([], "no label: expected one or more of DogBark"),
        (["rain", "--count", "0"], "--count 0: expected 1 or more"),
        (["rain", "--count", "-1"], "--count -1: expected 1 or more"),
        (["rain", "--seed", "-1"], "seed -1: expected a whole number from 0"),
        (["rain", "--seed", str(2**53 - 1), "--count", "2"], "the last seed would exceed 9007199254740991"),
        (["rain", "--rate", "0"], "--rate 0: expected 1000 to 768000 Hz"),
        (["rain", "--lufs", "3"], "--lufs 3.0: expected -70 to 0 LUFS"),
        (["rain", "--seconds", "inf"], "--seconds inf: expected a number"),
        (["rain", "--format", "flac", "--subtype", "FLOAT"], "expected PCM_16 or PCM_24"),
        (["rain", "--format", "ogg", "--subtype", "PCM_24"], "OGG is Vorbis, which has no bit depth; drop the subtype"),
        (["rain", "-o", "x.ogg", "--subtype", "FLOAT"], "OGG is Vorbis"),
        (
            ["rain", "-o", "x.mp3"],
            "-o x.mp3 is a sound file's name: expected a folder, or with `generate` one .wav, .flac",
        ),
        (["rain", "--fade", "10"], "--fade 10.0: the sound has 0.225 s; expected 0 to 0.225 seconds"),
        (["rain", "--fade", "3", "--seconds", "2"], "--fade 3.0: the sound has 2 s; expected 0 to 2 seconds"),
        (["rain", "--temperature", "1e30"], "--temperature 1e+30: expected 0 to 10"),
        (["rain", "--batch", "0"], "--batch 0"),
        (["rain", "--temperature", "nan"], "--temperature nan"),
        (["rain", "--sheet", "x.jpg"], "ends in .png"),
        (["rain", "--sheet", "file/x.png"], "cannot write to file (File exists): name another --sheet file/x.png"),
        (
            ["rain", "--rate", "384000", "--format", "ogg"],
            "--rate 384000 --format ogg: expected 200,000 Hz or less, or wav",
        ),
        (["rain", "--rate", "768000", "--format", "flac"], "expected 655,350 Hz or less, or wav"),
        (["rain", "--count", "1000000000000"], "MB free, the sounds need about"),
        (["rain", "--out", "file"], "cannot write to file"),
        (["rain", "--out", "/dev/null/out"], "cannot write to /dev/null/out/Rain (Not a directory)"),
    ],
)
def test_a_mistake_is_reported_in_one_line_before_anything_is_written(
    here: Path, toy: str, capsys, arguments: list[str], words: str
) -> None:
    (here / "file").write_text("in the way")
    fails(capsys, "generate", *arguments, "--instrument", toy, words=words)
    assert files(here) == ["file"]


def test_a_sheet_that_is_a_folder_and_more_neighbours_than_can_be_listed_are_reported(
    here: Path, toy: str, capsys
) -> None:
    (here / "x.png").mkdir()
    fails(
        capsys, "generate", "rain", "--sheet", "x.png", "--force", "--instrument", toy,
        words="--sheet x.png is a folder: name a .png in it",
    )  # fmt: skip
    for verb, flag, most in (("vary", "--count", "1,000,000"), ("walk", "--steps", "10,000")):
        fails(
            capsys,
            verb,
            "rain:7",
            "-n",
            "1000001",
            "--instrument",
            toy,
            words=f"{flag} 1,000,001: expected {most} at most",
        )
    assert files(here) == []


def test_a_folder_that_may_not_be_written_to_is_reported(here: Path, toy: str, capsys, monkeypatch) -> None:
    def denied(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "out/Rain")

    monkeypatch.setattr("foleybox.files.tempfile.TemporaryFile", denied)  # tests may run as root
    fails(capsys, "generate", "rain", "--instrument", toy, words="cannot write to out/Rain (Permission denied)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["generate", "rain", "--count", "many"],
            "--count many: expected a whole number; `foleybox generate --help` shows the flags",
        ),
        (["generate", "rain", "--rate", "44.1"], "--rate 44.1: expected a whole number"),
        (["generate", "rain", "--lufs", "loud"], "--lufs loud: expected a number"),
        (["generate", "rain", "--format", "mp3"], "--format mp3: expected wav, flac or ogg"),
        (["generate", "rain", "--ratte", "4"], "unknown flag --ratte: did you mean --rate?"),
        (["generate", "rain", "--xyzzy"], "unknown flag --xyzzy; `foleybox generate --help`"),
        (["generate", "rain", "-nx"], "-n x: expected a whole number"),
        (["generate", "rain", "-n=x"], "-n x: expected a whole number"),
        (["generate", "rain", "--seed"], "--seed: expected a value"),
        (["generate", "rain", "--seed", "--count", "2"], "--seed: expected a value"),
        (["generate", "rain", "--force=yes"], "--force=yes: --force takes no value"),
        (["morph", "rain:1"], "OTHER is missing"),
        (["morph", "rain:1", "rain:2", "rain:3"], "unexpected argument 'rain:3'"),
        (["generate", "rain", "--vqvae", "runs/vqvae"], "sounds of a training run are made with `foleybox sample RUN"),
    ],
)
def test_flags_that_cannot_be_read_are_reported_in_one_line(
    here: Path, capsys, arguments: list[str], words: str
) -> None:
    fails(capsys, *arguments, words=f"foleybox: {words}")
    assert files(here) == []


@pytest.mark.skipif(sys.platform == "win32", reason="closes the shell's streams")
def test_a_narrow_terminal_encoding_and_closed_streams_are_no_error(here: Path, toy: str) -> None:
    make = ["generate", "rain", "--instrument", toy, "--force", "-o", "雨"]
    narrow = {**ENVIRONMENT, "PYTHONIOENCODING": "cp1252"}
    done = command(*make, "--json", cwd=here, env=narrow)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["file"] == "雨/Rain/Rain_s0.wav"
    done = command(*make, cwd=here, env=narrow)
    assert (done.returncode, done.stderr) == (0, "")
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        shell = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-m", "foleybox"]
        done = subprocess.run([*shell, *make], cwd=here, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), closed
        assert subprocess.run([*shell, "generate", "cat"], cwd=here, env=ENVIRONMENT, timeout=60).returncode == 2


def test_a_damaged_instrument_is_reported(here: Path, toy: str, capsys) -> None:
    shutil.copytree(toy, here / "bad")
    with (here / "bad" / "vocoder.onnx").open("ab") as file:
        file.write(b"!")
    fails(capsys, "generate", "rain", "--instrument", "bad", words="bytes, expected")
    fails(capsys, "generate", "rain", "--instrument", "nowhere", words="no instrument nowhere")
    assert not (here / "out").exists()


def test_a_disk_that_fills_up_half_way_leaves_whole_files_only(here: Path, toy: str, capsys, monkeypatch) -> None:
    real, written = Path.write_bytes, []

    def fills_up(path: Path, data: bytes) -> int:
        if len(written) == 5:
            real(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    fails(
        capsys, "generate", "rain", "--count", "20", "--instrument", toy,
        words="No space left on device: out/Rain/Rain_s5.wav",
    )  # fmt: skip
    assert files(here / "out") == [f"Rain/Rain_s{seed}.wav" for seed in range(5)]
    assert all(len(read_wave(here / "out" / name)[0]) == 1_800 for name in files(here / "out"))


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_in_the_middle_leaves_whole_files_and_says_so_in_one_line(here: Path, toy: str) -> None:
    arguments = ["generate", "rain", "--count", "1000000", "--instrument", toy]
    process = subprocess.Popen(
        [sys.executable, "-m", "foleybox", *arguments],
        env=ENVIRONMENT, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while len(list(here.glob("out/Rain/*.wav"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert err.startswith("foleybox: stopped after ")
    assert err.count("\n") == 1
    names = files(here / "out")
    assert f"stopped after {len(names):,} of 1,000,000 files" in err
    assert all(name.startswith("Rain/Rain_s") for name in names)  # no .partial
    assert all(len(read_wave(here / "out" / name)[0]) == 1_800 for name in names)


# --- info, doctor -------------------------------------------------------------------------------------------------


def test_info_of_an_instrument_states_its_training_clips_and_terms(toy: str, capsys) -> None:
    assert main(["info", toy]) == 0
    text = capsys.readouterr().out
    for words in ("toy", "DogBark, Footstep", "CC-BY-NC-4.0", "2 clips licensed for non-commercial use only"):
        assert words in text
    assert main(["info", toy, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["training_clips"] == {"DogBark": {"open": 3}, "Rain": {"nc": 2}}
    assert facts["seconds"] == 0.225


def test_info_alone_lists_the_instruments_a_line_each_and_first_the_one_that_plays(
    here: Path, toy: str, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("foleybox.instrument.SHIPPED", here / "shipped")
    for name in ("b-open", "a"):
        toy_instrument(
            here / "shipped" / name, name=name, training_clips=TRAINING_CLIPS[: 1 if name == "b-open" else 2]
        )
    monkeypatch.setenv("FOLEYBOX_INSTRUMENT", "b-open")
    assert main(["info"]) == 0
    first, second, hint = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["b-open", "version", "1", "CC-BY-4.0"]
    assert first.endswith("(default)")
    assert second.split()[:4] == ["a", "version", "1", "CC-BY-NC-4.0"]
    assert "`foleybox info NAME` describes one; --instrument NAME" in hint
    monkeypatch.setenv("FOLEYBOX_INSTRUMENT", toy)
    assert main(["info", "--json"]) == 0
    assert [each["instrument"] for each in json.loads(capsys.readouterr().out)] == ["toy", "a", "b-open"]


def test_info_of_an_instrument_is_short_unless_all_is_asked_for(here: Path, capsys) -> None:
    measured = {"mean": {"frechet": {"value": 4.5, "low": 4, "high": 5, "floor": 2.5}}}
    toy_instrument(here / "own", measured=measured)
    assert main(["info", "own"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["instrument", "toy"],
        ["licence", "CC-BY-NC-4.0"],
        ["size", "0.0"],
    ]
    assert "  frechet            4.5 (real recordings 2.5)" in lines
    assert not any("training_clips" in line for line in lines[:-1])
    assert "--all" in lines[-1]
    assert main(["info", "own", "--all"]) == 0
    assert {"training_clips", "made_with"} <= set(capsys.readouterr().out.splitlines())


def test_info_of_a_sound_says_its_recipe_and_levels(here: Path, toy: str, capsys) -> None:
    assert main(["generate", "rain", "--seed", "9", "--instrument", toy]) == 0
    capsys.readouterr()
    assert main(["info", "out/Rain/Rain_s9.wav", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recipe"]["seed"] == 9
    assert facts["peak_db"] <= 0
    assert main(["info", "out/Rain/Rain_s9.wav"]) == 0
    assert "loudness_lufs" in capsys.readouterr().out


def test_info_reports_a_lost_recipe_and_prints_an_existing_one(here: Path, toy: str, capsys) -> None:
    assert main(["generate", "rain", "--seed", "9", "--lufs", "-30", "--instrument", toy]) == 0
    capsys.readouterr()
    assert main(["info", "out/Rain/Rain_s9.wav", "--recipe"]) == 0
    line = capsys.readouterr().out
    assert from_json(line.strip()) == read_recipe(here / "out/Rain/Rain_s9.wav")
    content = (here / "out/Rain/Rain_s9.wav").read_bytes()
    (here / "lost.wav").write_bytes(content.replace(b"fbrc", b"xxxx"))
    assert main(["info", "lost.wav"]) == 0
    assert "it lost its recipe: a program that rewrote it kept only the comment" in capsys.readouterr().out
    fails(capsys, "info", "lost.wav", "--recipe", words="lost.wav: it lost its recipe")
    fails(capsys, "info", "--recipe", words="--recipe expects a sound file")
    (here / "edited.wav").write_bytes(content.replace(b'"seed": 9', b'"seed": 8'))
    fails(capsys, "info", "edited.wav", words="edited.wav: the recipe was edited (its checksum does not fit)")


def test_info_of_a_scene_does_not_fill_the_screen(here: Path, toy: str, capsys) -> None:
    synth = foleybox.load(toy)
    events = [[place, place * 441, 0, 0.5] for place in range(2_000)]
    track = {
        "label": "Rain",
        "shots": [[{"do": "render", "label": "Rain", "seed": 1, "temperature": 1.0}, 0, 0, 100, 0.0]],
        "events": events,
    }
    make = {"do": "perform", "label": "Rain", "seed": 1, "samples": 1_800, "tracks": [track]}
    synth.clip(synth.render("rain", 1).wave, make).save("scene.wav")
    assert main(["info", "scene.wav"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 50
    assert "[1999, " not in out


def test_info_of_neither_is_reported(here: Path, capsys) -> None:
    (here / "x.wav").write_text("not audio")
    fails(capsys, "info", "x.wav", words="x.wav is not a sound file")
    fails(capsys, "info", "absent", words="no instrument absent")
    fails(capsys, "info", "absent.wav", words="no file absent.wav: expected a sound file, or an instrument's name")
    fails(capsys, "info", str(here), words="it has no instrument.json")


def test_doctor_is_content_with_a_whole_instrument_and_not_with_a_broken_one(here: Path, toy: str, capsys) -> None:
    assert main(["doctor", "--instrument", toy]) == 0
    assert "x real time" in capsys.readouterr().out
    assert main(["doctor", "--instrument", "nowhere"]) == 1
    assert "no  instrument  no instrument nowhere" in capsys.readouterr().out


# --- the command as a whole ---------------------------------------------------------------------------------------


def test_importing_the_package_and_its_help_load_nothing_heavy_and_name_every_verb() -> None:
    heavy = ("numpy", "tyro", "tqdm", "onnxruntime", "torch", "soundfile")
    code = (
        "import sys, foleybox; from foleybox.cli import main; main(['--help']); main(['--version']);"
        f"print('heavy:', [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT, timeout=60
    )
    assert "heavy: []" in done.stdout
    assert f"foleybox {foleybox.__version__}" in done.stdout
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", ["generate", "vary", "morph", "walk", "jobs", "verify", "info", "doctor"])
def test_help_of_a_verb_has_an_example_that_begins_with_it(verb: str, capsys) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Example: foleybox {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_in_the_table_leads_to_a_function_of_one_config(verb: str) -> None:
    from dataclasses import is_dataclass
    from typing import get_type_hints

    module = VERBS[verb][0].split(":")[0]
    if module.startswith("foleybox.lab"):
        pytest.importorskip("torch", reason="needs the lab extra")
    if not (Path(foleybox.__file__).parents[1] / (module.replace(".", "/") + ".py")).is_file():
        pytest.skip(f"{module} is not written yet")
    hints = get_type_hints(cli._load(VERBS[verb][0]))
    (config,) = (kind for name, kind in hints.items() if name != "return")
    assert is_dataclass(config)
    assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generat"], "did you mean generate?"),
        (["xyzzy"], "expected one of generate, vary, morph"),
        (["data"], "`data` needs a second word: expected data check"),
        (["train", "flute"], "unknown verb 'train flute': expected train patches or train distilled or"),
        (["train", "vocodre"], "did you mean train vocoder?"),
        (["trian", "vocoder"], "did you mean train?"),
    ],
)
def test_an_unknown_verb_gets_a_suggestion(capsys, arguments: list[str], words: str) -> None:
    fails(capsys, *arguments, words=words)


def test_no_verb_prints_the_usage(capsys) -> None:
    assert main([]) == 2
    assert "usage: foleybox" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train sagan", "data check", "export", "select --help"])
def test_a_lab_verb_without_torch_says_what_to_install(capsys, monkeypatch, verb: str) -> None:
    def without(_target: str):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "_load", without)
    fails(
        capsys,
        *verb.split(),
        words="torch is not installed: in a checkout of foleybox, pip install -c constraints.txt '.[lab]'",
    )


def test_the_studio_and_its_pages_never_tell_to_install_from_an_index_where_foleybox_is_not() -> None:
    root = Path(__file__).resolve().parents[1]
    package = root / "src" / "foleybox"
    places = [
        *package.glob("*.py"),
        *(package / "studio").rglob("*.py"),
        root / "README.md",
        *(root / "docs").rglob("*.md"),
    ]
    assert [path for path in places if "install 'foleybox" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModuleNotFoundError("No module named 'foleybox.typo'", name="foleybox.typo"), 70, "a fault of foleybox"),
        (KeyError("seed"), 70, "a fault of foleybox 0.1.0, not of yours (KeyError: 'seed'); please report"),
        (RecursionError("maximum recursion depth exceeded"), 70, "a fault of foleybox"),
        (AssertionError(), 70, "a fault of foleybox"),
        (MemoryError("Unable to allocate 3 GiB"), 2, "not enough memory (Unable to allocate 3 GiB): ask for less"),
        (OSError(28, "No space left on device", "x.wav"), 2, "No space left on device: x.wav"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_every_error_is_one_line_with_its_exit_code_and_a_traceback_only_for_debug(
    monkeypatch, capsys, error: BaseException, code: int, words: str, debug: bool
) -> None:
    def broken(_target: str):
        raise error

    monkeypatch.setattr(cli, "_load", broken)
    assert main(["info", *(["--debug"] * debug)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert (len(lines) > 1) == debug == ("Traceback" in lines[0])


def test_debug_shows_the_traceback_of_a_mistake_too(toy: str, monkeypatch, capsys) -> None:
    assert main(["generate", "cat", "--instrument", toy, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("FOLEYBOX_DEBUG", "1")
    assert main(["info", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe")
def test_a_reader_that_leaves_early_is_no_error(toy: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "foleybox", "info", toy, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141


def test_the_exit_code_reaches_the_shell(here: Path) -> None:
    done = command("generate", "rain", "--instrument", "nowhere", cwd=here)
    assert done.returncode == 2
    assert done.stderr.startswith("foleybox: no instrument nowhere")
