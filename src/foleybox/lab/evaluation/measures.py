"""From embedded clips to figures: every metric of one label, with its interval and the score of real clips.

Letters: N clips, W windows, E embedding width, R bootstrap replicates.

The interval is a bootstrap over the generated clips (not over windows: those of one clip are not independent), with the
reference fixed. A set drawn with replacement holds fewer distinct clips, which increases every distance; therefore the
replicates are shifted so that their mean is the figure. The interval estimates how much the figure varies over other
clips of the same system at the same n. Precision to coverage count whether any clip is near, and a clip that is drawn
twice counts once: their replicates are halves of the clips, drawn without replacement (subsampling; Politis & Romano
1994: halves without replacement vary as full sets do), also shifted.

A set may be of any size. FD and accuracy are streamed over every clip (`Whole`); what needs the clips themselves, and
every interval, is computed on `keep` of them, drawn at random: all of them where there are no more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.errors import UserError
from foleybox.lab.core.clips import ClipFile
from foleybox.lab.evaluation.embeddings import EmbeddedClips
from foleybox.lab.evaluation.frechet import Array, Gaussian, Moments, Redrawn, extrapolate, frechet, gaussian, psd_root
from foleybox.lab.evaluation.kad import bandwidth, clip_kernel, kad, mean_off_diagonal, squared_distances
from foleybox.lab.evaluation.prdc import distances, prdc
from foleybox.labels import LABELS, Label


class Metric(NamedTuple):
    """A column of a report."""

    title: str
    better: int  # +1: more is better, -1: less is better
    highest: float  # what it cannot exceed
    meaning: str
    lowest: float = 0.0


METRICS: dict[str, Metric] = {
    "frechet": Metric("FD", -1, np.inf, "squared Fréchet distance of the windows' embeddings to the reference's"),
    "frechet_infinity": Metric("FD∞", -1, np.inf, "FD extrapolated to infinitely many generated clips", -np.inf),
    "kad": Metric(
        *("KAD", -1, np.inf, "100 × unbiased MMD², Gaussian kernel, median distance of the reference; may be negative"),
        lowest=-np.inf,
    ),
    "precision": Metric("precision", +1, 1, "share of generated clips within the reference's k-nearest balls"),
    "recall": Metric("recall", +1, 1, "share of reference clips within the generated clips' k-nearest balls"),
    "density": Metric(
        "density",
        +1,
        np.inf,
        "reference balls that a generated clip lies in, over k; about 1 for clips of one distribution",
    ),
    "coverage": Metric("coverage", +1, 1, "share of reference clips whose ball holds a generated clip"),
    "diversity": Metric(
        "diversity", +1, np.inf, "mean distance between two generated clips over that between two of the reference"
    ),
    "accuracy": Metric("accuracy", +1, 1, "share of generated clips classified as their label (tagger)"),
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
    keep: int = 5_000
    "clips of a label, and of all pooled, held in memory; of more, FD and accuracy are over all, the rest over a draw"

    def __post_init__(self) -> None:
        if self.bootstrap < 0 or self.k < 1 or not 0 < self.confidence < 1 or self.seed < 0 or self.keep < 2:
            raise UserError(
                f"bootstrap {self.bootstrap}, k {self.k}, confidence {self.confidence}, seed {self.seed}, keep "
                f"{self.keep}: expected bootstrap >= 0, k >= 1, confidence between 0 and 1, seed >= 0, keep >= 2"
            )


@dataclass(frozen=True)
class Figure:
    """A measured number, its interval, and the score of real clips at the same n (`floor`); None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None


class Measured(NamedTuple):
    """Values [metric] and replicates [metric] -> [R] of one label."""

    values: dict[str, float]
    replicates: dict[str, Array]


