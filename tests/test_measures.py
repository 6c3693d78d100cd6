"""Intervals over clips, scores of real clips at the same n, means over labels, sets of any size."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foleybox.errors import UserError
from foleybox.lab.core.clips import ClipFile
from foleybox.lab.evaluation.embeddings import EmbeddedClips, join
from foleybox.lab.evaluation.frechet import gaussian
from foleybox.lab.evaluation.kad import bandwidth
from foleybox.lab.evaluation.measures import (
    Figure,
    MeasureConfig,
    Measured,
    bootstrap_counts,
    figures,
    flat,
    gather,
    mean_of,
    measure,
    real_scores,
    reference_of,
)
from foleybox.labels import LABELS

CONFIG = MeasureConfig(bootstrap=100)
RATE = 22_050


def span(figure: Figure) -> float:
    assert figure.low is not None
    assert figure.high is not None
    return figure.high - figure.low


def clips(n: int, seed: int, windows: int = 3, right: float = 0.8, label: int = 2) -> EmbeddedClips:
    generator = np.random.default_rng(seed)
    own = generator.normal(size=(n, 1, 4)) + 0.3 * generator.normal(size=(n, windows, 4))
    tags = np.zeros((n, 7), np.float32)
    tags[np.arange(n), np.where(np.arange(n) < right * n, label, 6)] = 1
    files = tuple(ClipFile(Path(f"{i}.wav"), LABELS[label], f"{seed}-{i}") for i in range(n))
    return EmbeddedClips(files, own.astype(np.float32), tags, np.full(n, RATE), np.ones(n, np.float32))


def test_an_interval_holds_its_figure_and_narrows_with_more_clips() -> None:
    reference = reference_of(clips(80, 0))
    widths = []
    for n in (20, 160):
        for name, figure in figures(measure(clips(n, 1), reference, CONFIG), {}, CONFIG).items():
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low <= figure.value <= figure.high, name
            if name == "frechet":
                widths.append(span(figure))
    assert widths[1] < 0.6 * widths[0]


def test_an_interval_stays_where_its_figure_can_be() -> None:
    drawn = {"precision": np.array([0, 0.1, 0.2]), "kad": np.array([0, 0.1, 0.2]), "frechet": np.array([0, 0.1, 0.2])}
    found = figures(Measured({"precision": 0.97, "kad": 0.01, "frechet": 0.01}, drawn), {}, CONFIG)
    assert found["precision"].high == 1
    assert found["frechet"].low == 0
    kad = found["kad"].low
    assert kad is not None
    assert kad < 0  # which an unbiased estimate may be


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


def test_the_kernel_distance_is_the_formula_over_pairs_of_different_clips() -> None:
    x, y = clips(6, 1).vectors.astype(float), clips(5, 0).vectors.astype(float)

    def alike(a: np.ndarray, b: np.ndarray) -> float:
        gaps = ((a[:, None] - b[None]) ** 2).sum(-1)  # the windows of two clips
        return float(np.exp(-gaps / (2 * bandwidth(y) ** 2)).mean())

    def within(some: np.ndarray) -> float:
        return float(np.mean([alike(a, b) for i, a in enumerate(some) for j, b in enumerate(some) if i != j]))

    expected = 100 * (within(x) + within(y) - 2 * np.mean([alike(a, b) for a in x for b in y]))
    assert measure(clips(6, 1), reference_of(clips(5, 0)), CONFIG).values["kad"] == pytest.approx(expected, rel=1e-4)


def test_real_clips_are_measured_at_the_n_that_was_asked_for() -> None:
    reference, real = reference_of(clips(60, 0)), clips(200, 5)
    small, n = real_scores(real, reference, 20, CONFIG)
    assert n == 20
    large, n = real_scores(real, reference, 500, CONFIG)
    assert n == 200
    assert large["frechet"] < small["frechet"]  # the bias of few clips
    assert large["frechet"] == measure(real, reference, CONFIG).values["frechet"]


def test_extrapolation_takes_off_most_of_the_bias_of_few_clips() -> None:
    reference = reference_of(clips(900, 0, windows=1))
    found = [measure(clips(40, seed, windows=1), reference, MeasureConfig(bootstrap=0)).values for seed in range(8)]
    assert abs(np.mean([each["frechet_infinity"] for each in found])) < 0.4 * np.mean(
        [each["frechet"] for each in found]
    )


def test_intervals_of_distances_are_as_wide_as_other_sets_of_the_same_system_scatter() -> None:
    reference, config = reference_of(clips(300, 0)), MeasureConfig(bootstrap=60)
    systems = [clips(60, seed) for seed in range(1, 31)]
    away = [each._replace(vectors=each.vectors + np.float32(0.5)) for each in systems]
    found = [figures(measure(each, reference, config), {}, config) for each in away]
    for name in ("frechet", "frechet_infinity", "kad"):
        scatter = 2 * 1.96 * np.std([each[name].value for each in found])
        assert np.mean([span(each[name]) for each in found]) == pytest.approx(scatter, rel=0.4), name


def test_intervals_of_neighbours_are_as_wide_as_other_sets_of_the_same_system_scatter() -> None:
    generator = np.random.default_rng(0)

    def wide(
        n: int, away: float
    ) -> EmbeddedClips:  # 16 numbers: in a few, clips have so many neighbours that none counts
        one = clips(n, int(generator.integers(1 << 30)), windows=1)
        return one._replace(vectors=(generator.normal(size=(n, 1, 16)) + away).astype(np.float32))

    reference, config = reference_of(wide(100, 0)), MeasureConfig(bootstrap=60)
    found = [figures(measure(wide(100, 0.3), reference, config), {}, config) for _ in range(40)]
    for name in ("precision", "recall", "density", "coverage"):
        scatter = 2 * 1.96 * np.std([each[name].value for each in found])
        assert np.mean([span(each[name]) for each in found]) == pytest.approx(scatter, rel=0.3), name


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


@pytest.mark.parametrize("bad", [{"bootstrap": -1}, {"k": 0}, {"confidence": 1.0}, {"seed": -1}, {"keep": 1}])
def test_settings_without_sense_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match="expected bootstrap"):
        MeasureConfig(**bad)


# --- sets of any size ---------------------------------------------------------------------------------------------


def pieces_of(whole: EmbeddedClips, size: int) -> Iterator[EmbeddedClips]:
    return (whole.of(range(start, min(start + size, len(whole.clips)))) for start in range(0, len(whole.clips), size))


def two_labels() -> EmbeddedClips:
    return join([clips(31, 0, label=5), clips(22, 1, label=1)])


def test_a_set_that_is_kept_whole_is_measured_as_it_ever_was() -> None:
    both, reference = two_labels(), reference_of(clips(40, 2))
    sets = gather(both.clips, [both], CONFIG)
    assert [label and label.id for label in sets] == [1, 5, None]
    for label, one in (
        (LABELS[5], both.of(range(31))),
        (LABELS[1], both.of(range(31, 53))),
        (None, both),
    ):
        np.testing.assert_array_equal(sets[label].kept.vectors, one.vectors)
        streamed = measure(sets[label].kept, reference, CONFIG, 1, sets[label].whole)
        alone = measure(one, reference, CONFIG, 1)
        assert streamed.values == alone.values
        np.testing.assert_array_equal(streamed.replicates["frechet"], alone.replicates["frechet"])


def test_a_streamed_set_has_the_distance_and_accuracy_of_all_its_clips() -> None:
    both, few = two_labels(), MeasureConfig(bootstrap=10, keep=9)
    reference = reference_of(clips(40, 2))
    sets = gather(both.clips, pieces_of(both, 7), few)
    for label, one in ((LABELS[5], both.of(range(31))), (None, both)):
        whole, kept = sets[label]
        assert (whole.clips, whole.moments.n, len(kept.clips)) == (len(one.clips), 3 * len(one.clips), 9)
        np.testing.assert_allclose(whole.moments.gaussian().cov, gaussian(flat(one.vectors)).cov, rtol=1e-9, atol=1e-12)
        streamed = measure(kept, reference, few, 1, whole).values
        alone = measure(one, reference, few, 1).values
        assert streamed["frechet"] == pytest.approx(alone["frechet"], rel=1e-9)
        assert streamed["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-9)
        assert streamed["kad"] == measure(kept, reference, few, 1).values["kad"] != alone["kad"]
        again = reference_of(kept, whole)
        assert measure(one, again, few).values["frechet"] == pytest.approx(0, abs=1e-9)


def test_kept_clips_are_drawn_by_the_seed_and_not_by_what_else_is_there() -> None:
    both = two_labels()

    def names(some: EmbeddedClips, label: int, **changes: int) -> list[str]:
        sets = gather(some.clips, pieces_of(some, 7), MeasureConfig(keep=9, **changes))
        return [clip.recording for clip in sets[LABELS[label]].kept.clips]

    drawn = names(both, 5)
    assert drawn == names(both.of(range(31)), 5)
    assert drawn == sorted(drawn, key=lambda name: int(name.split("-")[1]))  # in the order of the files
    assert drawn != [clip.recording for clip in both.clips[:9]]
    assert drawn != names(both, 5, seed=1)


def test_ten_times_the_clips_take_no_more_memory() -> None:
    width, windows, piece, config = 32, 4, 100, MeasureConfig(keep=50)

    def peak(count: int) -> int:
        files = [ClipFile(Path("x.wav"), LABELS[i % 2], str(i)) for i in range(count)]

        def pieces() -> Iterator[EmbeddedClips]:
            for start in range(0, count, piece):
                made = np.random.default_rng(start).normal(size=(piece, windows, width)).astype(np.float32)
                few = np.ones(piece, np.float32)
                yield EmbeddedClips(tuple(files[start : start + piece]), made, None, np.full(piece, RATE), few)
                del made

        tracemalloc.start()
        sets = gather(files, pieces(), config)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sets[None].whole.clips == count
        return highest

    peak(400)  # what is imported on the way is not counted
    few, many = peak(400), peak(4_000)
    a_clip = (many - few) / 3_600
    assert a_clip < 0.1 * 4 * windows * width, a_clip  # bytes: a place and eight marks, and nothing of its embedding


def test_diversity_is_the_mean_distance_of_clips_over_that_of_real_clips() -> None:
    def at(*places: float) -> EmbeddedClips:
        vectors = np.zeros((len(places), 2, 4), np.float32)  # two windows, whose mean is the place
        vectors[:, 0, 0], vectors[:, 1, 0] = np.array(places) - 0.5, np.array(places) + 0.5
        return clips(len(places), 0)._replace(vectors=vectors)

    def diversity(generated: EmbeddedClips, real: EmbeddedClips) -> float:
        return measure(generated, reference_of(real), MeasureConfig(bootstrap=3)).values["diversity"]

    assert diversity(at(0, 1, 3), at(0, 4)) == pytest.approx((1 + 3 + 2) / 3 / 4, rel=1e-5)
    assert diversity(at(2, 2, 2), at(0, 4)) == pytest.approx(0, abs=1e-5)
    real = clips(30, 1)
    assert diversity(real, real) == pytest.approx(1)
    assert "diversity" not in measure(at(0, 1), reference_of(at(3, 3)), CONFIG).values  # nothing to be as varied as
