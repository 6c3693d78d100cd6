"""CMU's MHiFiGAN: a HiFi-GAN that reads CEmbeds and makes waves at 24 kHz."""

import torch
from torch import Tensor, nn

from foleybox.audio import resample
from foleybox.lab.cmu.cembed import PARTS
from foleybox.lab.cmu.mvqvae import Rows
from foleybox.lab.core.mel import CEMBED
from foleybox.lab.vocoders.hifigan import Hifigan, HifiganConfig


class Mhifigan(nn.Module):
    """Raw CEmbeds [B, 1152, T] to waves [B, 320 T] at 24 kHz: a HiFi-GAN of scaled rows."""

    def __init__(self, config: HifiganConfig) -> None:
        super().__init__()
        self.rows, self.hifigan = Rows(PARTS), Hifigan(config)

    def forward(self, features: Tensor) -> Tensor:
        return self.hifigan(self.rows(features))


@torch.no_grad()
def waves_of_cembeds(mhifigan: Mhifigan, features: Tensor, rate: int = 22_050) -> Tensor:
    """Return the waves of CEmbeds [N, 1152, 300], float32 [N, 88200] at the task's 22,050 Hz, on the CPU.

    With `rate` 24,000 they are not resampled, [N, 96000].
    """
    device = mhifigan.rows.mean.device
    waves = torch.cat([mhifigan(part.to(device)).cpu() for part in features.split(1)])
    if rate == CEMBED.rate:
        return waves
    return torch.stack([torch.from_numpy(resample(wave.numpy(), CEMBED.rate, rate)) for wave in waves])


# Rates as in the public copy of CMU's code; 17,778,178 weights. At a rate of 10 a kernel of 16 covers some samples twice
# and others once; a kernel of 20 covers all equally, with 18,302,466 weights.
MHIFIGAN = HifiganConfig(bands=1152, rates=(10, 8, 2, 2))
MHIFIGAN_EVEN = HifiganConfig(bands=1152, rates=(10, 8, 2, 2), kernels=(20, 16, 4, 4))
CEMBED_VERSIONS = {"mhifigan": MHIFIGAN, "mhifigan-even": MHIFIGAN_EVEN}
