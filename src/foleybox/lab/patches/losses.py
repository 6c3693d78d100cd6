"""Losses of our own system: pure functions of tensors.

Letters: B batch, M mel bands, T frames, R rows, D latent width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# --- the autoencoder of our own system -------------------------------------------------------------------------------


def pooled_mel_distance(real: Tensor, fake: Tensor, frames: int = 4, bands: int = 5) -> Tensor:
    """Return the mean absolute difference of log-mels [B, M, T] averaged over `frames` by `bands`, every half of either.

    What is left of noise after averaging is its level and colour; its grain, which cannot be known, hardly counts.
    """
    size, step = (bands, frames), (max(bands // 2, 1), max(frames // 2, 1))
    return (F.avg_pool2d(real, size, step) - F.avg_pool2d(fake, size, step)).abs().mean()


def flow_matching(
    speed: Callable[[Tensor, Tensor], Tensor], target: Tensor, said: Tensor, time: Tensor, noise: Tensor
) -> Tensor:
    """Return mean |v(x_t, said) - (target - noise)|^2 at x_t = (1 - t) noise + t target (Lipman et al. 2023).

    `target` and `noise` [R, D], `time` [R] in 0 to 1; `said` [R, ...] is what the speed is told of each row.
    """
    point = torch.lerp(noise, target, time[:, None])
    return (speed(point, said).float() - (target - noise)).square().mean()
