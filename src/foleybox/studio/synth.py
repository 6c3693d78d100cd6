"""(label, seed) -> Clip: an instrument played through ONNX Runtime.

All randomness comes from `seeds.noise` of a clip's seed (stream 0, or the next one where that gives silence). On one machine
and one version of onnxruntime, a clip is the same bit for bit whatever the batch, order, threads and process. Other
versions and processors round differently: results/determinism.md.
"""

import base64
import html
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foleybox.audio import Subtype, Wave, fit, read_channels
from foleybox.errors import UserError
from foleybox.instrument import FORMER, Instrument, find_instrument, read_instrument, shipped
from foleybox.labels import canonical, find_label
from foleybox.studio.recipe import Json, Recipe, write_clip
from foleybox.studio.seeds import check_seed, noise
from foleybox.studio.sessions import blamed, load_sessions
from foleybox.studio.shape import CEILING, Shape, apply, peak_step, shaped
from foleybox.studio.stream import draw

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


BATCH = 8  # clips rendered at once: more are hardly faster, and memory grows with them
AUDIBLE = 10 ** (-45 / 20)  # a clip whose peak is below this (-45 dBFS) is silent, and drawn again
MAX_TEMPERATURE = 10.0  # far outside the range that any instrument was trained for
LOSSY_TRIED = 3  # times that an OGG is written again, quieter, because its decoded wave exceeds the ceiling
STREAMS_TRIED = 8  # streams of a seed that are drawn from before a silent clip is returned


@dataclass(frozen=True, eq=False)
class Clip:
    """A sound and the recipe that renders it again."""

    wave: Wave  # [L]
    recipe: Recipe

    @property
    def rate(self) -> int:
        """The sample rate in Hz."""
        return self.recipe.rate

    @property
    def label(self) -> str:
        return self.recipe.label

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def shaped(self, shape: Shape, declick: bool = False) -> "Clip":
        """Return the clip after the processing of `shape`; its recipe states the steps.

        `declick` also fades an end that clicks, over a few ms, as `foleybox.finished` does; not for loops. A length
        beyond the clip's is filled with silence; `foleybox.finished` extends the clip with variations instead.

        Raises UserError for an option out of range.
        """
        wave, rate, steps = shaped(self.wave, self.rate, shape, declick)
        process, asked = (*self.recipe.process, *steps), {**self.recipe.asked, **shape.asked()}
        return Clip(wave, replace(self.recipe, rate=rate, process=process, asked=asked))

    def save(
        self,
        path: str | Path,
        subtype: Subtype = "PCM_16",
        chunks: Mapping[bytes, bytes] | None = None,
        exact: bool = False,
    ) -> float:
        """Write the clip with its recipe as WAV, FLAC or OGG; return the gain that was applied to it.

        A clip whose true peak exceeds -1 dBTP, or the `peak` it was `shaped` to, is turned down to it, and the recipe of the
        file states the gain. `exact` writes the wave as it is, as its recipe states it; above full scale, it is scaled down
        by `audio.write_wave`. `chunks` are further RIFF chunks of a WAV by four-byte name.
        """
        if exact:
            return write_clip(path, self.wave, self.recipe, subtype, chunks)
        ceiling = self.recipe.asked.get("peak", CEILING)
        step = peak_step(self.wave, ceiling)
        clip = self._with(step)
        write_clip(path, clip.wave, clip.recipe, subtype, chunks)
        if Path(path).suffix.lower() == ".ogg":  # the decoded wave of a lossy file has other peaks
            for _ in range(LOSSY_TRIED):
                decoded = peak_step(read_channels(path)[0], ceiling)
                if not decoded:
                    break
                step = {"do": "gain", "db": round(decoded["db"] + (step["db"] if step else 0.0), 3)}
                clip = self._with(step)
                write_clip(path, clip.wave, clip.recipe, subtype, chunks)
        return 10 ** (step["db"] / 20) if step else 1.0

    def _with(self, step: Json | None) -> "Clip":
        """Return the clip after a further step of its process, if there is one."""
        if step is None:
            return self
        wave, _ = apply([step], self.wave, self.rate)
        return Clip(wave, replace(self.recipe, process=(*self.recipe.process, step)))

    def _repr_html_(self) -> str:
        """Return an audio player, for notebooks."""
        import soundfile

        memory = io.BytesIO()
        soundfile.write(memory, self.wave / max(1.0, float(np.abs(self.wave).max(initial=0))), self.rate, format="WAV")
        sound = base64.b64encode(memory.getvalue()).decode()
        title = html.escape(f"{self.recipe.comment()}, {len(self.wave) / self.rate:.2f} s")
        player = f'<audio controls src="data:audio/wav;base64,{sound}"></audio>'
        return f"<figure><figcaption>{title}</figcaption>{player}</figure>"


