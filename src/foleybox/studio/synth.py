"""(label, seed) -> Clip: an instrument played through ONNX Runtime.

Randomness comes from `seeds.noise` of one clip's seed alone (stream 0, or the next one where that makes silence), so a
clip is the same alone, in a batch and in another process, within one 16-bit step (matrix products round differently at
different sizes). On one thread and alone in its batch it is the same bit for bit on one machine.
"""

import base64
import html
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Subtype, Wave, fit
from foleybox.errors import UserError
from foleybox.instrument import Instrument, find_instrument, read_instrument, shipped
from foleybox.labels import canonical, find_label
from foleybox.studio.recipe import Json, Recipe, write_clip
from foleybox.studio.seeds import check_seed, noise
from foleybox.studio.shape import Shape, shaped
from foleybox.studio.stream import draw

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


BATCH = 8
"clips rendered at once: more are hardly faster, and memory grows with them"
AUDIBLE = 10 ** (-45 / 20)
"a clip whose peak is below this (-45 dBFS) is silence, and drawn anew"
INPUTS = {
    "generator": ["latent", "label"],
    "next": ["before", "label", "mix", "place", "noise"],  # and what it keeps
    "decoder": ["latents", "grain"],
    "vocoder": ["mel"],
}
HOTTEST = 10.0  # temperature: nothing that an instrument learned lies so far out
STREAMS_TRIED = 8
"streams of a seed that are tried before silence is taken for what the instrument plays"


@dataclass(frozen=True, eq=False)
class Clip:
    """A sound with its rate and the recipe that makes it again."""

    wave: Wave  # [L]
    recipe: Recipe

    @property
    def rate(self) -> int:
        return self.recipe.rate

    @property
    def label(self) -> str:
        return self.recipe.label

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def resampled(self, rate: int) -> "Clip":
        """Return the clip at another rate in Hz."""
        return self.shaped(Shape(rate=rate))

    def shaped(self, shape: "Shape", declick: bool = False) -> "Clip":
        """Return the clip trimmed, cut, faded, resampled and made as loud as `shape` says; its recipe says how.

        `declick` also fades an end that is a step, over a few ms, as `foleybox.finished` does. Not for a loop.

        A length beyond the clip's is filled with silence; `foleybox.finished` builds one of further variations.
        """
        wave, rate, steps = shaped(self.wave, self.rate, shape, declick)
        process, asked = (*self.recipe.process, *steps), {**self.recipe.asked, **shape.asked()}
        return Clip(wave, replace(self.recipe, rate=rate, process=process, asked=asked))

    def save(self, path: str | Path, subtype: Subtype = "PCM_16", chunks: Mapping[bytes, bytes] | None = None) -> float:
        """Write the clip with its recipe as WAV, FLAC or OGG; return the gain (under 1 where it would clip)."""
        return write_clip(path, self.wave, self.recipe, subtype, chunks)

    def _repr_html_(self) -> str:
        """Return a player for notebooks."""
        import soundfile

        memory = io.BytesIO()
        soundfile.write(memory, self.wave / max(1.0, float(np.abs(self.wave).max(initial=0))), self.rate, format="WAV")
        sound = base64.b64encode(memory.getvalue()).decode()
        title = html.escape(f"{self.recipe.comment()}, {len(self.wave) / self.rate:.2f} s")
        player = f'<audio controls src="data:audio/wav;base64,{sound}"></audio>'
        return f"<figure><figcaption>{title}</figcaption>{player}</figure>"


