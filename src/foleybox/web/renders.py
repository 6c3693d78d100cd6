"""The renders of the server: a bounded queue whose requests are rendered together where they can be.

A sound is a label and a seed, and the steps that lead from there to a neighbour of it (`Step`). Requests of one instrument
and temperature are rendered in one batch. The result does not depend on the batch (`studio/synth.py`).
"""

import hashlib
import itertools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from foleybox.audio import Subtype, check_format, peak_db, read_wave, true_peak_db
from foleybox.errors import UserError
from foleybox.studio.extend import finished
from foleybox.studio.latents import between, check_amount, vary
from foleybox.studio.recipe import read_recipe
from foleybox.studio.seeds import check_seed
from foleybox.studio.shape import Shape, check_shape, event_loudness
from foleybox.studio.synth import BATCH, Clip, Synth, check_temperature, cores
from foleybox.version import __version__

MOST_STEPS = 16  # of one sound, those of the sounds that it is morphed to included
MOST_WAIT = 30.0  # seconds that a request may have to wait, by the time that sounds took lately
GATHER = 0.01  # seconds in which further requests may join a batch
FORMATS = {"wav": "audio/wav", "flac": "audio/flac", "json": "application/json"}
"suffix -> media type"


@dataclass(frozen=True)
class Wanted:
    """One file that is asked for."""

    synth: Synth
    label: str  # the instrument's own name
    seed: int
    via: tuple  # steps: ("vary", amount, seed) or ("morph", at, (label, seed, *steps))
    temperature: float
    shape: Shape
    format: str
    subtype: Subtype

    @property
    def group(self) -> tuple:
        """What requests have in common that are rendered together."""
        start = id(self.synth), self.temperature
        if not self.via:
            return start
        kind, number, other = self.via[-1]
        return (*start, self.label, self.seed, self.via[:-1], kind, number if kind == "vary" else other)

    @property
    def tag(self) -> str:
        """A name of the file's content: SHA-256 of all that determines it."""
        source = [
            __version__,
            onnxruntime.__version__,
            self.synth.instrument.fingerprint,
            self.label,
            self.seed,
            self.via,
        ]
        content = json.dumps([*source, self.temperature, self.shape.asked(), self.format, self.subtype])
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def make_wanted(
    synth: Synth, label: str, seed: int, via: str, temperature: float, shape: Shape, format: str, subtype: Subtype
) -> Wanted:
    """Return a checked request; `via` is the JSON text of its steps, or "". Raises UserError for what cannot be rendered."""
    check_temperature(temperature)
    check_shape(shape, seconds=synth.instrument.seconds)
    if format not in FORMATS:
        raise UserError(f"format {format}: expected {', '.join(FORMATS)}")
    check_format("wav" if format == "json" else format, subtype, "", shape.rate)
    try:
        steps = json.loads(via) if via else []
    except (ValueError, RecursionError):
        raise UserError('via: expected JSON, such as [["vary", 0.2, 3]]') from None
    budget = itertools.count(1)
    return Wanted(
        synth, synth.resolve(label), check_seed(seed), _steps(synth, steps, budget), temperature, shape, format, subtype
    )  # fmt: skip


def _steps(synth: Synth, steps: Any, budget: "itertools.count[int]") -> tuple:
    """Return the steps in `via` as tuples. Raises UserError for anything else."""
    if not isinstance(steps, list):
        raise UserError("via: expected a list of steps")
    found = []
    for step in steps:
        if next(budget) > MOST_STEPS:
            raise UserError(f"via: expected {MOST_STEPS} steps at most")
        match step:
            case ["vary", int() | float() as amount, int() as seed] if not isinstance(amount, bool):
                check_amount(amount)
                found.append(("vary", float(amount), check_seed(seed)))
            case ["morph", int() | float() as at, [str() as label, int() as seed, *others]] if 0 <= at <= 1:
                target = (synth.resolve(label), check_seed(seed), *_steps(synth, others, budget))
                found.append(("morph", float(at), target))
            case _:
                raise UserError(
                    'via: expected ["vary", amount from 0 to 1, seed] or ["morph", at from 0 to 1, [label, seed]] as a step'
                )
    return tuple(found)


def clip_of(synth: Synth, label: str, seed: int, via: tuple, temperature: float) -> Clip:
    """Return the clip to which the steps lead from that of a label and a seed."""
    clip = synth.render(label, seed, temperature)
    for step in via:
        (clip,) = neighbours(synth, clip, [step], temperature)
    return clip


def neighbours(synth: Synth, clip: Clip, steps: list[tuple], temperature: float) -> list[Clip]:
    """Return the clips of steps from one clip: variations by one amount, or between it and one other sound."""
    make, (kind, amount, other) = clip.recipe.make, steps[0]
    if kind == "morph":
        to = clip_of(synth, other[0], other[1], other[2:], temperature)
        return list(between(synth, make, to.recipe.make, [at for _, at, _ in steps]))
    found: dict[int, Clip] = {}
    for first in (seeds := {seed for _, _, seed in steps}):
        if first - 1 not in seeds:  # variations of consecutive seeds are rendered together
            count = next(count for count in itertools.count(1) if first + count not in seeds)
            found |= zip(range(first, first + count), vary(synth, make, amount, first, batch=count))
    return [found[seed] for _, _, seed in steps]


