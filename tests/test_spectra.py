"""Band levels, flux and distance of sounds with known spectra."""

import numpy as np
import pytest
from helpers import tone

from foleybox.studio.spectra import BANDS, LOWEST_HZ, band_levels, distance, flux

RATE = 16_000


def noise(seconds: float, seed: int = 0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("hz", [100, 440, 1000, 5000])
def test_a_tone_is_loudest_in_the_band_that_holds_it(hz: float) -> None:
    levels = band_levels(tone(hz, RATE, 0.5), RATE)
    edges = np.geomspace(LOWEST_HZ, RATE / 2, BANDS + 1)
    assert levels.shape == (50, BANDS)
    band = int(np.searchsorted(edges, hz)) - 1
    assert abs(int(levels[25].argmax()) - band) <= (hz < 400)  # low bands are narrower than a window sees


def test_the_level_of_a_tone_is_its_own_and_silence_is_minus_200() -> None:
    levels = band_levels(tone(1000, RATE, 0.5, level=0.5), RATE)
    assert levels[25].max() == pytest.approx(-6.02, abs=2.5)  # of an amplitude of 0.5, spread over a few bins
    assert (band_levels(np.zeros(RATE, np.float32), RATE) == -200).all()
    assert band_levels(np.zeros(0, np.float32), RATE).shape == (0, BANDS)


def test_flux_rises_at_a_click_and_not_at_the_end_of_a_sound() -> None:
    wave = noise(1.0) * np.float32(0.2)
    wave[RATE // 2] += 1.0
    rises = flux(band_levels(wave, RATE))
    assert abs(int(rises.argmax()) - 50) <= 2
    ending = np.concatenate([noise(0.5), np.zeros(RATE // 2, np.float32)])
    assert flux(band_levels(ending, RATE))[45:].max() < rises.max() / 2


def test_distance_is_0_for_the_same_sound_at_any_level_and_is_symmetric() -> None:
    a, b = band_levels(noise(0.3), RATE), band_levels(tone(500, RATE, 0.4), RATE)
    assert distance(a, a) == 0
    assert distance(a, band_levels(noise(0.3) * np.float32(4), RATE)) == pytest.approx(0, abs=1e-3)
    assert distance(a, b) == distance(b, a) > 10


def test_two_noises_are_nearer_than_a_noise_and_a_tone_and_a_copy_with_hiss_is_nearest() -> None:
    one, other = noise(0.3), noise(0.3, seed=1)
    hiss = (one + 0.05 * noise(0.3, seed=2)).astype(np.float32)
    from_one = [
        distance(band_levels(one, RATE), band_levels(each, RATE)) for each in (hiss, other, tone(500, RATE, 0.3))
    ]
    assert from_one == sorted(from_one)
    assert from_one[0] < 2.5 < from_one[2]
