"""Loops are seamless: in phase for a hum, at equal power for noise; the seam is measured."""

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import clicks, tone, toy_instrument
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.audio import Wave, read_channels, read_wave, rms_db, wav_chunk, write_wave
from foleybox.cli import main
from foleybox.errors import UserError
from foleybox.studio.extend import _same_kind
from foleybox.studio.loop import (
    Wrap,
    find_wrap,
    longest,
    loop_source,
    looped,
    measure_seam,
    smpl_chunk,
    steady_clip,
    wrapped,
)
from foleybox.studio.recipe import Recipe, read_recipe
from foleybox.studio.remake import remake
from foleybox.studio.shape import levels
from foleybox.studio.synth import Clip, Synth

RATE = 8_000
FADE = 1_000


def noise(seconds: float, seed: int = 0) -> Wave:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Synth:
    return Synth.load(toy_instrument(tmp_path_factory.mktemp("loop") / "toy"), threads=1)


def foreign(wave: Wave) -> Clip:
    return Clip(wave, Recipe("", "", "", RATE, {"do": "read"}))


# --- the seam -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(st.floats(60, 900), st.floats(0.6, 1.2))
def test_a_hum_of_any_pitch_wraps_in_phase(hz: float, seconds: float) -> None:
    wave = tone(hz, RATE, 3.0)
    wrap = find_wrap(wave, RATE, round(seconds * RATE), FADE)
    loop = wrapped(wave, wrap)
    assert abs(len(loop) - seconds * RATE) <= 0.025 * RATE + 1
    assert wrap.alike > 0.9
    assert (
        np.abs(np.diff(np.tile(loop, 2))).max() < 1.05 * np.abs(np.diff(wave)).max()
    )  # no step anywhere, wrap included
    assert rms_db(loop[:FADE]) == pytest.approx(rms_db(wave), abs=0.3)  # and no swell where both sides sound


def test_a_hiss_is_as_loud_in_its_crossfade_as_elsewhere() -> None:
    loops = [wrapped(noise(3, seed), find_wrap(noise(3, seed), RATE, RATE, FADE)) for seed in range(20)]
    fades = rms_db(np.concatenate([loop[:FADE] for loop in loops]))
    assert fades == pytest.approx(rms_db(np.concatenate([loop[FADE:] for loop in loops])), abs=0.4)


def test_at_the_wrap_the_wave_continues_as_in_the_material() -> None:
    wave = noise(3)
    start, samples, fade, _ = wrap = find_wrap(wave, RATE, RATE, FADE)
    loop = wrapped(wave, wrap)
    assert samples == RATE  # a hiss has no phase to wait for
    np.testing.assert_allclose(loop[:5], wave[start + samples : start + samples + 5], atol=3e-3)
    np.testing.assert_array_equal(loop[fade:], wave[start + fade : start + samples])


def test_a_good_loop_measures_no_more_at_its_seam_than_inside_and_a_bare_cut_more() -> None:
    hum = (tone(197.3, RATE, 3.0) + 0.01 * noise(3.0)).astype(np.float32)
    assert measure_seam(wrapped(hum, find_wrap(hum, RATE, RATE, FADE)), RATE, FADE).inaudible
    bare = hum[: RATE + 20]
    assert not measure_seam(bare, RATE, 0).inaudible
    growing = noise(1.0) * np.geomspace(1, 0.02, RATE).astype(np.float32)  # ends quietly, begins loudly
    assert not measure_seam(growing, RATE, 0).inaudible
    hiss = noise(3)
    assert measure_seam(wrapped(hiss, find_wrap(hiss, RATE, RATE, FADE)), RATE, FADE).inaudible


def test_the_loop_is_put_where_its_two_sides_are_most_alike() -> None:
    dull = np.convolve(noise(4.0), np.ones(12) / 4, "same").astype(np.float32)
    wave = np.concatenate([noise(0.5, 1), dull, noise(0.5, 2)])  # bright edges
    wrap = find_wrap(wave, RATE, round(3 * RATE), FADE)
    assert wrap.start > 0.4 * RATE
    assert wrap.start + wrap.samples + FADE < 4.6 * RATE


def test_a_sound_that_is_too_short_is_an_error() -> None:
    with pytest.raises(UserError, match=r"1.00 s of sound: a loop of 1.00 s needs 1.15 s with its crossfade"):
        find_wrap(noise(1.0), RATE, RATE, FADE)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 1000), st.floats(0.1, 0.9), st.floats(0, 0.2))
