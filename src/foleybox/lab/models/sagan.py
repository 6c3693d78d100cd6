"""KT's self-attention GAN with contrastive conditioning (Chung et al. 2023; SAGAN: Zhang 2019; ContraGAN: Kang 2020).

Letters: B batch, Z latent width, C channels, H x W a grid of mel bands x frames, E embedding width, K labels.

A mel of 80 x 344 is reached from a seed of 5 x 43, since 344 = 8 * 43 and 43 is prime. Two plans:
`A` upsamples by (2,1), (2,2), (2,2), (2,2); `S`, for small machines, stops at 40 x 172, draws four channels there and
interleaves them to 80 x 344 (pixel shuffle), which costs less than half. The report does not say how its network
reaches 80 x 344; both plans keep SAGAN's blocks (design: systems-kt.md 1.2).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

FLOOR = -0.9  # digital silence on the network's scale: inside tanh's range, so that a fake can reach it exactly
SEED_GRID = (5, 43)
LABELS = 7


@dataclass(frozen=True)
class SaganConfig:
    """The size and shape of generator and discriminator."""

    plan: str = "S"
    "A: four upsampling blocks to 80 x 344. S: three, then pixel shuffle (2.2 times faster)"
    width: int = 16
    "base channels: 64 is SAGAN's, 16 trains on a laptop"
    latent: int = 128
    "width of z"
    embedding: int = 128
    "width of the projection h and of the label embedding e"
    mel_low: float = math.log(1e-5)
    "log-mel that becomes FLOOR"
    mel_high: float = 2.5
    "log-mel that becomes +0.9; louder is clipped"
    conditional_logit: bool = False
    "add SAGAN's projection term <V[c], f> to the logit; ContraGAN (default) conditions by the contrastive loss alone"

    def __post_init__(self) -> None:
        if self.plan not in ("A", "S"):
            raise ValueError(f"plan {self.plan!r}: expected A or S")


def to_network(mel: Tensor, config: SaganConfig) -> Tensor:
    """Map log-mels [B, M, T] to the network's scale [B, 1, M, T]: silence to FLOOR, mel_high to -FLOOR."""
    unit = (mel - config.mel_low) / (config.mel_high - config.mel_low)
    return ((2 * unit - 1) * -FLOOR).clamp(FLOOR, -FLOOR)[:, None]


def to_mel(image: Tensor, config: SaganConfig) -> Tensor:
    """Invert `to_network`: [B, 1, M, T] to log-mels [B, M, T] within [mel_low, mel_high]."""
    unit = (image[:, 0].clamp(FLOOR, -FLOOR) / -FLOOR + 1) / 2
    return config.mel_low + unit * (config.mel_high - config.mel_low)


# --- blocks -------------------------------------------------------------------------------------------------------


def _normed(module: nn.Module) -> nn.Module:
    """Orthogonal start and spectral norm, one power iteration a forward."""
    nn.init.orthogonal_(module.weight)  # type: ignore[arg-type]
    if module.bias is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return spectral_norm(module, eps=1e-6)