@dataclass
class Whole:
    """Statistics of every clip of a set, in memory that does not grow with the set."""

    moments: Moments
    clips: int = 0
    right: float = 0.0
    "clips that the tagger classifies as their label"

    def add(self, clips: EmbeddedClips) -> "Whole":
        """Add clips."""
        self.moments.add(flat(clips.vectors))
        self.clips += len(clips.clips)
        self.right += 0.0 if clips.tags is None else float(classified_right(clips).sum())
        return self


class ClipSet(NamedTuple):
    """A set of clips of any size: statistics of all of it, and the clips that are kept, in their order."""

    whole: Whole
    kept: EmbeddedClips


def gather(
    clips: Sequence[ClipFile], pieces: Iterable[EmbeddedClips], config: MeasureConfig
) -> dict[Label | None, ClipSet]:
    """Read the `pieces` that `clips` come in, once; return the set of each label, and under None that of all clips.

    At most `config.keep` clips of a set are kept, drawn by the seed. One piece is in memory at a time.
    """
    ids = np.array([clip.label.id if clip.label else -1 for clip in clips])
    members: dict[Label | None, NDArray[np.bool_]] = {label: ids == label.id for label in LABELS if label.id in ids}
    members[None] = np.ones(len(ids), bool)
    keep = {label: _draw(inside, config, stream_of(label)) for label, inside in members.items()}
    wholes: dict[Label | None, Whole] = {}
    kept: dict[Label | None, EmbeddedClips] = {}
    filled = dict.fromkeys(members, 0)
    start = 0
    for piece in pieces:
        here = slice(start, start + len(piece.clips))
        start = here.stop
        for label, inside in members.items():
            if label not in wholes:
                wholes[label] = Whole(Moments(piece.vectors.shape[-1]))
                kept[label] = _empty([clips[i] for i in np.flatnonzero(keep[label]).tolist()], piece)
            wholes[label].add(piece.of(np.flatnonzero(inside[here])))
            part = piece.of(np.flatnonzero(keep[label][here]))
            rows = slice(filled[label], filled[label] + len(part.clips))
            filled[label] = rows.stop
            into = kept[label]
            into.vectors[rows], into.rates[rows], into.peaks[rows] = part.vectors, part.rates, part.peaks
            if into.tags is not None:
                into.tags[rows] = part.tags
    return {label: ClipSet(wholes[label], kept[label]) for label in members}


def _empty(clips: Sequence[ClipFile], like: EmbeddedClips) -> EmbeddedClips:
    """Return uninitialised arrays for the clips that are kept, allocated at once to avoid fragmentation."""
    n = len(clips)
    vectors = np.empty((n, *like.vectors.shape[1:]), np.float32)
    tags = None if like.tags is None else np.empty((n, len(LABELS)), np.float32)
    return EmbeddedClips(tuple(clips), vectors, tags, np.empty(n, np.int64), np.empty(n, np.float32))


def stream_of(label: Label | None) -> int:
    """Return the stream of random numbers of a label, or of all of them together."""
    return len(LABELS) if label is None else label.id


def _draw(inside: NDArray[np.bool_], config: MeasureConfig, stream: int) -> NDArray[np.bool_]:
    """Choose at most `keep` of the clips in a set: [N] -> [N]."""
    own = np.flatnonzero(inside)
    chosen = np.random.default_rng([config.seed, stream, len(own), 4]).permutation(len(own))[: config.keep]
    out = np.zeros(len(inside), bool)
    out[own[chosen]] = True
    return out


@dataclass
class Reference:
    """One label's reference: its statistics, and its clips where they are known. Costly terms are computed once."""

    statistics: Gaussian
    clips: EmbeddedClips | None = None
    root: Array = field(init=False)
    width: float = field(init=False, default=0.0)
    within: float = field(init=False, default=0.0)
    "the mean kernel between two of its clips"

    def __post_init__(self) -> None:
        self.root = psd_root(self.statistics.cov)
        if self.clips is not None:
            self.width = bandwidth(self.clips.vectors)
            self.within = mean_off_diagonal(clip_kernel(self.clips.vectors, self.clips.vectors, self.width))


