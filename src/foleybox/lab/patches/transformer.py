"""Causal patches, our own system: a transformer over latents, with a flow-matching head that draws the next latent.

Letters: B batch, N latents (patches) of a sequence, D latent width, C width of the transformer, H attention heads,
E width of the flow head, R rows of the flow head (B or B N).

A clip is a sequence of N = 86 latents of 46 ms each (autoencoder.py). The transformer turns the latents before position
n into a context. The head, a few residual layers conditioned on the context and the time t, predicts the velocity of a
flow that moves noise at t = 0 to the latent at t = 1 (flow matching on straight paths: Lipman et al. 2023; a head that
draws one continuous token: Li et al. 2024, arXiv 2406.11838). The model therefore decides the timing event by event, and it can
draw any duration, or the continuation of a given clip, at no extra cost.

The label enters in `Patches.forward` (`Stream.context` when sampling): its embedding is added to the input of every
position. The input of position 0 is a learned start token: START for a sequence that begins where its clip does, MID_CLIP
for one that begins in the middle of a clip. Positions are relative (rotary embedding), so a sliding window needs no others.
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.lab.core.compat import accept_old_names
from foleybox.labels import LABELS

START, MID_CLIP = 0, 1
"ids of the start tokens"

# Defaults of sampling, in the order of the labels; chosen by the distance of generated sounds to training clips. Labels
# that are added later have 1.
_ADDED = (1.0,) * (len(LABELS) - 7)
GUIDANCE = (1.5, 1.25, 1.75, 1.0, 1.3, 1.0, 1.75, *_ADDED)
"classifier-free guidance: 1 is none; more makes events clearer and steady sounds too smooth"
TEMPERATURE = (1.0, 1.1, 1.0, 1.0, 1.0, 1.1, 1.15, *_ADDED)
"scale of the noise; some labels are not varied enough at 1"
GUIDED_FROM = 0.3
"time of the flow from which on guidance acts; acting earlier, it reduces variety"


@dataclass(frozen=True)
class PatchesConfig:
    """Sizes of the model. Training sets `latent` and `labels` itself."""

    latent: int = 64
    "D: numbers per latent, those of the autoencoder"
    labels: int = len(LABELS)
    "one more embedding stands for no label; guidance needs it"
    width: int = 256
    "C"
    layers: int = 6
    heads: int = 4
    "H: attention heads of width / heads numbers each"
    dropout: float = 0.1
    "in the transformer; the head has none"
    head_width: int = 384
    "E"
    head_layers: int = 3

    REMOVED: ClassVar = {"told": False}
    "settings of earlier versions, with the value that this version implies"


SIZES = {
    "base": PatchesConfig(),
    "tiny": PatchesConfig(width=16, heads=2, layers=1, head_width=16, head_layers=1),
}
"base: the released instruments'; tiny: to try the commands, its sounds are noise"


# --- the transformer ----------------------------------------------------------------------------------------------


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Apply the rotary position embedding (Su et al. 2021) for `positions` [N] to x [B, H, N, C / H]."""
    half = x.shape[-1] // 2
    frequencies = torch.exp(torch.arange(half, device=x.device) * (-math.log(1000.0) / half))
    angles = positions[:, None].float() * frequencies  # [N, C / 2H]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class Layer(nn.Module):
    """Causal attention and a SwiGLU (Shazeer 2020), each after a layer norm: [B, N, C] to the same."""

    OLD_NAMES: ClassVar = {"fall.": "down."}

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        C = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_attention, self.norm_gate = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.query_key_value = nn.Linear(C, 3 * C, bias=False)
        self.out = nn.Linear(C, C, bias=False)
        inner = 64 * round(8 * C / 3 / 64)
        self.gate = nn.Linear(C, 2 * inner, bias=False)
        self.down = nn.Linear(inner, C, bias=False)
        accept_old_names(self)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, H, N, C / H] of [B, N, C], not yet rotated."""
        B, N, C = x.shape
        parts = self.query_key_value(self.norm_attention(x)).reshape(B, N, 3, self.heads, C // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output for its input [B, N, C] and the output of attention [B, H, N, C / H]."""
        attended = attended.transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        up, gate = self.gate(self.norm_gate(x)).chunk(2, -1)
        return x + F.dropout(self.down(up * F.silu(gate)), self.dropout, self.training)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        query, key, value = self.project(x)
        query, key = rotate(query, positions), rotate(key, positions)
        return self.finish(x, F.scaled_dot_product_attention(query, key, value, is_causal=True))


