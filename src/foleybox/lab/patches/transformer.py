"""Causal patches, our own system: a transformer reads the latents so far, a small flow draws the next one.

Letters: B batch, N latents (patches) of a sequence, D latent width, C width of the transformer, H heads, E width of the
head, R rows of the head.

A clip is a row of N = 86 latents of 46 ms (models/autoencoder.py). The transformer turns the latents before place n into
a context; the head, a few residual layers told the context and the time t, moves noise at t = 0 to the latent at t = 1
along the flow whose speed it has learned (flow matching: Lipman et al. 2023, equation 21 with sigma = 0; a head for each
token: Li et al. 2024, arXiv 2406.11838). So timing is decided event by event, as sounds happen, and any duration, the
continuation of a given clip and endless rain cost nothing more.

The first of a sequence has no latent before it but one of two learned ones: START, a clip begins here, and AMID, it has
been going on. Places are relative (rotary), so a window that slides on needs no others.
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foleybox.lab.core.compat import accept_old_names

START, AMID = 0, 1

# Of each label, in their order; chosen by the distance of drawn sounds to training clips.
GUIDANCE = (1.5, 1.25, 1.75, 1.0, 1.3, 1.0, 1.75)
"above 1 more of what the label says; steady sounds lose their grain by it"
TEMPERATURE = (1.0, 1.1, 1.0, 1.0, 1.0, 1.1, 1.15)
"what the noise of latents is scaled by; some labels come out too much alike without"
GUIDED_FROM = 0.3
"the time of the flow from which latents are guided: earlier, guidance only makes sounds more alike"


@dataclass(frozen=True)
class PatchesConfig:
    """The size of the model."""

    latent: int = 64
    "D: numbers of a latent, as the autoencoder has them"
    labels: int = 7
    "a further label means: none; it is drawn for guidance"
    width: int = 256
    "C"
    layers: int = 6
    heads: int = 4
    "H: width / heads numbers each"
    dropout: float = 0.1
    "in the transformer; the head has none"
    head_width: int = 384
    "E"
    head_layers: int = 3
    told: bool = False
    "it is told how each training clip was changed, so that it draws sounds as they were recorded"


CHANGES = 7
"numbers that say how a clip was changed, 0 being not at all: its speed, its bands, five points of its colour"


# --- the transformer ----------------------------------------------------------------------------------------------


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """Turn pairs of channels of [B, H, N, C / H] by their `places` [N] (Su et al. 2021): attention sees distances."""
    half = x.shape[-1] // 2
    speeds = torch.exp(torch.arange(half, device=x.device) * (-math.log(1000.0) / half))
    angles = places[:, None].float() * speeds  # [N, C / 2H]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class Layer(nn.Module):
    """Attention over the past and a gated linear unit, each after a norm (Shazeer 2020): [B, N, C] to the same."""

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
        """Return the layer's result of its input [B, N, C] and what attention gave, [B, H, N, C / H]."""
        attended = attended.transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        up, gate = self.gate(self.norm_gate(x)).chunk(2, -1)
        return x + F.dropout(self.down(up * F.silu(gate)), self.dropout, self.training)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        query, key, value = self.project(x)
        query, key = rotate(query, places), rotate(key, places)
        return self.finish(x, F.scaled_dot_product_attention(query, key, value, is_causal=True))


# --- the head -----------------------------------------------------------------------------------------------------


