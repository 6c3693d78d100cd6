"""Sound files in any state, and measurements against their standards."""

import errno
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tone

from foleybox import audio
from foleybox.audio import fit, loudness, peak_db, read_wave, resample, rms_db, true_peak_db, wav_chunk, write_wave
from foleybox.errors import UserError

NOISE = (0.2 * np.random.default_rng(0).standard_normal(22_050)).astype(np.float32)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "channels", "seconds", "subtype"),
    [
        (22_050, 2, 1.0, "PCM_16"),
        (22_050, 1, 1.0, "PCM_U8"),
        (96_000, 1, 1.0, "PCM_24"),
        (22_050, 1, 0.1, "PCM_16"),
        (8_000, 1, 600.0, "PCM_16"),
        (44_100, 6, 0.5, "DOUBLE"),
    ],
)
def test_unusual_but_whole_files_are_read(
    tmp_path: Path, rate: int, channels: int, seconds: float, subtype: str
) -> None:
    wave = tone(440, rate, seconds)
    soundfile.write(tmp_path / "x.wav", np.tile(wave[:, None], channels), rate, subtype=subtype)
    read, found = read_wave(tmp_path / "x.wav")
    assert (read.dtype, read.shape, found) == (np.float32, wave.shape, rate)
    assert np.abs(read - wave).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.array([[0.5, -0.25]] * 100), 8_000)
    np.testing.assert_allclose(read_wave(tmp_path / "x.wav")[0], 0.125, atol=1e-4)


def test_silence_is_read_as_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(8_000), 8_000)
    assert not read_wave(tmp_path / "x.wav")[0].any()


def test_reading_at_a_rate_resamples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(440, 96_000, 1), 96_000, subtype="FLOAT")
    wave, rate = read_wave(tmp_path / "x.wav", rate=22_050)
    assert rate == 22_050
    np.testing.assert_allclose(wave[500:-500], tone(440, 22_050, 1)[500:-500], atol=1e-4)


def encoded(kind: str, wave: np.ndarray = NOISE) -> bytes:
    memory = io.BytesIO()
    soundfile.write(memory, wave, 22_050, format=kind, subtype={"OGG": "VORBIS", "MP3": None}.get(kind, "PCM_16"))
    return memory.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "OGG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_refused_wherever_the_cut(tmp_path: Path, kind: str, share: float) -> None:
    whole = encoded(kind)
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(whole)
    assert len(read_wave(path)[0]) == len(NOISE)
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="cut short"):
        read_wave(path)


def test_an_ogg_cut_exactly_between_two_pages_is_refused(tmp_path: Path) -> None:
    whole = encoded("OGG", np.tile(NOISE, 4))
    assert whole.count(b"OggS") > 4
    (tmp_path / "x.ogg").write_bytes(whole[: whole.rfind(b"OggS")])
    with pytest.raises(UserError, match="cut short: its last page is missing"):
        read_wave(tmp_path / "x.ogg")


def test_a_wav_from_a_pipe_whose_header_states_no_size_is_read(tmp_path: Path) -> None:
    whole = bytearray(encoded("WAV"))
    at = whole.find(b"data")
    whole[4:8] = whole[at + 4 : at + 8] = struct.pack("<I", 0xFFFF_FFFF)
    (tmp_path / "x.wav").write_bytes(whole)
    assert len(read_wave(tmp_path / "x.wav")[0]) == len(NOISE)