def flat(vectors: NDArray) -> NDArray:
    """Return windows as rows: [N, W, E] -> [N W, E]."""
    return vectors.reshape(-1, vectors.shape[-1])


def reference_of(clips: EmbeddedClips, whole: Whole | None = None) -> Reference:
    """Return the reference that clips are, or that `whole` is, of which they are kept."""
    return Reference(gaussian(flat(clips.vectors)) if whole is None else whole.moments.gaussian(), clips)


def bootstrap_counts(n: int, config: MeasureConfig, stream: int) -> NDArray[np.int64]:
    """Return how often each of n clips is drawn in each replicate, [R, n]; the same for every set of n clips."""
    generator = np.random.default_rng([config.seed, stream, n])
    return generator.multinomial(n, np.full(n, 1 / n), size=config.bootstrap)


def halves(n: int, config: MeasureConfig, stream: int) -> list[NDArray[np.int64]]:
    """Return the half of n clips that each replicate has, without replacement; none where half are not more than k."""
    if n // 2 <= config.k:
        return []
    generator = np.random.default_rng([config.seed, stream, n, 6])
    return [generator.permutation(n)[: n // 2] for _ in range(config.bootstrap)]


def measure(
    clips: EmbeddedClips, reference: Reference, config: MeasureConfig, stream: int = 0, whole: Whole | None = None
) -> Measured:
    """Compute every metric that the reference allows, with its replicates. `stream` numbers the label.

    `whole` is the set that `clips` were kept of; without it they are all there is.
    """
    whole = whole or Whole(Moments(clips.vectors.shape[-1])).add(clips)
    counts = bootstrap_counts(len(clips.clips), config, stream)
    values = {"frechet": frechet(reference.statistics, whole.moments.gaussian(), reference.root)}
    values["frechet_infinity"] = _frechet_infinity(clips, whole, reference, values["frechet"], config, stream)
    replicates = _frechet_replicates(clips.vectors, reference, counts, config, stream)

    if reference.clips is not None:
        known = reference.clips.vectors
        within = clip_kernel(clips.vectors, clips.vectors, reference.width)
        across = clip_kernel(clips.vectors, known, reference.width)
        values["kad"] = kad(within, reference.within, across)
        replicates["kad"] = np.array([kad(within, reference.within, across, row) for row in counts])
        if min(len(clips.vectors), len(known)) > config.k:
            found = distances(clips.vectors.mean(1), known.mean(1), config.k)
            values |= prdc(found)
            drawn = [prdc(found, half) for half in halves(len(clips.vectors), config, stream)]
            if drawn:
                replicates |= {name: np.array([each[name] for each in drawn]) for name in drawn[0]}
        if min(len(clips.vectors), len(known)) > 1:
            apart, usual = _apart(clips), _spread(_apart(reference.clips))
            if usual > 0:
                values["diversity"] = _spread(apart) / usual
                replicates["diversity"] = np.array([_spread(apart, row) for row in counts]) / usual
    if clips.tags is not None:
        right = classified_right(clips)
        values["accuracy"] = whole.right / whole.clips
        replicates["accuracy"] = counts @ right / len(right)
    return Measured(values, replicates)


def _apart(clips: EmbeddedClips) -> Array:
    """Return the distances [N, N] between the clips, each clip the mean of its windows."""
    vectors = clips.vectors.mean(1).astype(np.float64)
    return np.sqrt(squared_distances(vectors, vectors))


def _spread(apart: Array, counts: NDArray | None = None) -> float:
    """Return the mean distance of two different clips; `counts` [N] are a bootstrap's."""
    weight = np.ones(len(apart)) if counts is None else counts.astype(np.float64)
    pairs = weight.sum() ** 2 - (weight**2).sum()
    return float(weight @ (apart - np.diag(np.diag(apart))) @ weight / max(pairs, 1))


def classified_right(clips: EmbeddedClips) -> Array:
    """Return 1 for each clip whose highest tag is its label, else 0: [N]."""
    assert clips.tags is not None
    labels = np.array([clip.label.id if clip.label else -1 for clip in clips.clips])
    return (clips.tags.argmax(1) == labels).astype(np.float64)


def _frechet_infinity(
    clips: EmbeddedClips,
    whole: Whole,
    reference: Reference,
    value: float,
    config: MeasureConfig,
    stream: int,
    draws: int = 4,
) -> float:
    """Extrapolate over subsets of 1/2, 3/5 and 3/4 of the clips (4 draws each) and the whole set, which has `value`."""
    n = len(clips.vectors)
    generator = np.random.default_rng([config.seed, stream, n, 1])
    sizes, values = [whole.clips] * draws, [value] * draws
    for share in (0.5, 0.6, 0.75):
        size = max(2, round(share * n))
        for _ in range(draws):
            chosen = generator.permutation(n)[:size]
            sizes.append(size)
            values.append(frechet(reference.statistics, gaussian(flat(clips.vectors[chosen])), reference.root))
    return extrapolate(sizes, values) if len(set(sizes)) > 1 else value


def _frechet_replicates(
    vectors: NDArray, reference: Reference, counts: NDArray[np.int64], config: MeasureConfig, stream: int
) -> dict[str, Array]:
    """Return the replicates [R] of FD, and those of FD∞: each drawn set and its two halves, extrapolated."""
    n, per_clip = vectors.shape[:2]
    if not len(counts):
        return {}
    redrawn = Redrawn(flat(vectors), reference.statistics, reference.root)

    def distance(row: NDArray) -> float:
        return redrawn.distance(np.repeat(row, per_clip))

    found = {"frechet": np.array([distance(row) for row in counts])}
    if n >= 4:
        generator = np.random.default_rng([config.seed, stream, n, 5])
        halves = [generator.multivariate_hypergeometric(row, n // 2) for row in counts]
        sizes = (n, n // 2, n - n // 2)
        found["frechet_infinity"] = np.array(
            [
                extrapolate(sizes, (whole, distance(half), distance(row - half)))
                for whole, row, half in zip(found["frechet"], counts, halves)
            ]
        )
    return found


def real_scores(
    real: EmbeddedClips, reference: Reference, n: int, config: MeasureConfig, stream: int = 0, draws: int = 20
) -> tuple[dict[str, float], int]:
    """Return the scores of real clips, as the mean over `draws` subsets of n clips, and the n that was possible."""
    size = min(n, len(real.clips))
    quiet = replace(config, bootstrap=0)
    generator = np.random.default_rng([config.seed, stream, size, 2])
    rounds = draws if size < len(real.clips) else 1
    found = []
    for _ in range(rounds):
        chosen = np.sort(generator.permutation(len(real.clips))[:size])
        found.append(measure(real.of(chosen), reference, quiet, stream).values)
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}, size


def figures(measured: Measured, floors: Mapping[str, float], config: MeasureConfig) -> dict[str, Figure]:
    """Return value, interval and score of real clips of each metric."""
    tail = (1 - config.confidence) / 2
    out = {}
    for name, value in measured.values.items():
        drawn = measured.replicates.get(name, np.zeros(0))
        low, high = None, None
        if len(drawn):
            shifted = np.quantile(drawn - drawn.mean() + value, [tail, 1 - tail])
            low, high = (float(end) for end in shifted.clip(METRICS[name].lowest, METRICS[name].highest))
        out[name] = Figure(value, low, high, floors.get(name))
    return out


def mean_of(parts: Sequence[Measured]) -> Measured:
    """Return the plain mean over labels, as the challenge ranks systems; replicates are averaged label by label."""
    common = [name for name in METRICS if all(name in part.values for part in parts)]
    values = {name: float(np.mean([part.values[name] for part in parts])) for name in common}
    drawn = [name for name in common if all(name in part.replicates for part in parts)]
    return Measured(values, {name: np.mean([part.replicates[name] for part in parts], axis=0) for name in drawn})
