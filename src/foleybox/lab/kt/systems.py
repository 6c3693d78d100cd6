"""KT's six systems: which contrastive loss, with which temperatures (Chung et al. 2023, Tables 1 to 3)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Contrast:
    """One of the four forms of `losses.conditional_contrastive`, with its temperatures."""

    source: bool
    "C-SupCon: the frozen encoder's embedding of the clip is a second positive (equation 5)"
    labels: bool
    "items of the same label are positives, as in ContraGAN; in the report's equations 3 and 5 they are not"
    tau_data: float
    "tau_d, for data-to-data pairs"
    tau_class: float
    "tau_c, for data-to-label and data-to-source pairs"


KtSystem = Literal["kt-2c", "kt-csupcon", "kt-2c-t01", "kt-csupcon-t01", "kt-2c-label", "kt-csupcon-label"]

KT: dict[KtSystem, Contrast] = {
    "kt-2c": Contrast(source=False, labels=False, tau_data=0.1, tau_class=1.0),  # S1
    "kt-csupcon": Contrast(source=True, labels=False, tau_data=0.1, tau_class=1.0),  # S3
    "kt-2c-t01": Contrast(source=False, labels=False, tau_data=0.1, tau_class=0.1),  # S0
    "kt-csupcon-t01": Contrast(source=True, labels=False, tau_data=0.1, tau_class=0.1),  # S2
    "kt-2c-label": Contrast(source=False, labels=True, tau_data=0.1, tau_class=1.0),
    "kt-csupcon-label": Contrast(source=True, labels=True, tau_data=0.1, tau_class=1.0),
}
