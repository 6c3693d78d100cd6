"""Operations on latents: variations of a sound, walks from a sound, morphs between two sounds.

A point in an instrument's latent space is a latent of standard normal noise, a temperature that scales it, and a label.
With the latent z, new noise e and 0 <= amount <= 1, a variation has the latent

    z' = cos(amount pi / 2) z + sin(amount pi / 2) e

which is standard normal again: it is as likely as any other sound, identical at 0 and unrelated at 1. A walk repeats this
from each point to the next. A morph interpolates spherically from z to the other latent (Shoemake 1985), and linearly in
length. A label cannot be interpolated: between two labels, both are rendered at the interpolated latent, and their
log-mels are mixed before the vocoder (`mix_mels`).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave
from foleybox.errors import UserError
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import VARY, WALK, check_seed, noise
from foleybox.studio.synth import BATCH, STREAMS_TRIED, Clip, Synth, is_silent


@dataclass(frozen=True, eq=False)
class Point:
    """A point in the latent space of an instrument."""

    latent: NDArray[np.float64]  # [*latent], standard normal
    temperature: float
    labels: dict[str, float]  # weights that add up to 1; a single label, except on a morph between two


def point_of(make: Json, synth: Synth) -> Point:
    """Return the point of the `make` of a recipe. Raises UserError if it is not one rendered sound, such as a scene."""
    shape = synth.instrument.latent
    match make["do"]:
        case "render":
            if "stream" not in make:  # recipes of version 1 do not state which stream was not silent
                make = synth.render(make["label"], make["seed"], make["temperature"]).recipe.make
            latent = noise(make["seed"], shape, make["stream"])
            return Point(latent.astype(np.float64), make["temperature"], {synth.resolve(make["label"]): 1.0})
        case "vary":
            direction = noise(make["seed"], shape, VARY + make["stream"])
            return neighbour(point_of(make["of"], synth), direction, make["amount"])
        case "walk":
            steps = walk_points(point_of(make["of"], synth), synth, make["amount"], make["seed"])
            return next(itertools.islice(steps, make["step"], None))
        case "morph":
            return interpolate(point_of(make["of"], synth), point_of(make["to"], synth), make["at"])
        case other:
            raise UserError(f"the recipe says {other}, not one rendered sound: expected the file of one sound")


def neighbour(point: Point, direction: NDArray[np.floating], amount: float) -> Point:
    """Return the point at `amount` (0: the same point, 1: unrelated) in the direction of standard normal noise [*latent]."""
    angle = amount * math.pi / 2
    return Point(math.cos(angle) * point.latent + math.sin(angle) * direction, point.temperature, point.labels)


def interpolate(a: Point, b: Point, at: float) -> Point:
    """Return the point between a (at 0) and b (at 1)."""
    length_a, length_b = float(np.linalg.norm(a.latent)), float(np.linalg.norm(b.latent))
    cosine = float(np.vdot(a.latent, b.latent)) / max(length_a * length_b, 1e-12)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if angle < 1e-6 or not length_a * length_b:
        latent = (1 - at) * a.latent + at * b.latent
    else:
        weight_a, weight_b = math.sin((1 - at) * angle) / math.sin(angle), math.sin(at * angle) / math.sin(angle)
        length = (1 - at) * length_a + at * length_b
        latent = length * (weight_a * a.latent / length_a + weight_b * b.latent / length_b)
    labels = {
        label: (1 - at) * a.labels.get(label, 0.0) + at * b.labels.get(label, 0.0) for label in {**a.labels, **b.labels}
    }
    return Point(latent, (1 - at) * a.temperature + at * b.temperature, {name: w for name, w in labels.items() if w})


def walk_points(start: Point, synth: Synth, amount: float, seed: int) -> Iterator[Point]:
    """Yield `start` and then endless points, each a neighbour of the one before at `amount`."""
    size = math.prod(synth.instrument.latent)
    size += size % 2
    point = start
    for step in itertools.count():
        yield point
        direction = noise(seed, (size,), WALK, skip=step * size)[: math.prod(synth.instrument.latent)]
        point = neighbour(point, direction.reshape(synth.instrument.latent), amount)


# --- rendering ----------------------------------------------------------------------------------------------------


def render_points(synth: Synth, points: Iterable[Point], batch: int = BATCH) -> Iterator[Wave]:
    """Yield the wave [L] of each point, in order, rendered `batch` at a time."""
    points = iter(points)
    while chunk := list(itertools.islice(points, batch)):
        labels = [label for point in chunk for label in point.labels]
        # Rounded to float32 before it is scaled, as in `Synth.render`, so that both give the same bits.
        latents = [
            point.latent.astype(np.float32) * np.float32(point.temperature) for point in chunk for _ in point.labels
        ]
        mels = iter(synth.mel(labels, np.stack(latents)))
        mixed = [mix_mels([(next(mels), weight) for weight in point.labels.values()]) for point in chunk]
        yield from synth.vocode(np.stack(mixed))


def mix_mels(mels: list[tuple[NDArray[np.float32], float]]) -> NDArray[np.float32]:
    """Return the weighted mean [M, T] of natural-log mels [M, T], given as (mel, weight), at the weighted mean level.

    A mean of logarithms averages the timbre where both sound, but is too quiet where one is silent: the level is corrected.
    """
    if len(mels) == 1:
        return mels[0][0]
    weights = np.array([weight for _, weight in mels], np.float32)
    mixed = np.tensordot(weights, np.stack([mel for mel, _ in mels]), 1)  # [M, T]
    level = sum(weight * _level(mel) for mel, weight in mels)
    return (mixed + (level - _level(mixed))).astype(np.float32)


def _level(mel: NDArray[np.float32]) -> float:
    """Return the logarithm of the root mean square of a log-mel's amplitudes."""
    return 0.5 * math.log(float(np.mean(np.exp(2 * mel.astype(np.float64)))))