def test_a_file_without_sound_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, np.inf]), 8_000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("this is not audio at all\n" * 50)
    (tmp_path / "x.raw").write_bytes(b"1234")
    (tmp_path / "folder.wav").mkdir()
    for name, words in {
        "missing.wav": "no file",
        "empty.wav": r"is empty \(0 bytes\)",
        "none.wav": "holds no samples",
        "nan.wav": "holds 2 samples that are NaN or infinite",
        "text.wav": "is not a sound file that can be read",
        "x.raw": "is not a sound file that can be read",
        "folder.wav": "cannot read .*directory",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            read_wave(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_all_real_recordings_of_one_label_count_as_whole(shared: Path) -> None:
    files = sorted((shared / "data" / "foley" / "Keyboard").iterdir())[:40]
    assert all(len(read_wave(path)[0]) == 88_200 for path in files)


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [
        ("x.wav", "PCM_16", 2**-16),
        ("x.wav", "PCM_24", 2**-24),
        ("x.wav", "FLOAT", 0),
        ("x.flac", "PCM_16", 2**-16),
        ("x.flac", "PCM_24", 2**-24),
    ],
)
def test_what_is_written_reads_back_to_half_a_step(tmp_path: Path, name: str, subtype, step: float) -> None:
    assert write_wave(tmp_path / name, NOISE[:1001], 22_050, subtype) == 1
    read, rate = read_wave(tmp_path / name)
    assert rate == 22_050
    assert np.abs(read - NOISE[:1001]).max() <= step
    assert soundfile.info(tmp_path / name).subtype == subtype


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_a_wave_above_full_scale_is_scaled_and_never_clipped(tmp_path: Path, name: str) -> None:
    gain = write_wave(tmp_path / name, tone(440, 22_050, 1, level=2.0), 22_050)
    assert gain == pytest.approx(0.5, rel=1e-4)
    read, _ = read_wave(tmp_path / name)
    np.testing.assert_allclose(read, tone(440, 22_050, 1, level=1.0), atol=0.05 if name == "x.ogg" else 2**-14)


def test_a_float_wav_holds_what_exceeds_full_scale(tmp_path: Path) -> None:
    wave = tone(440, 22_050, 0.1, level=2.0)
    assert write_wave(tmp_path / "x.wav", wave, 22_050, "FLOAT") == 1
    np.testing.assert_array_equal(read_wave(tmp_path / "x.wav")[0], wave)


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.ogg"])
def test_the_same_wave_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    write_wave(tmp_path / name, NOISE, 22_050, tags={"comment": "hello"})
    first = (tmp_path / name).read_bytes()
    write_wave(tmp_path / name, NOISE, 22_050, tags={"comment": "hello"})
    assert (tmp_path / name).read_bytes() == first
    with soundfile.SoundFile(tmp_path / name) as file:
        assert file.comment == "hello"


def test_minutes_of_ogg_are_written_whole(tmp_path: Path) -> None:
    write_wave(tmp_path / "x.ogg", np.tile(NOISE, 180), 22_050)
    assert len(read_wave(tmp_path / "x.ogg")[0]) == 180 * 22_050


def test_private_chunks_survive_and_do_not_disturb_other_readers(tmp_path: Path) -> None:
    content = b"odd length, and more than two kilobytes " * 100 + b"!"
    write_wave(tmp_path / "x.wav", NOISE[:999], 22_050, "PCM_24", {"title": "t"}, {b"zzzz": content})
    assert wav_chunk(tmp_path / "x.wav", b"zzzz") == content
    assert wav_chunk(tmp_path / "x.wav", b"none") is None
    assert soundfile.info(tmp_path / "x.wav").frames == 999


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        real(path, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("x.wav", "x.flac"):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_wave(tmp_path / name, NOISE, 22_050)
        assert caught.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "subtype", "words"),
    [
        ("x.mp4", "PCM_16", "ends in .wav"),
        ("x.flac", "FLOAT", "PCM_16 or PCM_24"),
        ("x.wav", "PCM_8", "as PCM_8: expected PCM_16, PCM_24, FLOAT"),
    ],
)
def test_formats_we_do_not_write_are_refused(tmp_path: Path, name: str, subtype, words: str) -> None:
    with pytest.raises(UserError, match=words):
        write_wave(tmp_path / name, NOISE, 22_050, subtype)


@pytest.mark.parametrize(("name", "rate"), [("x.ogg", 384_000), ("x.flac", 768_000)])
def test_a_rate_that_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, rate: int) -> None:
    with pytest.raises(UserError, match="Hz or less, or wav"):
        write_wave(tmp_path / name, NOISE, rate)
    assert not list(tmp_path.iterdir())


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        write_wave(tmp_path / "x.wav", np.array([0, np.nan], np.float32), 8_000)
    assert not list(tmp_path.iterdir())


# --- shaping and measuring ----------------------------------------------------------------------------------------


def test_fit_cuts_and_pads_at_the_end() -> None:
    np.testing.assert_array_equal(fit(NOISE, 5), NOISE[:5])
    np.testing.assert_array_equal(fit(NOISE[:5], 7), [*NOISE[:5], 0, 0])


