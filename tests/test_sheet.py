"""Contact sheets are valid PNG files with correct spectrograms."""

from pathlib import Path

import numpy as np
import pytest
from helpers import tone

from foleybox.errors import UserError
from foleybox.labels import LABELS
from foleybox.studio.recipe import Recipe
from foleybox.studio.sheet import FONT, HEIGHT, WIDTH, Sheet, colour, draw_text, is_sheet, spectrogram
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


def test_a_sheet_has_rows_of_twelve_of_one_label_each_with_its_caption(tmp_path: Path) -> None:
    sheet, silent = Sheet(tmp_path / "x.png"), np.zeros(RATE // 2, np.float32)
    for label, count in (("DogBark", 3), ("MovingMotorVehicle", 14)):
        for seed in range(count):
            sheet.add(clip(silent, label, 2**53 - 1 - seed), f"V{seed}" if label == "DogBark" else "")
    assert [len(row) for _, row in sheet.rows] == [3, 12, 2]
    image = sheet.image()
    assert image.shape[1] > 12 * WIDTH
    captions = [image[6:16, 4 + column * (WIDTH + 4) :][:, WIDTH - 16 : WIDTH] for column in range(3)]
    expected = np.full((10, 16, 3), 24, np.uint8)
    for column, drawn in enumerate(captions):
        expected[:] = 24
        draw_text(expected, 0, 0, f"V{column}")
        np.testing.assert_array_equal(drawn, expected)
    assert sheet.close() == [tmp_path / "x.png"]
    assert is_sheet(tmp_path / "x.png")
    matplotlib = pytest.importorskip("matplotlib.image", reason="reads the PNG back")
    read = matplotlib.imread(tmp_path / "x.png")
    np.testing.assert_array_equal(np.rint(read[..., :3] * 255), image)


def test_a_long_sheet_has_several_pages_and_drops_no_clip(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("foleybox.studio.sheet.ROWS", 2)
    sheet = Sheet(tmp_path / "x.png")
    for seed in range(30):
        sheet.add(clip(np.zeros(100, np.float32), "Rain", seed))
    assert [path.name for path in sheet.close()] == ["x.png", "x-2.png"]


def test_a_sheet_of_nothing_or_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clips"):
        Sheet(tmp_path / "x.png").close()
    with pytest.raises(UserError, match=r"ends in \.png"):
        Sheet(tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())
