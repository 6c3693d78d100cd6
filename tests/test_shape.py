"""Processing does what its options state, in order, and its steps repeat it without measuring."""

from typing import Any

import numpy as np
import pytest
from helpers import tone
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.audio import Wave, loudness, rms_db, true_peak_db
from foleybox.errors import UserError
from foleybox.studio.shape import (
    Shape,
    apply,
    check_shape,
    event_loudness,
    faded,
    find_event,
    levels,
    quietest_cut,
    ramp,
    shaped,
)

RATE = 8_000


def burst(start: float, seconds: float, total: float = 2.0, level: float = 0.5, floor: float = 0.0) -> Wave:
    """Return a tone burst [total * RATE] over a floor of noise."""
    wave = (floor * np.random.default_rng(0).standard_normal(round(total * RATE))).astype(np.float32)
    there = tone(500, RATE, seconds, level)
    wave[round(start * RATE) : round(start * RATE) + len(there)] += there
    return wave


NUMBERS = {
    "trim": st.floats(1, 120),
    "seconds": st.floats(0.02, 5),
    "fade": st.floats(0, 3),
    "rate": st.integers(2_000, 20_000),
    "lufs": st.floats(-70, 0),
    "peak": st.floats(-60, 0),
}
SHAPES = st.builds(Shape, **{knob: st.none() | numbers for knob, numbers in NUMBERS.items()}).filter(  # type: ignore[arg-type]
    lambda shape: (shape.fade or 0) <= (shape.seconds or 2.0)
)


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.floats(0, 1.5), st.floats(0.01, 0.5), st.sampled_from([0.0, 1e-4, 0.05]), st.floats(0, 2))
def test_the_steps_alone_make_the_same_wave_and_keep_every_promise(
    shape: Shape, start: float, seconds: float, floor: float, level: float
) -> None:
    wave = burst(start, seconds, level=level, floor=floor)
    made, rate, steps = shaped(wave, RATE, shape)
    again, rate_again = apply(steps, wave, RATE)
    assert rate == rate_again == (shape.rate or RATE)
    np.testing.assert_array_equal(made, again)
    if shape.seconds is not None:
        assert len(made) == round(round(shape.seconds * RATE) * rate / RATE)
    ceiling = -1.0 if shape.peak is None and shape.lufs is not None else shape.peak
    if ceiling is not None:
        assert true_peak_db(made) <= ceiling + 1e-4
    withheld = sum(step.get("withheld", 0) for step in steps)
    if shape.lufs is not None and np.abs(made).max() > 1e-6:
        assert event_loudness(made, rate) == pytest.approx(shape.lufs - withheld, abs=0.02)


# --- measuring ----------------------------------------------------------------------------------------------------


def test_a_full_scale_sine_has_3_db_less_than_full_scale_and_silence_has_a_floor() -> None:
    assert levels(tone(500, RATE, 1, 1.0), RATE) == pytest.approx(np.full(100, -3.01), abs=0.01)
    assert levels(np.zeros(801, np.float32), RATE) == pytest.approx(np.full(11, -200))


def test_an_event_is_found_to_a_hundredth_of_a_second() -> None:
    there = find_event(burst(0.5, 0.3), RATE)
    assert (there.start / RATE, there.stop / RATE) == pytest.approx((0.5, 0.8), abs=0.011)
    assert find_event(burst(0.5, 0.3, floor=0.1), RATE) == slice(0, 2 * RATE)  # noise 17 dB down is part of it
    assert find_event(burst(0.5, 0.3, floor=0.1), RATE, below=10).start / RATE == pytest.approx(0.5, abs=0.011)
    assert find_event(np.zeros(100, np.float32), RATE) == slice(0, 100)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 1.0])
def test_silence_around_an_event_does_not_lower_its_loudness(seconds: float) -> None:
    alone = loudness(tone(500, RATE, seconds), RATE)
    assert event_loudness(burst(0.7, seconds, total=4), RATE) == pytest.approx(alone, abs=0.1)
    if seconds == 0.05:  # what a plain meter says: the gate of 0.4 s is mostly silence
        assert loudness(burst(0.7, seconds, total=4), RATE) < alone - 8


