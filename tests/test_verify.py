"""`foleybox verify`: a file is rendered again from its recipe and is identical, within one step, or different."""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import toy_instrument

from foleybox.audio import read_wave, write_wave
from foleybox.cli import main
from foleybox.commands.verify import LOSSY_DB, compare, find_sounds, verify_files
from foleybox.studio.extend import finished
from foleybox.studio.latents import morph, vary, walk
from foleybox.studio.recipe import CHUNK, from_json, read_recipe, write_clip
from foleybox.studio.remake import MAKERS, remake
from foleybox.studio.shape import Shape
from foleybox.studio.synth import Clip, Synth

STEP = 2.0**-15


@pytest.fixture(scope="module")
def synth(tmp_path_factory: pytest.TempPathFactory) -> Synth:
    return Synth.load(toy_instrument(tmp_path_factory.mktemp("verify") / "toy"), threads=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_sealed(path: Path, clip: Clip, **changes) -> None:
    """Write a clip with a recipe that foleybox would not write, and the checksum that fits it."""
    content = {**json.loads(clip.recipe.to_json()), **changes}
    del content["checksum"]
    body = json.dumps(content)[:-1]
    text = f'{body}, "checksum": "{hashlib.sha256(body.encode()).hexdigest()}"}}'
    write_wave(path, clip.wave, clip.rate, chunks={CHUNK: text.encode()})


def only(paths: list[Path], synth: Synth):
    (found,) = verify_files(paths, synth.folder)
    return found


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("x.wav", "PCM_16"), ("x.wav", "PCM_24"), ("x.wav", "FLOAT"), ("x.flac", "PCM_24"), ("x.ogg", "PCM_16")],
)
def test_every_kind_of_file_and_make_is_identical(synth: Synth, here: Path, name: str, subtype) -> None:
    rain, dog = synth.render("rain", 7), synth.render("dog", 2)
    clips = [
        rain,
        synth.render("rain", 7, temperature=1.3),
        next(vary(synth, rain.recipe.make, 0.3, batch=1)),
        walk_of(synth, rain)[-1],
        list(morph(synth, rain.recipe.make, dog.recipe.make, 3, batch=1))[1],
        Clip(
            rain.wave * np.float32(9), replace(rain.recipe, process=({"do": "gain", "db": 20 * np.log10(9)},))
        ),  # turned down
    ]
    shape = Shape(trim=30, seconds=0.15, fade=0.05, rate=11_025, lufs=-30)
    for place, clip in enumerate(
        [*clips, *(finished(synth, clip, shape) for clip in clips[:5]), finished(synth, rain, Shape(seconds=1))]
    ):
        path = here / f"{place}{name}"
        clip.save(path, subtype)
        assert only([path], synth).verdict == "identical", (place, clip.recipe)


def walk_of(synth: Synth, clip: Clip) -> list[Clip]:
    return [each for _, each in zip(range(3), walk(synth, clip.recipe.make, 0.3, batch=1))]


def test_other_batches_and_threads_are_identical(synth: Synth, here: Path) -> None:
    several = Synth.load(synth.folder, threads=2)
    for clip in several.render_many([(label, seed) for seed in range(3) for label in several.labels], batch=21):
        clip.save(here / f"{clip.label}{clip.seed}.wav", "FLOAT")
    found = list(verify_files(find_sounds((here,)), synth.folder))
    assert len(found) == 21
    assert {each.verdict for each in found} == {"identical"}


def test_a_sound_that_was_changed_is_different_by_its_residual(synth: Synth, here: Path) -> None:
    clip = synth.render("rain", 7)
    for db, expected in ((-40, -40.0), (-6.0206, -6.0)):
        changed = clip.wave * np.float32(1 + 10 ** (db / 20))
        write_clip(here / "x.wav", changed, clip.recipe, "FLOAT")
        found = only([here / "x.wav"], synth)
        assert found.verdict == "different"
        assert found.residual_db == pytest.approx(expected, abs=0.1)
    off = clip.wave.copy()
    off[100] += np.float32(0.9 * STEP)
    write_clip(here / "x.wav", off, clip.recipe, "FLOAT")
    assert only([here / "x.wav"], synth).verdict == "within one step"
    off[100] += np.float32(0.2 * STEP)
    write_clip(here / "x.wav", off, clip.recipe, "FLOAT")
    assert only([here / "x.wav"], synth).verdict == "within rounding"
    for db, verdict in ((-51, "within rounding"), (-49, "different")):
        changed = clip.wave * np.float32(1 + 10 ** (db / 20))
        write_clip(here / "x.wav", changed, clip.recipe, "FLOAT")
        assert only([here / "x.wav"], synth).verdict == verdict