def test_a_loop_is_found_within_any_sound(seed: int, seconds: float, fade: float) -> None:
    rng = np.random.default_rng(seed)
    wave = (rng.standard_normal(2 * RATE) * rng.choice([0, 1], 2 * RATE, p=[0.9, 0.1])).astype(np.float32)
    start, samples, faded, alike = find_wrap(wave, RATE, round(seconds * RATE), round(fade * RATE))
    assert start >= 0
    assert start + samples + faded <= len(wave)
    assert -1 <= alike <= 1
    assert np.isfinite(wrapped(wave, Wrap(start, samples, faded, alike))).all()


# --- rates, recipes, chunks ---------------------------------------------------------------------------------------


def test_a_loop_is_resampled_as_a_loop() -> None:
    hum = tone(210.0, RATE, 3.0)
    clip, wrap = looped(foreign(hum), 1.0, rate=11_025)
    assert clip.rate == 11_025
    assert len(clip.wave) * RATE == wrap.samples * 11_025  # not a sample more or less
    around = np.concatenate([clip.wave[-200:], clip.wave[:200]])
    assert np.abs(np.diff(around, 2)).max() < 1.1 * np.abs(np.diff(clip.wave, 2)).max()
    spectrum = np.abs(np.fft.rfft(np.tile(clip.wave, 3) * np.hanning(3 * len(clip.wave))))
    other = np.abs(np.fft.rfftfreq(3 * len(clip.wave), 1 / 11_025) - 210) > 5
    assert spectrum[other].max() < 0.003 * spectrum.max()  # a step at the wrap would be a click in every round


@pytest.mark.parametrize("rate", [None, 11_025])
def test_the_recipe_of_a_loop_renders_it_again(toy: Synth, rate: int | None) -> None:
    source = loop_source(toy, steady_clip(toy, "Rain", 0), 0.5)
    clip, _ = looped(source, 0.5, rate=rate, rounds=2)
    made = json.loads(json.dumps(clip.recipe.make))
    wave = remake(made, toy)
    if rate is None:
        np.testing.assert_array_equal(wave, clip.wave)
    assert len(wave) == made["rounds"] * made["samples"]
    np.testing.assert_array_equal(wave[: made["samples"]], wave[made["samples"] : 2 * made["samples"]])


def test_the_smpl_chunk_states_one_endless_loop_over_all_samples(tmp_path: Path) -> None:
    write_wave(tmp_path / "x.wav", noise(0.1), RATE, chunks={b"smpl": smpl_chunk(800, RATE)})
    chunk = wav_chunk(tmp_path / "x.wav", b"smpl")
    assert chunk is not None
    numbers = struct.unpack("<15I", chunk)
    assert numbers[2:4] == (125_000, 60)  # nanoseconds a sample, middle C
    assert numbers[7:] == (1, 0, 0, 0, 0, 799, 0, 0)  # one loop, forwards, from 0 to 799, for ever
    assert soundfile.info(tmp_path / "x.wav").frames == 800


# --- the verb -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_loop_writes_a_loop_with_its_points_and_three_rounds_and_both_verify(toy: Synth, here: Path, capsys) -> None:
    code = main(
        ["loop", "rain", "--seconds", "0.6", "-o", "l/rain.wav", "--lufs", "-24", "--instrument", str(toy.folder)]
    )
    printed = capsys.readouterr().out
    assert code in (0, 1)
    assert "seam: spectral flux" in printed
    loop, rate = read_wave("l/rain.wav")
    rounds, _ = read_wave("l/rain_x3.wav")
    np.testing.assert_array_equal(np.tile(loop, 3), rounds)
    chunk = wav_chunk(Path("l/rain.wav"), b"smpl")
    assert chunk is not None
    assert struct.unpack("<15I", chunk)[12] == len(loop) - 1
    assert abs(len(loop) / rate - 0.6) < 0.026
    assert main(["verify", "l", "--instrument", str(toy.folder)]) == 0