# --- the flow head ------------------------------------------------------------------------------------------------


class FlowHead(nn.Module):
    """Predict the velocity [R, D] of the flow at points [R, D].

    Residual layers whose input is scaled and shifted and whose output is gated by the conditioning (adaLN: Peebles & Xie
    2023). One conditioning serves all layers, and each adds learned numbers of its own (Chen et al. 2023, arXiv
    2310.00426). It is the sum of an embedding of the context and one of the time: the former is computed once per latent,
    the latter once per time, and a step of the solver costs the residual layers only.
    """

    OLD_NAMES: ClassVar = {
        "rises.": "fc1.",
        "falls.": "fc2.",
        "own": "modulation",
        "speed.": "velocity.",
        "of_context.": "context_mlp.",
        "of_time.": "time_mlp.",
    }

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        E = config.head_width
        self.embed = nn.Linear(config.latent, E)
        self.fc1 = nn.ModuleList(nn.Linear(E, E) for _ in range(config.head_layers))
        self.fc2 = nn.ModuleList(nn.Linear(E, E) for _ in range(config.head_layers))
        self.modulation = nn.Parameter(torch.zeros(config.head_layers + 1, 3 * E))
        self.norm = nn.LayerNorm(E, elementwise_affine=False, eps=1e-6)
        self.velocity = nn.Linear(E, config.latent)
        self.context_mlp = nn.Sequential(nn.Linear(config.width, E), nn.SiLU(), nn.Linear(E, 3 * E))
        self.time_mlp = nn.Sequential(nn.Linear(64, E), nn.SiLU(), nn.Linear(E, 3 * E))
        nn.init.zeros_(self.velocity.weight)
        nn.init.zeros_(self.velocity.bias)
        accept_old_names(self)

    def time_embedding(self, time: Tensor) -> Tensor:
        """Return the embedding [K, 3 E] of times [K] from 0 to 1."""
        frequencies = torch.exp(torch.arange(32, device=time.device) * (math.log(1000.0) / 31))
        angles = time[:, None].float() * frequencies
        return self.time_mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.embed.weight.dtype))

    def forward(self, point: Tensor, conditioning: Tensor) -> Tensor:
        """`conditioning` [R, 3 E]: `context_mlp` of the context plus `time_embedding` of the time."""
        x = self.embed(point)
        shift, scale, gate = conditioning.chunk(3, -1)
        shifts, scales, gates = self.modulation.to(conditioning.dtype).chunk(3, -1)  # [layers + 1, E] each
        for index, (fc1, fc2) in enumerate(zip(self.fc1, self.fc2, strict=True)):
            y = torch.addcmul(shift + shifts[index], self.norm(x), scale + (scales[index] + 1))
            x = x + (gate + gates[index]) * fc2(F.silu(fc1(y)))
        return self.velocity(torch.addcmul(shift + shifts[-1], self.norm(x), scale + (scales[-1] + 1)))


