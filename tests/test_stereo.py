"""Sounds of two channels: decorrelated, balanced, and nearly as loud in mono; written, measured and verified as such."""

from pathlib import Path

import numpy as np
import pytest
from helpers import tone, toy_instrument

from foleybox.audio import Subtype, Wave, loudness, read_channels, rms_db, true_peak_db, write_wave
from foleybox.cli import main
from foleybox.studio.extend import finished
from foleybox.studio.shape import Shape, apply, levels
from foleybox.studio.spectra import band_levels
from foleybox.studio.synth import Synth


@pytest.fixture(scope="module")
def synth() -> Synth:
    return Synth.load("foley", threads=1)


def power_db(wave: Wave) -> float:
    return 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)))


@pytest.mark.parametrize(("label", "seed"), [("rain", 1), ("motor", 4)])
def test_a_stereo_sound_is_its_mono_sound_in_mono_and_1_db_quieter_there_than_its_channels(
    synth: Synth, label: str, seed: int
) -> None:
    clip = synth.render(label, seed)
    wave = finished(synth, clip, Shape(), width=1).wave
    alone = finished(synth, clip, Shape()).wave
    assert wave.shape == (synth.instrument.samples, 2)
    np.testing.assert_allclose(wave.mean(axis=1)[1_000:-1_000], alone[1_000:-1_000], atol=1e-6)
    assert -1 < power_db(wave.mean(axis=1)) - power_db(wave) < -0.9
    left, right = (
        np.log10(np.mean(10 ** (band_levels(wave[:, side].copy(), clip.rate) / 10), axis=0)) * 10 for side in (0, 1)
    )
    loud = np.maximum(left, right) > max(left.max(), right.max()) - 40
    assert np.abs(left - right)[loud].max() < 2  # no band is on one side
    assert 0.5 < np.asarray(np.corrcoef(wave.T))[0, 1] < 0.7


def test_the_width_is_between_mono_and_stereo_and_a_long_sound_is_wide_for_its_whole_length(synth: Synth) -> None:
    clip = synth.render("rain", 1)
    narrow = finished(synth, clip, Shape(seconds=6), width=0.2).wave
    assert 0.97 < np.asarray(np.corrcoef(narrow.T))[0, 1] < 0.99
    assert np.array_equal(*finished(synth, clip, Shape(), width=0).wave.T)
    sides = narrow[:, 0] - narrow[:, 1]
    parts = [power_db(part) for part in np.array_split(sides[2_000:-2_000], 12)]
    assert max(parts) - min(parts) < 6


def test_stereo_files_have_their_channels_and_verify_as_identical(synth: Synth, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(toy_instrument(tmp_path / "toy"))
    for format, more in (("wav", ["--lufs", "-23"]), ("flac", ["--rate", "16000"]), ("ogg", [])):
        command = ["generate", "rain", "--channels", "2", "--seconds", "0.6", "--format", format, *more]
        assert main([*command, "--instrument", folder, "-o", "out", "--sheet", "x.png"]) == 0
        channels, _ = read_channels(f"out/Rain/Rain_s0.{format}")
        assert channels.shape[1] == 2
        assert true_peak_db(channels) <= -0.99  # an OGG is turned down in steps of 0.001 dB
        assert not np.array_equal(*channels.T)
        Path("x.png").unlink()
    assert loudness(read_channels("out/Rain/Rain_s0.wav")[0], 8_000) == pytest.approx(-23, abs=0.2)
    assert main(["verify", "out", "--instrument", folder]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dog_bark", "--channels", "2"], "--channels 2 with DogBark: expected steady labels (rain, motor)"),
        (["rain", "--width", "0.5"], "--width 0.5 of one channel: add --channels 2"),
        (["rain", "--channels", "2", "--width", "1.5"], "--width 1.5: expected 0"),
        (["rain", "--channels", "3"], "channels"),
    ],
)
def test_a_stereo_sound_that_cannot_be_made_is_an_error(tmp_path: Path, capsys, arguments, words: str) -> None:
    assert main(["generate", *arguments, "-o", str(tmp_path / "new")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_waves_of_several_channels_are_written_and_measured_as_each_channel(tmp_path: Path) -> None:
    left, right = tone(440, 8_000, 1.0, 0.5), tone(660, 8_000, 1.0, 0.05)
    both = np.stack([left, right], axis=1)
    files: dict[str, Subtype] = {
        "x.wav": "PCM_16",
        "y.wav": "PCM_24",
        "z.wav": "FLOAT",
        "x.flac": "PCM_24",
        "x.ogg": "PCM_16",
    }
    for name, subtype in files.items():
        write_wave(tmp_path / name, both, 8_000, subtype)
        found, rate = read_channels(tmp_path / name)
        assert rate == 8_000
        np.testing.assert_allclose(found, both, atol=0.02 if name == "x.ogg" else 2**-15)
    assert true_peak_db(both) == pytest.approx(true_peak_db(left), abs=0.05)
    assert loudness(both, 8_000) == pytest.approx(loudness(left, 8_000) + 0.04, abs=0.02)  # of powers 1 and 0.01
    assert levels(both, 8_000)[10] == pytest.approx(rms_db(left) - 3, abs=0.1)
    steps = (
        {"do": "cut", "start": 10, "samples": 9_000},
        {"do": "fade", "in": 50, "out": 60},
        {"do": "resample", "rate": 16_000},
    )
    made, _ = apply(steps, both, 8_000)
    for channel, alone in zip(made.T, both.T):
        np.testing.assert_allclose(channel, apply(steps, alone.copy(), 8_000)[0], atol=1e-6)
