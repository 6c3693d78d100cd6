"""KT's self-attention GAN with contrastive conditioning (Chung et al. 2023; SAGAN: Zhang 2019; ContraGAN: Kang 2020).

Letters: B batch, Z latent width, C channels, H x W a grid of mel bands x frames, E embedding width, K labels.

The report does not say how its network reaches 80 x 344; 344 = 8 * 43 and 43 is prime, so four plans are offered, all
of SAGAN's blocks (design: systems-kt.md 1.2). The discriminator mirrors the generator.

| plan | seed    | upsampled by              | then                                                        |
|------|---------|---------------------------|-------------------------------------------------------------|
| A    | 5 x 43  | (2,1) (2,2) (2,2) (2,2)   |                                                             |
| B    | 10 x 43 | (2,2) (2,2) (2,2)         |                                                             |
| C    | 5 x 22  | (2,2) (2,2) (2,2) (2,2)   | 80 x 352 is cropped by 4 frames at either end               |
| S    | 5 x 43  | (2,1) (2,2) (2,2)         | four channels interleaved to 80 x 344: less than half of A  |
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as processes
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

FLOOR = -0.9  # digital silence on the network's scale: inside tanh's range, so that a fake can reach it exactly
SEED_GRIDS = {"A": (5, 43), "B": (10, 43), "C": (5, 22), "S": (5, 43)}
OVERHANG = 4  # frames that plan C draws beyond either end
LABELS = 7


@dataclass(frozen=True)
class SaganConfig:
    """The size and shape of generator and discriminator."""

    plan: str = "S"
    "A: four upsampling blocks. B: three, from a larger seed. C: four, and a crop. S: three and pixel shuffle, the fastest"
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
        if self.plan not in SEED_GRIDS:
            raise ValueError(f"plan {self.plan!r}: expected one of {', '.join(SEED_GRIDS)}")


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


class SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over all processes, gradients too: each process depends on what every other put in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        processes.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOverProcesses.forward(ctx, gradients[0])


class BatchNorm(nn.BatchNorm2d):
    """Batch norm [B, C, H, W], over the batches of all processes where `over_processes`; eps 1e-4.

    With it two processes train as one does on the same global batch. PyTorch's SyncBatchNorm does this on GPUs only.
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
    """Batch norm whose gain and bias are free tables by label: gamma[c] x + beta[c], 1 and 0 at the start.

    `conditioning` 0 gives every label the tables' mean, 1 its own row (transitional conditioning: Shahbazi et al. 2022).
    """

    conditioning: Tensor

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, eps=1e-4, affine=False)
        self.gamma = nn.Parameter(torch.ones(labels, channels))
        self.beta = nn.Parameter(torch.zeros(labels, channels))
        self.register_buffer("conditioning", torch.ones(()), persistent=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        gamma, beta = (
            torch.lerp(table.mean(0, keepdim=True).expand_as(table), table, self.conditioning)[label][:, :, None, None]
            for table in (self.gamma, self.beta)
        )
        return self.norm(x) * gamma + beta


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
        C, K, plan = config.width, LABELS, config.plan
        self.seed = sn_linear(config.latent, 8 * C * math.prod(SEED_GRIDS[plan]))
        # The grids are those of plans A, B and S; plan C's are 44, 88, 176 and 352 frames wide.
        self.block1 = None if plan == "B" else GeneratorBlock(8 * C, 8 * C, K, (2, 2 if plan == "C" else 1))  # 10 x 43
        self.block2 = GeneratorBlock(8 * C, 4 * C, K, (2, 2))  # 20 x 86
        self.attention = SelfAttention(4 * C)
        self.block3 = GeneratorBlock(4 * C, 2 * C, K, (2, 2))  # 40 x 172
        self.block4 = None if plan == "S" else GeneratorBlock(2 * C, C, K, (2, 2))  # 80 x 344
        self.norm = BatchNorm(2 * C if plan == "S" else C, eps=1e-4)
        self.out = sn_conv(2 * C if plan == "S" else C, 4 if plan == "S" else 1, 3)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = self.seed(z).unflatten(1, (8 * self.config.width, *SEED_GRIDS[self.config.plan]))
        if self.block1 is not None:
            x = self.block1(x, label)
        x = self.block3(self.attention(self.block2(x, label)), label)
        if self.block4 is not None:
            x = self.block4(x, label)
        x = torch.tanh(self.out(F.relu(self.norm(x))))
        if self.config.plan == "S":
            return F.pixel_shuffle(x, 2)
        return x[..., OVERHANG:-OVERHANG] if self.config.plan == "C" else x


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

    conditioning: Tensor

    def __init__(self, config: SaganConfig) -> None:
        super().__init__()
        self.config = config
        C, plan = config.width, config.plan
        if plan == "S":
            self.first: nn.Module = nn.Sequential(nn.PixelUnshuffle(2), DiscriminatorBlock(4, C, (1, 1), first=True))
        else:
            self.first = DiscriminatorBlock(1, C, (2, 2), first=True)  # 40 x 172
        self.block2 = DiscriminatorBlock(C, 2 * C, (2, 2))  # 20 x 86
        self.attention = SelfAttention(2 * C)
        self.block3 = DiscriminatorBlock(2 * C, 4 * C, (2, 2))  # 10 x 43
        self.block4 = None if plan == "B" else DiscriminatorBlock(4 * C, 8 * C, (2, 2 if plan == "C" else 1))  # 5 x 43
        self.block5 = DiscriminatorBlock(4 * C if plan == "B" else 8 * C, 8 * C, (1, 1))
        self.logit = sn_linear(8 * C, 1)
        self.projection = nn.Sequential(  # the report's 2-layer h
            sn_linear(8 * C, config.embedding), nn.ReLU(), sn_linear(config.embedding, config.embedding)
        )
        self.label_embedding = nn.Embedding(LABELS, config.embedding)  # e(c), L2-normalised at use
        self.label_feature = sn_embedding(LABELS, 8 * C) if config.conditional_logit else None
        self.register_buffer("conditioning", torch.ones(()), persistent=False)

    def forward(self, image: Tensor, label: Tensor) -> Judgement:
        """Judge images [B, 1, 80, 344]; `label` [B] enters the logit only with `conditional_logit`."""
        # Real clips end in plateaus of exact silence; clamping both sides keeps D from reading the fakes' tiny misses.
        x = image.clamp(min=FLOOR)
        if self.config.plan == "C":
            x = F.pad(x, (OVERHANG, OVERHANG), value=FLOOR)
        x = self.block3(self.attention(self.block2(self.first(x))))
        if self.block4 is not None:
            x = self.block4(x)
        x = F.relu(self.block5(x))
        feature = 16 * x.mean((2, 3))  # SAGAN sums over 4 x 4 = 16 places; 215 here would saturate the hinge
        logit = self.logit(feature)[:, 0]
        if self.label_feature is not None:
            logit = logit + self.conditioning * (self.label_feature(label) * feature).sum(1)
        embedding = F.normalize(self.projection(feature).float(), dim=1)
        return Judgement(logit, embedding, F.normalize(self.label_embedding(label), dim=1))


def set_conditioning(network: Generator | Discriminator, amount: float) -> None:
    """Say how much of the label the network uses: 0 nothing, 1 all (the state a network is made in and kept in)."""
    for part in network.modules():
        if isinstance(part, ConditionalBatchNorm | Discriminator):
            part.conditioning.fill_(amount)


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
