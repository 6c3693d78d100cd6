"""Losses and statistics of vector quantisation: pure functions of tensors."""

import torch
from torch import Tensor

# --- vector quantisation ------------------------------------------------------------------------------------------


def commitment(before: Tensor, after: Tensor) -> Tensor:
    """Return mean (z - sg[e])^2 of `before` z and their codes' vectors `after` e, [B, D, H, W] both (van den Oord et al.
    2017, equation 3, third term). It is the reports' "latent difference"; its gradient reaches the encoder alone.
    """
    return (before - after.detach()).square().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(-sum p ln p) of how often each code was used [K]: how many equally used codes would be as various."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