def test_a_lossy_file_is_compared_by_its_residual(synth: Synth, here: Path) -> None:
    clip = finished(synth, synth.render("rain", 7), Shape(seconds=2, lufs=-20))
    hiss = np.random.default_rng(0).standard_normal(len(clip.wave)).astype(np.float32)
    write_clip(here / "same.ogg", (clip.wave + 1e-5 * hiss).astype(np.float32), clip.recipe)
    found = only([here / "same.ogg"], synth)
    assert found.verdict == "within the codec"
    other = finished(synth, synth.render("rain", 8), Shape(seconds=2, lufs=-20))
    write_clip(here / "other.ogg", other.wave, clip.recipe)
    found = only([here / "other.ogg"], synth)
    assert found.verdict == "different"
    assert found.residual_db is not None
    assert found.residual_db > 0 > LOSSY_DB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda wave, rate: (wave[:-1], rate), "it has 1,799 samples, its recipe 1,800"),
        (lambda wave, rate: (wave, 2 * rate), "its rate is 16000 Hz, that of its recipe 8000 Hz"),
    ],
)
def test_a_cut_or_resampled_file_is_different(synth: Synth, here: Path, change, words: str) -> None:
    clip = synth.render("rain", 7)
    wave, rate = change(clip.wave, clip.rate)
    write_wave(here / "x.wav", wave, rate, chunks={CHUNK: clip.recipe.to_json().encode()})
    found = only([here / "x.wav"], synth)
    assert (found.verdict, found.why) == ("different", words)


def test_a_file_that_is_cut_short_or_not_of_numbers_is_reported_as_that_by_verify_vary_and_info(
    synth: Synth, here: Path, capsys
) -> None:
    toy = ["--instrument", str(synth.folder)]
    synth.render("rain", 7).save(here / "whole.wav", "FLOAT")
    content = (here / "whole.wav").read_bytes()
    (here / "cut.wav").write_bytes(content[:3_000])
    samples = content.index(b"data") + 8
    nan = content[:samples] + np.array([np.nan], "<f4").tobytes() + content[samples + 4 :]
    (here / "nan.wav").write_bytes(nan.replace(b"fbrc", b"junk"))
    for name, words in (("cut.wav", "is cut short"), ("nan.wav", "holds 1 samples that are NaN or infinite")):
        assert main(["verify", name, *toy]) == 1
        assert words in capsys.readouterr().out
        for command in (["vary", name, *toy], ["info", name]):
            assert main(command) == 2
            err = capsys.readouterr().err
            assert words in err
            assert err.count(name) == 1


def test_a_file_of_version_1_is_made_again_too(synth: Synth, here: Path) -> None:
    from foleybox.audio import resample

    for seed, temperature, rate in ((3, 1.0, 8_000), (4, 2.5, 22_050)):
        clip = synth.render("rain", seed, temperature)
        made = synth.instrument
        old = {
            "foleybox_recipe": 1, "instrument": made.name, "fingerprint": made.fingerprint, "label": "Rain", "seed": seed,
            "temperature": temperature, "rate": rate, "licence": made.licence.terms, "foleybox": "0.1.0",
        }  # fmt: skip
        wave = resample(clip.wave, 8_000, rate)  # above full scale, and turned down by the writer
        write_wave(here / "old.wav", wave, rate, chunks={CHUNK: json.dumps(old).encode()})
        assert only([here / "old.wav"], synth).verdict in ("identical", "within one step")