@pytest.mark.parametrize("new_rate", [8_000, 44_100, 48_000])
def test_resampling_keeps_a_tone_and_the_length(new_rate: int) -> None:
    moved = resample(tone(1_000, 22_050, 1), 22_050, new_rate)
    assert len(moved) == new_rate
    np.testing.assert_allclose(moved[999:-999], tone(1_000, new_rate, 1)[999:-999], atol=1e-4)


def test_levels_of_a_sine_are_the_textbook_values() -> None:
    sine = tone(1_000, 48_000, 1, level=1.0)
    assert peak_db(sine) == pytest.approx(0, abs=0.01)
    assert rms_db(sine) == pytest.approx(-3.01, abs=0.01)
    assert peak_db(np.zeros(9, np.float32)) == rms_db(np.zeros(9, np.float32)) == -np.inf


def test_true_peak_finds_the_peak_between_samples() -> None:
    # A quarter of the rate, 45 degrees off: every sample is at 0.707, the wave itself reaches 1.
    wave = np.sin(np.pi / 4 + np.pi / 2 * np.arange(4_800)).astype(np.float32)
    middle = wave * np.hanning(4_800).astype(np.float32)
    assert peak_db(middle) == pytest.approx(-3.01, abs=0.01)
    assert true_peak_db(middle) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_loudness_equals_pyloudnorms(rate: int) -> None:
    pyloudnorm = pytest.importorskip("pyloudnorm")
    rng = np.random.default_rng(rate)
    wave = 0.1 * rng.standard_normal(7 * rate)
    wave[2 * rate : 5 * rate] *= 0.01  # falls under the relative gate
    wave[: rate // 2] = 0  # and under the absolute one
    theirs = pyloudnorm.Meter(rate, filter_class="DeMan").integrated_loudness(wave)
    assert loudness(wave.astype(np.float32), rate) == pytest.approx(theirs, abs=0.02)


def test_loudness_of_the_standards_own_tone_is_minus_3() -> None:
    # BS.1770-4: a full-scale 997 Hz sine in one front channel reads -3.01 LKFS.
    assert loudness(tone(997, 48_000, 5, level=1.0), 48_000) == pytest.approx(-3.01, abs=0.02)


def test_loudness_of_short_clips_and_silence_is_defined() -> None:
    whole, tenth = loudness(NOISE, 22_050), loudness(NOISE[:2_205], 22_050)
    assert abs(whole - tenth) < 0.5
    assert loudness(np.zeros(22_050, np.float32), 22_050) == -np.inf
    assert loudness(np.zeros(0, np.float32), 22_050) == -np.inf


def test_loudness_is_defined_where_rounding_puts_the_last_block_beyond_the_end() -> None:
    # At 11,025 Hz blocks start every 1102.5 samples: the start of this wave's last block is rounded up.
    assert loudness(np.full(7_717, 0.1, np.float32), 11_025) < -40


@pytest.mark.parametrize("at", [4094, 4095, 4096, 4097])
def test_a_peak_where_two_blocks_meet_is_as_high_as_anywhere(at: int) -> None:
    wave = np.full(3 * 4096, 0.3, np.float32)
    wave[at : at + 2] = 0.5  # between two equal samples the true peak is higher than both
    assert true_peak_db(wave, block=4096) == pytest.approx(true_peak_db(wave), abs=0.01)
    assert true_peak_db(wave) > 20 * np.log10(0.5) + 0.5


def test_loudness_in_pieces_equals_loudness_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = np.tile(NOISE, 14)  # 308,700 samples: two pieces
    long = loudness(wave, 22_050)
    assert long == pytest.approx(loudness(wave[: 2**18], 22_050), abs=0.01)
    weighted = audio._k_weighted(wave, 22_050)
    np.testing.assert_allclose(weighted[2**18 :], audio._k_weighted(wave[22_050:], 22_050)[2**18 - 22_050 :], atol=1e-9)


def test_a_float_file_of_samples_that_are_no_sound_is_refused(tmp_path: Path) -> None:
    for value, accepted in ((2.0**31, True), (-1e30, False)):
        soundfile.write(tmp_path / "x.wav", np.array([0.0, value]), 8_000, "FLOAT")
        if accepted:
            assert read_wave(tmp_path / "x.wav")[0][1] == value
        else:
            with pytest.raises(UserError, match=r"holds samples up to 1e\+30"):
                read_wave(tmp_path / "x.wav")
