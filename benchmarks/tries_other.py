"""The tries of tries.py that no setting of `train patches` makes: other models, and another end of the training.

Each learns from the batches that the patches would have, and is as small and as young as the other tries.

Letters: B batch, N latents of a clip, D latent width, C width of the transformer, G groups of bands, R rows of the head.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.lab.core.loop import STEADY, balanced_indices, seed_step, update_average
from foleybox.lab.kt.losses import conditional_contrastive, hinge_discriminator, hinge_generator
from foleybox.lab.kt.sagan import Discriminator, SaganConfig, to_network
from foleybox.lab.patches.autoencoder import Autoencoder, Block, fold, unfold
from foleybox.lab.patches.train_patches import TrainPatches, changed, head_loss, learning_rate
from foleybox.lab.patches.transformer import FlowHead, Patches, PatchesConfig, Stream, flow, leads, times
from foleybox.labels import LABELS

Model = TypeVar("Model", bound=nn.Module)


def learned(
    config: TrainPatches,
    model: Model,
    loss_of: Callable[[Model, Tensor, Tensor], Tensor],
    mels: Tensor,
    labels: Tensor,
    steps: int,
    after: int = 0,
) -> Model:
    """Train `model` by loss_of(model, mels [B, M, T], labels [B]) as the patches are trained; return its average.

    `after`: how many steps it has had.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, (0.9, 0.98), weight_decay=0.02)
    for step in range(after, after + steps):
        seed_step(config.seed, step)
        indices = balanced_indices(step, config.batch, labels, config.seed)
        label = labels[indices]
        mel, _ = changed(config, mels[indices], STEADY[label], 4)
        loss = loss_of(model.train(), mel, label)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        update_average(average, model, config.decay, step)
    return average


# --- the whole clip at once ---------------------------------------------------------------------------------------


class WholeClip(nn.Module):
    """The speed [B, N, D] of a flow over all latents of a clip, at points [B, N, D], times [B] and labels [B]."""

    def __init__(self, latent: int = 64, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Conv1d(latent, width, 3, padding=1)
        self.label, self.time = nn.Embedding(len(LABELS), width), nn.Linear(64, width)
        self.place = nn.Parameter(torch.zeros(width, 88))
        self.down = nn.ModuleList(nn.Sequential(*(Block(width, 4) for _ in range(3))) for _ in range(3))
        self.up = nn.ModuleList(nn.Sequential(*(Block(width, 4) for _ in range(3))) for _ in range(2))
        self.sink = nn.ModuleList(nn.Conv1d(width, width, 2, stride=2) for _ in range(2))
        self.rise = nn.ModuleList(nn.ConvTranspose1d(width, width, 2, stride=2) for _ in range(2))
        self.say = nn.ModuleList(nn.Linear(width, width) for _ in range(5))
        self.speed = nn.Conv1d(width, latent, 3, padding=1)

    def forward(self, point: Tensor, time: Tensor, label: Tensor) -> Tensor:
        waves = torch.exp(torch.arange(32) * (np.log(1000.0) / 31))
        angles = time[:, None] * waves
        told = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], -1)) + self.label(label))
        said = [say(told)[:, :, None] for say in self.say]
        N = point.shape[1]
        x = self.embed(F.pad(point.transpose(1, 2), (0, 88 - N))) + self.place
        fine = self.down[0](x + said[0])
        middle = self.down[1](self.sink[0](fine) + said[1])
        coarse = self.down[2](self.sink[1](middle) + said[2])
        middle = self.up[0](middle + self.rise[0](coarse) + said[3])
        fine = self.up[1](fine + self.rise[1](middle) + said[4])
        return self.speed(fine).transpose(1, 2)[:, :N]

    @torch.no_grad()
    def draw(self, label: Tensor, noise: Tensor, steps: int = 24) -> Tensor:
        point, before = noise, torch.zeros_like(noise)
        for (lead, lead_of_last), now in zip(leads(steps), times(steps)):
            speed = self(point, torch.full((len(label),), now), label)
            point, before = point + lead * speed + lead_of_last * before, speed
        return point


def train_whole(
    config: TrainPatches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor, steps: int
) -> Callable[[Tensor], Tensor]:
    """Return what draws mels [B, M, T] for labels [B]."""

    def loss_of(model: WholeClip, mel: Tensor, label: Tensor) -> Tensor:
        latents = autoencoder.encode(mel)
        now, noise = torch.randn(len(label)).sigmoid(), torch.randn_like(latents)
        point = torch.lerp(noise, latents, now[:, None, None])
        return (model(point, now, label) - (latents - noise)).square().mean()

    torch.manual_seed(config.seed)
    model = learned(config, WholeClip(), loss_of, mels, labels, steps)
    return lambda label: autoencoder.decode(model.draw(label, torch.randn(len(label), 86, 64)))


# --- a head over frequency bands ----------------------------------------------------------------------------------


