"""The encoder E: ResNet18 on log-mels, a head for supervised contrastive learning, a linear classifier.

Letters: B batch, N clips, C channels, M mel bands, T frames, E embedding width.

KT's report states a ResNet18 (He et al. 2016) that is trained with SupCon (Khosla et al. 2020) and then as a classifier;
its frozen unit embeddings are the f(d_i) of C-SupCon (docs/systems/kt.md). The stem is ImageNet's: a 7 x 7 convolution of
stride 2 and max pooling. SupContrast's stem for small images, 3 x 3 of stride 1, has 16 times as many positions.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.labels import LABELS as TASK_LABELS

LABELS = len(TASK_LABELS)
MEL_LOW, MEL_HIGH = math.log(1e-5), 2.5  # log-mels that are mapped to -1 (digital silence) and +1


@dataclass(frozen=True)
class EncoderConfig:
    """The size of the encoder."""

    width: int = 16
    "channels of the first stage: 64 is ResNet18 (11.5 million weights), 16 has 0.7 million"
    embedding: int = 128
    "width of the unit embedding; C-SupCon needs that of the GAN, 128"


class Encoding(NamedTuple):
    """The encoder's output for a batch."""

    feature: Tensor
    "[B, 8 width] the pooled feature maps, input of the classifier"
    embedding: Tensor
    "[B, E] float32, unit length: the head's output"


class BasicBlock(nn.Module):
    """ResNet's block of two 3 x 3 convolutions; the shortcut is a 1 x 1 where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Encoder(nn.Module):
    """Log-mels [B, M, T] to features and unit embeddings; `classifier` maps features to seven logits."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        C, wide = config.width, 8 * config.width
        stem = [nn.Conv2d(1, C, 7, 2, 3, bias=False), nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        stages = []
        for before, after, stride in ((C, C, 1), (C, 2 * C, 2), (2 * C, 4 * C, 2), (4 * C, wide, 2)):
            stages += [BasicBlock(before, after, stride), BasicBlock(after, after, 1)]
        self.backbone = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, config.embedding))
        self.classifier = nn.Linear(wide, LABELS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, mel: Tensor) -> Encoding:
        scaled = 2 * (mel - MEL_LOW) / (MEL_HIGH - MEL_LOW) - 1
        feature = self.backbone(scaled[:, None])
        return Encoding(feature, F.normalize(self.head(feature).float(), dim=1))


@torch.no_grad()
def encode_mels(encoder: Encoder, mels: Tensor, batch: int = 64) -> Encoding:
    """Encode log-mels [N, M, T] in batches, in eval mode and without gradients; the result is float32 on the CPU.

    The encoder's training mode is restored afterwards.
    """
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    parts = [encoder(part.to(device)) for part in mels.split(batch)]
    encoder.train(was_training)
    feature, embedding = (torch.cat(part).float().cpu() for part in zip(*parts))
    return Encoding(feature, embedding)


def embed_mels(encoder: Encoder, mels: Tensor, batch: int = 64) -> Tensor:
    """Return the frozen unit embeddings [N, E] of log-mels [N, M, T]: f(d) of C-SupCon."""
    return encode_mels(encoder, mels, batch).embedding
