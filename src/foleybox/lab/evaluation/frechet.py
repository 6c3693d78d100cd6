"""Fréchet distance between two sets of embeddings, from their means and covariances.

Letters: N embeddings, E their width. Everything is float64.

    d(a, b) = |mean_a - mean_b|² + tr cov_a + tr cov_b - 2 tr (cov_a cov_b)^(1/2)

(Dowson & Landau 1982; Kilgour et al., arXiv 1812.08466, call it FAD on audio embeddings; the squared distance, as all
published figures are.) The last trace is the sum of the singular values of cov_a^(1/2) cov_b^(1/2): no matrix root of a
non-symmetric product, no epsilon on the diagonal, and exact where N <= E leaves a covariance without full rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.errors import UserError
from foleybox.files import atomic_path
from foleybox.labels import LABELS, Label, find_label

Array = NDArray[np.float64]


class Gaussian(NamedTuple):
    """A set of embeddings as its mean [E], covariance [E, E] (divided by n - 1) and count."""

    mean: Array
    cov: Array
    n: int


class Moments:
    """Mean and covariance of a stream: any number of embeddings in the memory of one E x E matrix.

    Chunks are merged by Chan, Golub & LeVeque's update (1979), which does not cancel where the mean is far from zero.
    """

    def __init__(self, width: int):
        self.n = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, vectors: NDArray) -> "Moments":
        """Add embeddings [N, E]."""
        chunk = np.asarray(vectors, np.float64)
        if len(chunk):
            mean = chunk.mean(0)
            self._combine(len(chunk), mean, (chunk - mean).T @ (chunk - mean))
        return self

    def _combine(self, n: int, mean: Array, scatter: Array) -> None:
        if n == 0:
            return
        total, shift = self.n + n, mean - self.mean
        self.scatter += scatter + np.outer(shift, shift) * (self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def gaussian(self) -> Gaussian:
        """Return the statistics. Raises UserError for fewer than two embeddings, which have no covariance."""
        if self.n < 2:
            raise UserError(f"{self.n} embedding(s): a covariance needs at least 2")
        return Gaussian(self.mean, self.scatter / (self.n - 1), self.n)


def gaussian(vectors: NDArray) -> Gaussian:
    """Return the statistics of embeddings [N, E]."""
    return Moments(vectors.shape[1]).add(vectors).gaussian()


def frechet(a: Gaussian, b: Gaussian, root_a: Array | None = None) -> float:
    """Return the squared Fréchet distance; `root_a` is `psd_root(a.cov)` if already computed.

    >>> one = Gaussian(np.zeros(3), np.eye(3), 9)
    >>> round(frechet(one, Gaussian(np.ones(3), 4 * np.eye(3), 9)), 9)  # 3 + 3 (1 - 2)²
    6.0
    """
    root = psd_root(a.cov) if root_a is None else root_a
    overlap = np.linalg.svd(root @ psd_root(b.cov), compute_uv=False).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap)


class Redrawn:
    """Distances from `a` of bootstrap draws of the same embeddings; terms that all replicates share are computed once.

    The singular values are the roots of the eigenvalues of root_a cov_b root_a, which is the covariance of embeddings
    times root_a; the root loses half the digits of the smallest ones, and leaves about six of the distance.
    """

    def __init__(self, vectors: NDArray, a: Gaussian, root_a: Array):
        centred = np.asarray(vectors, np.float64) - a.mean
        self.turned, self.centred, self.squares = centred @ root_a, centred, (centred * centred).sum(1)
        self.trace = float(np.trace(a.cov))

    def distance(self, counts: NDArray) -> float:
        """Return the distance of the set that holds embedding i of [N] `counts[i]` times, at least two in all."""
        drawn = counts > 0
        weight = counts[drawn].astype(np.float64)
        n = weight.sum()
        shift, turned = weight @ self.centred[drawn] / n, self.turned[drawn]
        scaled = (turned - weight @ turned / n) * np.sqrt(weight)[:, None]
        overlap = np.sqrt(np.linalg.eigvalsh(scaled.T @ scaled / (n - 1)).clip(min=0)).sum()
        trace = (weight @ self.squares[drawn] - n * shift @ shift) / (n - 1)
        return float(shift @ shift + self.trace + trace - 2 * overlap)


def psd_root(cov: Array) -> Array:
    """Return the symmetric root of a covariance [E, E]; eigenvalues within rounding of zero are zero."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    values[values < values[-1] * len(values) * np.finfo(np.float64).eps] = 0
    return (vectors * np.sqrt(values)) @ vectors.T


def extrapolate(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the intercept of a straight line through (1 / size, value): the value at infinitely many.

    The bias of the distance falls as 1 / n (Chong & Forsyth, arXiv 1911.07023: FID-infinity).
    """
    return float(np.polyfit(1 / np.asarray(sizes, np.float64), np.asarray(values, np.float64), 1)[1])


# --- statistics on disk -------------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Per-label statistics as read from a file, and the embedding they say they are of ("" if they do not say)."""

    labels: Mapping[Label, Gaussian]
    embedding: str


def read_statistics(path: Path) -> Statistics:
    """Read `<label>/mu` [E], `<label>/sigma` [E, E], `<label>/n`, in any spelling of the labels, from an .npz file.

    Raises UserError for a file that is not one, holds no known label, or holds numbers that are no statistics.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read statistics from {path} ({error}): expected an .npz of <label>/mu, sigma, n"
        ) from None
    found: dict[Label, Gaussian] = {}
    for name in entries:
        label = find_label(name.removesuffix("/mu")) if name.endswith("/mu") else None
        if label is None:
            continue
        stem = name.removesuffix("/mu")
        if f"{stem}/sigma" not in entries or f"{stem}/n" not in entries:
            raise UserError(f"{path} has {name} but not {stem}/sigma and {stem}/n")
        mean, cov = entries[name].astype(np.float64), entries[f"{stem}/sigma"].astype(np.float64)
        if (
            mean.ndim != 1
            or cov.shape != (len(mean), len(mean))
            or not np.isfinite(cov).all()
            or not np.isfinite(mean).all()
        ):
            raise UserError(f"{path}: {stem} has mu {mean.shape} and sigma {cov.shape}: expected finite [E] and [E, E]")
        found[label] = Gaussian(mean, cov, int(entries[f"{stem}/n"]))
    if not found:
        raise UserError(f"{path} holds no statistics of the seven labels: expected entries such as dog_bark/mu")
    return Statistics(found, str(entries["embedding"]) if "embedding" in entries else "")


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics in the format that `read_statistics` reads, float64."""
    entries: dict[str, NDArray] = {"embedding": np.array(statistics.embedding)}
    for label in sorted(statistics.labels, key=LABELS.index):
        mean, cov, n = statistics.labels[label]
        entries |= {f"{label.slug}/mu": mean, f"{label.slug}/sigma": cov, f"{label.slug}/n": np.array(n)}
    with atomic_path(path) as partial:
        np.savez_compressed(partial, **entries)  # type: ignore[arg-type]
