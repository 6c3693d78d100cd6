"""Measures of sounds alone, without a reference: roughness, repetition and attacks.

Distances of embeddings hardly react to what these measure: a vocoder that repeats one noise pattern (repetition), a mel
without fine structure (roughness), onsets that are smeared (attacks).

Letters: N clips, L samples, B levels of one millisecond.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, load_waves
from foleybox.lab.core.losses import repetition, roughness
from foleybox.lab.core.mel import WIDE
from foleybox.labels import LABELS, Label

SIGNAL = {
    "roughness": "mean |frame-to-frame difference| of the log-mel (100 bands): how much fine structure it has",
    "repetition": "largest autocorrelation at lags of 9 to 91 ms of the whitened wave, mean over clips: 0.02 for noise, "
    "more where a vocoder repeats one pattern",
    "attacks": "largest rise of the level in a clip, 5 ms against the 25 ms before, in dB, median over clips",
}
RATE = WIDE.rate
MS = 22
"samples in a level: a millisecond at 22,050 Hz"


def signal_measures(clips: Sequence[ClipFile], seconds: float = 4.0) -> dict[Label, dict[str, float]]:
    """Return the measures of `SIGNAL` for the clips of each label, cut or zero-padded to `seconds`."""
    found = {}
    for label in LABELS:
        own = [clip for clip in clips if clip.label is label]
        if not own:
            continue
        waves = load_waves(own, RATE, round(seconds * RATE))
        repeated = torch.cat([repetition(part.float() / 32768) for part in waves.split(16)])
        values = (roughness(load_mels(own, WIDE, seconds)), repeated.mean(), attacks(waves).median())
        found[label] = {name: round(float(value), 6) for name, value in zip(SIGNAL, values)}
    return found


def attacks(waves: Tensor) -> Tensor:
    """Return the largest rise of the level of each wave, int16 [N, L], in dB [N].

    Of the differenced wave (which removes rumble): mean power of 5 ms over that of the 25 ms before, at places where the
    5 ms are within 13 dB of the loudest millisecond.
    """
    steps = waves.float().diff(dim=1) / 32768
    power = steps[:, : steps.shape[1] // MS * MS].unflatten(1, (-1, MS)).square().mean(2).double() + 1e-10  # [N, B]
    sums = F.pad(power.cumsum(1), (1, 0))
    place = torch.arange(25, power.shape[1] - 5)
    after, before = (sums[:, place + 5] - sums[:, place]) / 5, (sums[:, place] - sums[:, place - 25]) / 25
    rise = 10 * torch.log10(after / before).where(after > 0.05 * power.amax(1, keepdim=True), -torch.inf)
    return rise.amax(1)
