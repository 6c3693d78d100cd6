"""Kernel audio distance: the unbiased squared maximum mean discrepancy between two sets of clips.

Letters: N, M clips, W windows of a clip, E embedding width.

    KAD = 100 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),  k(u, v) = exp(-|u - v|² / 2 s²)

(Chung et al., arXiv 2502.15602; Gretton et al. 2012, equation 3.) `s` is the median distance within the reference and
100 the scale, as in the authors' kadtk. The estimate is unbiased: it may be negative, and does not grow as n falls.

Different from kadtk: windows of one clip are similar, so pairs within a clip are left out of the first two means and of
the median. The estimate is unbiased over clips.
"""

import numpy as np
from numpy.typing import NDArray

SCALE = 100.0
MEDIAN_WINDOWS = 2_000  # the median is taken over this many windows at most, evenly spaced

Vectors = NDArray[np.floating]


def bandwidth(reference: Vectors) -> float:
    """Return the median distance between windows of different clips of the reference [N, W, E]."""
    clips, windows, width = reference.shape
    chosen = np.unique(np.linspace(0, clips * windows - 1, min(clips * windows, MEDIAN_WINDOWS)).astype(int))
    flat = reference.reshape(-1, width)[chosen].astype(np.float64)
    distances = np.sqrt(squared_distances(flat, flat))
    other = (chosen // windows)[:, None] < (chosen // windows)[None]
    return float(np.median(distances[other]))


def squared_distances(a: NDArray, b: NDArray) -> NDArray:
    """Return the squared Euclidean distances [N, M] between rows of a [N, E] and b [M, E]."""
    products = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    return np.maximum(products, 0)


def clip_kernel(a: Vectors, b: Vectors, width: float, block: int = 64) -> NDArray[np.float64]:
    """Return the mean of the kernel over the window pairs of each pair of clips: a [N, W, E], b [M, V, E] -> [N, M].

    In float64, so that the number of threads, which float32 products show, does not show in six decimals.
    """
    flat_b = b.reshape(-1, b.shape[-1]).astype(np.float64)
    rows = []
    for start in range(0, len(a), block):
        part = a[start : start + block].reshape(-1, a.shape[-1]).astype(np.float64)
        kernel = np.exp(squared_distances(part, flat_b) * (-0.5 / width**2))
        rows.append(kernel.reshape(-1, a.shape[1], len(b), b.shape[1]).mean((1, 3)))
    return np.concatenate(rows)


def kad(
    generated: NDArray[np.float64],  # [N, N] clip kernel within the generated clips
    reference: float,  # the mean of that within the reference, between two clips: `mean_off_diagonal`
    across: NDArray[np.float64],  # [N, M]
    counts: NDArray | None = None,  # [N] how often each generated clip is in the set; once each when absent
) -> float:
    """Return the KAD of clip kernels. `counts` are a bootstrap's: a clip drawn twice is two clips."""
    weight = np.ones(len(generated)) if counts is None else counts.astype(np.float64)
    total = weight.sum()
    # Two copies of one clip are a pair like any other; a clip with itself is not a pair.
    within = (weight @ generated @ weight - weight @ np.diag(generated)) / (total * (total - 1))
    return float(SCALE * (within + reference - 2 * (weight @ across).mean() / total))


def mean_off_diagonal(kernel: NDArray[np.float64]) -> float:
    """Return the mean of a square matrix without its diagonal."""
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))