def test_a_cut_keeps_the_event_and_its_edges_are_quiet() -> None:
    wave = burst(0.83, 0.3) + burst(1.5, 0.1, level=0.1)
    start = quietest_cut(wave, RATE, round(0.5 * RATE))
    cut = wave[start : start + round(0.5 * RATE)]
    assert np.square(cut).sum() > 0.99 * np.square(burst(0.83, 0.3)).sum()
    assert not cut[: RATE // 50].any()
    assert not cut[-RATE // 25 :].any()


# --- ends ---------------------------------------------------------------------------------------------------------


def test_ends_that_click_are_faded_over_a_few_ms_if_asked_and_the_rest_is_unchanged() -> None:
    wave = tone(500, RATE, 1)
    wave = np.roll(wave, -4)  # begins and ends near its highest sample
    made, _, steps = shaped(wave, RATE, Shape(), declick=True)
    assert steps == [{"do": "fade", "in": 12, "out": 40}]  # 1.5 ms: an attack stays sharp
    assert abs(made[0]) < 0.01 * abs(wave[0])
    assert abs(made[-1]) < 0.01 * abs(wave[-1])
    np.testing.assert_array_equal(made[12:-40], wave[12:-40])
    np.testing.assert_array_equal(shaped(wave, RATE, Shape())[0], wave)  # as for loops


def test_ends_that_do_not_click_stay_as_they_are() -> None:
    quiet = burst(0.5, 0.3, floor=1e-4)
    for wave in (quiet, np.zeros(100, np.float32), np.zeros(0, np.float32)):
        made, _, steps = shaped(wave, RATE, Shape(), declick=True)
        assert steps == []
        np.testing.assert_array_equal(made, wave)


def test_the_fades_of_a_cut_and_of_the_user_replace_those_of_an_end_that_clicks() -> None:
    wave = np.roll(tone(500, RATE, 1), -4)
    (fade,) = (step for step in shaped(wave, RATE, Shape(fade=0.5), declick=True)[2] if step["do"] == "fade")
    assert (fade["in"], fade["out"]) == (12, RATE // 2)
    cut = burst(0.5, 0.3)
    assert shaped(cut, RATE, Shape(trim=40), declick=True)[2] == shaped(cut, RATE, Shape(trim=40))[2]


# --- options ------------------------------------------------------------------------------------------------------


def test_trim_keeps_the_event_with_its_attack() -> None:
    wave = burst(0.5, 0.3)
    made, _, steps = shaped(wave, RATE, Shape(trim=40))
    assert len(made) / RATE == pytest.approx(0.3, abs=0.05)
    assert [step["do"] for step in steps] == ["cut", "fade"]
    lead = round(0.5 * RATE) - steps[0]["start"]
    assert 0 < lead <= 0.015 * RATE
    np.testing.assert_array_equal(made[lead : lead + 2_000], tone(500, RATE, 0.3)[:2_000])  # no fade in the attack


def test_trim_of_a_sound_without_silence_changes_nothing() -> None:
    wave = tone(500, RATE, 1)
    made, _, steps = shaped(wave, RATE, Shape(trim=40))
    assert steps == []
    np.testing.assert_array_equal(made, wave)


def test_a_shorter_length_is_exact_and_ends_in_a_fade() -> None:
    made, _, steps = shaped(tone(500, RATE, 2), RATE, Shape(seconds=0.5))
    assert len(made) == RATE // 2
    assert abs(made[-1]) < 1e-4
    assert steps[-1] == {"do": "fade", "in": 0, "out": round(0.05 * RATE)}


def test_a_trimmed_sound_is_filled_with_silence_after_the_event() -> None:
    made, _, _ = shaped(burst(0.5, 0.3), RATE, Shape(trim=40, seconds=1.0, fade=0.2))
    assert len(made) == RATE
    assert rms_db(made[: RATE // 10]) > -10
    assert not made[RATE // 2 :].any()


def test_a_fade_is_a_raised_cosine_and_never_longer_than_the_sound() -> None:
    np.testing.assert_allclose(ramp(50) + ramp(50)[::-1], 1, atol=1e-6)
    made = faded(np.ones(1_000, np.float32), 100, 500)
    assert made[0] < 1e-3
    assert made[99] > 0.999
    assert made[500] > 0.999
    assert made[749] == pytest.approx(0.5, abs=0.01)
    made, _, _ = shaped(np.ones(100, np.float32), RATE, Shape(fade=60))
    assert made[0] > 0.999 > made[99] >= 0


def test_loudness_is_measured_at_the_last_rate() -> None:
    made, rate, steps = shaped(burst(0.5, 0.5), RATE, Shape(rate=48_000, lufs=-23))
    assert rate == 48_000
    assert [step["do"] for step in steps] == ["resample", "gain"]
    assert event_loudness(made, rate) == pytest.approx(-23, abs=0.002)


def test_the_ceiling_limits_the_loudness_and_the_step_states_by_how_much() -> None:
    click = burst(0.5, 0.02, level=0.1)
    click[round(0.51 * RATE)] = 1.0
    made, _, (gain,) = shaped(click, RATE, Shape(lufs=-3, peak=-6))
    assert true_peak_db(made) == pytest.approx(-6, abs=0.002)
    assert event_loudness(made, RATE) == pytest.approx(-3 - gain["withheld"], abs=0.002)
    assert gain["withheld"] > 3


def test_a_ceiling_alone_only_turns_down() -> None:
    assert shaped(tone(500, RATE, 1, 0.1), RATE, Shape(peak=-6))[2] == []
    made, _, (gain,) = shaped(tone(500, RATE, 1, 0.9), RATE, Shape(peak=-6))
    assert true_peak_db(made) == pytest.approx(-6, abs=0.002)
    assert set(gain) == {"do", "db"}


def test_gain_adds_to_the_loudness_at_any_level() -> None:
    wave = burst(0.5, 0.3, floor=0.003)
    for db in (-80, -40, 0):
        assert event_loudness(wave * np.float32(10 ** (db / 20)), RATE) == pytest.approx(
            event_loudness(wave, RATE) + db
        )
    assert event_loudness(wave, RATE) == pytest.approx(loudness(wave[find_event(wave, RATE)], RATE), abs=0.01)
    made, _, (gain,) = shaped(wave * np.float32(1e-5), RATE, Shape(lufs=-23))
    assert event_loudness(made, RATE) == pytest.approx(-23, abs=0.002)
    assert gain["db"] > 60


def test_silence_stays_silent() -> None:
    made, _, steps = shaped(np.zeros(RATE, np.float32), RATE, Shape(trim=40, lufs=-23, peak=-1))
    assert (len(made), steps) == (RATE, [])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(trim=0), "trim 0: expected 1 to 120 dB"),
        (Shape(seconds=0), "seconds 0: expected 0.02 to 3600 seconds"),
        (Shape(seconds=float("nan")), "seconds nan"),
        (Shape(fade=-1), "fade -1: expected 0 to 60"),
        (Shape(rate=1), "rate 1: expected 1000 to 768000 Hz"),
        (Shape(lufs=5), "lufs 5: expected -70 to 0 LUFS"),
        (Shape(lufs=float("-inf")), "lufs -inf"),
        (Shape(peak=1), "peak 1: expected -60 to 0 dBTP"),
    ],
)
def test_an_option_out_of_range_is_an_error(shape: Shape, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_shape(shape)
    with pytest.raises(UserError, match=f"--{words}"):
        check_shape(shape, "--")


@pytest.mark.parametrize("step", [{"do": "reverb"}, {"do": ""}])
def test_an_unknown_step_is_an_error(step: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="does not know: update foleybox"):
        apply([step], np.zeros(9, np.float32), RATE)
