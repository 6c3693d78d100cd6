"""Precision, recall, density, coverage: how many generated clips are near real ones, and how much of the real is met.

Letters: N generated clips, M reference clips, E embedding width; a clip is the mean of its windows' embeddings.

Precision and recall: Kynkäänniemi et al., arXiv 1904.06991. Density and coverage: Naeem et al., arXiv 2002.09797. The
ball round a clip reaches to its k-th nearest neighbour in its own set, itself not counted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.lab.evaluation.kad import squared_distances


class Neighbours(NamedTuple):
    """Who lies in whose ball."""

    in_real: NDArray[np.bool_]
    "[N, M] generated clip i lies in the ball of reference clip j"
    in_generated: NDArray[np.bool_]
    "[N, M] reference clip j lies in the ball of generated clip i"
    k: int


def neighbours(generated: NDArray, reference: NDArray, k: int) -> Neighbours:
    """Compare generated [N, E] with reference [M, E]; both need more than k clips (the caller checks)."""
    generated, reference = generated.astype(np.float64), reference.astype(np.float64)
    across = np.sqrt(squared_distances(generated, reference))
    return Neighbours(across < radii(reference, k), across < radii(generated, k)[:, None], k)


def radii(clips: NDArray, k: int) -> NDArray:
    """Return the distance [N] of each clip [N, E] to its k-th nearest other clip."""
    within = np.sqrt(squared_distances(clips, clips))
    np.fill_diagonal(within, 0)
    return np.partition(within, k, axis=1)[:, k]  # place 0 is the clip itself


def prdc(found: Neighbours, counts: NDArray | None = None) -> dict[str, float]:
    """Return the four figures. `counts` [N] are a bootstrap's; the balls stay those of the whole sets."""
    weight = np.ones(len(found.in_real)) if counts is None else counts.astype(np.float64)
    share, there = weight / weight.sum(), weight > 0
    return {
        "precision": float(share @ found.in_real.any(1)),
        "recall": float(found.in_generated[there].any(0).mean()),
        "density": float(share @ found.in_real.sum(1) / found.k),
        "coverage": float(found.in_real[there].any(0).mean()),
    }
