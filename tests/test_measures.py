"""Intervals over clips, floors at the same n, means over labels."""

import numpy as np
import pytest

from foleybox.doors import UserError
from foleybox.lab.data import ClipFile
from foleybox.lab.evaluation.embeddings import EmbeddedClips
from foleybox.lab.evaluation.frechet import gaussian
from foleybox.lab.evaluation.measures import (
    Figure,
    MeasureConfig,
    Measured,
    bootstrap_counts,
    by_label,
    figures,
    flat,
    floor,
    mean_of,
    measure,
    reference_of,
)
from foleybox.lab.evaluation.measures import _weighted as weighted
from foleybox.labels import LABELS

CONFIG = MeasureConfig(bootstrap=100)


def span(figure: Figure) -> float:
    assert figure.low is not None
    assert figure.high is not None
    return figure.high - figure.low


def clips(n: int, seed: int, windows: int = 3, right: float = 0.8, label: int = 2) -> EmbeddedClips:
    from pathlib import Path

    generator = np.random.default_rng(seed)
    own = generator.normal(size=(n, 1, 4)) + 0.3 * generator.normal(size=(n, windows, 4))
    tags = np.zeros((n, 7), np.float32)
    tags[np.arange(n), np.where(np.arange(n) < right * n, label, 6)] = 1
    files = tuple(ClipFile(Path(f"{i}.wav"), LABELS[label], f"{seed}-{i}") for i in range(n))
    return EmbeddedClips(files, own.astype(np.float32), tags, np.full(n, 22_050), np.ones(n, np.float32))


def test_an_interval_holds_its_figure_and_narrows_with_more_clips() -> None:
    reference = reference_of(clips(80, 0))
    widths = []
    for n in (20, 160):
        for name, figure in figures(measure(clips(n, 1), reference, CONFIG), {}, CONFIG).items():
            if name != "frechet_infinity":
                assert figure.low is not None
                assert figure.high is not None
                assert figure.low <= figure.value <= figure.high, name
            if name == "frechet":
                widths.append(span(figure))
    assert widths[1] < 0.6 * widths[0]


def test_the_interval_of_accuracy_is_the_binomials() -> None:
    many = MeasureConfig(bootstrap=4000)
    figure = figures(measure(clips(100, 1), reference_of(clips(30, 0)), many), {}, many)["accuracy"]
    assert figure.value == pytest.approx(0.8)
    assert span(figure) == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 100), rel=0.08)


def test_windows_of_a_clip_do_not_narrow_the_interval() -> None:
    reference = reference_of(clips(80, 0, windows=1))
    once = clips(40, 1, windows=1)
    often = once._replace(vectors=once.vectors.repeat(8, axis=1))
    a, b = (figures(measure(each, reference, CONFIG), {}, CONFIG)["frechet"] for each in (once, often))
    assert span(b) == pytest.approx(span(a), rel=0.1)


def test_one_seed_gives_one_result_and_another_moves_the_interval_only() -> None:
    reference = reference_of(clips(40, 0))
    first, again = (figures(measure(clips(30, 1), reference, CONFIG), {}, CONFIG) for _ in range(2))
    assert first == again
    other = figures(measure(clips(30, 1), reference, MeasureConfig(seed=1, bootstrap=100)), {}, CONFIG)
    assert other["kad"].value == first["kad"].value
    assert other["kad"].low != first["kad"].low


def test_two_systems_of_one_size_are_drawn_alike() -> None:
    np.testing.assert_array_equal(bootstrap_counts(9, CONFIG, 3), bootstrap_counts(9, CONFIG, 3))
    assert (bootstrap_counts(9, CONFIG, 3).sum(1) == 9).all()
    assert not np.array_equal(bootstrap_counts(9, CONFIG, 3), bootstrap_counts(9, CONFIG, 4))


def test_weights_are_rows_written_more_than_once() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3))
    found, expected = weighted(rows, np.array([0, 3, 1, 1, 2, 0])), gaussian(rows[[1, 1, 1, 2, 3, 4, 4]])
    np.testing.assert_allclose(found.cov, expected.cov)
    np.testing.assert_allclose(found.mean, expected.mean)
    assert found.n == 7


def test_the_floor_is_measured_at_the_n_that_was_asked_for() -> None:
    reference, real = reference_of(clips(60, 0)), clips(200, 5)
    small, n = floor(real, reference, 20, CONFIG)
    assert n == 20
    large, n = floor(real, reference, 500, CONFIG)
    assert n == 200
    assert large["frechet"] < small["frechet"]  # the bias of few clips
    assert large["frechet"] == measure(real, reference, CONFIG).values["frechet"]


def test_extrapolation_takes_off_most_of_the_bias_of_few_clips() -> None:
    reference = reference_of(clips(900, 0, windows=1))
    found = [measure(clips(40, seed, windows=1), reference, MeasureConfig(bootstrap=0)).values for seed in range(8)]
    assert abs(np.mean([each["frechet_infinity"] for each in found])) < 0.4 * np.mean(
        [each["frechet"] for each in found]
    )


def test_the_mean_is_the_plain_mean_of_labels() -> None:
    parts = [
        Measured({"frechet": 1.0, "kad": 2.0}, {"frechet": np.array([1.0, 2])}),
        Measured({"frechet": 4.0}, {"frechet": np.array([3.0, 8])}),
    ]
    found = mean_of(parts)
    assert found.values == {"frechet": 2.5}
    assert found.replicates["frechet"].tolist() == [2, 5]


def test_neighbours_are_counted_only_where_there_are_more_than_k_clips() -> None:
    assert "recall" not in measure(clips(5, 1), reference_of(clips(40, 0)), CONFIG).values
    assert "recall" in measure(clips(6, 1), reference_of(clips(40, 0)), CONFIG).values


@pytest.mark.parametrize("bad", [{"bootstrap": -1}, {"k": 0}, {"confidence": 1.0}, {"seed": -1}])
def test_settings_without_sense_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match="expected bootstrap"):
        MeasureConfig(**bad)


def test_labels_are_grouped_in_their_order() -> None:
    a, b = clips(3, 0, label=5), clips(2, 1, label=1)
    both = EmbeddedClips(
        a.clips + b.clips, np.concatenate([a.vectors, b.vectors]), None, np.full(5, 1), np.ones(5, np.float32)
    )
    groups = by_label(both)
    assert [label.id for label in groups] == [1, 5]
    np.testing.assert_array_equal(flat(groups[LABELS[1]].vectors), flat(b.vectors))