# --- both ---------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """The transformer and its head: latents and a label to contexts, contexts and noise to the next latents."""

    OLD_NAMES: ClassVar = {"first.": "start_token."}

    def __init__(self, config: PatchesConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PatchesConfig()
        C = config.width
        self.label = nn.Embedding(config.labels + 1, C)
        self.start_token = nn.Embedding(2, C)
        self.embed = nn.Linear(config.latent, C)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(C, bias=False)
        self.head = FlowHead(config)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for linear in (layer.out, layer.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * config.layers))
        nn.init.normal_(self.label.weight, std=0.02)
        nn.init.normal_(self.start_token.weight, std=0.02)
        accept_old_names(self)

    @property
    def no_label(self) -> int:
        """The id of the embedding that stands for no label."""
        return self.config.labels

    def forward(self, latents: Tensor, label: Tensor, start: Tensor) -> Tensor:
        """Return the context [B, N, C] of each position: that of position n depends on latents 0 to n - 1 of [B, N, D].

        `label` int64 [B]; `start` int64 [B]: START or MID_CLIP.
        """
        before = torch.cat([self.start_token(start)[:, None], self.embed(latents[:, :-1])], 1)
        x = before + self.label(label)[:, None]
        positions = torch.arange(x.shape[1], device=x.device)
        for layer in self.layers:
            x = layer(x, positions)
        return self.norm(x)


# --- sampling -----------------------------------------------------------------------------------------------------


class Stream:
    """The state of B sequences that are drawn latent by latent: keys and values of the last `window` positions."""

    def __init__(self, model: Patches, label: Tensor, start: int = START, window: int = 86) -> None:
        """Begin B sequences with `label` int64 [B]."""
        self.model, self.label, self.window = model, label, window
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.position = 0
        self.input = model.start_token(torch.full_like(label, start))  # [B, C]: of the next position

    @torch.no_grad()
    def context(self) -> Tensor:
        """Return the context [B, C] of the next position."""
        model, position = self.model, torch.tensor([self.position], device=self.label.device)
        x = (self.input + model.label(self.label))[:, None]  # [B, 1, C]
        cache = []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            query, key, value = layer.project(x)
            query, key = rotate(query, position), rotate(key, position)
            if self.cache:
                before_key, before_value = self.cache[index]
                key, value = torch.cat([before_key, key], 2), torch.cat([before_value, value], 2)
            key, value = key[:, :, -self.window :], value[:, :, -self.window :]
            cache.append((key, value))
            x = layer.finish(x, F.scaled_dot_product_attention(query, key, value))
        self.cache = cache
        return model.norm(x)[:, 0]

    @torch.no_grad()
    def add(self, latent: Tensor) -> None:
        """Append the latent [B, D] of the position whose context was computed last."""
        self.input = self.model.embed(latent)
        self.position += 1


def flow_times(steps: int) -> list[float]:
    """Return the steps + 1 times of the solver, from 0 to 1: sin(pi/2 k/steps), so that the last steps are short."""
    return [math.sin(math.pi / 2 * step / steps) for step in range(steps + 1)]


def step_coefficients(steps: int) -> list[tuple[float, float]]:
    """Return for each step the factors of this velocity and of the last one (Adams-Bashforth of second order).

    The first step has no last velocity and is Euler's.
    """
    lengths = [then - now for now, then in itertools.pairwise(flow_times(steps))]
    corrections = [0.0, *(length / before / 2 for before, length in itertools.pairwise(lengths))]
    return [(length * (1 + c), -length * c) for length, c in zip(lengths, corrections)]


