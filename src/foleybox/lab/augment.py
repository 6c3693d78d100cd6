"""Functions of a batch that make more of little data: one draw an item, differentiable, silence kept silent.

Mel images [B, 1, M, T] are on a network's scale, where `floor` is digital silence: what is shifted in or cut out is
the floor, not zero, which would be a loud plateau (DiffAugment fills with 0: Zhao et al. 2020).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEPER_PER_DB = 0.1151292546  # ln(10) / 20: log-mels are natural logarithms


@dataclass(frozen=True)
class MelAugment:
    """How far the mel DiffAug may go; the same policy for reals and fakes, a draw for each item."""

    probability: float = 0.0
    "of each change for each item; 0 is the report's: no augmentation"
    gain: float = 6.0
    "dB, up or down"
    shift: float = 0.125
    "of the clip, earlier or later; steady labels wrap round"
    bands: int = 2
    "mel bands, up or down"
    cut_time: float = 0.15
    "longest span cut to silence, of the clip"
    cut_bands: float = 0.1
    "widest span of bands cut to silence, of all bands"


def shift_time(image: Tensor, frames: Tensor, wrap: Tensor, floor: float) -> Tensor:
    """Move each item `frames` [B] later; silence enters, or the other end where `wrap` [B] is True."""
    B, _, M, T = image.shape
    source = torch.arange(T, device=image.device) - frames[:, None]  # [B, T]
    inside = (source >= 0) & (source < T) | wrap[:, None]
    moved = image.gather(3, (source % T)[:, None, None].expand(B, 1, M, T))
    return torch.where(inside[:, None, None], moved, floor)


def shift_bands(image: Tensor, bands: Tensor) -> Tensor:
    """Move each item `bands` [B] up; the edge band is repeated."""
    B, _, M, T = image.shape
    source = (torch.arange(M, device=image.device) - bands[:, None]).clamp(0, M - 1)  # [B, M]
    return image.gather(2, source[:, None, :, None].expand(B, 1, M, T))


def gain(image: Tensor, amount: Tensor, floor: float, knee: float = 0.1) -> Tensor:
    """Add `amount` [B] to each item, faded out over `knee` above the floor, so that silence stays exactly silent."""
    audible = ((image - floor) / knee).clamp(0, 1)
    return (image + amount[:, None, None, None] * audible).clamp(min=floor)


def cut(image: Tensor, start: Tensor, length: Tensor, dim: int, floor: float) -> Tensor:
    """Silence `length` [B] frames (dim 3) or bands (dim 2) of each item from `start` [B]."""
    places = torch.arange(image.shape[dim], device=image.device)
    inside = (places >= start[:, None]) & (places < (start + length)[:, None])  # [B, T or M]
    inside = inside[:, None, None, :] if dim == 3 else inside[:, None, :, None]
    return torch.where(inside, floor, image)


def augment_mel(image: Tensor, steady: Tensor, policy: MelAugment, floor: float, neper: float) -> Tensor:
    """Return the images [B, 1, M, T] under random gain, time shift, band shift and cut-outs.

    `steady` [B] marks sounds without events (rain, motor), whose shift wraps; `neper` is the scale of the image: how
    much one neper of log-mel is on it. Draws from torch's global generator.
    """
    if policy.probability == 0:
        return image
    B, _, M, T = image.shape
    device = image.device

    def draw(low: float, high: float) -> Tensor:
        """Uniform [B] where the item's coin says so, else 0."""
        chosen = torch.rand(B, device=device) < policy.probability
        return torch.where(chosen, torch.empty(B, device=device).uniform_(low, high), 0.0)

    image = gain(image, draw(-policy.gain, policy.gain) * NEPER_PER_DB * neper, floor)
    image = shift_time(image, draw(-policy.shift * T, policy.shift * T).round().long(), steady, floor)
    image = shift_bands(image, draw(-policy.bands, policy.bands).round().long())
    for dim, size, widest in ((3, T, policy.cut_time), (2, M, policy.cut_bands)):
        length = draw(0, widest * size)
        start = torch.rand(B, device=device) * (size - length)
        image = cut(image, start.floor(), length.floor(), dim, floor)
    return image
