"""KT's six systems as values: which contrastive loss, at which temperatures (Chung et al. 2023, Tables 1 to 3)."""

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
