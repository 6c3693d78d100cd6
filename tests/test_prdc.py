"""Precision, recall, density and coverage: by hand, by definition, and where theory gives a number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.lab.evaluation.prdc import distances, prdc, radii


def of(generated: list[float], reference: list[float], k: int = 1) -> dict[str, float]:
    return prdc(distances(np.array(generated)[:, None], np.array(reference)[:, None], k))


def test_points_on_a_line_by_hand() -> None:
    # Balls of the reference: 0 and 1 reach 1, 10 reaches 9. Balls of the generated: 0.5 and 2 reach 1.5, 30 reaches 28.
    found = of([0.5, 2.0, 30.0], [0.0, 1.0, 10.0])
    assert found["precision"] == pytest.approx(2 / 3)  # 0.5 (in the balls of 0 and 1), 2 (in the ball of 10)
    assert found["density"] == pytest.approx((2 + 1 + 0) / 3)
    assert found["coverage"] == pytest.approx(1)
    assert found["recall"] == pytest.approx(1)  # 10 lies in the ball of 30


def test_a_ball_reaches_to_the_kth_other_clip() -> None:
    places = np.array([0.0, 1, 3, 7])
    np.testing.assert_allclose(radii(np.abs(places - places[:, None]), 2), [3, 2, 3, 6])


@given(seed=st.integers(0, 1000), k=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_agrees_with_the_definitions_spelled_out(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    fake, real = generator.normal(size=(9, 2)) * 1.5, generator.normal(size=(7, 2))

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def reach(i: int, own: np.ndarray) -> float:
        return sorted(gap(own[i], own[j]) for j in range(len(own)) if j != i)[k - 1]

    inside = [[gap(f, r) < reach(j, real) for j, r in enumerate(real)] for f in fake]
    met = [[gap(f, r) < reach(i, fake) for r in real] for i, f in enumerate(fake)]
    found = prdc(distances(fake, real, k))
    assert found["precision"] == pytest.approx(sum(map(any, inside)) / 9)
    assert found["recall"] == pytest.approx(sum(any(row[j] for row in met) for j in range(7)) / 7)
    assert found["density"] == pytest.approx(sum(map(sum, inside)) / 9 / k)
    assert found["coverage"] == pytest.approx(sum(any(row[j] for row in inside) for j in range(7)) / 7)


def test_a_collapsed_generator_is_precise_and_covers_little() -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(100, 4))
    found = prdc(distances(real[:1] + 1e-3 * generator.normal(size=(100, 4)), real, 5))
    assert found["precision"] == 1
    assert found["coverage"] < 0.3
    assert found["recall"] < 0.1


def test_sets_far_apart_share_nothing() -> None:
    generator = np.random.default_rng(1)
    real = generator.normal(size=(30, 4))
    assert set(prdc(distances(real + 100, real, 5)).values()) == {0.0}


def test_coverage_of_real_by_real_is_what_theory_expects() -> None:
    n, k = 40, 3
    generator = np.random.default_rng(2)
    found = [prdc(distances(generator.normal(size=(n, 2)), generator.normal(size=(n, 2)), k)) for _ in range(150)]
    # Naeem et al., lemma 2: a ball is missed if the k nearest of all others are its own kind.
    expected = 1 - np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(k)])
    assert np.mean([each["coverage"] for each in found]) == pytest.approx(expected, abs=0.015)
    assert np.mean([each["density"] for each in found]) == pytest.approx(1, abs=0.05)


def test_some_of_the_clips_score_what_they_score_alone() -> None:
    generator = np.random.default_rng(3)
    fake, real = generator.normal(size=(12, 2)), generator.normal(size=(10, 2))
    chosen = np.array([7, 1, 2, 9, 4])
    assert prdc(distances(fake, real, 2), chosen) == pytest.approx(prdc(distances(fake[chosen], real, 2)))
