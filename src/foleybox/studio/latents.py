"""New sounds from rendered ones: variations of a sound, walks from a sound, morphs between two sounds.

A point in an instrument's latent space is a latent of standard normal noise, a temperature that scales it, and a label.
With the latent z, new noise e and 0 <= amount <= 1, a variation has the latent

    z' = cos(amount pi / 2) z + sin(amount pi / 2) e

which is standard normal again: it is as likely as any other sound, identical at 0 and unrelated at 1. A GAN changes smoothly
with its latent. An instrument that renders position after position does not: what differs at one position differs more at
the next. There a variation follows its source: each position continues from a mean of its own last latent and that of the
source, with the weight 1 - amount of the source's (`stream.draw`). `amount` is then close to the distance from the source
relative to that of two random sounds of the label (results/studio.md). A walk makes a variation of each point, without
following.

A morph renders both sounds, moves the attacks of their loudest events to the time between them, and interpolates their
mels (`blend`) and their loudness. Morphs of earlier versions interpolated the latents (`interpolate`) and
mixed the mels of two labels (`mix_mels`); their recipes are still rendered so.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Wave, true_peak_db
from foleybox.errors import UserError
from foleybox.studio.recipe import Json
from foleybox.studio.seeds import VARY, WALK, check_seed, noise
from foleybox.studio.shape import CEILING, event_loudness
from foleybox.studio.shots import loudest_event
from foleybox.studio.synth import BATCH, STREAMS_TRIED, Clip, Synth, is_silent

LOST_DB = 10.0  # a variation that is this much quieter than its source lost the event, and is drawn again
PEAK_OVER = (
    1.0  # dB by which the peak of a sound of a morph may exceed the ceiling, to which it is turned down when written
)
MOST_STEPS = 1_000  # of a morph, all of which are rendered before the first is written
LOUDNESS = 0.4  # exponent of amplitude with which mels are interpolated, near that of perceived loudness

Mel = NDArray[np.float32]  # [M, T]


@dataclass(frozen=True, eq=False)
class Point:
    """A point in the latent space of an instrument."""

    latent: NDArray[np.float64]  # [*latent], standard normal
    temperature: float
    labels: dict[str, float]  # weights that add up to 1; a single label, except on a morph of an earlier version
    source: "Point | None" = None  # that it follows
    follow: float = 0.0  # weight of the source's latents, see above


@dataclass(frozen=True, eq=False)
class Blend:
    """A sound between two others."""

    one: "Sound"
    other: "Sound"
    at: float  # 0: the one, 1: the other
    onsets: list[int]  # frames that are brought together, see `blend`
    db: float  # gain


Sound = Point | Blend


def point_of(make: Json, synth: Synth) -> Sound:
    """Return the sound of the `make` of a recipe. Raises UserError if it is not one rendered sound, such as a scene."""
    shape = synth.instrument.latent
    match make["do"]:
        case "render":
            if "stream" not in make:  # recipes of version 1 do not state which stream was not silent
                make = synth.render(make["label"], make["seed"], make["temperature"]).recipe.make
            latent = noise(make["seed"], shape, make["stream"])
            return Point(latent.astype(np.float64), make["temperature"], {synth.resolve(make["label"]): 1.0})
        case "vary":
            direction = noise(make["seed"], shape, VARY + make["stream"])
            return neighbour(point_of(make["of"], synth), direction, make["amount"], make.get("follow", 0.0))
        case "walk":
            steps = walk_points(point_of(make["of"], synth), synth, make["amount"], make["seed"])
            return next(itertools.islice(steps, make["step"], None))
        case "morph":
            one, other = point_of(make["of"], synth), point_of(make["to"], synth)
            if "onsets" in make:
                return Blend(one, other, make["at"], make["onsets"], make["db"])
            if isinstance(one, Blend) or isinstance(other, Blend):
                raise UserError("the recipe morphs a newer morph in the way of an earlier version: make it again")
            return interpolate(one, other, make["at"])
        case other:
            raise UserError(f"the recipe says {other}, not one rendered sound: expected the file of one sound")


def neighbour(sound: Sound, direction: NDArray[np.floating], amount: float, follow: float = 0.0) -> Sound:
    """Return the sound at `amount` (0: the same, 1: unrelated) in the direction of standard normal noise [*latent].

    `follow` is the weight, 0 to 1, with which it follows the sound. A blend becomes a blend of neighbours of both ends.
    """
    if isinstance(sound, Blend):
        ends = (neighbour(end, direction, amount, follow) for end in (sound.one, sound.other))
        return replace(sound, **dict(zip(("one", "other"), ends)))
    angle = amount * math.pi / 2
    latent = math.cos(angle) * sound.latent + math.sin(angle) * direction
    return Point(latent, sound.temperature, sound.labels, sound if follow else None, follow)


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


def walk_points(start: Sound, synth: Synth, amount: float, seed: int) -> Iterator[Sound]:
    """Yield `start` and then endless points, each a neighbour of the one before at `amount`."""
    size = math.prod(synth.instrument.latent)
    size += size % 2
    point = start
    for step in itertools.count():
        yield point
        direction = noise(seed, (size,), WALK, skip=step * size)[: math.prod(synth.instrument.latent)]
        point = neighbour(point, direction.reshape(synth.instrument.latent), amount)


# --- rendering ----------------------------------------------------------------------------------------------------


def render_points(synth: Synth, sounds: Iterable[Sound], batch: int = BATCH) -> Iterator[Wave]:
    """Yield the wave [L] of each sound, in order, rendered `batch` at a time."""
    sounds = iter(sounds)
    known: dict[Sound, NDArray[np.float32]] = {}  # latents of followed points, mels of the ends of blends
    while chunk := list(itertools.islice(sounds, batch)):
        waves = synth.vocode(np.stack(_mels(synth, chunk, known)))
        for sound, wave in zip(chunk, waves):
            yield wave * np.float32(10 ** (sound.db / 20)) if isinstance(sound, Blend) and sound.db else wave


def _mels(synth: Synth, sounds: list[Sound], known: dict[Sound, NDArray[np.float32]]) -> list[Mel]:
    """Return the natural-log mel [M, T] of each sound; the gain of a blend is not in it."""
    points = [sound for sound in sounds if isinstance(sound, Point)]
    drawn = iter(_point_mels(synth, points, known) if points else ())
    return [next(drawn) if isinstance(sound, Point) else _blended(synth, sound, known) for sound in sounds]


def _blended(synth: Synth, sound: Blend, known: dict[Sound, NDArray[np.float32]]) -> Mel:
    ends = []
    for end in (sound.one, sound.other):
        if end not in known:
            (mel,) = _mels(synth, [end], known)
            known[end] = mel + np.float32(end.db / 20 * math.log(10)) if isinstance(end, Blend) else mel
        ends.append(known[end])
    return blend(ends[0], ends[1], sound.at, sound.onsets)


def _point_mels(synth: Synth, points: list[Point], known: dict[Sound, NDArray[np.float32]]) -> Iterator[Mel]:
    labels = [label for point in points for label in point.labels]
    scaled = [_scaled(point) for point in points for _ in point.labels]
    followed, follow = None, np.array([point.follow for point in points for _ in point.labels], np.float32)
    if follow.any() and synth.instrument.kind == "patches":
        nothing = np.zeros(0, np.float32)
        latents = [
            _latents(synth, point.source, known) if point.source else nothing for point in points for _ in point.labels
        ]
        shape = next(each.shape for each in latents if len(each))
        followed = np.stack([each if len(each) else np.zeros(shape, np.float32) for each in latents])
    mels = iter(
        synth.mel(labels, np.stack(scaled), followed, follow)
        if followed is not None
        else synth.mel(labels, np.stack(scaled))
    )
    for point in points:
        yield mix_mels([(next(mels), weight) for weight in point.labels.values()])


def _scaled(point: Point) -> NDArray[np.float32]:
    # Rounded to float32 before it is scaled, as in `Synth.render`, so that both give the same bits.
    return point.latent.astype(np.float32) * np.float32(point.temperature)


def _latents(synth: Synth, point: Point, known: dict[Sound, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the latents [P, D] of a point of one label, as `Synth.latents` does."""
    if point not in known:
        follow = np.array([point.follow], np.float32)
        followed = _latents(synth, point.source, known)[None] if point.source else None
        (known[point],) = synth.latents(list(point.labels)[:1], _scaled(point)[None], followed, follow)
    return known[point]


