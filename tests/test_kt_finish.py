"""What `benchmarks/kt_finish.py` does to mels: each step does what its name says, and nothing else."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmarks use the lab")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import kt_finish

from foleybox.errors import UserError


def mels(seed: int, level: float = -6.0, spread: float = 0.5, count: int = 40) -> kt_finish.Mels:
    noise = np.random.default_rng(seed).standard_normal((count, 8, 64), np.float32)
    return np.float32(level) + np.float32(spread) * noise


def test_a_pattern_that_all_mels_share_is_taken_out_and_slow_changes_stay() -> None:
    clean = mels(0)
    chequers = np.float32(0.8) * (-1) ** np.add.outer(np.arange(8), np.arange(64))
    slope = np.linspace(0, 6, 64, dtype=np.float32)
    found = kt_finish.pattern(clean + chequers + slope)
    inside = np.s_[:, 12:-12]  # near the edges the average of what is around is not the slope's
    assert np.abs(found - chequers)[inside].mean() < 0.12  # of which the mean of 40 noises is 0.06
    assert abs(np.polyfit(np.arange(40), found[inside].mean(0), 1)[0]) < 0.01  # the slope, 0.095, is not in it


def test_levelled_mels_have_the_levels_of_the_recordings_and_keep_their_order() -> None:
    drawn, real = mels(1, -7.0, 0.3), mels(2, -4.0, 1.2)
    made = kt_finish.levelled(drawn, drawn, real)
    for share in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(made, share), np.quantile(real, share), atol=0.02)
    row, before = made[0, 3], drawn[0, 3]
    assert (np.diff(row[np.argsort(before)]) >= 0).all()


def test_the_grain_that_lacks_makes_smooth_mels_as_rough_as_the_recordings() -> None:
    smooth, real = mels(3, spread=0.1), mels(4, spread=0.4)
    deviation = kt_finish.lacking_grain(smooth, real, 1.0)
    white = np.random.default_rng(5).standard_normal(smooth.shape)
    grained = (smooth + deviation[:, None] * white).astype(np.float32)
    ratio = kt_finish.band_roughness(grained) / kt_finish.band_roughness(real)
    np.testing.assert_allclose(ratio, 1, atol=0.05)
    assert (kt_finish.lacking_grain(real, smooth, 1.0) == 0).all()  # nothing is taken away from rough ones


def test_sharpening_by_minus_one_is_the_mean_of_three_frames_and_never_below_silence() -> None:
    given = mels(6)
    smooth = kt_finish.sharpened(given, -1.0)
    np.testing.assert_allclose(smooth[:, :, 5], given[:, :, 4:7].mean(2), rtol=1e-5)
    assert kt_finish.sharpened(mels(7, -11.0, 2.0), 3.0).min() >= np.float32(kt_finish.SILENCE)


@pytest.mark.parametrize("text", ["1,maybe,mean,0,0,0", "1,yes,median,0,0,0", "one,yes,mean,0,0,0", "1,yes"])
def test_a_setting_that_is_none_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(UserError, match="expected"):
        kt_finish.setting_of(text)
