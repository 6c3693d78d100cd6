"""From embedded clips to figures: every metric of one label, with its interval and the floor beside it.

Letters: N clips, W windows, E embedding width, R bootstrap replicates.

The interval is a bootstrap over the generated clips (never windows: those of one clip are not independent), the
reference held fixed. A set drawn with replacement holds fewer different clips, which moves every distance up; so the
replicates are shifted to have the figure as their mean, and the interval says how much the figure would move with
other clips of the same system at the same n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.doors import UserError
from foleybox.lab.evaluation.embeddings import EmbeddedClips
from foleybox.lab.evaluation.frechet import Array, Gaussian, extrapolate, frechet, frechet_quick, gaussian, psd_root
from foleybox.lab.evaluation.kad import bandwidth, clip_kernel, kad
from foleybox.lab.evaluation.prdc import neighbours, prdc
from foleybox.labels import LABELS, Label


class Metric(NamedTuple):
    """What a column of a report says."""

    title: str
    better: int  # +1: more is better, -1: less is better
    highest: float  # what it cannot exceed
    meaning: str


METRICS: dict[str, Metric] = {
    "frechet": Metric("FD", -1, np.inf, "squared Fréchet distance of the windows' embeddings to the reference's"),
    "frechet_infinity": Metric("FD∞", -1, np.inf, "FD extrapolated to infinitely many generated clips"),
    "kad": Metric(
        "KAD", -1, np.inf, "100 × unbiased MMD², Gaussian kernel, median distance of the reference; may be negative"
    ),
    "precision": Metric("precision", +1, 1, "share of generated clips within the reference's k-nearest balls"),
    "recall": Metric("recall", +1, 1, "share of reference clips within the generated clips' k-nearest balls"),
    "density": Metric(
        "density", +1, np.inf, "reference balls that a generated clip lies in, over k; about 1 for real clips"
    ),
    "coverage": Metric("coverage", +1, 1, "share of reference clips whose ball holds a generated clip"),
    "accuracy": Metric("accuracy", +1, 1, "share of generated clips that the tagger hears as their label"),
}


@dataclass(frozen=True)
class MeasureConfig:
    """How figures are computed."""

    seed: int = 0
    "of the bootstrap and of every drawn subset"
    bootstrap: int = 200
    "replicates of the interval; 0 for none"
    k: int = 5
    "neighbours of precision, recall, density and coverage"
    confidence: float = 0.95
    "of the interval"

    def __post_init__(self) -> None:
        if self.bootstrap < 0 or self.k < 1 or not 0 < self.confidence < 1 or self.seed < 0:
            raise UserError(
                f"bootstrap {self.bootstrap}, k {self.k}, confidence {self.confidence}, seed {self.seed}: expected "
                "bootstrap >= 0, k >= 1, confidence between 0 and 1, seed >= 0"
            )


class Figure(NamedTuple):
    """A measured number, its interval, and what real clips score at the same n; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None


class Measured(NamedTuple):
    """Values [metric] and replicates [metric] -> [R] of one label."""

    values: dict[str, float]
    replicates: dict[str, Array]


@dataclass
class Reference:
    """One label's reference: its statistics, and its clips where they are known. What is costly is kept."""

    statistics: Gaussian
    clips: EmbeddedClips | None = None
    root: Array = field(init=False)
    width: float = field(init=False, default=0.0)
    kernel: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        self.root = psd_root(self.statistics.cov)
        if self.clips is not None:
            self.width = bandwidth(self.clips.vectors)
            self.kernel = clip_kernel(self.clips.vectors, self.clips.vectors, self.width)


def flat(vectors: NDArray) -> NDArray:
    """Return windows as rows: [N, W, E] -> [N W, E]."""
    return vectors.reshape(-1, vectors.shape[-1])


def reference_of(clips: EmbeddedClips) -> Reference:
    """Return the reference that clips are."""
    return Reference(gaussian(flat(clips.vectors)), clips)


def bootstrap_counts(n: int, config: MeasureConfig, stream: int) -> NDArray[np.int64]:
    """Return how often each of n clips is drawn in each replicate, [R, n]; the same for every set of n clips."""
    generator = np.random.default_rng([config.seed, stream, n])
    return generator.multinomial(n, np.full(n, 1 / n), size=config.bootstrap)