def blend(one: Mel, other: Mel, at: float, onsets: list[int]) -> Mel:
    """Return the log-mel [M, T] between two [M, T]; the one at 0, the other at 1.

    `onsets` are frames of the two, or none: each mel is shifted in a circle, so that its own comes to the time between them.
    The bands are then interpolated in a power of amplitude that is near loudness, so that what sounds in either becomes
    quieter or louder and does not vanish.
    """
    if at in (0, 1):
        return other if at else one
    if onsets:
        middle = round((1 - at) * onsets[0] + at * onsets[1])
        one, other = (np.roll(mel, middle - onset, axis=1) for mel, onset in zip((one, other), onsets))
    loud = [np.exp(LOUDNESS * mel.astype(np.float64)) for mel in (one, other)]
    return (np.log((1 - at) * loud[0] + at * loud[1]) / LOUDNESS).astype(np.float32)


def onset_frames(waves: Iterable[Wave], synth: Synth) -> list[int]:
    """Return the frame of the attack of the loudest event of each wave [L]; none if one of them has no whole event."""
    shots, hop = [loudest_event(wave, synth.instrument.rate) for wave in waves], int(synth.instrument.mel["hop"])
    return [] if any(shot.problem for shot in shots) else [shot.onset // hop for shot in shots]


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
    """Return the wave [L] of a recipe's `make` that is one rendered sound, at the instrument's rate."""
    return next(render_points(synth, [point_of(make, synth)]))


def vary(
    synth: Synth, make: Json, amount: float, seed: int = 0, batch: int = BATCH, follow: float | None = None
) -> Iterator[Clip]:
    """Yield endless variations of a sound, given as the `make` of its recipe, with the seeds S, S+1, ...

    `amount` is from 0 (the same sound) to 1 (any sound of the label); `follow` None is 1 - amount. A variation that is
    silent, or much quieter than the sound that it follows, is drawn again from the next stream of its seed. Raises
    UserError for another amount, and if `make` is not one rendered sound.
    """
    check_amount(amount)
    start, shape = point_of(make, synth), synth.instrument.latent
    follow = (1 - amount if follow is None else follow) if synth.instrument.kind == "patches" else 0.0
    if follow:
        (wave,) = render_points(synth, [start])
        quietest = event_loudness(wave, synth.instrument.rate) - LOST_DB
    else:
        quietest = -math.inf
    made = {"do": "vary", "of": make, "amount": amount} | ({"follow": follow} if follow else {})

    def lost(wave: Wave) -> bool:
        return is_silent(wave) or (follow > 0 and event_loudness(wave, synth.instrument.rate) < quietest)

    def point(each: int, stream: int = 0) -> Sound:
        return neighbour(start, noise(each, shape, VARY + stream), amount, follow)

    for first in itertools.count(check_seed(seed), batch):
        seeds = range(first, first + batch)
        for each, wave in zip(seeds, list(render_points(synth, map(point, seeds), batch))):
            stream = 0
            while lost(wave) and stream < STREAMS_TRIED - 1:
                stream += 1
                (wave,) = render_points(synth, [point(each, stream)])
            yield synth.clip(wave, {**made, "seed": each, "stream": stream})


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
    check_steps(steps, MOST_STEPS)
    yield from between(synth, a, b, [step / (steps - 1) for step in range(steps)], batch)


def between(synth: Synth, a: Json, b: Json, positions: Iterable[float], batch: int = BATCH) -> Iterator[Clip]:
    """Yield the sound at each position from 0 (a) to 1 (b) of a morph.

    The loudness of its event is on the straight line, in LU, between the two sounds as they are written: with true peaks of
    -1 dBTP at most. Where a sound in between has higher peaks, the whole line is lowered.
    """
    rate, positions = synth.instrument.rate, list(positions)
    ends = point_of(a, synth), point_of(b, synth)
    waves = [next(render_points(synth, [end])) for end in ends]
    excess = [max(0.0, true_peak_db(wave) - CEILING) for wave in waves]
    line = [event_loudness(wave, rate) - over for wave, over in zip(waves, excess)]
    onsets = onset_frames(waves, synth)
    made = list(render_points(synth, (Blend(*ends, at, onsets, 0.0) for at in positions), batch))
    gains = [(1 - at) * line[0] + at * line[1] - event_loudness(wave, rate) for at, wave in zip(positions, made)]
    peaks = [true_peak_db(wave) + gain - CEILING for wave, gain in zip(made, gains)]
    lower = max([0.0, *(over - PEAK_OVER for over in peaks if math.isfinite(over))])
    for at, wave, gain in zip(positions, made, gains):
        unchanged = not math.isfinite(gain) or (at in (0, 1) and not lower)
        db = 0.0 if unchanged else round(gain - lower, 3)
        wave = wave * np.float32(10 ** (db / 20)) if db else wave
        yield synth.clip(wave, {"do": "morph", "of": a, "to": b, "at": at, "onsets": onsets, "db": db})


def check_amount(amount: float) -> None:
    """Raise UserError unless 0 <= amount <= 1."""
    if not 0 <= amount <= 1:
        raise UserError(f"amount {amount}: expected 0 (the same sound) to 1 (any sound of the label)")


def check_steps(steps: int, most: float = math.inf) -> None:
    """Raise UserError unless 2 <= steps <= most."""
    if not 2 <= steps <= most:
        raise UserError(
            f"{steps} steps: expected 2 or more, the first sound among them"
            + (f", up to {most:,}" if steps > 2 else "")
        )
