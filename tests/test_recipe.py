"""A sound carries its recipe through every format, and a recipe is whole or refused."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tone
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.audio import read_wave, write_wave
from foleybox.errors import UserError
from foleybox.studio.recipe import CHUNK, Recipe, from_json, read_recipe, read_recipe_text, why_no_recipe, write_clip

MAKE = {"do": "render", "label": "Sneeze_Cough", "seed": 2**53 - 1, "temperature": 0.8, "stream": 0}
STEPS = ({"do": "cut", "start": 10, "samples": 99}, {"do": "gain", "db": -1.25})
RECIPE = Recipe("first", "ab" * 32, "CC-BY-NC-4.0", 22_050, MAKE, {"lufs": -23.0}, STEPS)
WAVE = tone(440, 22_050, 0.3)
OF_VERSION_1 = {
    "foleybox_recipe": 1, "instrument": "first", "fingerprint": "ab" * 32, "label": "Rain", "seed": 5,
    "temperature": 1.0, "rate": 48_000, "licence": "CC-BY-4.0", "foleybox": "0.1.0",
}  # fmt: skip


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_a_recipe_survives_the_file_and_a_copy_of_it(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, WAVE, RECIPE)
    shutil.copyfile(tmp_path / name, tmp_path / f"Kopie von {name}")
    assert read_recipe(tmp_path / name) == read_recipe(tmp_path / f"Kopie von {name}") == RECIPE
    assert len(read_wave(tmp_path / name)[0]) == len(WAVE)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_a_recipe_of_a_long_scene_survives_too(tmp_path: Path, name: str) -> None:
    events = [[place * 441, 12, 0, 0.25] for place in range(20_000)]
    track = {"label": "Pluie légère", "shots": [[MAKE, 0, 12, 99, -3.25]], "events": events}
    long = replace(RECIPE, make={"do": "perform", "label": "é", "seed": 1, "samples": 999, "tracks": [track]})
    write_clip(tmp_path / name, WAVE, long)
    assert read_recipe(tmp_path / name) == long
    assert len(long.to_json()) > 400_000


def test_other_programs_see_title_comment_and_licence(tmp_path: Path) -> None:
    write_clip(tmp_path / "x.wav", WAVE, RECIPE)
    with soundfile.SoundFile(tmp_path / "x.wav") as file:
        assert file.title == "Sneeze_Cough 9007199254740991"
        assert file.comment == f"foleybox {RECIPE.foleybox}: render Sneeze_Cough, seed 9007199254740991, first"
        assert len(file.comment) < 200


def test_other_chunks_are_written_before_the_recipe(tmp_path: Path) -> None:
    write_clip(tmp_path / "x.wav", WAVE, RECIPE, chunks={b"smpl": b"\0" * 36})
    content = (tmp_path / "x.wav").read_bytes()
    assert content.index(b"data") < content.index(b"smpl") < content.index(CHUNK)
    assert read_recipe(tmp_path / "x.wav") == RECIPE


def test_label_and_seed_are_those_of_what_a_sound_was_made_of() -> None:
    varied = replace(RECIPE, make={"do": "vary", "of": MAKE, "amount": 0.2, "seed": 4, "stream": 0})
    assert (varied.label, varied.seed) == ("Sneeze_Cough", 4)
    looped = replace(RECIPE, make={"do": "loop", "of": varied.make})
    assert (looped.label, looped.seed) == ("Sneeze_Cough", 4)


# --- version 1 ----------------------------------------------------------------------------------------------------


def test_a_recipe_of_version_1_is_read(tmp_path: Path) -> None:
    write_wave(tmp_path / "old.wav", WAVE, 48_000, chunks={CHUNK: json.dumps(OF_VERSION_1).encode()})
    recipe = read_recipe(tmp_path / "old.wav")
    assert recipe is not None
    assert (recipe.label, recipe.seed, recipe.make["temperature"]) == ("Rain", 5, 1.0)
    assert recipe.process == ({"do": "resample", "rate": 48_000},)
    assert (recipe.instrument, recipe.licence, recipe.rate) == ("first", "CC-BY-4.0", 48_000)


# --- lost, damaged, edited, newer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_a_file_that_lost_its_recipe_is_reported_as_such(tmp_path: Path, name: str) -> None:
    write_wave(tmp_path / name, WAVE, 22_050, tags={"comment": RECIPE.comment()})  # as an editor keeps it
    assert read_recipe(tmp_path / name) is None
    assert "it lost its recipe" in why_no_recipe(tmp_path / name)
    assert "Sneeze_Cough, seed 9007199254740991, first" in why_no_recipe(tmp_path / name)


def test_a_sound_of_someone_else_has_no_recipe(tmp_path: Path) -> None:
    for name in ("x.wav", "x.flac", "x.ogg"):
        soundfile.write(tmp_path / name, np.zeros(1000), 8_000)
        assert read_recipe(tmp_path / name) is None
        assert "it carries no recipe" in why_no_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("old", "new"), [("0.8", "0.9"), ("-1.25", "-1.250"), ("Sneeze", "Rain"), ('"abab', '"cbab'), (", ", ",  ")]
)
def test_an_edited_recipe_is_detected(old: str, new: str) -> None:
    text = RECIPE.to_json()
    assert old in text
    with pytest.raises(UserError, match="was edited"):
        from_json(text.replace(old, new, 1))


def sealed(content: object) -> bytes:
    """Return a recipe whose checksum fits, whatever it says."""
    body = json.dumps(content)[:-1]
    return f'{body}, "checksum": "{hashlib.sha256(body.encode()).hexdigest()}"}}'.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"foleybox_recipe": 1, "label"', "is not JSON"),
        (b'{"foleybox_recipe": 99}', "of version 99, this foleybox reads 1 and 2: update foleybox"),
        (b'{"foleybox_recipe": true}', "of version True"),
        (b"[]", "of version None"),
        (b'{"foleybox_recipe": "\\n"}', r"of version '\\n', this"),
        (b'{"foleybox_recipe": 1, "label": "Rain"}', "lacks fingerprint"),
        (b'{"foleybox_recipe": 2, "label": "Rain"}', "was edited"),
        (sealed({"foleybox_recipe": 2, "label": "Rain"}), "lacks asked"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_a_damaged_recipe_is_named_with_its_file(tmp_path: Path, content: bytes, words: str) -> None:
    write_wave(tmp_path / "x.wav", WAVE, 22_050, chunks={CHUNK: content})
    with pytest.raises(UserError, match=rf"x\.wav: the recipe .*{words}"):
        read_recipe(tmp_path / "x.wav")


MADE = {
    "vary": {"do": "vary", "of": MAKE, "amount": 0.2, "seed": 1, "stream": 0},
    "walk": {"do": "walk", "of": MAKE, "amount": 0.2, "seed": 1, "step": 2},
    "morph": {"do": "morph", "of": MAKE, "to": MAKE, "at": 0.5},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"make": []}, "make is a list: expected an object that states what to 'do'"),
        ({"make": {**MAKE, "do": "sing"}}, "make says to 'sing', which this foleybox does not know: update foleybox"),
        ({"make": {**MAKE, "colour": 1}}, "make has the unknown colour"),
        ({"make": {**MAKE, "seed": "x"}}, "make.seed is 'x': expected a whole number from 0 to 9007199254740991"),
        ({"make": {**MAKE, "seed": True}}, "make.seed is True"),
        ({"make": {**MAKE, "seed": -1}}, "make.seed is -1"),
        ({"make": {**MAKE, "stream": 4000}}, "make.stream is 4000: expected a whole number from 0 to 7"),
        ({"make": {**MADE["vary"], "amount": 1e300}}, "make.amount is 1e+300: expected a number from 0 to 1"),
        ({"make": {**MADE["vary"], "of": {"do": "render"}}}, "make.of lacks label, seed, temperature"),
        ({"make": {**MADE["walk"], "step": 10**9}}, "make.step is 1000000000"),
        ({"rate": "8000"}, "rate is '8000'"),
        ({"rate": 2**40}, "rate is 1099511627776: expected a whole number from 1000 to 768000"),
        ({"fingerprint": "abc"}, "fingerprint is 'abc': expected a SHA-256"),
        ({"asked": {"zzz": 1}}, "asked has the unknown zzz"),
        ({"process": [{"start": 1}]}, "process[0] is an object: expected an object that states what to 'do'"),
        ({"process": [{"do": "gain", "db": 1e6}]}, "process[0].db is 1000000.0: expected a number from -400 to 400"),
        ({"process": [{"do": "cut", "start": 0, "samples": 4 * 10**11}]}, "process[0].samples is 400000000000"),
    ],
)
def test_a_recipe_with_a_value_that_cannot_be_followed_is_refused_by_name(change: dict, words: str) -> None:
    content = {**json.loads(RECIPE.to_json()), **change}
    del content["checksum"]
    with pytest.raises(UserError, match=re.escape(words)):
        from_json(sealed(content).decode())
    with pytest.raises(ValueError, match=re.escape(words)):  # and is never written
        replace(RECIPE, **change).to_json()


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000])
def test_a_number_that_is_none_is_refused_at_any_place(make: dict, number: str) -> None:
    content = {**json.loads(RECIPE.to_json()), "make": make, "process": [{"do": "resample", "rate": 1}]}
    del content["checksum"]
    for place in ('"amount": 0.2', '"at": 0.5', '"rate": 1', '"seed": 1'):
        body = json.dumps(content)[:-1]
        body = body.replace(place, f"{place.split(':')[0]}: {number}")
        sealed_again = f'{body}, "checksum": "{hashlib.sha256(body.encode()).hexdigest()}"}}'
        with pytest.raises(UserError):
            from_json(sealed_again)


KEYS = st.sampled_from(["foleybox_recipe", "make", "process", "rate", "do", "checksum"])
VALUES = st.none() | st.booleans() | st.floats() | st.integers(0, 3) | st.text(max_size=5)
ANY = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, ANY) | ANY)
def test_any_json_is_a_recipe_or_refused_in_one_line(content: object) -> None:
    for text in (json.dumps(content), sealed(content).decode()):
        found, refused = None, ""
        try:
            found = from_json(text)
        except UserError as error:
            refused = str(error)
        assert isinstance(found, Recipe) != (len(refused.splitlines()) == 1)


@given(st.text())
def test_any_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError):
        from_json(text)


def test_a_file_without_sound_has_no_recipe_to_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match="not a sound file"):
        read_recipe(tmp_path / "x.txt")
    with pytest.raises(UserError, match="No such file"):
        read_recipe(tmp_path / "y.wav")


def test_a_recipe_survives_json_and_a_text_file(tmp_path: Path) -> None:
    assert from_json(RECIPE.to_json()) == RECIPE
    (tmp_path / "x.json").write_text(RECIPE.to_json() + "\n", encoding="utf-8")
    assert read_recipe_text(tmp_path / "x.json") == RECIPE
    (tmp_path / "y.json").write_bytes(b"\xff")
    for name, words in (("y.json", "cannot read"), ("z.json", "No such file")):
        with pytest.raises(UserError, match=words):
            read_recipe_text(tmp_path / name)
