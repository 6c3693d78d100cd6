"""Random masks over the parts of a CEmbed, for training (CMU report, section 2.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

# --- CMU's masks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartMasks:
    """Which rows and frames of a CEmbed's two parts are hidden, drawn for each part on its own (CMU report, 2.3.2)."""

    mask_frames: int = 25
    "longest span of frames hidden in a part; always shorter. 0: none"
    mask_mel_rows: int = 25
    "widest span of the mel's 129 rows; always narrower"
    mask_encoder_rows: int = 250
    "widest span of the encoder's 1,023 rows; always narrower"
    mask_each: bool = False
    "a draw for every clip; otherwise one for the batch, as in the public copy of CMU's code"


def _spans(count: int, size: int, longest: int) -> Tensor:
    """Draw a span of fewer than `longest` of `size` places, bool [count, size]."""
    length = (torch.rand(count) * min(longest, size)).floor()
    start = (torch.rand(count) * (size - length)).floor()
    places = torch.arange(size)
    return (places >= start[:, None]) & (places < (start + length)[:, None])


def draw_part_masks(count: int, parts: tuple[int, int], frames: int, masks: PartMasks) -> Tensor:
    """Draw what is hidden in `count` CEmbeds of `parts` rows, bool [count, F, T], from torch's global generator.

    A span of frames and a span of rows for the encoder's part and, independently, for the mel's.
    """
    drawn = count if masks.mask_each else 1
    widest = (masks.mask_encoder_rows, masks.mask_mel_rows)
    hidden = [
        _spans(drawn, frames, masks.mask_frames)[:, None, :] | _spans(drawn, rows, most)[:, :, None]
        for rows, most in zip(parts, widest, strict=True)
    ]
    return torch.cat(hidden, 1).expand(count, -1, -1)
