"""The kernel distance by hand, without bias, over clips and not windows."""

import numpy as np
import pytest

from foleybox.lab.evaluation.kad import bandwidth, clip_kernel, kad, mean_off_diagonal, squared_distances


def distance(generated: np.ndarray, reference: np.ndarray, counts: np.ndarray | None = None) -> float:
    width = bandwidth(reference)
    within, known = (
        clip_kernel(generated, generated, width),
        mean_off_diagonal(clip_kernel(reference, reference, width)),
    )
    return kad(within, known, clip_kernel(generated, reference, width), counts)


def test_two_clips_against_two_are_the_formula_by_hand() -> None:
    reference = np.array([0.0, 2.0]).reshape(2, 1, 1)
    generated = np.array([1.0, 4.0]).reshape(2, 1, 1)

    def k(gap: float) -> float:
        return float(np.exp(-(gap**2) / (2 * 2**2)))  # the reference's median distance is 2

    expected = 100 * (k(3) + k(2) - 2 * (k(1) + k(1) + k(4) + k(2)) / 4)
    assert distance(generated, reference) == pytest.approx(expected, rel=1e-6)


def test_two_draws_of_one_distribution_are_at_zero_on_average_and_not_above() -> None:
    generator = np.random.default_rng(0)
    found = [distance(generator.normal(size=(8, 1, 3)), generator.normal(size=(8, 1, 3))) for _ in range(600)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3.5 * error
    assert error < 0.5  # the biased estimate would lie near 100 * 2 / 8 * (1 - 0.6) = 10


def test_a_farther_set_is_farther() -> None:
    generator = np.random.default_rng(1)
    reference = generator.normal(size=(60, 2, 4))
    found = [distance(generator.normal(size=(60, 2, 4)) + shift, reference) for shift in (0, 0.5, 1, 2)]
    assert found == sorted(found)


def test_repeating_the_windows_of_every_clip_changes_nothing() -> None:
    generator = np.random.default_rng(2)
    generated, reference = generator.normal(size=(9, 1, 3)), generator.normal(size=(7, 1, 3))
    thrice = distance(generated.repeat(3, axis=1), reference.repeat(3, axis=1))
    assert thrice == pytest.approx(distance(generated, reference), rel=1e-6)


def test_the_bandwidth_is_the_median_distance_between_clips() -> None:
    reference = np.array([[[0.0], [0.0]], [[1.0], [1.0]], [[10.0], [10.0]]])
    assert bandwidth(reference) == pytest.approx(9)  # distances 1, 9, 10, each four times; 0 within clips left out


def test_counts_stand_for_a_set_with_clips_repeated() -> None:
    generator = np.random.default_rng(3)
    generated, reference = generator.normal(size=(4, 2, 3)), generator.normal(size=(6, 2, 3))
    counts = np.array([2, 0, 1, 1])
    assert distance(generated, reference, np.ones(4)) == pytest.approx(distance(generated, reference))
    assert distance(generated, reference, counts) == pytest.approx(distance(generated[[0, 0, 2, 3]], reference))


def test_blocks_do_not_show() -> None:
    generator = np.random.default_rng(4)
    a, b = generator.normal(size=(5, 2, 3)), generator.normal(size=(4, 3, 3))
    gaps = squared_distances(a.reshape(-1, 3), b.reshape(-1, 3))
    expected = np.exp(-gaps / 2).reshape(5, 2, 4, 3).mean((1, 3))
    np.testing.assert_allclose(clip_kernel(a, b, 1.0, block=2), expected, rtol=1e-9)
    assert mean_off_diagonal(np.array([[9.0, 1], [3, 9]])) == 2
