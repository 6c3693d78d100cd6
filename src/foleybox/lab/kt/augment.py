"""Augmentation of KT's systems: the views that train the encoder, and an optional DiffAugment of mels for the GAN.

Letters: B batch, M mel bands, T frames. Draws are from torch's global generator, one draw for each item of a batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from foleybox.lab.core.augment import NEPER_PER_DB, cut, gain, shift_bands, shift_time

# --- views for the encoder ----------------------------------------------------------------------------------------

FADE = 0.4  # longest fade in and longest fade out, as a share of the clip
FADE_DEPTH = 60.0  # dB of attenuation at the outer end of a fade
MASKS = 2  # largest number of time masks; at least one is drawn
MASK = 0.15  # longest time mask, as a share of the clip


def fade(image: Tensor, head: Tensor, tail: Tensor, depth: float, floor: float) -> Tensor:
    """Fade each log-mel [B, 1, M, T] in over `head` [B] frames and out over `tail` [B] frames, linearly in dB.

    `depth` is the attenuation at the outer end, in the unit of the image; no value falls below `floor`.
    """
    T = image.shape[3]
    frame = torch.arange(T, device=image.device)
    fade_in = (1 - frame / head.clamp(min=1)[:, None]).clamp(min=0) * (head > 0)[:, None]  # [B, T] 1 at the outer end
    fade_out = (1 - (T - 1 - frame) / tail.clamp(min=1)[:, None]).clamp(min=0) * (tail > 0)[:, None]
    return (image - depth * (fade_in + fade_out)[:, None, None]).clamp(min=floor)


def draw_view(image: Tensor, floor: float) -> Tensor:
    """Return a random view of log-mels [B, 1, M, T]: fade in, fade out and time masks (KT report, encoder)."""
    B, T = len(image), image.shape[3]
    head, tail = (torch.rand(2, B, device=image.device) * FADE * T).floor()
    image = fade(image, head, tail, FADE_DEPTH * NEPER_PER_DB, floor)
    count = torch.randint(1, MASKS + 1, (B,), device=image.device)
    for mask in range(MASKS):
        length = (torch.rand(B, device=image.device) * MASK * T).floor() * (mask < count)
        start = (torch.rand(B, device=image.device) * (T - length + 1)).floor()
        image = cut(image, start, length, 3, floor)
    return image


# --- DiffAugment for the GAN --------------------------------------------------------------------------------------

GAIN = 6.0  # dB, up or down
SHIFT = 0.125  # of the clip, earlier or later; steady labels wrap round
BANDS = 2  # mel bands, up or down
CUT_TIME = 0.15  # longest span of frames set to silence, as a share of the clip
CUT_BANDS = 0.1  # widest span of bands set to silence, as a share of all bands


class Changes(NamedTuple):
    """The changes that `augment_mel` makes to each item of a batch, tensors [B]; 0 is no change."""

    gain: Tensor
    "dB"
    shift: Tensor
    "frames, later"
    bands: Tensor
    "mel bands, up"
    cut_time: Tensor
    "frames set to silence, from `cut_start`"
    cut_start: Tensor
    cut_bands: Tensor
    "bands set to silence, from `cut_low`"
    cut_low: Tensor


def draw_changes(
    count: int, bands: int, frames: int, probability: float, device: torch.device | None = None
) -> Changes:
    """Draw the changes of `count` mels of `bands` x `frames`; each change is made with `probability`.

    Separate from `augment_mel`, so that processes that share a batch can draw for all of it and use their part.
    """

    def draw(low: float, high: float) -> Tensor:
        """Uniform with `probability`, else 0."""
        chosen = torch.rand(count, device=device) < probability
        return torch.where(chosen, torch.empty(count, device=device).uniform_(low, high), 0.0)

    def draw_cut(size: int, widest: float) -> tuple[Tensor, Tensor]:
        """Length and start of a span within `size`."""
        length = draw(0, widest * size).floor()
        return length, (torch.rand(count, device=device) * (size - length)).floor()

    gain_db = draw(-GAIN, GAIN)
    shift = draw(-SHIFT * frames, SHIFT * frames).round().long()
    band_shift = draw(-BANDS, BANDS).round().long()
    return Changes(gain_db, shift, band_shift, *draw_cut(frames, CUT_TIME), *draw_cut(bands, CUT_BANDS))


def augment_mel(image: Tensor, changes: Changes, steady: Tensor, floor: float, neper: float) -> Tensor:
    """Return the images [B, 1, M, T] with gain, time shift, band shift and cut-outs (after DiffAugment: Zhao et al. 2020).

    `steady` bool [B] marks sounds without events (rain, motor), whose time shift wraps round. `neper` is the scale of the
    image: its change for one neper of log-mel. Differentiable with respect to the image.
    """
    image = gain(image, changes.gain * NEPER_PER_DB * neper, floor)
    image = shift_time(image, changes.shift, steady, floor)
    image = shift_bands(image, changes.bands)
    image = cut(image, changes.cut_start, changes.cut_time, 3, floor)
    return cut(image, changes.cut_low, changes.cut_bands, 2, floor)
