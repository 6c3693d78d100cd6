"""A one-shot is the loudest event of a clip, whole: from its attack until it has decayed. Fragments are none."""

import numpy as np
import pytest
from helpers import clicks, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.audio import Wave
from foleybox.studio.shots import AT_END, AT_START, LEAD, TOO_FEW, UNCLEAR, cut_one_shot, loudest_event, one_shot
from foleybox.studio.synth import Synth

RATE = 8_000


def hits(*events: tuple[float, float, float], seconds: float = 2.0, floor_db: float = -80.0) -> Wave:
    """Return bursts of noise (time, level in dB, time constant of the decay in seconds) over a floor of noise."""
    rng = np.random.default_rng(0)
    wave = 10 ** (floor_db / 20) * rng.standard_normal(round(seconds * RATE))
    for time, level, decay in events:
        start = round(time * RATE)
        after = np.arange(len(wave) - start) / RATE
        wave[start:] += 10 ** (level / 20) * rng.standard_normal(len(after)) * np.exp(-after / decay)
    return wave.astype(np.float32)


def test_the_event_begins_at_the_attack_of_the_loudest_moment_and_ends_when_it_has_decayed() -> None:
    shot = loudest_event(hits((0.2, -20, 0.05), (1.0, -8, 0.05)), RATE)
    assert shot.onset / RATE == pytest.approx(1.0, abs=0.005)
    assert shot.onset - shot.start == round(LEAD * RATE)
    assert shot.stop / RATE == pytest.approx(1.0 + 0.05 * 40 / 8.69, abs=0.06)  # 40 dB: 4.6 time constants
    assert (shot.clarity > 40, shot.problem) == (True, "")


def test_a_noisy_event_ends_at_the_background_of_its_clip() -> None:
    shot = loudest_event(hits((1.0, -8, 0.05), floor_db=-30), RATE)
    assert shot.stop / RATE == pytest.approx(1.0 + 0.05 * 22 / 8.69, abs=0.08)


def test_a_second_event_is_cut_off_after_a_pause_and_kept_where_the_first_rings_into_it() -> None:
    for gap, decay, whole in ((0.3, 0.04, False), (0.15, 0.2, True)):
        shot = loudest_event(hits((0.5, -8, decay), (0.5 + gap, -12, decay)), RATE)
        assert shot.onset / RATE == pytest.approx(0.5, abs=0.005)
        assert (shot.stop / RATE > 0.5 + gap + 0.05) == whole
    shot = loudest_event(hits((0.5, -14, 0.2), (0.65, -6, 0.2)), RATE)  # the heel before the toe
    assert shot.onset / RATE == pytest.approx(0.5, abs=0.005)


def test_the_event_asked_for_is_counted_in_time_and_a_toe_belongs_to_its_heel() -> None:
    wave = hits((0.3, -14, 0.03), (0.9, -6, 0.1), (1.0, -8, 0.1), (1.7, -20, 0.02))
    shots = [loudest_event(wave, RATE, number) for number in (0, 1, 2, 3, 4)]
    assert [shot.onset / RATE for shot in shots] == pytest.approx([0.9, 0.3, 0.9, 1.7, 1.7], abs=0.005)
    assert [shot.problem for shot in shots] == ["", "", "", "", TOO_FEW]
    assert shots[0] == shots[2]
    assert loudest_event(wave[: RATE // 4], RATE, 1).problem != ""


def test_fragments_at_the_edges_of_a_clip_have_a_problem() -> None:
    fading = hits((0.0, -10, 0.5))
    fading[: RATE // 2] *= np.linspace(0.3, 1, RATE // 2, dtype=np.float32)  # it swells from the first sample on
    cut = hits((1.9, -8, 0.5))
    for wave, problem in ((fading, AT_START), (cut, AT_END)):
        shot = loudest_event(wave, RATE)
        assert (shot.problem, shot.clarity) == (problem, 0.0)
    assert loudest_event(hits((0.0, -8, 0.1)), RATE).problem == ""  # an impulse that begins with its clip


def test_a_clip_without_an_event_gives_its_beginning_with_a_clarity_of_0() -> None:
    steady = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    for wave in (steady, tone(300, RATE, 1.0)):
        shot = loudest_event(wave, RATE)
        assert (shot.start, shot.stop, shot.clarity) == (0, RATE, 0.0)
        assert shot.problem in (UNCLEAR, AT_START)
    assert loudest_event(np.zeros(100, np.float32), RATE).problem == UNCLEAR


def test_a_one_shot_that_begins_with_its_clip_begins_without_a_click() -> None:
    wave = clicks([0.0], 0.5, RATE)
    shot = loudest_event(wave, RATE)
    made = cut_one_shot(wave, (shot.start, shot.onset, shot.stop), RATE)
    assert shot.start == 0
    assert abs(made[0]) < 0.01 * np.abs(made).max() < 0.01 * abs(wave[0]) * 2
    assert np.argmax(np.abs(made)) < 0.004 * RATE  # the attack is still one


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3000), st.floats(0, 60))
def test_a_shot_is_within_its_clip_for_any_clip(seed: int, length: int, steepness: float) -> None:
    rng = np.random.default_rng(seed)
    wave = rng.standard_normal(length) * np.exp(steepness * rng.random(length).cumsum() / length - steepness)
    shot = loudest_event(wave.astype(np.float32), RATE)
    assert 0 <= shot.start <= shot.onset < shot.stop <= length
    assert shot.clarity >= 0


def test_a_one_shot_is_faded_at_both_ends_and_unchanged_between() -> None:
    wave = np.ones(RATE, np.float32)
    piece = cut_one_shot(wave, (100, 124, 4100), RATE)
    assert len(piece) == 4000
    assert abs(piece[0]) < 0.01
    assert abs(piece[-1]) < 0.01
    np.testing.assert_array_equal(piece[24 : -round(0.08 * RATE)], 1)


@pytest.mark.parametrize("label", ["dog", "step", "gun", "key", "cough"])
def test_one_shots_of_the_default_instrument_begin_with_a_rise_contain_the_loudest_moment_and_end_quietly(
    label,
) -> None:
    synth = Synth.load(threads=1)
    made = 0
    for clip in synth.render_many((label, seed) for seed in range(200, 208)):
        cut, problem = one_shot(clip)
        if problem:
            continue
        made += 1
        start = cut.recipe.process[0]["start"]
        long, short = clip.rate // 50, clip.rate // 100  # 20 and 10 ms
        power = np.square(np.pad(clip.wave, long), dtype=np.float64)
        rises = [
            power[n + long :][:long].mean() / (power[n : n + long].mean() + 1e-12)
            for n in range(start, start + short, short // 20)
        ]
        assert max(rises) > 10**0.6  # within 10 ms: 6 dB
        level = np.convolve(np.square(clip.wave), np.full(short, 1 / short), "same")
        assert start <= level.argmax() < start + len(cut.wave)
        assert np.square(cut.wave[-short:]).mean() < 0.001 * level.max()  # 30 dB
    assert made >= 7