def test_a_loop_of_a_file_made_by_foleybox_has_a_recipe_and_of_another_file_none(
    toy: Synth, here: Path, capsys
) -> None:
    folder = str(toy.folder)
    assert main(["generate", "rain", "--seconds", "2", "--instrument", folder, "-o", "o"]) == 0
    assert main(["loop", "o/Rain/Rain_s0.wav", "--seconds", "0.5", "-o", "own.wav"]) in (0, 1)
    assert main(["verify", "own.wav", "own_x3.wav", "--instrument", folder]) == 0
    write_wave("found.wav", noise(2), RATE)
    assert main(["loop", "found.wav", "--seconds", "0.5", "--rate", "16000", "-o", "theirs.wav"]) == 0
    assert read_recipe("theirs.wav") is None
    assert "the loop has no recipe, since found.wav has none" in capsys.readouterr().err
    assert read_wave("theirs.wav")[1] == 16_000
    assert main(["generate", "rain", "--seconds", "2", "--rate", "9000", "--instrument", folder, "-o", "r"]) == 0
    assert main(["loop", "r/Rain/Rain_s0.wav", "--seconds", "0.5", "-o", "low.wav"]) in (0, 1)
    assert "was resampled after it was made" in capsys.readouterr().err
    assert main(["generate", "rain", "--seconds", "2", "--format", "ogg", "--instrument", folder, "-o", "r"]) == 0
    assert main(["loop", "r/Rain/Rain_s0.ogg", "--seconds", "0.5", "-o", "ogg.wav"]) in (0, 1)
    assert "ogg is OGG, which is only close to the sound of its recipe" in capsys.readouterr().err
    assert read_recipe("low.wav") is read_recipe("ogg.wav") is None


