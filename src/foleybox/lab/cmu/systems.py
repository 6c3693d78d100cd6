"""How CMU's track A is trained: what its name means."""

from typing import Literal

from foleybox.lab.baseline.systems import VqTraining

MvqSystem = Literal["cmu-a"]

MVQ: dict[MvqSystem, VqTraining] = {
    # Of how the MVQVAE was trained the report says no more than of the VQ-VAE, whose values these are.
    "cmu-a": VqTraining("pre", 0.01, 16, "triangle", 2.5e-4, 1e-5, 10.0, "bf16"),
}
