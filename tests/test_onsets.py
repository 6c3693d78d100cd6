"""Onsets are found at their samples."""

import numpy as np
import pytest
from helpers import clicks, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.studio.onsets import GAP, find_onsets, onset_near
from foleybox.studio.shots import cut_one_shot, loudest_event

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


def test_the_onset_of_a_cut_one_shot_is_found_again_in_a_recording() -> None:
    wave = clicks([0.5], 1.0, noise_db=-35)
    start, onset, stop, *_ = loudest_event(wave, RATE)
    piece = cut_one_shot(wave, (start, onset, stop), RATE)
    lead = onset_near(piece, RATE, onset - start)
    scene = np.zeros(3 * RATE, np.float32)
    scene[RATE - lead : RATE - lead + len(piece)] += piece
    (onset,) = find_onsets(scene, RATE)
    assert onset.sample == RATE
