"""How CMU's track A trains its MVQVAE."""

from foleybox.lab.baseline.systems import VQ, VqTraining

MVQ: VqTraining = VQ["cmu-b"]
"""Of the MVQVAE's training the report says no more than of the VQ-VAE's."""
