"""Where sounds lie in their instrument: near a sound, between two sounds, and on from a sound.

A sound lies at a point of its instrument: a latent of standard normal noise, a temperature that scales it, and a label.
With the latent z, fresh noise e and 0 <= amount <= 1, a neighbour lies at

    z' = cos(amount pi / 2) z + sin(amount pi / 2) e

which is standard normal again: a neighbour is as likely a sound as any other, at 0 the same one, at 1 unrelated. A walk
repeats this from each neighbour to the next. A morph goes along the great circle from z to the other latent (Shoemake
1985), and the length evenly. Between two labels there is no point, since a generator takes one label or the other:
there both labels are played at the point between, and their log-mels, the picture of the sound before the vocoder, are
mixed (`mix`).
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
    """Where in its instrument a sound lies. The weights of the labels add up to 1; most sounds have one."""

    latent: NDArray[np.float64]  # [*latent], standard normal
    temperature: float
    labels: dict[str, float]


def point(make: Json, synth: Synth) -> Point:
    """Return the point of a make. Raises UserError if it is none, such as a loop or a scene."""
    shape = synth.instrument.latent
    match make["do"]:
        case "render":
            if "stream" not in make:  # version 1 did not say which stream was not silent
                make = synth.render(make["label"], make["seed"], make["temperature"]).recipe.make
            latent = noise(make["seed"], shape, make["stream"])
            return Point(latent.astype(np.float64), make["temperature"], {synth.resolve(make["label"]): 1.0})
        case "vary":
            return near(point(make["of"], synth), noise(make["seed"], shape, VARY + make["stream"]), make["amount"])
        case "walk":
            steps = walk_points(point(make["of"], synth), synth, make["amount"], make["seed"])
            return next(itertools.islice(steps, make["step"], None))
        case "morph":
            return between(point(make["of"], synth), point(make["to"], synth), make["at"])
        case other:
            raise UserError(f"the recipe says {other}, not one rendered sound: expected the file of one sound")


def near(point: Point, direction: NDArray[np.floating], amount: float) -> Point:
    """Return the point that lies `amount` (0: here, 1: anywhere) away in the direction of some noise [*latent]."""
    angle = amount * math.pi / 2
    return Point(math.cos(angle) * point.latent + math.sin(angle) * direction, point.temperature, point.labels)


def between(a: Point, b: Point, at: float) -> Point:
    """Return the point on the way from a (at 0) to b (at 1)."""
    length_a, length_b = float(np.linalg.norm(a.latent)), float(np.linalg.norm(b.latent))
    cosine = float(np.vdot(a.latent, b.latent)) / max(length_a * length_b, 1e-12)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if angle < 1e-6 or not length_a * length_b:
        latent = (1 - at) * a.latent + at * b.latent
    else:
        part_a, part_b = math.sin((1 - at) * angle) / math.sin(angle), math.sin(at * angle) / math.sin(angle)
        length = (1 - at) * length_a + at * length_b
        latent = length * (part_a * a.latent / length_a + part_b * b.latent / length_b)
    labels = {
        label: (1 - at) * a.labels.get(label, 0.0) + at * b.labels.get(label, 0.0) for label in {**a.labels, **b.labels}
    }
    return Point(latent, (1 - at) * a.temperature + at * b.temperature, {name: w for name, w in labels.items() if w})


def walk_points(start: Point, synth: Synth, amount: float, seed: int) -> Iterator[Point]:
    """Yield the start and an endless chain of points, each `amount` from the one before."""
    size = math.prod(synth.instrument.latent)
    size += size % 2
    here = start
    for step in itertools.count():
        yield here
        direction = noise(seed, (size,), WALK, skip=step * size)[: math.prod(synth.instrument.latent)]
        here = near(here, direction.reshape(synth.instrument.latent), amount)


# --- playing ------------------------------------------------------------------------------------------------------


def play(synth: Synth, points: Iterable[Point], batch: int = BATCH) -> Iterator[Wave]:
    """Yield the wave [L] of each point, in order, rendered `batch` at a time."""
    points = iter(points)
    while chunk := list(itertools.islice(points, batch)):
        labels = [label for point in chunk for label in point.labels]
        # Rounded before it is scaled, as `render` does: the two agree to the last bit.
        latents = [
            point.latent.astype(np.float32) * np.float32(point.temperature) for point in chunk for _ in point.labels
        ]
        mels = iter(synth.mel(labels, np.stack(latents)))
        yield from synth.vocode(np.stack([mix([(next(mels), w) for w in point.labels.values()]) for point in chunk]))


def mix(mels: list[tuple[NDArray[np.float32], float]]) -> NDArray[np.float32]:
    """Return the mean [M, T] of some log-mels by their weights; its level lies between theirs by the same weights.

    A mean of logarithms is a mean of timbres where both sound, and quiet where one does: hence the level is made good.
    """
    if len(mels) == 1:
        return mels[0][0]
    weights = np.array([weight for _, weight in mels], np.float32)
    mixed = np.tensordot(weights, np.stack([mel for mel, _ in mels]), 1)  # [M, T]
    wanted = sum(weight * _level(mel) for mel, weight in mels)
    return (mixed + (wanted - _level(mixed))).astype(np.float32)


def _level(mel: NDArray[np.float32]) -> float:
    """Return the level of a log-mel as the logarithm of its root mean square."""
    return 0.5 * math.log(float(np.mean(np.exp(2 * mel.astype(np.float64)))))


def remake(make: Json, synth: Synth) -> Wave:
    """Return the wave [L] of a make that is a point, at the instrument's rate."""
    return next(play(synth, [point(make, synth)]))


