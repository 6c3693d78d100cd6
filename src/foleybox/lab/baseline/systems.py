"""The reports' systems as values: what each name means, in one place.

KT's six (Chung et al. 2023; Table 1 compares with and without label, Tables 2 and 3 the temperatures S0 to S3). The
official baseline (after Liu et al. 2021) and CMU's track B (Pillay et al. 2023), part by part.
"""

from dataclasses import dataclass
from typing import Literal

# --- the baseline and CMU -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VqTraining:
    """How a system trains its VQ-VAE."""

    head: Literal["none", "pre", "post"]
    "the foley head: none, or reading what enters (pre) or leaves (post) quantisation"
    head_weight: float
    "of the head's cross-entropy"
    batch: int
    schedule: Literal["constant", "triangle", "cosine"]
    "of the learning rate"
    lr: float
    "the rate, or the highest of the cycle"
    lr_low: float
    "the lowest of the cycle, where it begins"
    clip_norm: float
    "gradients longer than this are shortened; 0: never"
    precision: Literal["no", "bf16", "fp16"]


VqSystem = Literal["baseline", "cmu-b"]

VQ: dict[VqSystem, VqTraining] = {
    "baseline": VqTraining("none", 0.01, 16, "constant", 3e-4, 3e-4, 0.0, "no"),
    # The report gives the batch, the head with its weight, "cyclic", the start of 1e-5 and mixed precision. The highest
    # rate is the published scheduler's 25 times the lowest; the norm is ours, the report has none for this part.
    "cmu-b": VqTraining("pre", 0.01, 16, "triangle", 2.5e-4, 1e-5, 10.0, "bf16"),
}


@dataclass(frozen=True)
class SnailTraining:
    """How a system trains its PixelSNAIL."""

    batch: int
    schedule: Literal["constant", "triangle", "cosine"]
    "of the learning rate"
    lr: float
    "the rate, or the highest of the cycle"
    lr_low: float
    "the lowest of the cycle, where it begins"
    clip_norm: float
    "gradients longer than this are shortened; 0: never"
    precision: Literal["no", "bf16", "fp16"]
    zen: Literal[0, 1, 2] = 0
    "halvings of the grid before its attention (Zen mode); 0: none"


SnailSystem = Literal["baseline", "cmu-b", "cmu-a"]

SNAIL: dict[SnailSystem, SnailTraining] = {
    "baseline": SnailTraining(8, "constant", 3e-4, 3e-4, 0.0, "no"),
    # The report gives the batch, "cyclic", the start of 1e-5 and mixed precision. The highest rate is the published
    # scheduler's 25 times the lowest; the report clips its track A model at norms that it does not state.
    "cmu-b": SnailTraining(8, "triangle", 2.5e-4, 1e-5, 10.0, "bf16"),
    # One halving is the report's "factor of 4" in tokens and 16 in the matrix; its public code makes two. Of how this
    # model was trained the report says only that gradients were clipped, at several norms: the rest is as for track B.
    "cmu-a": SnailTraining(8, "triangle", 2.5e-4, 1e-5, 10.0, "bf16", zen=1),
}
