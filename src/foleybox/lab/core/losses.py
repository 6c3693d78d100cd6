"""Losses that several systems share: pure functions of tensors.

Letters: B batch, M mel bands, T frames.
"""

import torch
from torch import Tensor


def mel_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean absolute difference of two log-mels [..., M, T], natural logarithm (HiFi-GAN, equation 3)."""
    return (real - fake).abs().mean()


def squares_discriminator(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the sum over discriminators of mean (1 - D(x))^2 + mean D(G(m))^2 (HiFi-GAN, equations 1 and 8)."""
    return torch.stack([((1 - r) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True)]).sum()


def squares_generator(fake: list[Tensor]) -> Tensor:
    """Return the sum over discriminators of mean (1 - D(G(m)))^2 (HiFi-GAN, equations 2 and 7)."""
    return torch.stack([((1 - f) ** 2).mean() for f in fake]).sum()


def feature_matching(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Return the sum over layers of discriminators of mean |D_i(x) - D_i(G(m))| (HiFi-GAN, equation 4).

    The activations of the real wave are the target: no gradient flows into them.
    """
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r, f, strict=True)]
    return torch.stack([(r.detach() - f).abs().mean() for r, f in pairs]).sum()


def roughness(mel: Tensor) -> Tensor:
    """Return mean |m[t + 1] - m[t]| of log-mels [..., M, T]: the strength of their fine structure in time."""
    return (mel[..., 1:] - mel[..., :-1]).abs().mean()