class FlowHead(nn.Module):
    """The speed [R, D] of the flow at points [R, D].

    Residual layers that are scaled, shifted and gated by what the context and the time say (Peebles & Xie 2023). Both say
    it once for all layers, each of which adds numbers of its own (Chen et al. 2023, arXiv 2310.00426), and the two are
    summed and not joined in a network: the former is worked out once a latent, the latter once a time, and a step of the
    flow costs the layers alone. That makes training twice as fast and twelve steps affordable on a laptop.
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
        """Return what times [K] say, [K, 3 E]."""
        waves = torch.exp(torch.arange(32, device=time.device) * (math.log(1000.0) / 31))
        angles = time[:, None].float() * waves
        return self.time_mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.embed.weight.dtype))

    def forward(self, point: Tensor, said: Tensor) -> Tensor:
        """`said` [R, 3 E]: `context_mlp` of the context plus `time_embedding` of the time, row by row."""
        x = self.embed(point)
        shift, scale, gate = said.chunk(3, -1)
        own = self.modulation.to(said.dtype).chunk(3, -1)  # [layers + 1, E] each
        for index, (rise, fall) in enumerate(zip(self.fc1, self.fc2, strict=True)):
            y = torch.addcmul(shift + own[0][index], self.norm(x), scale + (own[1][index] + 1))
            x = x + (gate + own[2][index]) * fall(F.silu(rise(y)))
        return self.velocity(torch.addcmul(shift + own[0][-1], self.norm(x), scale + (own[1][-1] + 1)))


# --- both ---------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Latents and a label to contexts; contexts and noise to the next latents."""

    OLD_NAMES: ClassVar = {"first.": "start_token."}

    def __init__(self, config: PatchesConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PatchesConfig()
        C = config.width
        self.label = nn.Embedding(config.labels + 1, C)
        self.start_token = nn.Embedding(2, C)
        self.embed = nn.Linear(config.latent, C)
        self.told = nn.Linear(CHANGES, C, bias=False) if config.told else None
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
        if self.told is not None:
            nn.init.zeros_(self.told.weight)

    @property
    def no_label(self) -> int:
        """The label that stands for none."""
        return self.config.labels

    def forward(self, latents: Tensor, label: Tensor, first: Tensor, changes: Tensor | None = None) -> Tensor:
        """Return the context [B, N, C] of each place: place n knows latents 0 to n - 1 of [B, N, D], and no others.

        `label` int64 [B], `first` int64 [B]: START or AMID. `changes` [B, 7] say how clips were changed, to a model that is
        told; without them, and in every draw, they were not (Karras et al. 2022, arXiv 2206.00364, appendix F.2).
        """
        before = torch.cat([self.start_token(first)[:, None], self.embed(latents[:, :-1])], 1)
        x = before + self.label(label)[:, None]
        if self.told is not None and changes is not None:
            x = x + self.told(changes)[:, None]
        places = torch.arange(x.shape[1], device=x.device)
        for layer in self.layers:
            x = layer(x, places)
        return self.norm(x)


# --- drawing ------------------------------------------------------------------------------------------------------


class Stream:
    """A sequence being drawn, latent after latent; keys and values of the last `window` places are kept."""

    def __init__(self, model: Patches, label: Tensor, first: int = START, window: int = 86) -> None:
        """Begin B sequences, `label` int64 [B]."""
        self.model, self.label, self.window = model, label, window
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.place = 0
        self.next = model.start_token(torch.full_like(label, first))  # [B, C]: what the next place is told

    @torch.no_grad()
    def context(self) -> Tensor:
        """Return the context [B, C] of the next place."""
        model, place = self.model, torch.tensor([self.place], device=self.label.device)
        x = (self.next + model.label(self.label))[:, None]  # [B, 1, C]
        kept = []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            query, key, value = layer.project(x)
            query, key = rotate(query, place), rotate(key, place)
            if self.kept:
                before_key, before_value = self.kept[index]
                key, value = torch.cat([before_key, key], 2), torch.cat([before_value, value], 2)
            key, value = key[:, :, -self.window :], value[:, :, -self.window :]
            kept.append((key, value))
            x = layer.finish(x, F.scaled_dot_product_attention(query, key, value))
        self.kept = kept
        return model.norm(x)[:, 0]

    @torch.no_grad()
    def add(self, latent: Tensor) -> None:
        """Tell the stream the latent [B, D] of the place whose context was asked last."""
        self.next = self.model.embed(latent)
        self.place += 1


def times(steps: int) -> list[float]:
    """Return the steps + 1 times of the flow, 0 to 1: evenly spaced, then bent so that the last steps are short."""
    return [math.sin(math.pi / 2 * step / steps) for step in range(steps + 1)]


def leads(steps: int) -> list[tuple[float, float]]:
    """Return for each step how far this speed and the last one lead the point on (Adams and Bashforth's second order).

    The first step has no last speed and is Euler's.
    """
    lengths = [then - now for now, then in itertools.pairwise(times(steps))]
    bends = [0.0, *(length / before / 2 for before, length in itertools.pairwise(lengths))]
    return [(length * (1 + bend), -length * bend) for length, bend in zip(lengths, bends)]


def flow(
    head: FlowHead,
    noise: Tensor,
    context: Tensor,
    unlabelled: Tensor | None = None,
    guidance: float | Tensor = 1.0,
    steps: int = 12,
    since: Tensor | None = None,
    guided_from: float = 0.0,
) -> Tensor:
    """Move noise [R, D] to latents [R, D] in `steps` steps of Adams and Bashforth's second order.

    A step leads on from the last two speeds and costs what Euler's costs. Euler's, twelve of them, draw a Gaussian with 0.87
    of its spread, whatever the network has learned, and so rain too smooth; these draw 0.98 (tests/test_patches.py).

    With `unlabelled`, the contexts [R, C] of the same sequences without their label, the speed is that without label
    plus `guidance` (or [R, 1]) times the difference that the label makes (Ho & Salimans 2022), in the steps that begin at
    the time `guided_from` or later (Kynkaanniemi et al. 2024, arXiv 2404.07724): what kind of sound it becomes is decided
    early, and is more various where nothing pushes.

    With `since`, times [R] from 0 to below 1, `noise` are points that are there already, and the rest of the way is gone.
    """
    point, before = noise, torch.zeros_like(noise)
    said = head.context_mlp(context)
    said_without = head.context_mlp(unlabelled) if unlabelled is not None else None
    begun = torch.zeros(1, device=noise.device) if since is None else since
    left = (1 - begun)[:, None]
    clock = begun + (1 - begun) * torch.tensor(times(steps)[:-1], device=noise.device)[:, None]  # [steps, 1 or R]
    said_of_times = head.time_embedding(clock.flatten()).unflatten(0, clock.shape)
    for (lead, lead_of_last), now, time in zip(leads(steps), clock[..., None], said_of_times):
        speed = head(point, said + time)
        if said_without is not None:
            without = head(point, said_without + time)
            speed = without + torch.where(now >= guided_from, guidance, 1.0) * (speed - without)
        point = point + left * (lead * speed + lead_of_last * before)
        before = speed
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
    first: int = START,
    window: int = 86,
) -> Tensor:
    """Draw latents [B, N, D] for `label` int64 [B] from `noise` [B, N, D], times a temperature if wanted; N is free.

    `given` [B, G, D] are latents to go on from; they are not returned. `guidance` 1 is none; it doubles the work.
    """
    guided = guidance != 1.0
    streams = [Stream(model, label, first, window)]
    if guided:
        streams.append(Stream(model, torch.full_like(label, model.no_label), first, window))
    for latent in given.unbind(1) if given is not None else ():
        for stream in streams:
            stream.context()
            stream.add(latent)
    drawn = []
    for place in noise.unbind(1):
        context, *without = [stream.context() for stream in streams]
        latent = flow(
            model.head, place, context, without[0] if without else None, guidance, steps, guided_from=guided_from
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
    since: Tensor,
    *,
    guidance: Tensor,
    guided_from: float,
    temperature: Tensor,
    noise: float = 0.15,
    steps: int = 6,
) -> Tensor:
    """Return real latents [B, N, D] as the model draws them when it is told a part of each: neither real nor free.

    Every place is drawn from the time `since` [B] of the flow on, where its latent is still among the noise, and knows the
    real latents before it, with noise of a deviation drawn from 0 to `noise`. So what is drawn stays beside the recording
    and has the model's own faults: what a vocoder should have read. `guidance`, `guided_from` and `temperature` are those
    of a draw, the first and the last [B]; all numbers come from torch's generator.
    """
    B, N, _ = latents.shape
    told = latents + noise * torch.rand(B, 1, 1, device=latents.device) * torch.randn_like(latents)
    first = torch.full_like(label, START)
    context, without = (
        model(told, each, first).flatten(0, 1) for each in (label, torch.full_like(label, model.no_label))
    )
    since, guidance, temperature = (each.repeat_interleave(N) for each in (since, guidance, temperature))
    rows = latents.flatten(0, 1)
    point = torch.lerp(torch.randn_like(rows) * temperature[:, None], rows, since[:, None])
    drawn = flow(model.head, point, context, without, guidance[:, None], steps, since, guided_from)
    return drawn.unflatten(0, (B, N))