def vary(synth: Synth, make: Json, amount: float, seed: int = 0, batch: int = BATCH) -> Iterator[Clip]:
    """Yield endless neighbours of a sound, with the seeds S, S+1, ...; one that is silent is drawn anew.

    `amount` is from 0 (the same sound) to 1 (any sound of the label). Raises UserError beyond, or if `make` is no point.
    """
    check_amount(amount)
    start, shape = point(make, synth), synth.instrument.latent
    for first in itertools.count(check_seed(seed), batch):
        seeds = range(first, first + batch)
        waves = list(play(synth, (near(start, noise(each, shape, VARY), amount) for each in seeds), batch))
        for each, wave in zip(seeds, waves):
            stream = 0
            while is_silent(wave) and stream < STREAMS_TRIED - 1:
                stream += 1
                (wave,) = play(synth, [near(start, noise(each, shape, VARY + stream), amount)])
            yield synth.clip(wave, {"do": "vary", "of": make, "amount": amount, "seed": each, "stream": stream})


def walk(synth: Synth, make: Json, amount: float, seed: int = 0, batch: int = BATCH) -> Iterator[Clip]:
    """Yield a sound and an endless chain of neighbours, each `amount` from the one before."""
    check_amount(amount)
    points = walk_points(point(make, synth), synth, amount, check_seed(seed))
    for step, wave in enumerate(play(synth, points, batch)):
        yield synth.clip(wave, {"do": "walk", "of": make, "amount": amount, "seed": seed, "step": step})


def morph(synth: Synth, a: Json, b: Json, steps: int, batch: int = BATCH) -> Iterator[Clip]:
    """Yield `steps` sounds from a to b, both among them."""
    check_steps(steps)
    ends, places = (point(a, synth), point(b, synth)), [step / (steps - 1) for step in range(steps)]
    for at, wave in zip(places, play(synth, (between(*ends, at) for at in places), batch)):
        yield synth.clip(wave, {"do": "morph", "of": a, "to": b, "at": at})


def check_amount(amount: float) -> None:
    """Raise UserError unless 0 <= amount <= 1."""
    if not 0 <= amount <= 1:
        raise UserError(f"amount {amount}: expected 0 (the same sound) to 1 (any sound of the label)")


def check_steps(steps: int) -> None:
    """Raise UserError unless there are 2 or more."""
    if steps < 2:
        raise UserError(f"{steps} steps: expected 2 or more, the first sound among them")
