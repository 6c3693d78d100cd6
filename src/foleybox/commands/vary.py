"""`foleybox vary`, `morph` and `walk`: sounds near a sound that one likes, between two sounds, and on from a sound.

What they mean is in `studio/latents.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands.output import (
    MOST,
    Files,
    Sheets,
    Source,
    check_files,
    check_folder,
    check_seeds,
    check_sheet,
    size,
    write_clips,
)
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.studio import latents
from foleybox.studio.extend import finished
from foleybox.studio.latents import check_amount, check_steps
from foleybox.studio.onsets import ONE_SHOT, one_shot
from foleybox.studio.recipe import Json, Recipe, find_recipe
from foleybox.studio.seeds import check_seed
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import BATCH, Clip, Synth


@dataclass(frozen=True)
class Vary:
    """Make neighbours of a sound that you like: OUT/<name>_v<seed>.wav for the seeds S, S+1, ..., S+N-1.

    They are treated as the sound was (its recipe says how: trimmed, cut, as loud); the flags below change that.

    Example: foleybox vary rain:7 --amount 0.2 --count 8 -o out
    """

    source: Annotated[Positional[str], arg(metavar="FILE|RECIPE|LABEL:SEED")]
    "a sound file of ours, a recipe (`foleybox info FILE --recipe > x.json`), or a label and a seed"
    amount: Annotated[float, arg(aliases=["-a"])] = 0.2
    "how far off: 0 is the same sound, 0.2 a sibling, 1 any sound of the label"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 8
    "how many"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first"
    instrument: Source = None
    "instrument to play"
    sheet: Sheets = None
    "also draw a contact sheet of the spectrograms (the first 12)"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def vary(config: Vary) -> None:
    """Write the neighbours of a sound. Raises UserError before the first render."""
    check_seeds(config.seed, config.count)
    check_many("--count", config.count)
    check_amount(config.amount)
    synth, recipe, name = find_source(config.source, config.instrument)
    clips = latents.vary(synth, _drawn(recipe), config.amount, config.seed, min(config.count, BATCH))
    names = [f"{name}_v{seed}" for seed in range(config.seed, config.seed + config.count)]
    _write(config, synth, recipe, names, clips)


@dataclass(frozen=True)
class Morph:
    """Go from one sound to another in even steps: OUT/<one>-<other>_m0.wav, _m1.wav, ..., the two themselves first and last.

    Two sounds of one label are joined through sounds of that label. Between two labels both are played and their
    spectra mixed: in the middle you hear one sound with the timbre of either, not one over the other.

    Example: foleybox morph rain:2 motor:3 --steps 5 -o out
    """

    one: Annotated[Positional[str], arg(metavar="ONE")]
    "a sound file of ours, a recipe, or LABEL:SEED"
    other: Annotated[Positional[str], arg(metavar="OTHER")]
    "another"
    steps: Annotated[int, arg(aliases=["-n"], metavar="N")] = 9
    "how many sounds, the two among them"
    instrument: Source = None
    "instrument to play"
    sheet: Sheets = None
    "also draw a contact sheet of the spectrograms (the first 12)"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def morph(config: Morph) -> None:
    """Write the sounds between two. Raises UserError before the first render."""
    synth, recipe, name = find_source(config.one, config.instrument)
    _, other, other_name = find_source(config.other, config.instrument)
    if other.fingerprint != recipe.fingerprint:
        raise UserError(f"{config.one} is of {recipe.instrument}, {config.other} of another instrument: expected one")
    check_steps(config.steps)
    check_many("--steps", config.steps)
    clips = latents.morph(synth, _drawn(recipe), _drawn(other), config.steps)
    names = [f"{name}-{other_name}_m{step:0{len(str(config.steps - 1))}}" for step in range(config.steps)]
    _write(config, synth, recipe, names, clips)


@dataclass(frozen=True)
class Walk:
    """Walk on from a sound, each step to a neighbour of the one before: OUT/<name>_w0.wav (the sound), _w1.wav, ...

    Example: foleybox walk rain:7 --amount 0.1 --steps 20 -o out
    """

    source: Annotated[Positional[str], arg(metavar="FILE|RECIPE|LABEL:SEED")]
    "a sound file of ours, a recipe, or a label and a seed"
    amount: Annotated[float, arg(aliases=["-a"])] = 0.1
    "length of a step: 0 stays, 1 jumps anywhere"
    steps: Annotated[int, arg(aliases=["-n"], metavar="N")] = 9
    "how many sounds, the first among them"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "which way to go"
    instrument: Source = None
    "instrument to play"
    sheet: Sheets = None
    "also draw a contact sheet of the spectrograms (the first 12)"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def walk(config: Walk) -> None:
    """Write the sounds of a walk. Raises UserError before the first render."""
    check_amount(config.amount)
    check_steps(config.steps)
    check_many("--steps", config.steps)
    synth, recipe, name = find_source(config.source, config.instrument)
    clips = latents.walk(synth, _drawn(recipe), config.amount, check_seed(config.seed))
    names = [f"{name}_w{step:0{len(str(config.steps - 1))}}" for step in range(config.steps)]
    _write(config, synth, recipe, names, clips)


def check_many(flag: str, count: int) -> None:
    """Raise UserError for more sounds than `MOST`: their names are listed before the first is made."""
    if count > MOST:
        raise UserError(f"{flag} {count:,}: expected {MOST:,} at most")


def find_source(text: str, instrument: str | None) -> tuple[Synth, Recipe, str]:
    """Return the instrument, the recipe and a name of a sound: a file that carries a recipe, a recipe, or LABEL:SEED."""
    path = Path(text)
    if path.is_file():
        recipe = find_recipe(path)
        try:
            synth = Synth.of(recipe, instrument)
            latents.point(_drawn(recipe), synth)  # a loop or a scene is none
            return synth, recipe, path.stem
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    synth = Synth.load(instrument)
    label, colon, seed = text.rpartition(":")
    if not colon or not seed.isascii() or not seed.isdigit():
        raise UserError(
            f"no file {text}: expected a sound file of ours, a recipe (.json), or LABEL:SEED such as rain:7"
        )
    recipe = synth.render(label, int(seed)).recipe
    return synth, recipe, f"{safe_name(recipe.label)}_s{recipe.seed}"


def _drawn(recipe: Recipe) -> Json:
    """Return the make that was drawn: a longer sound is built of neighbours of one."""
    return recipe.make["of"] if recipe.make["do"] == "extend" else recipe.make


def _write(config: Vary | Morph | Walk, synth: Synth, recipe: Recipe, names: list[str], clips: Iterator[Clip]) -> None:
    asked = {**recipe.asked, **config.shape.asked()}
    cut_out = asked.pop("kind", "") == ONE_SHOT
    shape = Shape(**asked)
    check_shape(shape, "--", synth.instrument.seconds)

    def treated(clip: Clip) -> Clip:
        return one_shot(clip)[0].shaped(shape) if cut_out else finished(synth, clip, shape)

    files, paths = config.files, [config.files.out / f"{name}.{config.files.format}" for name in names]
    check_sheet(config.sheet)
    check_folder(files.out)
    check_files(
        files, [files.out], existing=[path for path in [*paths, *filter(None, [config.sheet])] if path.exists()],
        bytes=len(paths) * (shape.seconds or synth.instrument.seconds) * size(files, shape, synth), rate=shape.rate,
    )  # fmt: skip
    write_clips(files, len(paths), ((path, treated(clip)) for path, clip in zip(paths, clips)), config.sheet)
