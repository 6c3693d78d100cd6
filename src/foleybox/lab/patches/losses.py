"""Losses of our own system: pure functions of tensors.

Letters: B batch, M mel bands, T frames, R rows, D latent width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def pooled_mel_distance(real: Tensor, fake: Tensor, frames: int = 4, bands: int = 5) -> Tensor:
    """Return the mean absolute difference of log-mels [B, M, T] averaged over `bands` x `frames`, with half overlap.

    The average of noise is its level and spectrum; its fine structure, which cannot be predicted, hardly counts.
    """
    size, step = (bands, frames), (max(bands // 2, 1), max(frames // 2, 1))
    return (F.avg_pool2d(real, size, step) - F.avg_pool2d(fake, size, step)).abs().mean()


def flow_matching(
    velocity: Callable[[Tensor, Tensor], Tensor], target: Tensor, conditioning: Tensor, time: Tensor, noise: Tensor
) -> Tensor:
    """Return mean |v(x_t, c) - (target - noise)|^2 at x_t = (1 - t) noise + t target (Lipman et al. 2023).

    It is conditional flow matching on the straight (optimal transport) path, with sigma = 0. `target` and `noise` [R, D],
    `time` [R] from 0 to 1, `conditioning` c [R, ...].
    """
    point = torch.lerp(noise, target, time[:, None])
    return (velocity(point, conditioning).float() - (target - noise)).square().mean()
