"""The background of a long sound: measured between events, removed from events, the same for the whole length."""

import numpy as np
import pytest
from helpers import clicks

from foleybox.audio import Wave, rms_db
from foleybox.studio.background import background, quiet_frames, room, without_background
from foleybox.studio.extend import extend, quiet_end
from foleybox.studio.recipe import Json
from foleybox.studio.remake import remake
from foleybox.studio.spectra import band_levels
from foleybox.studio.synth import Clip, Synth

RATE = 8_000


def hiss(seconds: float, db: float = -50, seed: int = 0) -> Wave:
    samples = round(seconds * RATE)
    return (10 ** (db / 20) * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_the_background_of_a_clip_is_what_is_between_its_events() -> None:
    wave = clicks([0.5, 1.0, 1.7], 3.0, noise_db=-50)
    bed = room(background(wave, quiet_frames(wave, RATE), RATE), 2 * RATE, RATE)
    assert rms_db(bed) == pytest.approx(-50, abs=1)
    np.testing.assert_array_equal(room(background(wave, quiet_frames(wave, RATE), RATE), RATE, RATE), bed[:RATE])


def test_digital_silence_after_a_sound_is_no_background_unless_the_sound_has_none() -> None:
    padded = np.concatenate([clicks([0.5], 1.5, noise_db=-70), np.zeros(2 * RATE, np.float32)])
    level = rms_db(room(background(padded, quiet_frames(padded, RATE), RATE), RATE, RATE))
    assert level == pytest.approx(-70, abs=1.5)
    decaying = hiss(0.6, -6) * np.geomspace(1, 0.05, round(0.6 * RATE)).astype(np.float32)
    decaying = np.concatenate([decaying, np.zeros(2 * RATE, np.float32)])
    silent = room(background(decaying, quiet_frames(decaying, RATE), RATE), RATE, RATE)
    assert rms_db(silent) < -90


def test_without_its_background_an_event_stays_and_the_background_is_15_db_down() -> None:
    wave = clicks([0.5, 1.0, 1.7], 3.0, noise_db=-50)
    alone = clicks([0.5, 1.0, 1.7], 3.0, noise_db=-200)
    clean = without_background(wave, background(wave, quiet_frames(wave, RATE), RATE), RATE)
    assert rms_db(clean[2 * RATE : 3 * RATE - 800]) < -65
    for time in (0.5, 1.0, 1.7):
        hit = slice(round(time * RATE), round((time + 0.01) * RATE))
        assert rms_db(clean[hit]) == pytest.approx(rms_db(alone[hit]), abs=0.5)


def test_a_part_is_cut_where_it_is_quiet_and_not_at_all_where_it_is_loud() -> None:
    wave = clicks([0.1, 0.9], 1.4, noise_db=-50)
    assert 0.55 * RATE < quiet_end(wave, 0, round(1.0 * RATE), RATE) < 0.9 * RATE
    assert quiet_end(hiss(1.0), 100, 8_000, RATE) == 100


@pytest.fixture(scope="module")
def synth() -> Synth:
    return Synth.load("foley", threads=1)


@pytest.fixture(scope="module")
def long(synth: Synth) -> Clip:
    return extend(synth, synth.render("dog_bark", 1), 9 * synth.instrument.rate)


def test_a_long_sound_of_events_has_one_background_and_is_made_again_from_its_recipe(synth: Synth, long: Clip) -> None:
    levels = band_levels(long.wave, long.rate)
    floor = levels.max() - 60
    joins = [round(100 * position / long.rate) for *_, position, _ in long.recipe.make["parts"][1:]]
    assert sum(at < 750 for at in joins) >= 2
    for at in (each for each in joins if each < 750):
        before, after = (
            np.maximum(np.percentile(part, 10, axis=0), floor)
            for part in (levels[at - 150 : at], levels[at : at + 150])
        )
        # dB; up to 4 within clips of the instrument (results/seams.md), 7 to 17 at joins of their own backgrounds
        assert np.abs(before - after).mean() < 4
    np.testing.assert_array_equal(remake(long.recipe.make, synth), long.wave)


def test_recipes_of_earlier_versions_have_the_background_of_each_part(synth: Synth, long: Clip) -> None:
    make = long.recipe.make
    make = {**make, "parts": make["parts"][:2]}
    old: Json = {key: value for key, value in make.items() if key != "background"}
    seed, stream, start, samples, position, db = make["parts"][1]
    variation = {"do": "vary", "of": make["of"], "amount": make["amount"], "seed": seed, "stream": stream}
    edge = round(0.2 * synth.instrument.rate)
    expected = remake(variation, synth)[start + edge : start + samples - edge] * np.float32(10 ** (db / 20))
    np.testing.assert_array_equal(remake(old, synth)[position + edge : position + samples - edge], expected)
    assert np.abs(remake(make, synth)[position + edge : position + samples - edge] - expected).max() > 1e-4