@dataclass(frozen=True, eq=False)
class Synth:
    """An instrument ready to play. `Synth.load()` is the one that ships.

    >>> clip = Synth.load().render("dog_bark", seed=7)  # doctest: +SKIP
    """

    instrument: Instrument
    folder: Path
    threads: int | None = None  # of onnxruntime; None: as many as there are cores

    @classmethod
    def load(cls, source: str | Path | None = None, threads: int | None = None) -> "Synth":
        """Read and check an instrument (graphs load at the first render). Raises UserError if it is not whole."""
        folder = find_instrument(source)
        return cls(read_instrument(folder), folder, threads)

    @classmethod
    def of(cls, recipe: Recipe, source: str | Path | None = None, threads: int | None = None) -> "Synth":
        """Return the instrument that a recipe names, at `source` or among those that ship.

        Raises UserError if it is not there: another one would make another sound.
        """
        for folder in [find_instrument(source)] if source is not None else shipped():
            synth = cls.load(folder, threads)
            if synth.instrument.fingerprint == recipe.fingerprint:
                return synth
        where = f"{source} is another" if source is not None else "it does not ship with this foleybox"
        raise UserError(
            f"made with the instrument {recipe.instrument} ({recipe.fingerprint[:12]}...), and {where}: "
            "name its folder with --instrument"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return self.instrument.labels

    def resolve(self, label: str | int) -> str:
        """Return the instrument's own name of a label in any spelling; raise UserError if it does not play that."""
        by_spelling = {canonical(name): name for name in self.labels}
        known = find_label(label)
        name = by_spelling.get(canonical(str(label))) or (by_spelling.get(canonical(known.name)) if known else None)
        if name is None:
            names = ", ".join(known.slug if (known := find_label(each)) else each for each in self.labels)
            raise UserError(f"unknown label {str(label)!r}: instrument {self.instrument.name} plays {names}")
        return name

    def render(self, label: str | int, seed: int, temperature: float = 1.0) -> Clip:
        """Return the clip of a label (any spelling) and a seed (0 <= seed < 2**53).

        `temperature` scales the latent: below 1 nearer to the typical sound of the label, above 1 further out.
        """
        return next(self.render_many([(label, seed)], temperature=temperature))

    def render_many(
        self, pairs: Iterable[tuple[str | int, int]], batch: int = BATCH, temperature: float = 1.0
    ) -> Iterator[Clip]:
        """Yield a clip for each (label, seed), in order, rendered `batch` at a time; `pairs` may be endless."""
        if batch < 1:
            raise UserError(f"a batch of {batch}: expected 1 or more")
        check_temperature(temperature)
        pairs = iter(pairs)
        while chunk := list(itertools.islice(pairs, batch)):
            named = [(self.resolve(label), check_seed(seed)) for label, seed in chunk]
            for (label, seed), (wave, stream) in zip(named, self._audible(named, temperature)):
                make = {"do": "render", "label": label, "seed": seed, "temperature": float(temperature)}
                yield self.clip(wave, {**make, "stream": stream})

    def clip(self, wave: Wave, make: Json, asked: Json | None = None) -> Clip:
        """Return a wave [L] at the instrument's rate as a clip of this instrument that was made so."""
        made = self.instrument
        return Clip(wave, Recipe(made.name, made.fingerprint, made.licence.terms, made.rate, make, asked or {}))

    def _audible(self, named: list[tuple[str, int]], temperature: float) -> list[tuple[Wave, int]]:
        """Render (label, seed) pairs to (wave, stream); one that is silent is drawn anew from the seed's next stream.

        A generator that learned from clips padded with silence draws silence itself now and then (one seed in sixty,
        say); nobody who asked for a sound wants that. What is drawn still follows from label and seed alone.
        """
        found: dict[int, tuple[Wave, int]] = {}
        silent = list(range(len(named)))
        for stream in range(STREAMS_TRIED):
            latent = np.stack([noise(named[i][1], self.instrument.latent, stream) for i in silent])
            drawn = self.waves([named[i][0] for i in silent], latent * np.float32(temperature))
            found |= {i: (wave, stream) for i, wave in zip(silent, drawn)}
            silent = [i for i in silent if is_silent(found[i][0])]
            if not silent:
                break
        return [found[i] for i in range(len(named))]

    def waves(self, labels: list[str], latent: NDArray[np.float32]) -> Iterator[Wave]:
        """Run both graphs: the instrument's own labels N, latent [N, *latent] -> N waves [L], each a copy of its own."""
        return self.vocode(self.mel(labels, latent))

    def mel(self, labels: list[str], latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run all graphs but the vocoder: labels N, latent [N, *latent] -> mel [N, M, T]."""
        numbers = np.array([self.labels.index(label) for label in labels], np.int64)
        if self.instrument.kind == "gan":
            return self._run("generator", {"latent": latent, "label": numbers})
        width = self.sessions["decoder"].get_inputs()[0].shape[2]
        latents = draw(self.sessions["next"], numbers, latent[:, :, :width], self._threads)
        bands = self.sessions["decoder"].get_inputs()[1].shape[2]  # of the grain of a frame
        return self._run("decoder", {"latents": latents, "grain": latent[:, :, width:].reshape(len(latent), -1, bands)})

    def vocode(self, mel: NDArray[np.float32]) -> Iterator[Wave]:
        """Run the vocoder: mel [N, M, T] -> N waves [L]."""
        waves = self._run("vocoder", {"mel": mel})  # [N, L]
        if waves.ndim != 2 or len(waves) != len(mel) or not np.isfinite(waves).all():
            raise UserError(
                f"instrument {self.instrument.name} rendered {list(waves.shape)} for {len(mel)} clips, or NaN: "
                "expected finite waves [N, L]; export it again"
            )
        for wave in waves:
            yield fit(wave, self.instrument.samples).copy()

    @property
    def _threads(self) -> int:
        # onnxruntime counts the machine's cores, not those this process may use.
        return self.threads or min(cores(), 16)

    def _run(self, graph: str, inputs: dict[str, NDArray]) -> NDArray[np.float32]:
        return self.sessions[graph].run(None, inputs)[0]  # pyright: ignore[reportReturnType]

    @cached_property
    def sessions(self) -> dict[str, "InferenceSession"]:
        """The graphs, loaded on first use. Raises UserError if they are not what the kind promises."""
        import onnxruntime

        sessions = {}
        for name, graph in self.instrument.graphs.items():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = min(2, self._threads) if name == "next" else self._threads  # see stream.py
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            path = self.folder / graph.file
            try:
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime has a dozen exceptions without a common base
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"onnxruntime cannot load {path} ({reason}): export it again") from error
            inputs = [each.name for each in session.get_inputs()]
            wanted = INPUTS[name]
            if inputs[: len(wanted)] != wanted or (len(inputs) > len(wanted) and name != "next"):
                raise UserError(f"{path} takes {', '.join(inputs)}: expected {', '.join(wanted)}; export it again")
            sessions[name] = session
        return sessions


def is_silent(wave: Wave) -> bool:
    """Say whether nobody would hear the wave."""
    return bool(np.abs(wave).max(initial=0) < AUDIBLE)


def check_temperature(temperature: float, flag: str = "") -> None:
    """Raise UserError unless 0 <= temperature <= HOTTEST; `flag` stands before its name: "--"."""
    if not 0 <= temperature <= HOTTEST:
        raise UserError(f"{flag}temperature {temperature}: expected 0 to {HOTTEST:g} (0.8 to 1.2 is usual)")


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
