"""Contact sheets are valid PNG files with correct spectrograms."""

from pathlib import Path

import numpy as np
import pytest
from helpers import tone

from foleybox.errors import UserError
from foleybox.labels import LABELS
from foleybox.studio.recipe import Recipe
from foleybox.studio.sheet import FONT, HEIGHT, WIDTH, Sheet, colour, spectrogram, write_png
from foleybox.studio.synth import Clip

RATE = 22_050


def clip(wave, label: str = "Rain", seed: int = 0) -> Clip:
    return Clip(wave, Recipe("toy", "0" * 64, "CC-BY-4.0", RATE, {"do": "render", "label": label, "seed": seed}))


def brightness(wave) -> np.ndarray:
    return spectrogram(wave.astype(np.float32), RATE).astype(int).sum(axis=2)  # [HEIGHT, WIDTH]


@pytest.mark.parametrize("hz", [100.0, 440.0, 2_000.0, 9_000.0])
def test_a_tone_is_a_bright_line_at_its_own_height(hz: float) -> None:
    rows = brightness(tone(hz, RATE, 4)).mean(axis=1)
    expected = HEIGHT * (1 - np.log(hz / 40) / np.log(RATE / 2 / 40))
    half_a_bin = HEIGHT * np.log1p(RATE / 2048 / hz) / np.log(RATE / 2 / 40)  # low tones fall between bins
    assert abs(int(rows.argmax()) - expected) < 1.5 + half_a_bin
    assert rows.max() > 600


@pytest.mark.parametrize("seconds", [0.3, 4.0, 30.0])
def test_a_single_click_is_never_missed(seconds: float) -> None:
    for share in (0.1, 0.503, 0.9):
        wave = np.zeros(round(seconds * RATE))
        wave[round(share * len(wave))] = 0.5
        columns = brightness(wave).mean(axis=0)
        assert columns.max() > 200
        assert abs(int(columns.argmax()) - share * WIDTH) < 0.05 * RATE / len(wave) * WIDTH + 2


def test_silence_is_black_and_very_quiet_noise_is_dark() -> None:
    assert brightness(np.zeros(4 * RATE)).max() <= 4
    assert brightness(1e-6 * np.random.default_rng(0).standard_normal(4 * RATE)).max() < 100


def test_a_clip_shorter_than_a_window_is_drawn() -> None:
    assert spectrogram(np.ones(1, np.float32), RATE).shape == (HEIGHT, WIDTH, 3)


def test_brighter_is_always_louder() -> None:
    steps = colour(np.linspace(0, 1, 50)[None]).astype(float)[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(steps) > 0).all()


def test_the_font_has_every_character_of_labels_and_seeds() -> None:
    assert set("".join(label.name for label in LABELS).upper() + "0123456789-._ ") <= set(FONT)
    assert len({FONT[sign] for sign in FONT}) == len(FONT)
    assert all(len(rows) == 5 and set(rows) <= set("01234567") for rows in FONT.values())


def test_a_sheet_has_a_row_for_each_label_and_a_column_for_each_seed(tmp_path: Path) -> None:
    sheet = Sheet()
    for label in ("DogBark", "MovingMotorVehicle"):
        for seed in (7, 8, 2**53 - 1):
            sheet.add(clip(tone(440, RATE, 0.5), label, seed))
    height, width, _ = sheet.image().shape
    assert height > 2 * HEIGHT
    assert width > 3 * WIDTH
    write_png(tmp_path / "x.png", sheet.image())
    matplotlib = pytest.importorskip("matplotlib.image", reason="reads the PNG back")
    read = matplotlib.imread(tmp_path / "x.png")
    np.testing.assert_array_equal(np.rint(read[..., :3] * 255), sheet.image())


def test_a_sheet_of_nothing_or_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clips"):
        Sheet().image()
    with pytest.raises(UserError, match=r"ends in \.png"):
        write_png(tmp_path / "x.jpg", spectrogram(tone(440, RATE, 0.1), RATE))
    assert not list(tmp_path.iterdir())
