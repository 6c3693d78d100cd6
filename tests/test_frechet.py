"""The Fréchet distance against closed forms, against scipy, and without full rank; its statistics on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from foleybox.errors import UserError
from foleybox.lab.evaluation.frechet import (
    Gaussian,
    Moments,
    Redrawn,
    Statistics,
    extrapolate,
    frechet,
    gaussian,
    psd_root,
    read_statistics,
    write_statistics,
)
from foleybox.labels import LABELS


def drawn(seed: int, n: int = 300, width: int = 24) -> Gaussian:
    generator = np.random.default_rng(seed)
    return gaussian(
        generator.normal(size=(n, width)) @ generator.normal(size=(width, width)) + generator.normal(size=width)
    )


@given(seed=st.integers(0, 10_000), n=st.integers(2, 80))
@settings(max_examples=20, deadline=None)
def test_a_set_is_at_no_distance_from_itself_whatever_its_rank(seed: int, n: int) -> None:
    one = drawn(seed, n)
    assert abs(frechet(one, one)) < 1e-9 * max(1, np.trace(one.cov))


def test_a_shifted_mean_costs_its_square() -> None:
    one, shift = drawn(0), np.linspace(-1, 2, 24)
    assert frechet(one, one._replace(mean=one.mean + shift)) == pytest.approx(shift @ shift, rel=1e-9)


def test_a_covariance_scaled_by_nine_costs_four_traces() -> None:
    one = drawn(1)
    assert frechet(one, one._replace(cov=9 * one.cov)) == pytest.approx((3 - 1) ** 2 * np.trace(one.cov), rel=1e-9)


def test_diagonal_covariances_cost_the_difference_of_their_deviations() -> None:
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 0.25, 16.0])
    distance = frechet(Gaussian(np.zeros(3), np.diag(a), 9), Gaussian(np.zeros(3), np.diag(b), 9))
    assert distance == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_agrees_with_scipys_matrix_root_and_is_symmetric() -> None:
    a, b = drawn(2), drawn(3)
    root = np.real(np.asarray(sqrtm(a.cov @ b.cov)))
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a, b, psd_root(a.cov)) == frechet(a, b)


def test_is_exact_for_fewer_embeddings_than_dimensions() -> None:
    generator = np.random.default_rng(4)
    samples = np.zeros((10, 64))
    samples[:, :9] = generator.normal(size=(10, 9))
    turn = np.linalg.qr(generator.normal(size=(64, 64)))[0]
    one = gaussian(samples @ turn)
    assert frechet(one, one._replace(cov=4 * one.cov)) == pytest.approx(np.trace(one.cov), rel=1e-9)
    other = gaussian(np.roll(samples, 30, axis=1) @ turn)  # no direction in common: nothing overlaps
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(one.cov) + np.trace(other.cov)
    assert frechet(one, other) == pytest.approx(expected, rel=1e-9)


def test_embeddings_drawn_again_are_rows_written_more_than_once() -> None:
    generator = np.random.default_rng(8)
    vectors, one = generator.normal(size=(60, 24)) + 3, drawn(2)
    redrawn = Redrawn(vectors, one, psd_root(one.cov))
    for _ in range(3):
        counts = generator.multinomial(60, np.full(60, 1 / 60))
        expected = frechet(one, gaussian(np.repeat(vectors, counts, axis=0)))
        assert redrawn.distance(counts) == pytest.approx(expected, rel=1e-6)


def test_a_stream_in_pieces_is_the_whole_even_far_from_zero() -> None:
    vectors = np.random.default_rng(5).normal(size=(500, 6)) + 1e6
    pieces = Moments(6).add(vectors[:1]).add(vectors[1:200])
    found = pieces.add(vectors[200:]).add(vectors[:0]).gaussian()
    assert found.n == 500
    np.testing.assert_allclose(found.cov, np.cov((vectors - 1e6).T), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mean, vectors.mean(0), rtol=1e-12)


def test_one_embedding_has_no_covariance() -> None:
    with pytest.raises(UserError, match="at least 2"):
        gaussian(np.ones((1, 3)))


def test_extrapolation_finds_what_a_bias_of_one_over_n_hides() -> None:
    sizes = [50, 60, 75, 100]
    assert extrapolate(sizes, [2.5 + 40 / n for n in sizes]) == pytest.approx(2.5)


def test_statistics_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    kept = Statistics({LABELS[5]: drawn(6), LABELS[0]: drawn(7)}, "toy")
    write_statistics(tmp_path / "kept.npz", kept)
    found = read_statistics(tmp_path / "kept.npz")
    assert found.embedding == "toy"
    assert set(found.labels) == {LABELS[0], LABELS[5]}
    np.testing.assert_array_equal(found.labels[LABELS[5]].cov, kept.labels[LABELS[5]].cov)
    assert found.labels[LABELS[0]].n == 300


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"weather/mu": np.zeros(2)}, "no statistics of the seven labels"),
        ({"rain/mu": np.zeros(2)}, "not rain/sigma"),
        ({"rain/mu": np.zeros(2), "rain/sigma": np.zeros((3, 3)), "rain/n": np.array(9)}, "expected finite"),
        ({"rain/mu": np.full(2, np.nan), "rain/sigma": np.eye(2), "rain/n": np.array(9)}, "expected finite"),
    ],
)
def test_a_file_of_no_statistics_is_refused(tmp_path: Path, entries: dict, complaint: str) -> None:
    np.savez(tmp_path / "bad.npz", **entries)
    with pytest.raises(UserError, match=complaint):
        read_statistics(tmp_path / "bad.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_text("hello")
    with pytest.raises(UserError, match="cannot read statistics"):
        read_statistics(tmp_path / "bad.npz")


def test_the_challenges_seven_real_classes_are_as_far_apart_as_published(shared: Path) -> None:
    path = shared / "weights" / "dcase2023_eval_vggish_stats.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    published = """
    0 14.37 19.78 17.75 49.12 22.74 15.23
    14.37 0 12.98 8.68 45.78 13.25 14.38
    19.78 12.98 0 14.03 51.18 23.68 15.06
    17.75 8.68 14.03 0 47.97 18.02 10.01
    49.12 45.78 51.18 47.97 0 29.75 63.62
    22.74 13.25 23.68 18.02 29.75 0 28.45
    15.23 14.38 15.06 10.01 63.62 28.45 0"""  # design/systems-baseline-cmu.md 1.4
    labels = read_statistics(path).labels
    assert {each.n for each in labels.values()} == {1000}
    found = [[frechet(labels[a], labels[b]) for b in LABELS] for a in LABELS]
    np.testing.assert_allclose(found, np.array(published.split(), float).reshape(7, 7), atol=0.01)