def test_the_verb_says_a_line_a_file_and_its_exit_code_is_the_answer(synth: Synth, here: Path, capsys) -> None:
    toy = ["--instrument", str(synth.folder)]
    clip = synth.render("rain", 7)
    clip.save(here / "a.wav")
    (here / "in").mkdir()
    clip.save(here / "in" / "Kopie – ä.flac")
    assert main(["verify", ".", *toy]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["identical        a.wav", "identical        in/Kopie – ä.flac", "2 files: 2 identical"]
    write_clip(here / "b.wav", clip.wave * np.float32(0.5), clip.recipe)
    assert main(["verify", "b.wav", "a.wav", *toy]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "different        b.wav  residual -6.0 dB"
    assert out[2] == "2 files: 1 different, 1 identical"
    assert main(["verify", "b.wav", "--json", *toy]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["verdict"], facts["residual_db"]) == ("different", -6.0)


def test_what_has_no_recipe_or_an_edited_one_or_no_instrument_is_a_line_each(synth: Synth, here: Path, capsys) -> None:
    clip = synth.render("rain", 7)
    wave, rate = clip.wave, clip.rate
    soundfile.write(here / "a.wav", wave, rate)
    write_wave(here / "b.wav", wave, rate, tags={"comment": clip.recipe.comment()})
    text = clip.recipe.to_json()
    write_wave(here / "c.wav", wave, rate, chunks={CHUNK: text.replace("Rain", "Snow").encode()})
    write_wave(here / "d.wav", wave, rate, chunks={CHUNK: text.replace('recipe": 2', 'recipe": 3').encode()})
    write_clip(here / "e.wav", wave, replace(clip.recipe, fingerprint="0" * 64))
    write_sealed(here / "f.wav", clip, make={**clip.recipe.make, "do": "sing"})
    (here / "g.wav").write_bytes(b"RIFF")
    clip.save(here / "h.wav")
    write_sealed(here / "i.wav", clip, make={"do": "render", "label": "Rain"})
    write_sealed(here / "j.wav", clip, process=[{"do": "fade", "in": 1}])
    assert main(["verify", ".", "--instrument", str(synth.folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    expected = [
        "no recipe        a.wav  it carries no recipe",
        "no recipe        b.wav  it lost its recipe: a program that rewrote it kept only the comment",
        "cannot tell      c.wav  the recipe was edited",
        "cannot tell      d.wav  the recipe is of version 3, this foleybox reads 1 and 2: update foleybox",
        "cannot tell      e.wav  made with the instrument toy (000000000000...)",
        "cannot tell      f.wav  the recipe cannot be followed: make says to 'sing', which this",
        "cannot tell      g.wav  ",
        "identical        h.wav",
        "cannot tell      i.wav  the recipe cannot be followed: make lacks seed, temperature",
        "cannot tell      j.wav  the recipe cannot be followed: process[0] lacks out",
        "10 files: 2 no recipe, 7 cannot tell, 1 identical",
    ]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


@pytest.mark.parametrize("change", [{"licence": "CC0-1.0"}, {"instrument": "first"}])
def test_a_recipe_that_states_other_terms_than_the_instrument_s_is_found(
    synth: Synth, here: Path, capsys, change
) -> None:
    clip = synth.render("rain", 7)
    write_sealed(here / "a.wav", clip, **change)
    assert main(["verify", "a.wav", "--instrument", str(synth.folder)]) == 1
    stated = "toy under CC0-1.0" if "licence" in change else "first under CC-BY-NC-4.0"
    expected = f"other terms      a.wav  its recipe states {stated}, the instrument is toy under CC-BY-NC-4.0"
    assert capsys.readouterr().out.splitlines()[0] == expected


def test_the_folder_of_an_instrument_is_verified_too(synth: Synth, here: Path, capsys) -> None:
    shutil.copytree(synth.folder, here / "toy")
    assert main(["verify", "toy"]) == 0
    assert capsys.readouterr().out.startswith("whole            toy  instrument toy 1, CC-BY-NC-4.0")
    (here / "toy" / "vocoder.onnx").write_bytes(b"")
    assert main(["verify", "toy"]) == 1
    assert capsys.readouterr().out.startswith("cannot tell      toy  the vocoder graph")


def test_a_float_file_above_full_scale_is_within_one_step_of_its_own_scale(synth: Synth, here: Path) -> None:
    clip = synth.render("rain", 7)
    loud = np.float32(100 / np.abs(clip.wave).max())
    recipe = replace(clip.recipe, process=({"do": "gain", "db": 20 * np.log10(float(loud))},))
    write_clip(here / "x.wav", clip.wave * loud + np.float32(80 * STEP), recipe, "FLOAT")
    assert only([here / "x.wav"], synth).verdict == "within one step"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_refused_instead_of_read_for_ever(here: Path, capsys) -> None:
    os.mkfifo(here / "x.wav")
    assert main(["verify", "x.wav"]) == 1
    assert "x.wav  x.wav is a pipe or a device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"), [(["nowhere"], "no file nowhere"), (["."], "no sound files in ."), ([], "no sound files")]
)
def test_nothing_to_verify_is_a_mistake(here: Path, capsys, arguments: list[str], words: str) -> None:
    assert main(["verify", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_looked_into_is_a_mistake(synth: Synth, here: Path, capsys, monkeypatch) -> None:
    synth.render("rain", 7).save(here / "a.wav")
    (here / "locked").mkdir()
    look = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert main(["verify", "."]) == 2
    assert "/locked (Permission denied)" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_name_that_is_no_text_is_written_and_read(synth: Synth, here: Path, capsys) -> None:
    path = Path(os.fsdecode(b"bad\xff.wav"))
    synth.render("rain", 7).save(path)
    assert main(["verify", os.fsdecode(b"bad\xff.wav"), "--instrument", str(synth.folder)]) == 0
    assert main(["info", os.fsdecode(b"bad\xff.wav")]) == 0


@pytest.mark.parametrize("do", MAKERS)
def test_a_make_without_its_numbers_is_refused(synth: Synth, do: str) -> None:
    with pytest.raises(KeyError):
        remake({"do": do}, synth)


def test_a_recipe_by_hand_is_the_sound_it_says(synth: Synth, here: Path) -> None:
    clip = finished(synth, synth.render("rain", 7), Shape(lufs=-30))
    clip.save(here / "x.wav")
    recipe = read_recipe(here / "x.wav")
    assert recipe == from_json(recipe.to_json()) == clip.recipe  # type: ignore[union-attr]
    assert compare(here / "x.wav", clip.recipe, synth).steps == 0
    assert read_wave(here / "x.wav")[1] == clip.rate