@dataclass(frozen=True, eq=False)
class Synth:
    """An instrument that renders clips. `Synth.load()` is the default instrument.

    >>> clip = Synth.load().render("dog_bark", seed=7)  # doctest: +SKIP
    """

    instrument: Instrument
    folder: Path
    threads: int | None = None  # None: as many as there are cores

    @classmethod
    def load(cls, source: str | Path | None = None, threads: int | None = None) -> "Synth":
        """Read and check an instrument: a name, a folder, or None for the default. Graphs are loaded at the first render.

        Raises UserError if there is no such instrument, or if it is incomplete.
        """
        folder = find_instrument(source)
        return cls(read_instrument(folder), folder, threads)

    @classmethod
    def of(cls, recipe: Recipe, source: str | Path | None = None, threads: int | None = None) -> "Synth":
        """Return the instrument of a recipe, at `source` or among those that ship.

        Raises UserError if it is not found, since another instrument would make another sound.
        """
        for folder in [find_instrument(source)] if source is not None else shipped():
            synth = cls.load(folder, threads)
            if synth.instrument.matches(recipe.fingerprint):
                return synth
        former = FORMER.get(recipe.instrument, "it does not ship with this foleybox")
        where = f"{source} is another" if source is not None else former
        raise UserError(
            f"made with the instrument {recipe.instrument} ({recipe.fingerprint[:12]}...), and {where}: "
            "name its folder with --instrument"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        return self.instrument.labels

    def resolve(self, label: str | int) -> str:
        """Return the instrument's own name of a label in any spelling. Raises UserError if it has no such label."""
        by_spelling = {canonical(name): name for name in self.labels}
        known = find_label(label)
        name = by_spelling.get(canonical(str(label))) or (by_spelling.get(canonical(known.name)) if known else None)
        if name is None:
            names = ", ".join(known.slug if (known := find_label(each)) else each for each in self.labels)
            raise UserError(f"unknown label {str(label)!r}: instrument {self.instrument.name} plays {names}")
        return name

    def render(self, label: str | int, seed: int, temperature: float = 1.0) -> Clip:
        """Return the clip of a label (any spelling) and a seed (0 <= seed < 2**53).

        `temperature` (0 to 10) scales the latent: below 1 closer to the typical sound of the label, above 1 more unusual.

        Raises UserError for an unknown label and for a number out of range.
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
            resolved = [(self.resolve(label), check_seed(seed)) for label, seed in chunk]
            for (label, seed), (wave, stream) in zip(resolved, self._audible(resolved, temperature)):
                make = {"do": "render", "label": label, "seed": seed, "temperature": float(temperature)}
                yield self.clip(wave, {**make, "stream": stream})

    def clip(self, wave: Wave, make: Json, asked: Json | None = None) -> Clip:
        """Return a wave [L] at the instrument's rate as a clip whose recipe has this `make` and `asked`."""
        made = self.instrument
        return Clip(wave, Recipe(made.name, made.fingerprint, made.licence.terms, made.rate, make, asked or {}))

    def _audible(self, pairs: list[tuple[str, int]], temperature: float) -> list[tuple[Wave, int]]:
        """Render (label, seed) pairs to (wave, stream); a silent clip is drawn again from the next stream of its seed.

        A model that was trained on clips padded with silence sometimes generates silence. The result still depends on
        label and seed alone.
        """
        found: dict[int, tuple[Wave, int]] = {}
        silent = list(range(len(pairs)))
        for stream in range(STREAMS_TRIED):
            latent = np.stack([noise(pairs[i][1], self.instrument.latent, stream) for i in silent])
            drawn = self.waves([pairs[i][0] for i in silent], latent * np.float32(temperature))
            found |= {i: (wave, stream) for i, wave in zip(silent, drawn)}
            silent = [i for i in silent if is_silent(found[i][0])]
            if not silent:
                break
        return [found[i] for i in range(len(pairs))]

    def waves(self, labels: list[str], latent: NDArray[np.float32]) -> Iterator[Wave]:
        """Run all graphs: the instrument's own names of N labels, latent [N, *latent] -> N waves [L], each a copy."""
        return self.vocode(self.mel(labels, latent))

    def mel(
        self,
        labels: list[str],
        latent: NDArray[np.float32],
        followed: NDArray[np.float32] | None = None,
        follow: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Run all graphs but the vocoder: labels N, latent [N, *latent] -> mel [N, M, T]; the rest as for `latents`."""
        with blamed(self.instrument):
            if self.instrument.kind == "gan":
                numbers = np.array([self.labels.index(label) for label in labels], np.int64)
                at_once = -(-len(labels) // self._threads)
                return np.concatenate(self._run("generator", {"latent": latent, "label": numbers}, at_once))
            latents = self.latents(labels, latent, followed, follow)
            channels = self.sessions["decoder"].get_inputs()[1].shape[2]  # of the noise of a frame
            fine = latent[:, :, latents.shape[2] :].reshape(len(latent), -1, channels)
            return np.concatenate(self._run("decoder", {"latents": latents, "noise": fine}))

    def latents(
        self,
        labels: list[str],
        latent: NDArray[np.float32],  # [N, *latent]
        followed: NDArray[np.float32] | None = None,  # [N, P, D]
        follow: NDArray[np.float32] | None = None,  # [N]
    ) -> NDArray[np.float32]:
        """Return what an instrument of kind "patches" draws from noise, [N, P, D]; `stream.draw` describes the arguments."""
        numbers = np.array([self.labels.index(label) for label in labels], np.int64)
        with blamed(self.instrument):
            width = self.sessions["decoder"].get_inputs()[0].shape[2]
            return draw(self.sessions["next"], numbers, latent[:, :, :width], self._threads, followed, follow)

    def vocode(self, mel: NDArray[np.float32]) -> Iterator[Wave]:
        """Run the vocoder: mel [N, M, T] -> N waves [L]."""
        waves = self._run("vocoder", {"mel": mel})  # N times [1, L]
        for wave in waves:
            if wave.ndim != 2 or len(wave) != 1 or not np.isfinite(wave).all():
                raise UserError(
                    f"instrument {self.instrument.name} rendered {list(wave.shape)} for a clip, or NaN: "
                    "expected a finite wave [1, L]; export it again"
                )
        for wave in waves:
            yield fit(wave[0], self.instrument.samples).copy()

    @property
    def _threads(self) -> int:
        # onnxruntime counts the machine's cores, not those this process may use.
        return self.threads or min(cores(), 16)

    def _run(self, graph: str, inputs: dict[str, NDArray], at_once: int = 1) -> list[NDArray[np.float32]]:
        """Run a graph on N clips, `at_once` in a call, the calls shared out to threads; return what each call gave.

        Decoders and vocoders get one clip a call on one thread, so that a clip cannot depend on batch or threads:
        onnxruntime splits a convolution for its threads and sums small parts in another order, and it computes exp, sin and
        cos of the last numbers of an array by another routine than the rest.
        """
        session, count = self.sessions[graph], len(next(iter(inputs.values())))
        names = [each.name for each in session.get_inputs()]  # format 1 has other names, in the same order

        def run(start: int) -> NDArray[np.float32]:
            part = {name: value[start : start + at_once] for name, value in zip(names, inputs.values(), strict=True)}
            return session.run(None, part)[0]  # pyright: ignore[reportReturnType]

        starts = range(0, count, at_once)
        workers = min(self._threads, len(starts))
        if workers == 1:
            return [run(start) for start in starts]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run, starts))

    @cached_property
    def sessions(self) -> dict[str, "InferenceSession"]:
        """The graphs, loaded on first use. Raises UserError if they are not what the kind promises."""
        return load_sessions(self.instrument, self.folder, self._threads)


def is_silent(wave: Wave) -> bool:
    """Return whether the peak of a wave is below -45 dBFS."""
    return bool(np.abs(wave).max(initial=0) < AUDIBLE)


def check_temperature(temperature: float, flag: str = "") -> None:
    """Raise UserError unless 0 <= temperature <= 10; `flag` precedes its name in the message ("--" or "")."""
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise UserError(f"{flag}temperature {temperature}: expected 0 to {MAX_TEMPERATURE:g} (0.8 to 1.2 is usual)")


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