def test_a_loop_with_an_audible_seam_exits_with_1_and_says_so(here: Path, capsys) -> None:
    write_wave("fading.wav", noise(1.2) * np.geomspace(1, 1e-3, round(1.2 * RATE)).astype(np.float32), RATE)
    assert main(["loop", "fading.wav", "--seconds", "1", "--fade", "0.01", "-o", "x.wav"]) == 1
    assert "may be audible: try another --seed" in capsys.readouterr().out
    assert main(["loop", "fading.wav", "--seconds", "1", "--fade", "0.01", "-o", "x.wav", "--force", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["inaudible"] is False


@pytest.mark.parametrize(("seconds", "expected"), [(4.0, 3.72), (0.5, 0.38), (20.0, 4.0)])
@pytest.mark.parametrize("rate", [[], ["--rate", "11025"]])
def test_a_loop_without_a_length_is_4_s_or_as_long_as_the_file_allows(
    here: Path, seconds: float, expected: float, rate: list[str]
) -> None:
    write_wave("rain.wav", noise(seconds), RATE)
    assert main(["loop", "rain.wav", *rate, "-o", "x.wav"]) in (0, 1)
    wave, made = read_wave(here / "x.wav")
    assert expected - 0.05 < len(wave) / made < expected + 0.05


def test_the_longest_loop_in_the_message_can_be_made_and_no_longer_one() -> None:
    for length, fade, multiple in itertools.product((2_000, 4_000, 9_999), (40, 1_000), (1, 147)):
        seconds = longest(length, RATE, fade, multiple)
        wave = noise(length / RATE)
        assert find_wrap(wave, RATE, round(seconds * RATE), fade, multiple).samples > 0
        with pytest.raises(UserError, match=f"the longest has {seconds:.2f} s"):
            find_wrap(wave, RATE, round((seconds + 0.03) * RATE), fade, multiple)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_loop_keeps_the_channels_and_the_bit_depth_of_a_file(here: Path, subtype: str) -> None:
    both = np.stack([noise(2), 0.5 * noise(2, 1), noise(2, 2)], axis=1)
    soundfile.write("three.wav", both, RATE, subtype)
    assert main(["loop", "three.wav", "--seconds", "1", "-o", "x.wav"]) == 0
    found = soundfile.info("x.wav")
    assert (found.channels, found.subtype) == (3, subtype)
    loop, _ = read_channels("x.wav")
    np.testing.assert_array_equal(read_channels("x_x3.wav")[0], np.concatenate([loop] * 3))
    assert rms_db(loop[:, 1]) == pytest.approx(rms_db(loop[:, 0]) - 6, abs=0.5)
    assert main(["loop", "three.wav", "--seconds", "1", "-o", "x.wav", "--subtype", "PCM_16", "--force"]) == 0
    assert soundfile.info("x.wav").subtype == "PCM_16"


def test_a_loop_of_channels_that_cancel_each_other_is_found(here: Path) -> None:
    soundfile.write("out.wav", np.stack([noise(2), -noise(2)], axis=1), RATE)
    assert main(["loop", "out.wav", "--seconds", "1", "-o", "x.wav"]) == 0


def test_several_loops_of_a_file_or_a_label_are_different_and_verify(toy: Synth, here: Path, capsys) -> None:
    folder = ["--instrument", str(toy.folder)]
    assert main(["loop", "rain", "--seconds", "0.3", "--count", "3", "-o", "rain.wav", *folder]) in (0, 1)
    loops = [read_wave(f"rain_{number}.wav")[0] for number in (1, 2, 3)]
    assert all(not np.array_equal(a[:2_000], b[:2_000]) for a, b in itertools.combinations(loops, 2))
    assert main(["verify", ".", *folder]) == 0
    write_wave("found.wav", noise(4), RATE)
    assert main(["loop", "found.wav", "--seconds", "1", "--count", "2", "-o", "two.wav"]) == 0
    assert not np.array_equal(read_wave("two_1.wav")[0], read_wave("two_2.wav")[0])
    capsys.readouterr()
    assert main(["loop", "found.wav", "--seconds", "3.7", "--count", "9", "-o", "nine.wav"]) == 2
    assert "different loops of 3.7 s: expected a --count of" in capsys.readouterr().err
    assert not list(here.glob("nine*"))


def test_a_loop_of_events_contains_the_loudest_one() -> None:
    synth = Synth.load("foley")
    source = loop_source(synth, synth.render("dog_bark", 1), 4.0)
    clip, _ = looped(source, 4.0)
    assert levels(clip.wave, clip.rate).max() > levels(source.wave, clip.rate).max() - 3.1


def test_a_loop_of_a_label_with_events_offers_perform(toy: Synth, here: Path, capsys) -> None:
    main(["loop", "dog_bark", "--seconds", "0.3", "-o", "dog.wav", "--instrument", str(toy.folder)])
    err = capsys.readouterr().err
    assert "dog_bark has events, and the same ones repeat" in err
    assert "foleybox perform --label dog_bark" in err


def test_a_loop_of_a_file_contains_its_loudest_moment_or_is_refused(here: Path, capsys) -> None:
    barks = clicks([1.0, 1.3], 4.0)
    write_wave("barks.wav", barks, RATE)
    assert main(["loop", "barks.wav", "--seconds", "1.5", "-o", "x.wav"]) in (0, 1)
    assert np.abs(read_wave("x.wav")[0]).max() > 0.9 * np.abs(barks).max()
    write_wave("early.wav", noise(4) * np.geomspace(1, 1e-4, 4 * RATE).astype(np.float32), RATE)
    capsys.readouterr()
    assert main(["loop", "early.wav", "--seconds", "1.5", "-o", "y.wav"]) == 2
    assert "no loop of 1.50 s contains its loudest moment" in capsys.readouterr().err


@pytest.mark.parametrize("peak", [0.0, 0.0005])
def test_a_loop_of_silence_is_refused(here: Path, capsys, peak: float) -> None:
    write_wave("quiet.wav", (peak * noise(2) / np.abs(noise(2)).max()).astype(np.float32), RATE, "FLOAT")
    assert main(["loop", "quiet.wav", "--seconds", "1", "-o", "x.wav"]) == 2
    err = capsys.readouterr().err
    assert "quiet.wav: it is silent (its peak is -" in err
    assert err.count("\n") == 1
    assert list(here.iterdir()) == [here / "quiet.wav"]


# --- calibration of the measurement; 1,000 loops of each kind are in results/seams.md ---------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_no_more_than_1_of_60_loops_of_stationary_noise_is_said_to_be_audible(power: float) -> None:
    alarms = 0
    for seed in range(60):
        spectrum = np.fft.rfft(noise(1.5, seed))
        wave = np.fft.irfft(spectrum * (1.0 + np.arange(len(spectrum))) ** -power, round(1.5 * RATE)).astype(np.float32)
        start, samples, fade, alike = find_wrap(wave, RATE, RATE, FADE)
        alarms += not measure_seam(wrapped(wave, Wrap(start, samples, fade, alike)), RATE, fade).inaudible
    assert alarms <= 1


@pytest.mark.parametrize("position", [0, -1, 20])
def test_a_click_at_the_wrap_is_detected(position: int) -> None:
    detected = 0
    for seed in range(20):
        wave = noise(1.5, seed)
        loop = wrapped(wave, find_wrap(wave, RATE, RATE, FADE))
        loop[position] += 10 * 0.1  # ten times the standard deviation
        detected += not measure_seam(loop, RATE, FADE).inaudible
    assert detected == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["piano", "-o", "new/x.wav"], "unknown label 'piano'"),
        (["no.wav"], "no file no.wav: expected a sound file, or a label"),
        (
            ["short.wav", "--seconds", "4"],
            "short.wav: 0.50 s of sound: a loop of 4.00 s needs 4.28 s with its crossfade",
        ),
        (["short.wav", "--seconds", "0.4"], "the longest has 0.38 s"),
        (["shorter.wav"], "shorter.wav: 0.10 s of sound: too short for a loop, which has 0.1 s or more"),
        (["rain", "--seconds", "0"], "--seconds 0.0: expected 0.1 to 600"),
        (["rain", "--seconds", "nan"], "--seconds nan"),
        (["rain", "--fade", "-1"], "--fade -1.0: expected 0.005"),
        (["rain", "--seed", "-1"], "seed -1"),
        (["rain", "--rate", "0"], "--rate 0"),
        (["rain", "--count", "0"], "--count 0: expected 1 to 100"),
        (["rain", "--count", "2", "-o", "many.wav"], "many_2.wav exists already"),
        (["rain", "-o", "x.flac"], "--out x.flac: expected a name that ends in .wav"),
        (["rain", "-o", "there.wav"], "there.wav exists already: add --force"),
        (["rain", "-o", "theirs.wav"], "theirs_x3.wav exists already"),
    ],
)
def test_a_mistake_is_an_error_of_one_line_and_nothing_is_written(
    toy: Synth, here: Path, capsys, arguments, words
) -> None:
    write_wave("short.wav", noise(0.5), RATE)
    write_wave("shorter.wav", noise(0.1), RATE)
    for name in ("there.wav", "theirs_x3.wav", "many_2.wav"):
        (here / name).write_bytes(b"mine")
    assert main(["loop", *arguments, "--instrument", str(toy.folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert sorted(path.name for path in here.iterdir()) == [
        "many_2.wav", "short.wav", "shorter.wav", "theirs_x3.wav", "there.wav"
    ]  # fmt: skip
    assert (here / "there.wav").read_bytes() == b"mine"


def test_a_loop_that_stays_below_the_loudness_asked_for_says_so(toy: Synth, here: Path, capsys) -> None:
    command = ["loop", "rain", "--seconds", "0.3", "--instrument", str(toy.folder), "--lufs", "0", "-o", "loud.wav"]
    main(command)
    assert "1 of 1 sounds are up to " in capsys.readouterr().err
    main([*command, "--force", "--json"])
    assert json.loads(capsys.readouterr().out)["withheld"] > 0


def test_a_loop_of_what_is_not_steady_says_so(toy: Synth, here: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foleybox.commands.loop.is_steady", lambda *_: False)
    main(["loop", "rain", "--seconds", "0.3", "--instrument", str(toy.folder), "-o", "x.wav"])
    assert "none of 16 sounds of Rain is steady" in capsys.readouterr().err


@pytest.mark.parametrize("steady", [True, False])
def test_variations_that_do_not_fit_are_rejected_up_to_a_number_in_a_row(monkeypatch, steady: bool) -> None:
    monkeypatch.setattr("foleybox.studio.extend.is_steady", lambda wave, _: wave[0] == 1)
    monkeypatch.setattr("foleybox.studio.extend._clarity", lambda clip: 30.0 * float(clip.wave[0] == 0))
    monkeypatch.setattr("foleybox.studio.extend.MAX_REJECTED", {True: 3, False: 2})
    recipe = Recipe("toy", "", "", 8_000, {"do": "read"})
    kinds = [1, 0, 1, 0, 0, 0, 0, 0, 1, 2, 1]  # steady, clear events, events like their background
    clips = [Clip(np.array([kind, place], np.float32), recipe) for place, kind in enumerate(kinds)]
    kept = [int(clip.wave[1]) for clip in _same_kind(iter(clips), clips[1], steady)]
    assert kept == ([0, 2, 6, 8, 10] if steady else [1, 3, 4, 5, 6, 7, 10])
