"""Precision, recall, density, coverage: how many generated clips are near real ones, and how many real ones near generated.

Letters: N generated clips, M reference clips, E embedding width; a clip is the mean of its windows' embeddings.

Precision and recall: Kynkäänniemi et al., arXiv 1904.06991. Density and coverage: Naeem et al., arXiv 2002.09797. The
ball around a clip reaches to its k-th nearest neighbour in its own set, not counting itself.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foleybox.lab.evaluation.kad import squared_distances


class Distances(NamedTuple):
    """How far clips are from each other."""

    across: NDArray[np.float64]
    "[N, M] from each generated clip to each reference clip"
    within: NDArray[np.float64]
    "[N, N] between generated clips, 0 to themselves"
    reach: NDArray[np.float64]
    "[M] radius of the ball around each reference clip"
    k: int


def distances(generated: NDArray, reference: NDArray, k: int) -> Distances:
    """Compare generated [N, E] with reference [M, E]; both need more than k clips (the caller checks)."""
    generated, reference = generated.astype(np.float64), reference.astype(np.float64)
    across = np.sqrt(squared_distances(generated, reference))
    return Distances(across, _between(generated), radii(_between(reference), k), k)


def _between(clips: NDArray) -> NDArray[np.float64]:
    """Return the distances [N, N] between clips [N, E]; exactly 0 to itself."""
    found = np.sqrt(squared_distances(clips, clips))
    np.fill_diagonal(found, 0)
    return found


def radii(within: NDArray, k: int) -> NDArray:
    """Return the distance from each clip to its k-th nearest other clip, [N], of distances [N, N]."""
    return np.partition(within, k, axis=1)[:, k]  # position 0 is the clip itself


def prdc(found: Distances, chosen: NDArray | None = None) -> dict[str, float]:
    """Return the four figures, of all generated clips or of those `chosen` (indices, more than k), with their own balls."""
    across, within = found.across, found.within
    if chosen is not None:
        across, within = across[chosen], within[np.ix_(chosen, chosen)]
    in_real = across < found.reach
    in_generated = across < radii(within, found.k)[:, None]
    return {
        "precision": float(in_real.any(1).mean()),
        "recall": float(in_generated.any(0).mean()),
        "density": float(in_real.sum(1).mean() / found.k),
        "coverage": float(in_real.any(0).mean()),
    }