def remake(make: Json, synth: Synth) -> Wave:
    """Return the wave [L] of a recipe's `make` that is a point, at the instrument's rate."""
    return next(render_points(synth, [point_of(make, synth)]))


def vary(synth: Synth, make: Json, amount: float, seed: int = 0, batch: int = BATCH) -> Iterator[Clip]:
    """Yield endless variations of a sound, given as the `make` of its recipe, with the seeds S, S+1, ...

    `amount` is from 0 (the same sound) to 1 (any sound of the label). A silent variation is drawn again from the next
    stream of its seed. Raises UserError for another amount, and if `make` is not one rendered sound.
    """
    check_amount(amount)
    start, shape = point_of(make, synth), synth.instrument.latent
    for first in itertools.count(check_seed(seed), batch):
        seeds = range(first, first + batch)
        waves = list(
            render_points(synth, (neighbour(start, noise(each, shape, VARY), amount) for each in seeds), batch)
        )
        for each, wave in zip(seeds, waves):
            stream = 0
            while is_silent(wave) and stream < STREAMS_TRIED - 1:
                stream += 1
                (wave,) = render_points(synth, [neighbour(start, noise(each, shape, VARY + stream), amount)])
            yield synth.clip(wave, {"do": "vary", "of": make, "amount": amount, "seed": each, "stream": stream})


def walk(synth: Synth, make: Json, amount: float, seed: int = 0, batch: int = BATCH) -> Iterator[Clip]:
    """Yield a sound, given as the `make` of its recipe, and endless others, each a variation of the one before.

    Raises UserError unless 0 <= amount <= 1, and if `make` is not one rendered sound.
    """
    check_amount(amount)
    points = walk_points(point_of(make, synth), synth, amount, check_seed(seed))
    for step, wave in enumerate(render_points(synth, points, batch)):
        yield synth.clip(wave, {"do": "walk", "of": make, "amount": amount, "seed": seed, "step": step})


def morph(synth: Synth, a: Json, b: Json, steps: int, batch: int = BATCH) -> Iterator[Clip]:
    """Yield `steps` sounds from a to b, both included; `a` and `b` are the `make` of their recipes.

    Raises UserError for fewer than 2 steps, and if one of them is not one rendered sound.
    """
    check_steps(steps)
    ends, positions = (point_of(a, synth), point_of(b, synth)), [step / (steps - 1) for step in range(steps)]
    for at, wave in zip(positions, render_points(synth, (interpolate(*ends, at) for at in positions), batch)):
        yield synth.clip(wave, {"do": "morph", "of": a, "to": b, "at": at})


def check_amount(amount: float) -> None:
    """Raise UserError unless 0 <= amount <= 1."""
    if not 0 <= amount <= 1:
        raise UserError(f"amount {amount}: expected 0 (the same sound) to 1 (any sound of the label)")


def check_steps(steps: int) -> None:
    """Raise UserError for fewer than 2 steps."""
    if steps < 2:
        raise UserError(f"{steps} steps: expected 2 or more, the first sound among them")
