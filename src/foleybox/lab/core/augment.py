"""Differentiable augmentation of log-mel images: one draw for each item of a batch, silence stays silence.

Images [B, 1, M, T] are on a network's scale, where `floor` is digital silence. Frames and bands that are shifted in or
cut out are filled with the floor. DiffAugment (Zhao et al. 2020) fills with zero, which here would be a loud plateau.

Letters: B batch, M mel bands, T frames, K points of a curve.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEPER_PER_DB = 0.1151292546  # ln(10) / 20: log-mels are natural logarithms


def shift_time(image: Tensor, frames: Tensor, wrap: Tensor, floor: float) -> Tensor:
    """Move each item `frames` [B] later; silence is shifted in, or the other end of the clip where `wrap` bool [B] is set."""
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
    """Add `amount` [B] to each item, or [B, M] to its bands; less within `knee` of the floor, and nothing at the floor."""
    audible = ((image - floor) / knee).clamp(0, 1)
    return (image + amount.reshape(len(image), 1, -1, 1) * audible).clamp(min=floor)


def colour(image: Tensor, points: Tensor, floor: float) -> Tensor:
    """Add to each item's bands the piecewise linear curve through `points` [B, K], evenly spaced over the bands."""
    curve = F.interpolate(points[:, None], image.shape[2], mode="linear", align_corners=True)[:, 0]
    return gain(image, curve, floor)


def cut(image: Tensor, start: Tensor, length: Tensor, dim: int, floor: float) -> Tensor:
    """Set `length` [B] frames (`dim` 3) or bands (`dim` 2) of each item to `floor`, from `start` [B]."""
    places = torch.arange(image.shape[dim], device=image.device)
    inside = (places >= start[:, None]) & (places < (start + length)[:, None])  # [B, T or M]
    inside = inside[:, None, None, :] if dim == 3 else inside[:, None, :, None]
    return torch.where(inside, floor, image)
