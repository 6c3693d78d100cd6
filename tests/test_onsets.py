"""Onsets are found at their samples, and a one-shot is the clearest event of a clip, with its tail."""

import numpy as np
import pytest
from helpers import clicks, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.studio.onsets import GAP, LEAD, clearest_event, cut_one_shot, find_onsets, onset_near

RATE = 8_000


@settings(deadline=None, max_examples=25)
@given(
    gaps=st.lists(st.floats(0.08, 0.4), min_size=1, max_size=12),
    rate=st.sampled_from([8_000, 22_050, 44_100]),
    seed=st.integers(0, 1000),
    level_db=st.floats(-50, 0),
)
def test_each_click_is_found_within_5_ms_at_any_level_and_nothing_else(gaps, rate, seed, level_db) -> None:
    times = np.cumsum(gaps)
    wave = clicks(list(times), times[-1] + 0.3, rate, seed) * np.float32(10 ** (level_db / 20))
    found = np.array([onset.sample / rate for onset in find_onsets(wave, rate)])
    assert len(found) == len(times)
    assert np.abs(found - times).max() < 0.005


def test_a_sound_that_begins_with_the_recording_has_its_onset_there() -> None:
    (onset,) = find_onsets(clicks([0.0], 0.5), RATE)
    assert onset.sample == 0


def test_silence_and_steady_sounds_have_no_onsets() -> None:
    rng = np.random.default_rng(0)
    assert find_onsets(np.zeros(RATE, np.float32), RATE) == []
    assert find_onsets((0.1 * rng.standard_normal(2 * RATE)).astype(np.float32), RATE) == []
    assert find_onsets(tone(440, RATE, 1), RATE) == []
    assert find_onsets(np.zeros(0, np.float32), RATE) == []


def test_a_slow_attack_has_its_onset_at_a_quarter_of_its_peak() -> None:
    wave = tone(1000, RATE, 0.5)
    wave[: round(0.03 * RATE)] *= np.linspace(0, 1, round(0.03 * RATE), dtype=np.float32)
    (onset,) = find_onsets(np.concatenate([np.zeros(RATE // 2, np.float32), wave]), RATE)
    assert (onset.sample - RATE // 2) / RATE == pytest.approx(0.03 / 4, abs=0.002)


def test_two_onsets_within_the_gap_are_one() -> None:
    assert len(find_onsets(clicks([0.2, 0.2 + 0.6 * GAP], 0.5), RATE)) == 1


def test_the_clearest_event_is_the_loudest_and_its_tail_ends_before_the_next() -> None:
    wave = clicks([0.2, 1.0, 1.6], 2.2)
    wave[round(0.9 * RATE) : round(1.5 * RATE)] *= 1.8  # the second
    shot = clearest_event(wave, RATE)
    assert shot.onset == RATE
    assert shot.onset - shot.start == round(LEAD * RATE)
    assert RATE + 0.04 * RATE < shot.stop < 1.6 * RATE
    assert shot.clarity > 15


def test_another_event_soon_after_cuts_the_tail_before_its_onset() -> None:
    long = np.zeros(RATE, np.float32)
    rng = np.random.default_rng(1)
    for start in (0.1, 0.5):
        length = len(long) - round(start * RATE)
        tail = rng.standard_normal(length) * np.exp(-np.arange(length) / (0.3 * RATE))
        long[round(start * RATE) :] += (0.2 * tail / (1 + 4 * (start == 0.5)) * 4).astype(np.float32)
    shot = clearest_event(np.concatenate([long[: round(0.5 * RATE)], 3 * long[round(0.5 * RATE) :]]), RATE)
    assert shot.start < 0.1 * RATE
    assert shot.stop <= 0.5 * RATE


def test_of_two_similar_events_the_one_that_decays_is_chosen() -> None:
    ring = np.zeros(2 * RATE)
    for start, level in ((0.1, 0.3), (0.35, 0.25)):  # the first is louder, but rings on into the second
        tail = np.arange(2 * RATE - round(start * RATE)) / RATE
        ring[round(start * RATE) :] += level * np.sin(2 * np.pi * 800 * tail) * np.exp(-tail / 0.06)
    shot = clearest_event(ring.astype(np.float32), RATE)
    assert shot.onset == pytest.approx(0.35 * RATE, abs=20)


def test_a_clip_without_an_event_gives_its_beginning_with_a_clarity_of_0() -> None:
    steady = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    shot = clearest_event(steady, RATE)
    assert (shot.start, shot.onset, shot.stop, shot.clarity) == (0, 12, RATE, 0.0)  # faded in over 1.5 ms
    assert clearest_event(np.zeros(100, np.float32), RATE).clarity == 0.0


def test_a_one_shot_that_begins_with_its_clip_begins_without_a_click() -> None:
    wave = clicks([0.0], 0.5, RATE)
    shot = clearest_event(wave, RATE)
    made = cut_one_shot(wave, (shot.start, shot.onset, shot.stop), RATE)
    assert shot.start == 0
    assert abs(made[0]) < 0.01 * np.abs(made).max() < 0.01 * abs(wave[0]) * 2
    assert np.argmax(np.abs(made)) < 0.004 * RATE  # the attack is still one


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3000), st.floats(0, 60))
def test_a_shot_is_within_its_clip_for_any_clip(seed: int, length: int, steepness: float) -> None:
    rng = np.random.default_rng(seed)
    wave = rng.standard_normal(length) * np.exp(steepness * rng.random(length).cumsum() / length - steepness)
    start, onset, stop, clarity = clearest_event(wave.astype(np.float32), RATE)
    assert 0 <= start <= onset < stop <= length
    assert clarity >= 0


def test_a_one_shot_is_faded_at_both_ends_and_unchanged_between() -> None:
    wave = np.ones(RATE, np.float32)
    piece = cut_one_shot(wave, (100, 124, 4100), RATE)
    assert len(piece) == 4000
    assert abs(piece[0]) < 0.01
    assert abs(piece[-1]) < 0.01
    np.testing.assert_array_equal(piece[24 : -round(0.08 * RATE)], 1)


def test_the_onset_of_a_cut_one_shot_is_found_again_in_a_recording() -> None:
    wave = clicks([0.5], 1.0, noise_db=-35)
    start, onset, stop, _ = clearest_event(wave, RATE)
    piece = cut_one_shot(wave, (start, onset, stop), RATE)
    lead = onset_near(piece, RATE, onset - start)
    scene = np.zeros(3 * RATE, np.float32)
    scene[RATE - lead : RATE - lead + len(piece)] += piece
    (onset,) = find_onsets(scene, RATE)
    assert onset.sample == RATE