class BandedComponents:
    """Mels [B, 100, T] to latents [B, N, 64] and back: 16 principal components of each of four groups of 25 bands."""

    groups, each, patch = 4, 16, 4

    def __init__(self, mels: Tensor) -> None:
        self.axes, self.scales, self.means = [], [], []
        for part in mels.chunk(self.groups, 1):
            rows = fold(part, self.patch).transpose(1, 2).flatten(0, 1)
            rows = rows[rows.amax(1) > rows.min() + 0.1].double()
            variance, axes = torch.linalg.eigh(torch.cov(rows.T))
            deviation = variance[-self.each :].flip(0).clamp(min=1e-6).sqrt()
            self.axes.append(axes[:, -self.each :].flip(1).float())
            self.scales.append((deviation.sqrt() * deviation.mean().sqrt()).float())
            self.means.append(rows.mean(0).float())

    def encode(self, mel: Tensor) -> Tensor:
        rows = (fold(part, self.patch).transpose(1, 2) for part in mel.chunk(self.groups, 1))
        parts = zip(rows, self.means, self.axes, self.scales, strict=True)
        return torch.cat([(row - mean) @ axes / scale for row, mean, axes, scale in parts], -1)

    def decode(self, latents: Tensor) -> Tensor:
        parts = zip(latents.chunk(self.groups, -1), self.means, self.axes, self.scales, strict=True)
        rows = [((latent * scale) @ axes.T + mean).transpose(1, 2) for latent, mean, axes, scale in parts]
        return torch.cat([unfold(row, self.patch) for row in rows], 1)


class BandedPatches(Patches):
    """Patches whose head draws one group of bands after another, told what it drew of the lower ones."""

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config)
        self.head = FlowHead(replace(config, latent=BandedComponents.each))
        self.lower = nn.Linear(config.latent, config.width, bias=False)
        self.group = nn.Embedding(BandedComponents.groups, config.width)

    def told(self, context: Tensor, latents: Tensor, group: int) -> Tensor:
        """Return the contexts [R, C] of a group: those of the place, and what lies below the group in latents [R, D]."""
        known = latents.clone()
        known[:, group * BandedComponents.each :] = 0
        return context + self.lower(known) + self.group.weight[group]

    @torch.no_grad()
    def draw(self, label: Tensor, noise: Tensor) -> Tensor:
        stream, drawn = Stream(self, label), []
        for place in noise.unbind(1):
            context, latent = stream.context(), torch.zeros_like(place)
            for group, part in enumerate(place.chunk(BandedComponents.groups, 1)):
                bands = slice(group * BandedComponents.each, (group + 1) * BandedComponents.each)
                latent[:, bands] = flow(self.head, part, self.told(context, latent, group), steps=10)
            stream.add(latent)
            drawn.append(latent)
        return torch.stack(drawn, 1)


def train_banded(
    config: TrainPatches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor, steps: int
) -> Callable[[Tensor], Tensor]:
    """Return what draws mels [B, M, T] for labels [B]."""
    components = BandedComponents(mels)

    def loss_of(model: BandedPatches, mel: Tensor, label: Tensor) -> Tensor:
        latents = components.encode(mel)
        sigma = config.noise * torch.rand(len(latents), 1, 1)
        context = model(latents + sigma * torch.randn_like(latents), label, torch.zeros_like(label)).flatten(0, 1)
        rows = latents.flatten(0, 1)
        told = torch.cat([model.told(context, rows, group) for group in range(components.groups)])
        return head_loss(model.head, torch.cat(rows.chunk(components.groups, 1)), told, config.draws)

    torch.manual_seed(config.seed)
    model = learned(config, BandedPatches(config.model), loss_of, mels, labels, steps)

    def drawn(label: Tensor) -> Tensor:
        mel = components.decode(model.draw(label, torch.randn(len(label), 86, 64)))
        return autoencoder.decode(autoencoder.encode(mel))  # the grain is the autoencoder's, as everywhere

    return drawn


# --- an adversarial finish ----------------------------------------------------------------------------------------

JUDGE = SaganConfig(width=8, conditional_logit=True)
WEIGHT = 0.05
"of the discriminator's words beside the flow's error"


def finish(
    config: TrainPatches, model: Patches, autoencoder: Autoencoder, mels: Tensor, labels: Tensor, steps: int, after: int
) -> Patches:
    """Let KT's discriminator (hinge and 2C without label, 0.1 and 1.0) judge what the head makes of a noisy clip.

    The head's guess of the clean latents at a time of the flow, in one step and all places at once, each knowing the real
    ones before it; the autoencoder's decoder makes a mel of them, and of the real ones.
    """
    torch.manual_seed(config.seed)
    judge = Discriminator(JUDGE)
    optimizer = torch.optim.Adam(judge.parameters(), 4e-4, (0.0, 0.9))
    autoencoder.requires_grad_(False)

    def loss_of(model: Patches, mel: Tensor, label: Tensor) -> Tensor:
        latents = autoencoder.encode(mel)
        sigma = config.noise * torch.rand(len(latents), 1, 1)
        context = model(latents + sigma * torch.randn_like(latents), label, torch.zeros_like(label)).flatten(0, 1)
        rows, B = latents.flatten(0, 1), len(latents)
        error = head_loss(model.head, rows, context, config.draws)
        time = torch.rand(B).repeat_interleave(latents.shape[1])
        point = torch.lerp(torch.randn_like(rows), rows, time[:, None])
        speed = model.head(point, model.head.of_context(context) + model.head.say_time(time))
        guess = (point + (1 - time[:, None]) * speed).unflatten(0, (B, -1))
        real, fake = (to_network(autoencoder.decode(each), JUDGE) for each in (latents, guess))

        judge.requires_grad_(True)
        of_real, of_fake = judge(real, label), judge(fake.detach(), label)
        judged = hinge_discriminator(of_real.logit, of_fake.logit)
        judged = judged + conditional_contrastive(of_real.embedding, of_real.proxy, tau_data=0.1, tau_class=1.0)
        optimizer.zero_grad()
        judged.backward()
        optimizer.step()
        judge.requires_grad_(False)
        word = judge(fake, label)
        against = hinge_generator(word.logit)
        against = against + conditional_contrastive(word.embedding, word.proxy, tau_data=0.1, tau_class=1.0)
        return error + WEIGHT * against

    return learned(config, model, loss_of, mels, labels, steps, after)
