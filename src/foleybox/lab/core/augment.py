"""Differentiable augmentation of log-mel images: one draw for each item of a batch, silence stays silence.

Images [B, 1, M, T] are on a network's scale, where `floor` is digital silence. Frames and bands that are shifted in or
cut out are filled with the floor. DiffAugment (Zhao et al. 2020) fills with zero, which here would be a loud plateau.

Letters: B batch, M mel bands, T frames, K points of a curve.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    """Add `amount` [B] to each item, or [B, M] to its bands, faded out over `knee` above the floor: silence stays silent."""
    audible = ((image - floor) / knee).clamp(0, 1)
    return (image + amount.reshape(len(image), 1, -1, 1) * audible).clamp(min=floor)


def colour(image: Tensor, points: Tensor, floor: float) -> Tensor:
    """Add to each item's bands a curve through `points` [B, K], evenly spaced from the lowest band to the highest."""
    curve = F.interpolate(points[:, None], image.shape[2], mode="linear", align_corners=True)[:, 0]
    return gain(image, curve, floor)


def cut(image: Tensor, start: Tensor, length: Tensor, dim: int, floor: float) -> Tensor:
    """Silence `length` [B] frames (dim 3) or bands (dim 2) of each item from `start` [B]."""
    places = torch.arange(image.shape[dim], device=image.device)
    inside = (places >= start[:, None]) & (places < (start + length)[:, None])  # [B, T or M]
    inside = inside[:, None, None, :] if dim == 3 else inside[:, None, :, None]
    return torch.where(inside, floor, image)


class Changes(NamedTuple):
    """What `augment_mel` does to each item of a batch, tensors [B]; 0 is nothing."""

    gain: Tensor
    "dB"
    shift: Tensor
    "frames, later"
    bands: Tensor
    "mel bands, up"
    cut_time: Tensor
    "frames cut to silence, from `cut_start`"
    cut_start: Tensor
    cut_bands: Tensor
    "bands cut to silence, from `cut_low`"
    cut_low: Tensor


def draw_changes(
    count: int, bands: int, frames: int, policy: MelAugment, device: torch.device | None = None
) -> Changes:
    """Draw the changes of `count` mels of `bands` x `frames` from torch's global generator.

    Apart from `augment_mel`, so that processes that share a batch can draw for all of it and take their part.
    """

    def draw(low: float, high: float) -> Tensor:
        """Uniform where the item's coin says so, else 0."""
        chosen = torch.rand(count, device=device) < policy.probability
        return torch.where(chosen, torch.empty(count, device=device).uniform_(low, high), 0.0)

    def draw_cut(size: int, widest: float) -> tuple[Tensor, Tensor]:
        """Length and start of a span within `size`."""
        length = draw(0, widest * size).floor()
        return length, (torch.rand(count, device=device) * (size - length)).floor()

    gain_db = draw(-policy.gain, policy.gain)
    shift = draw(-policy.shift * frames, policy.shift * frames).round().long()
    moved = draw(-policy.bands, policy.bands).round().long()
    return Changes(gain_db, shift, moved, *draw_cut(frames, policy.cut_time), *draw_cut(bands, policy.cut_bands))


def augment_mel(image: Tensor, changes: Changes, steady: Tensor, floor: float, neper: float) -> Tensor:
    """Return the images [B, 1, M, T] with their gain, time shift, band shift and cut-outs.

    `steady` [B] marks sounds without events (rain, motor), whose shift wraps; `neper` is the scale of the image: how
    much one neper of log-mel is on it.
    """
    image = gain(image, changes.gain * NEPER_PER_DB * neper, floor)
    image = shift_time(image, changes.shift, steady, floor)
    image = shift_bands(image, changes.bands)
    image = cut(image, changes.cut_start, changes.cut_time, 3, floor)
    return cut(image, changes.cut_low, changes.cut_bands, 2, floor)
