"""Random masks over the two parts of a CEmbed, for training (Pillay et al. 2023, section 2.3.2).

Letters: F rows, T frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartMasks:
    """Which rows and frames of a CEmbed's two parts are masked, drawn for each part independently."""

    mask_frames: int = 25
    "spans of frames are shorter than this. 0: none"
    mask_mel_rows: int = 25
    "spans of the mel's 129 rows are narrower than this"
    mask_encoder_rows: int = 250
    "spans of the encoder's 1,023 rows are narrower than this"
    mask_each: bool = False
    "another mask for every clip; otherwise one for the batch, as in the public copy of CMU's code"


def _spans(count: int, size: int, longest: int) -> Tensor:
    """Draw a span of fewer than `longest` of `size` positions, bool [count, size]."""
    length = (torch.rand(count) * min(longest, size)).floor()
    start = (torch.rand(count) * (size - length)).floor()
    positions = torch.arange(size)
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])


def draw_part_masks(count: int, parts: tuple[int, int], frames: int, masks: PartMasks) -> Tensor:
    """Draw the masks of `count` CEmbeds of `parts` rows, bool [count, F, T], with torch's global generator.

    In each part a span of frames and a span of rows is masked; the two parts are independent.
    """
    drawn = count if masks.mask_each else 1
    widest = (masks.mask_encoder_rows, masks.mask_mel_rows)
    masked = [
        _spans(drawn, frames, masks.mask_frames)[:, None, :] | _spans(drawn, rows, most)[:, :, None]
        for rows, most in zip(parts, widest, strict=True)
    ]
    return torch.cat(masked, 1).expand(count, -1, -1)