class FullError(Exception):
    """The queue is full; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy: try again in {seconds} s")
        self.seconds = seconds


class Renders:
    """Renders on threads of its own, at most `most` requests at a time, waiting ones included."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.count, self.batches, self.busy_seconds = 0, 0, 0.0  # for the metrics
        self.open = 0  # requests that are not finished
        self._numbers = itertools.count()
        self._waiting: deque[tuple[Wanted, Future[bytes]]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._seconds_each = 0.2  # of a sound, lately
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="finish")
        self._thread = threading.Thread(target=self._work, name="render", daemon=True)
        self._thread.start()

    def submit(self, wanted: Wanted) -> "Future[bytes]":
        """Return the file that will be rendered; cancelling it takes it out of the queue. Raises FullError."""
        future: Future[bytes] = Future()
        with self._change:
            wait = self.open * self._seconds_each
            if self.open >= self.most or wait > MOST_WAIT or self._closed:
                raise FullError(max(1, math.ceil(wait)))
            self.open += 1
            self._waiting.append((wanted, future))
            self._change.notify()
        future.add_done_callback(self._finished)
        return future

    def _finished(self, _: "Future[bytes]") -> None:
        with self._change:
            self.open -= 1

    def close(self) -> None:
        """Stop after the batch that is being rendered."""
        with self._change:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._change.notify()
        for _, future in waiting:
            future.cancel()
        self._thread.join()
        self._pool.shutdown()

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            wanted = [each for each, _ in batch]
            try:
                clips = self._render(wanted)
            except BaseException as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            done = [self._pool.submit(self._finish, each, clip, future) for (each, future), clip in zip(batch, clips)]
            for each in done:
                each.result()
            self.batches, self.count = self.batches + 1, self.count + len(batch)
            self.busy_seconds += (seconds := time.monotonic() - started)
            self._seconds_each += 0.1 * (seconds / len(batch) - self._seconds_each)

    def _next_batch(self) -> list[tuple[Wanted, "Future[bytes]"]]:
        """Wait for a request; return it with others that can be rendered with it, in order; none after `close`."""
        with self._change:
            while True:
                while not self._waiting:
                    if self._closed:
                        return []
                    self._change.wait()
                if len(self._waiting) < BATCH:
                    self._change.wait(GATHER)
                batch, others = [], deque()
                while self._waiting:
                    wanted, future = self._waiting.popleft()
                    if batch and (wanted.group != batch[0][0].group or len(batch) == BATCH):
                        others.append((wanted, future))
                    elif future.set_running_or_notify_cancel():
                        batch.append((wanted, future))
                self._waiting = others
                if batch:
                    return batch

    def _render(self, wanted: list[Wanted]) -> list[Clip]:
        first = wanted[0]
        if not first.via:
            pairs = ((each.label, each.seed) for each in wanted)
            return list(first.synth.render_many(pairs, temperature=first.temperature))
        source = clip_of(first.synth, first.label, first.seed, first.via[:-1], first.temperature)
        return neighbours(first.synth, source, [each.via[-1] for each in wanted], first.temperature)

    def _finish(self, wanted: Wanted, clip: Clip, future: "Future[bytes]") -> None:
        try:
            future.set_result(self.encode(finished(wanted.synth, clip, wanted.shape), wanted.format, wanted.subtype))
        except BaseException as error:
            future.set_exception(error)

    def encode(self, clip: Clip, format: str, subtype: Subtype) -> bytes:
        """Return a clip as a file, as the command line writes it, or as JSON: its recipe and its measurements."""
        suffix = "wav" if format == "json" else format
        path = self.folder / f"{next(self._numbers)}.{suffix}"
        try:
            clip.save(path, subtype)
            return measurements(path) if format == "json" else path.read_bytes()
        finally:
            path.unlink(missing_ok=True)


def measurements(path: Path) -> bytes:
    """Return the recipe of a sound file and what it measures, as JSON."""
    recipe = read_recipe(path)
    assert recipe is not None
    wave, rate = read_wave(path)
    measured: dict[str, Callable[[], float]] = {
        "peak_db": lambda: peak_db(wave),
        "true_peak_db": lambda: true_peak_db(wave),
        "lufs": lambda: event_loudness(wave, rate),
    }
    numbers = {
        name: round(value, 2) if math.isfinite(value := measure()) else None for name, measure in measured.items()
    }
    facts = {"label": recipe.label, "seed": recipe.seed, "rate": rate, "seconds": round(len(wave) / rate, 4), **numbers}
    facts |= {"licence": recipe.licence, "recipe": json.loads(recipe.to_json())}
    return json.dumps(facts, ensure_ascii=False).encode()
