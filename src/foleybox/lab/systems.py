"""The reports' systems as values: what each name means, in one place.

KT's six (Chung et al. 2023; Table 1 compares with and without label, Tables 2 and 3 the temperatures S0 to S3). The
official baseline (after Liu et al. 2021) and CMU's track B (Pillay et al. 2023), part by part.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Contrast:
    """Which of the four contrastive losses of `losses.conditional_contrastive`, at which temperatures."""

    source: bool
    "C-SupCon: also draw each embedding to the frozen encoder's embedding of the clip (equation 5)"
    labels: bool
    "items of one label join the numerator, as in ContraGAN; the report leaves them out (equations 3 and 5)"
    tau_data: float
    "tau_d, of data-to-data pairs"
    tau_class: float
    "tau_c, of data-to-label and data-to-source pairs"


KtSystem = Literal["kt-2c", "kt-csupcon", "kt-2c-t01", "kt-csupcon-t01", "kt-2c-label", "kt-csupcon-label"]

KT: dict[KtSystem, Contrast] = {
    "kt-2c": Contrast(source=False, labels=False, tau_data=0.1, tau_class=1.0),  # S1
    "kt-csupcon": Contrast(source=True, labels=False, tau_data=0.1, tau_class=1.0),  # S3
    "kt-2c-t01": Contrast(source=False, labels=False, tau_data=0.1, tau_class=0.1),  # S0
    "kt-csupcon-t01": Contrast(source=True, labels=False, tau_data=0.1, tau_class=0.1),  # S2
    "kt-2c-label": Contrast(source=False, labels=True, tau_data=0.1, tau_class=1.0),
    "kt-csupcon-label": Contrast(source=True, labels=True, tau_data=0.1, tau_class=1.0),
}

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


MvqSystem = Literal["cmu-a"]

MVQ: dict[MvqSystem, VqTraining] = {
    # Of how the MVQVAE was trained the report says no more than of the VQ-VAE, whose values these are.
    "cmu-a": VqTraining("pre", 0.01, 16, "triangle", 2.5e-4, 1e-5, 10.0, "bf16"),
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