def flow(
    head: FlowHead,
    noise: Tensor,
    context: Tensor,
    unlabelled: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    steps: int = 12,
    start_time: Tensor | None = None,
    guided_from: float = 0.0,
) -> Tensor:
    """Integrate the flow from noise [R, D] to latents [R, D] in `steps` steps of second-order Adams-Bashforth.

    A step costs one evaluation of the head, as Euler's does. Twelve Euler steps draw a Gaussian with 0.87 of its standard
    deviation, so rain becomes too smooth; these draw 0.98 (tests/test_patches.py).

    `unlabelled`, the contexts [R, C] of the same sequences without their label, turns on classifier-free guidance (Ho &
    Salimans 2022): the velocity is that without label plus `guidance` (or [R, 1]) times the difference the label makes,
    in the steps that begin at the time `guided_from` or later (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    With `start_time` [R], from 0 to below 1, `noise` are points of the flow at those times, and only the rest of the way
    is integrated.
    """
    point, last = noise, torch.zeros_like(noise)
    conditioning = head.context_mlp(context)
    conditioning_unlabelled = head.context_mlp(unlabelled) if unlabelled is not None else None
    begin = torch.zeros(1, device=noise.device) if start_time is None else start_time
    remaining = (1 - begin)[:, None]
    clock = begin + (1 - begin) * torch.tensor(flow_times(steps)[:-1], device=noise.device)[:, None]  # [steps, 1 or R]
    embeddings = head.time_embedding(clock.flatten()).unflatten(0, clock.shape)
    for (factor, factor_of_last), now, embedding in zip(step_coefficients(steps), clock[..., None], embeddings):
        velocity = head(point, conditioning + embedding)
        if conditioning_unlabelled is not None:
            without = head(point, conditioning_unlabelled + embedding)
            velocity = without + torch.where(now >= guided_from, guidance, 1.0) * (velocity - without)
        point = point + remaining * (factor * velocity + factor_of_last * last)
        last = velocity
    return point


@torch.no_grad()
def draw(
    model: Patches,
    label: Tensor,
    noise: Tensor,
    *,
    steps: int = 12,
    guidance: float = 1.0,
    guided_from: float = 0.0,
    given: Tensor | None = None,
    start: int = START,
    window: int = 86,
) -> Tensor:
    """Draw latents [B, N, D] for `label` int64 [B] from standard normal `noise` [B, N, D], for any N.

    `given` [B, G, D] are latents to continue; they are not returned. `guidance` other than 1 doubles the cost.
    """
    streams = [Stream(model, label, start, window)]
    if guidance != 1.0:
        streams.append(Stream(model, torch.full_like(label, model.no_label), start, window))
    for latent in given.unbind(1) if given is not None else ():
        for stream in streams:
            stream.context()
            stream.add(latent)
    drawn = []
    for noise_here in noise.unbind(1):
        context, *without = [stream.context() for stream in streams]
        latent = flow(
            model.head, noise_here, context, without[0] if without else None, guidance, steps, guided_from=guided_from
        )
        for stream in streams:
            stream.add(latent)
        drawn.append(latent)
    return torch.stack(drawn, 1)


@torch.no_grad()
def redraw(
    model: Patches,
    latents: Tensor,
    label: Tensor,
    start_time: Tensor,
    *,
    guidance: Tensor,
    guided_from: float,
    temperature: Tensor,
    noise: float = 0.15,
    steps: int = 6,
) -> Tensor:
    """Return latents [B, N, D] that resemble the real ones given and have the errors of generated ones.

    Each latent is mixed with noise as at `start_time` [B] of the flow, and the flow is integrated from there, in the
    context of the real latents before it plus noise (standard deviation uniform from 0 to `noise` for each sequence). A
    vocoder can be trained on the result, as the recording that belongs to it is known. `guidance` [B], `guided_from` and
    `temperature` [B] are those of sampling. Random numbers come from torch's generator.
    """
    B, N, _ = latents.shape
    noisy = latents + noise * torch.rand(B, 1, 1, device=latents.device) * torch.randn_like(latents)
    start = torch.full_like(label, START)
    context, without = (
        model(noisy, each, start).flatten(0, 1) for each in (label, torch.full_like(label, model.no_label))
    )
    start_time, guidance, temperature = (each.repeat_interleave(N) for each in (start_time, guidance, temperature))
    rows = latents.flatten(0, 1)
    point = torch.lerp(torch.randn_like(rows) * temperature[:, None], rows, start_time[:, None])
    drawn = flow(model.head, point, context, without, guidance[:, None], steps, start_time, guided_from)
    return drawn.unflatten(0, (B, N))
