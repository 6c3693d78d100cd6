"""KT's self-attention GAN with contrastive conditioning (Chung et al. 2023; SAGAN: Zhang 2019; ContraGAN: Kang 2020).

Letters: B batch, Z latent width, C channels, H x W a grid of mel bands x frames, E embedding width, K labels.

The report does not say how its network reaches 80 x 344. Since 344 = 8 x 43 and 43 is prime, only three halvings of the
time axis are exact. Two plans are implemented; the discriminator mirrors the generator:

| plan | first grid | upsampled by            | last stage                                                      |
|------|------------|-------------------------|-----------------------------------------------------------------|
| A    | 5 x 43     | (2,1) (2,2) (2,2) (2,2) | convolution to one channel                                      |
| S    | 5 x 43     | (2,1) (2,2) (2,2)       | convolution to four channels, pixel shuffle; half the work of A |
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as processes
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from foleybox.errors import UserError
from foleybox.labels import LABELS as TASK_LABELS

FLOOR = -0.9  # digital silence on the network's scale: inside tanh's range, so that a fake can be exactly silent
SEED_GRID = (5, 43)
LABELS = len(TASK_LABELS)


@dataclass(frozen=True)
class SaganConfig:
    """Size and structure of generator and discriminator. Raises UserError for an unknown plan."""

    plan: str = "S"
    "A or S, see the table above"
    width: int = 16
    "base channels; 64 in SAGAN"
    latent: int = 128
    "width of z"
    embedding: int = 128
    "width of the projection h and of the label embedding e"
    mel_low: float = math.log(1e-5)
    "log-mel that is mapped to FLOOR"
    mel_high: float = 2.5
    "log-mel that is mapped to -FLOOR; higher values are clipped"
    conditional_logit: bool = True
    "add the projection term <V[c], f> to the logit, as SAGAN; without it, only the contrastive loss conditions, as ContraGAN"

    def __post_init__(self) -> None:
        if self.plan not in ("A", "S"):
            raise UserError(f"plan {self.plan!r}: expected A or S")


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
    """Orthogonal initialisation and spectral norm (Miyato et al. 2018), one power iteration per training forward."""
    nn.init.orthogonal_(module.weight)  # type: ignore[arg-type]
    if module.bias is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return spectral_norm(module, eps=1e-6)


def sn_conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
    return _normed(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


def icnr(conv: nn.Module, factor: int = 2) -> None:
    """Make the first output of a pixel shuffle by `factor` constant within each block of pixels (Aitken et al. 2017).

    The kernels of the `factor`^2 channels that become one block start equal ("ICNR"). Kernels that start different draw
    a pattern of period `factor`, which training hardly removes.
    """
    weight: Tensor = conv.parametrizations.weight.original  # type: ignore[union-attr,assignment]
    with torch.no_grad():
        weight.copy_(weight[:: factor**2].repeat_interleave(factor**2, 0))


def sn_linear(inputs: int, outputs: int) -> nn.Module:
    return _normed(nn.Linear(inputs, outputs))


def sn_embedding(rows: int, width: int) -> nn.Module:
    table = nn.Embedding(rows, width)
    nn.init.orthogonal_(table.weight)
    return spectral_norm(table, eps=1e-6)


class SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over all processes, in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        processes.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOverProcesses.forward(ctx, gradients[0])


class BatchNorm(nn.BatchNorm2d):
    """Batch norm [B, C, H, W]; with `over_processes` the statistics are those of all processes' batches.

    Several processes then train as one does on the same global batch. PyTorch's SyncBatchNorm requires GPUs.
    """

    over_processes = False

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.over_processes):
            return super().forward(input)
        x, count = input.float(), processes.get_world_size()
        mean = SumOverProcesses.apply(x.mean((0, 2, 3), keepdim=True)) / count
        variance = SumOverProcesses.apply((x - mean).square().mean((0, 2, 3), keepdim=True)) / count
        assert self.running_mean is not None  # for the type checker: the statistics are tracked
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            places = x.numel() // x.shape[1] * count
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * places / (places - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        y = (x - mean) * (variance + self.eps).rsqrt()
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(input.dtype)


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a gain and a bias for each label: gamma[c] x + beta[c], initially 1 and 0."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, eps=1e-4, affine=False)
        self.gamma = nn.Parameter(torch.ones(labels, channels))
        self.beta = nn.Parameter(torch.zeros(labels, channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.norm(x) * self.gamma[label][:, :, None, None] + self.beta[label][:, :, None, None]


class SelfAttention(nn.Module):
    """SAGAN's self-attention (equations 1-3): C/8 query and key, C/2 value channels; returns x + gamma y, gamma initially 0.

    Keys and values are max-pooled by 2 x 2, as in the authors' code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = sn_conv(channels, channels // 8, 1, bias=False)
        self.key = sn_conv(channels, channels // 8, 1, bias=False)
        self.value = sn_conv(channels, channels // 2, 1, bias=False)
        self.out = sn_conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def _positions(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)[:, None]  # [B, 1 head, H W, C]

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        query = self._positions(self.query(x))  # [B, 1, HW, C/8]
        key = self._positions(F.max_pool2d(self.key(x), 2))  # [B, 1, HW/4, C/8]
        value = self._positions(F.max_pool2d(self.value(x), 2))  # [B, 1, HW/4, C/2]
        # The fused kernels need one width for all three. Zeros change no product; the unfused path takes twice as long.
        padding = (0, value.shape[-1] - query.shape[-1])
        y = F.scaled_dot_product_attention(F.pad(query, padding), F.pad(key, padding), value, scale=1.0)  # no 1/sqrt(d)
        y = y[:, 0].transpose(1, 2).unflatten(2, (H, W))  # [B, C/2, H, W]
        return x + self.gamma * self.out(y)


class GeneratorBlock(nn.Module):
    """cBN, ReLU, nearest-neighbour upsampling, conv, cBN, ReLU, conv, plus a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, labels: int, scale: tuple[int, int]) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=scale, mode="nearest")
        self.norm1 = ConditionalBatchNorm(inputs, labels)
        self.conv1 = sn_conv(inputs, outputs, 3)
        self.norm2 = ConditionalBatchNorm(outputs, labels)
        self.conv2 = sn_conv(outputs, outputs, 3)
        self.shortcut = sn_conv(inputs, outputs, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        y = self.conv1(self.upsample(F.relu(self.norm1(x, label))))
        y = self.conv2(F.relu(self.norm2(y, label)))
        return y + self.upsample(
            self.shortcut(x)
        )  # equal to a 1x1 convolution after upsampling, at a quarter of its cost


def conv_and_pool(x: Tensor, conv: nn.Module, pool: tuple[int, int]) -> Tensor:
    """Return avg_pool2d(conv(x), pool) of a 3x3 convolution, `pool` 1 or 2 along each axis, for even sizes.

    Computed as one strided convolution whose kernel is the mean of the shifted kernels: for (2, 2) a 4x4 kernel at a
    quarter of the positions, 4/9 of the multiplications.
    """
    kernel: Tensor = conv.weight  # type: ignore[assignment]
    if pool[0] == 2:
        kernel = (F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))) / 2
    if pool[1] == 2:
        kernel = (F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))) / 2
    return F.conv2d(x, kernel, conv.bias, stride=pool, padding=1)  # type: ignore[arg-type]


class DiscriminatorBlock(nn.Module):
    """ReLU, conv, ReLU, conv, average pool, plus a shortcut; the first block reads images and omits the first ReLU."""

    def __init__(self, inputs: int, outputs: int, pool: tuple[int, int], first: bool = False) -> None:
        super().__init__()
        self.pool, self.first = pool, first
        self.conv1 = sn_conv(inputs, outputs, 3)
        self.conv2 = sn_conv(outputs, outputs, 3)
        self.shortcut = sn_conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.relu(x))
        y = conv_and_pool(F.relu(y), self.conv2, self.pool)
        return y + self.shortcut(F.avg_pool2d(x, self.pool))


# --- the two networks ---------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """(z [B, Z], label [B]) to an image [B, 1, 80, 344] in (-1, 1), on the scale of `to_network`."""

    def __init__(self, config: SaganConfig) -> None:
        super().__init__()
        self.config = config
        C, K, shuffled = config.width, LABELS, config.plan == "S"
        self.seed = sn_linear(config.latent, 8 * C * math.prod(SEED_GRID))
        self.block1 = GeneratorBlock(8 * C, 8 * C, K, (2, 1))  # 10 x 43
        self.block2 = GeneratorBlock(8 * C, 4 * C, K, (2, 2))  # 20 x 86
        self.attention = SelfAttention(4 * C)
        self.block3 = GeneratorBlock(4 * C, 2 * C, K, (2, 2))  # 40 x 172
        self.block4 = None if shuffled else GeneratorBlock(2 * C, C, K, (2, 2))  # 80 x 344
        self.norm = BatchNorm(2 * C if shuffled else C, eps=1e-4)
        self.out = sn_conv(2 * C if shuffled else C, 4 if shuffled else 1, 3)
        if shuffled:
            icnr(self.out)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = self.seed(z).unflatten(1, (8 * self.config.width, *SEED_GRID))
        x = self.block1(x, label)
        x = self.block3(self.attention(self.block2(x, label)), label)
        if self.block4 is not None:
            x = self.block4(x, label)
        x = torch.tanh(self.out(F.relu(self.norm(x))))
        return F.pixel_shuffle(x, 2) if self.config.plan == "S" else x


class DiscriminatorOutput(NamedTuple):
    """The discriminator's output for a batch."""

    logit: Tensor
    "[B], positive for real"
    embedding: Tensor
    "[B, E], unit length: d = h(D1(x))"
    proxy: Tensor
    "[B, E], unit length: e(c) of the given labels"


class Discriminator(nn.Module):
    """Images [B, 1, 80, 344] to logits and embeddings: D1 (the blocks), D2 (the logit), h (two layers), e (the table)."""

    def __init__(self, config: SaganConfig) -> None:
        super().__init__()
        self.config = config
        C = config.width
        if config.plan == "S":
            self.first: nn.Module = nn.Sequential(nn.PixelUnshuffle(2), DiscriminatorBlock(4, C, (1, 1), first=True))
        else:
            self.first = DiscriminatorBlock(1, C, (2, 2), first=True)  # 40 x 172
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
        self.label_feature = sn_embedding(LABELS, 8 * C) if config.conditional_logit else None  # V

    def forward(self, image: Tensor, label: Tensor) -> DiscriminatorOutput:
        """Return the output for images [B, 1, 80, 344]; `label` [B] enters the logit only with `conditional_logit`."""
        # Real clips end in exact silence, which a fake reaches only approximately: both are clamped, so that the
        # discriminator cannot use the difference.
        x = image.clamp(min=FLOOR)
        x = self.block3(self.attention(self.block2(self.first(x))))
        x = F.relu(self.block5(self.block4(x)))
        feature = 16 * x.mean(
            (2, 3)
        )  # f; SAGAN sums over 4 x 4 = 16 positions, a sum over 215 would saturate the hinge
        logit = self.logit(feature)[:, 0]
        if self.label_feature is not None:
            logit = logit + (self.label_feature(label) * feature).sum(1)
        embedding = F.normalize(self.projection(feature).float(), dim=1)
        return DiscriminatorOutput(logit, embedding, F.normalize(self.label_embedding(label), dim=1))


@torch.no_grad()
def refresh_batch_norm(generator: Generator, batches: int = 50, batch: int = 64) -> None:
    """Re-estimate the generator's batch statistics from draws of all labels ("standing statistics", BigGAN).

    An averaged generator has the batch statistics and spectral norms of the weights that it was copied from. Here ten
    small batches first let the power iterations converge; then the statistics are the means over `batches` batches of
    `batch` sounds. Draws from torch's global generator.
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
