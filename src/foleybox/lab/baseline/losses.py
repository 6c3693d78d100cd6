"""Losses and statistics of vector quantisation: pure functions of tensors."""

import torch
from torch import Tensor


def commitment(latent: Tensor, quantised: Tensor) -> Tensor:
    """Return mean (z - sg[e])^2 of the encoder's outputs z and their codes' vectors e, both [B, D, H, W].

    The third term of van den Oord et al. 2017, equation 3; the reports' "latent difference". Its gradient reaches the
    encoder alone.
    """
    return (latent - quantised.detach()).square().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(-sum p ln p) of the number of uses of each code [K]: the number of equally used codes with that entropy."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