def sn_conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
    return _normed(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


def sn_linear(inputs: int, outputs: int) -> nn.Module:
    return _normed(nn.Linear(inputs, outputs))


def sn_embedding(rows: int, width: int) -> nn.Module:
    table = nn.Embedding(rows, width)
    nn.init.orthogonal_(table.weight)
    return spectral_norm(table, eps=1e-6)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias are free tables by label: gamma[c] x + beta[c], 1 and 0 at the start."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-4, affine=False)
        self.gamma = nn.Parameter(torch.ones(labels, channels))
        self.beta = nn.Parameter(torch.zeros(labels, channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.norm(x) * self.gamma[label][:, :, None, None] + self.beta[label][:, :, None, None]


class SelfAttention(nn.Module):
    """SAGAN's attention (equations 1-3): C/8 queries, pooled keys, C/2 pooled values; x + gamma y, gamma 0 at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = sn_conv(channels, channels // 8, 1, bias=False)
        self.key = sn_conv(channels, channels // 8, 1, bias=False)
        self.value = sn_conv(channels, channels // 2, 1, bias=False)
        self.out = sn_conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def _places(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)[:, None]  # [B, 1 head, H W, C]

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        query = self._places(self.query(x))  # [B, 1, HW, C/8]
        key = self._places(F.max_pool2d(self.key(x), 2))  # [B, 1, HW/4, C/8]
        value = self._places(F.max_pool2d(self.value(x), 2))  # [B, 1, HW/4, C/2]
        # The fused kernels want one width for all three; zeros change no product and save half of a training step.
        wider = (0, value.shape[-1] - query.shape[-1])
        y = F.scaled_dot_product_attention(F.pad(query, wider), F.pad(key, wider), value, scale=1.0)  # no 1/sqrt(d)
        y = y[:, 0].transpose(1, 2).unflatten(2, (H, W))  # [B, C/2, H, W]
        return x + self.gamma * self.out(y)


class GeneratorBlock(nn.Module):
    """cBN, ReLU, upsample, conv, cBN, ReLU, conv, plus a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, labels: int, scale: tuple[int, int]) -> None:
        super().__init__()
        self.scale = scale
        self.norm1 = ConditionalBatchNorm(inputs, labels)
        self.conv1 = sn_conv(inputs, outputs, 3)
        self.norm2 = ConditionalBatchNorm(outputs, labels)
        self.conv2 = sn_conv(outputs, outputs, 3)
        self.shortcut = sn_conv(inputs, outputs, 1)

    def _upsample(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.scale[0], 2).repeat_interleave(self.scale[1], 3)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        y = self.conv1(self._upsample(F.relu(self.norm1(x, label))))
        y = self.conv2(F.relu(self.norm2(y, label)))
        return y + self._upsample(self.shortcut(x))  # a 1x1 conv before nearest upsampling gives the same, cheaper


class DiscriminatorBlock(nn.Module):
    """ReLU, conv, ReLU, conv, average pool, plus a shortcut; the first block sees data and so has no first ReLU."""

    def __init__(self, inputs: int, outputs: int, pool: tuple[int, int], first: bool = False) -> None:
        super().__init__()
        self.pool, self.first = pool, first
        self.conv1 = sn_conv(inputs, outputs, 3)
        self.conv2 = sn_conv(outputs, outputs, 3)
        self.shortcut = sn_conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.relu(x))
        y = F.avg_pool2d(self.conv2(F.relu(y)), self.pool)
        return y + self.shortcut(F.avg_pool2d(x, self.pool))


# --- the two networks ---------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """(z [B, Z], label [B]) to an image [B, 1, 80, 344] in (-1, 1), on the scale of `to_network`."""

    def __init__(self, config: SaganConfig) -> None:
        super().__init__()
        self.config = config
        C, K = config.width, LABELS
        self.seed = sn_linear(config.latent, 8 * C * math.prod(SEED_GRID))
        self.block1 = GeneratorBlock(8 * C, 8 * C, K, (2, 1))  # 10 x 43
        self.block2 = GeneratorBlock(8 * C, 4 * C, K, (2, 2))  # 20 x 86
        self.attention = SelfAttention(4 * C)
        self.block3 = GeneratorBlock(4 * C, 2 * C, K, (2, 2))  # 40 x 172
        self.block4 = GeneratorBlock(2 * C, C, K, (2, 2)) if config.plan == "A" else None  # 80 x 344
        last = C if config.plan == "A" else 2 * C
        self.norm = nn.BatchNorm2d(last, eps=1e-4)
        self.out = sn_conv(last, 1 if config.plan == "A" else 4, 3)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = self.seed(z).unflatten(1, (8 * self.config.width, *SEED_GRID))
        x = self.block2(self.block1(x, label), label)
        x = self.block3(self.attention(x), label)
        if self.block4 is not None:
            x = self.block4(x, label)
        x = torch.tanh(self.out(F.relu(self.norm(x))))
        return x if self.block4 is not None else F.pixel_shuffle(x, 2)


class Judgement(NamedTuple):
    """What the discriminator says of a batch."""

    logit: Tensor
    "[B], positive is real"
    embedding: Tensor
    "[B, E], unit length: d = h(D1(x))"
    proxy: Tensor
    "[B, E], unit length: e(c) of the labels given"


class Discriminator(nn.Module):
    """Images [B, 1, 80, 344] to logits and embeddings: D1 (the blocks), D2 (the logit), h (two layers), e (the table)."""

    def __init__(self, config: SaganConfig) -> None:
        super().__init__()
        self.config = config
        C = config.width
        if config.plan == "A":
            self.first: nn.Module = DiscriminatorBlock(1, C, (2, 2), first=True)  # 40 x 172
        else:
            self.first = nn.Sequential(nn.PixelUnshuffle(2), DiscriminatorBlock(4, C, (1, 1), first=True))
        self.block2 = DiscriminatorBlock(C, 2 * C, (2, 2))  # 20 x 86
        self.attention = SelfAttention(2 * C)
        self.block3 = DiscriminatorBlock(2 * C, 4 * C, (2, 2))  # 10 x 43
        self.block4 = DiscriminatorBlock(4 * C, 8 * C, (2, 1))  # 5 x 43
        self.block5 = DiscriminatorBlock(8 * C, 8 * C, (1, 1))
        self.logit = sn_linear(8 * C, 1)
        self.projection = nn.Sequential(  # the report's 2-layer h
            sn_linear(8 * C, config.embedding), nn.ReLU(), sn_linear(config.embedding, config.embedding)
        )
        self.label_embedding = nn.Embedding(LABELS, config.embedding)  # e(c), L2-normalised at use
        self.label_feature = sn_embedding(LABELS, 8 * C) if config.conditional_logit else None

    def forward(self, image: Tensor, label: Tensor) -> Judgement:
        """Judge images [B, 1, 80, 344]; `label` [B] enters the logit only with `conditional_logit`."""
        # Real clips end in plateaus of exact silence; clamping both sides keeps D from reading the fakes' tiny misses.
        x = self.first(image.clamp(min=FLOOR))
        x = self.block3(self.attention(self.block2(x)))
        x = F.relu(self.block5(self.block4(x)))
        feature = 16 * x.mean((2, 3))  # SAGAN sums over 4 x 4 = 16 places; 215 here would saturate the hinge
        logit = self.logit(feature)[:, 0]
        if self.label_feature is not None:
            logit = logit + (self.label_feature(label) * feature).sum(1)
        embedding = F.normalize(self.projection(feature).float(), dim=1)
        return Judgement(logit, embedding, F.normalize(self.label_embedding(label), dim=1))


@torch.no_grad()
def refresh_batch_norm(generator: Generator, batches: int = 50, batch: int = 64) -> None:
    """Re-estimate the generator's batch statistics from fresh mixed-label draws ("standing statistics", BigGAN).

    An averaged generator carries the statistics and spectral norms of other weights; these are those of its own: the
    power iterations settle first, then the means over `batches` are taken. Draws from torch's global generator.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    device = next(generator.parameters()).device
    was_training = generator.training
    generator.train()
    for count, size in ((10, 2), (batches, batch)):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        for _ in range(count):
            z = torch.randn(size, generator.config.latent, device=device)
            generator(z, torch.arange(size, device=device) % LABELS)
    generator.train(was_training)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