def measure(clips: EmbeddedClips, reference: Reference, config: MeasureConfig, stream: int = 0) -> Measured:
    """Compute every metric that the reference allows, with its replicates. `stream` numbers the label."""
    counts = bootstrap_counts(len(clips.clips), config, stream)
    windows = flat(clips.vectors).astype(np.float64)
    per_clip = clips.vectors.shape[1]
    statistics = reference.statistics

    values = {"frechet": frechet(statistics, gaussian(windows), reference.root)}
    replicates = {
        "frechet": np.array(
            [frechet_quick(statistics, _weighted(windows, np.repeat(row, per_clip)), reference.root) for row in counts]
        )
    }
    values["frechet_infinity"] = _frechet_infinity(clips.vectors, reference, values["frechet"], config, stream)

    if reference.clips is not None:
        known = reference.clips.vectors
        within = clip_kernel(clips.vectors, clips.vectors, reference.width)
        across = clip_kernel(clips.vectors, known, reference.width)
        values["kad"] = kad(within, reference.kernel, across)
        replicates["kad"] = np.array([kad(within, reference.kernel, across, row) for row in counts])
        if min(len(clips.vectors), len(known)) > config.k:
            found = neighbours(clips.vectors.mean(1), known.mean(1), config.k)
            values |= prdc(found)
            drawn = [prdc(found, row) for row in counts]
            replicates |= {name: np.array([each[name] for each in drawn]) for name in prdc(found)}
    if clips.tags is not None:
        right = heard_right(clips)
        values["accuracy"] = float(right.mean())
        replicates["accuracy"] = counts @ right / len(right)
    return Measured(values, replicates)


def heard_right(clips: EmbeddedClips) -> Array:
    """Return 1 for each clip whose highest tag is its label, else 0: [N]."""
    assert clips.tags is not None
    labels = np.array([clip.label.id if clip.label else -1 for clip in clips.clips])
    return (clips.tags.argmax(1) == labels).astype(np.float64)


def _weighted(windows: Array, weight: NDArray) -> Gaussian:
    """Statistics of windows [N, E] in which row i stands `weight[i]` times."""
    drawn = weight > 0
    rows, weight = windows[drawn], weight[drawn].astype(np.float64)
    n = weight.sum()
    mean = weight @ rows / n
    scaled = (rows - mean) * np.sqrt(weight)[:, None]
    return Gaussian(mean, scaled.T @ scaled / (n - 1), int(n))


def _frechet_infinity(
    vectors: NDArray, reference: Reference, whole: float, config: MeasureConfig, stream: int, draws: int = 4
) -> float:
    """Extrapolate over subsets of 1/2, 3/5 and 3/4 of the clips (4 draws each) and the whole set."""
    n = len(vectors)
    generator = np.random.default_rng([config.seed, stream, n, 1])
    sizes, values = [n] * draws, [whole] * draws
    for share in (0.5, 0.6, 0.75):
        size = max(2, round(share * n))
        for _ in range(draws):
            chosen = generator.permutation(n)[:size]
            sizes.append(size)
            values.append(frechet(reference.statistics, gaussian(flat(vectors[chosen])), reference.root))
    return extrapolate(sizes, values) if len(set(sizes)) > 1 else whole


def floor(
    real: EmbeddedClips, reference: Reference, n: int, config: MeasureConfig, stream: int = 0, draws: int = 5
) -> tuple[dict[str, float], int]:
    """Return what real clips score, as the mean of `draws` subsets of n clips, and the n that was possible."""
    size = min(n, len(real.clips))
    quiet = MeasureConfig(config.seed, 0, config.k, config.confidence)
    generator = np.random.default_rng([config.seed, stream, size, 2])
    rounds = draws if size < len(real.clips) else 1
    found = []
    for _ in range(rounds):
        chosen = np.sort(generator.permutation(len(real.clips))[:size])
        found.append(measure(real.of(chosen), reference, quiet, stream).values)
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}, size


def figures(measured: Measured, floors: Mapping[str, float], config: MeasureConfig) -> dict[str, Figure]:
    """Put value, interval and floor of each metric together."""
    tail = (1 - config.confidence) / 2
    out = {}
    for name, value in measured.values.items():
        drawn = measured.replicates.get(name, np.zeros(0))
        low, high = None, None
        if len(drawn):
            shifted = np.quantile(drawn - drawn.mean() + value, [tail, 1 - tail])
            low, high = float(shifted[0]), float(min(shifted[1], METRICS[name].highest))
        out[name] = Figure(value, low, high, floors.get(name))
    return out


def mean_of(parts: Sequence[Measured]) -> Measured:
    """Return the plain mean over labels, as the challenge ranks systems; replicates are averaged label by label."""
    common = [name for name in METRICS if all(name in part.values for part in parts)]
    values = {name: float(np.mean([part.values[name] for part in parts])) for name in common}
    drawn = [name for name in common if all(name in part.replicates for part in parts)]
    return Measured(values, {name: np.mean([part.replicates[name] for part in parts], axis=0) for name in drawn})


def by_label(clips: EmbeddedClips) -> dict[Label, EmbeddedClips]:
    """Group clips by label, in the labels' order."""
    ids = np.array([clip.label.id if clip.label else -1 for clip in clips.clips])
    return {label: clips.of(np.flatnonzero(ids == label.id)) for label in LABELS if (ids == label.id).any()}
