"""A sound carries its recipe through every format, and a recipe is whole or refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tone

from foleybox.audio import read_wave, write_wave
from foleybox.doors import UserError
from foleybox.studio.recipe import CHUNK, Recipe, from_json, read_recipe, write_clip

RECIPE = Recipe("first", "ab" * 32, "Sneeze_Cough", 2**53 - 1, 0.8, 22_050, "CC-BY-NC-4.0")
WAVE = tone(440, 22_050, 0.3)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_a_recipe_survives_the_file(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, WAVE, RECIPE)
    assert read_recipe(tmp_path / name) == RECIPE
    assert len(read_wave(tmp_path / name)[0]) == len(WAVE)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_a_recipe_of_ten_kilobytes_survives_too(tmp_path: Path, name: str) -> None:
    long = replace(RECIPE, instrument="é" * 5_000)
    write_clip(tmp_path / name, WAVE, long)
    assert read_recipe(tmp_path / name) == long


def test_other_programs_see_title_comment_and_licence(tmp_path: Path) -> None:
    write_clip(tmp_path / "x.wav", WAVE, RECIPE)
    with soundfile.SoundFile(tmp_path / "x.wav") as file:
        assert file.title == "Sneeze_Cough 9007199254740991"
        assert "first" in file.comment
        assert len(file.comment) < 200


def test_a_sound_of_someone_else_has_no_recipe(tmp_path: Path) -> None:
    for name in ("x.wav", "x.flac", "x.ogg"):
        soundfile.write(tmp_path / name, np.zeros(1000), 8_000)
        assert read_recipe(tmp_path / name) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"foleybox_recipe": 1, "label"', "not JSON"),
        (b'{"foleybox_recipe": 99}', "of format 99"),
        (b"[]", "of format None"),
        (b'{"foleybox_recipe": 1, "label": "Rain"}', "expected fingerprint"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_a_damaged_recipe_is_named_with_its_file(tmp_path: Path, content: bytes, words: str) -> None:
    write_wave(tmp_path / "x.wav", WAVE, 22_050, chunks={CHUNK: content})
    with pytest.raises(UserError, match=rf"x\.wav: the recipe .*{words}"):
        read_recipe(tmp_path / "x.wav")


def test_a_file_without_sound_has_no_recipe_to_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match="not a sound file"):
        read_recipe(tmp_path / "x.txt")
    with pytest.raises(UserError, match="No such file"):
        read_recipe(tmp_path / "y.wav")


def test_json_and_back_is_the_same_recipe() -> None:
    assert from_json(RECIPE.to_json()) == RECIPE
