"""How the systems train their VQ-VAE and PixelSNAIL: what each name means, side by side, and the learning rates.

The official baseline (after Liu et al. 2021) and CMU's tracks B and A (Pillay et al. 2023).
"""

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "triangle", "one-cycle"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class VqTraining:
    """How a system trains its VQ-VAE."""

    head: Literal["none", "pre", "post"]
    "the classification head: none, on the encoder's output (pre) or on the quantised one (post)"
    batch: int
    schedule: Schedule
    lr: float
    "the learning rate, or the highest of a cycle"
    precision: Precision


VqSystem = Literal["baseline", "cmu-b"]

VQ: dict[VqSystem, VqTraining] = {
    "baseline": VqTraining("none", 16, "constant", 3e-4, "no"),
    # The report: batch 16, the head, mixed precision. Its rate of 3e-3 is also the baseline's in that report, while the
    # code of both has 3e-4; one rate for both, so that they differ in the head alone.
    "cmu-b": VqTraining("pre", 16, "constant", 3e-4, "bf16"),
}


@dataclass(frozen=True)
class SnailTraining:
    """How a system trains its PixelSNAIL."""

    batch: int
    schedule: Schedule
    lr: float
    "the learning rate, or the highest of a cycle, of the published sizes"
    clip_norm: float
    "gradients are clipped to this norm; 0: never"
    precision: Precision
    zen: Literal[0, 1, 2] = 0
    "halvings of the grid before the attention (cmu/zen.py); 0: none"


SnailSystem = Literal["baseline", "cmu-b", "cmu-a"]

SNAIL: dict[SnailSystem, SnailTraining] = {
    "baseline": SnailTraining(8, "constant", 3e-4, 0.0, "no"),
    # The report: the batch, "cyclic" from 1e-5, mixed precision. The highest rate is the public scheduler's 25 times the
    # lowest. The report clips its track A model at norms that it does not state.
    "cmu-b": SnailTraining(8, "triangle", 2.5e-4, 10.0, "bf16"),
    # One halving is the report's factor of 4 in positions and 16 in the attention matrix; its public code makes two. Of
    # the training of this model the report says only that gradients were clipped: the rest is as for track B.
    "cmu-a": SnailTraining(8, "triangle", 2.5e-4, 10.0, "bf16", zen=1),
}

SMALL_LR = {"tiny": 1.5e-3, "small": 1.5e-3, "medium": 1e-3}
"""The rate, or the highest of a cycle, of the sizes that are not published, whatever the system.

It is the rate of a budget of about 100,000 clips, not the reports': at theirs the path of the label learns too slowly.
"""


# --- the learning rate --------------------------------------------------------------------------------------------

DIVIDER = 25
"the public scheduler's: a cycle starts at the highest rate divided by this"
WARM_UP, LAST = 0.05, 1e-4
"of the one-cycle schedule: the share of steps that rise, and the last rate as a factor of the first"


def learning_rate(schedule: Schedule, lr: float, step: int, period: int, steps: int) -> float:
    """Return the learning rate of a step.

    constant: `lr`. triangle: from lr / 25 at step 0 to `lr` half a `period` of steps later and back, again and again
    (Smith 2017, figure 2). one-cycle: the public baseline's `--sched cycle`, linear from lr / 25 to `lr` in the first 5 %
    of `steps`, then a cosine to lr / 250,000; its scheduler advances before the optimiser.
    """
    low = lr / DIVIDER
    if schedule == "constant":
        return lr
    if schedule == "triangle":
        return low + (lr - low) * (1 - abs(2 * (step % period) / period - 1))
    done, warm_up = step + 1, int(steps * WARM_UP)
    if done <= warm_up:
        return low + (lr - low) * done / warm_up
    end = low * LAST
    return end + (lr - end) / 2 * (1 + math.cos(math.pi * min(1.0, (done - warm_up) / (steps - warm_up))))
