"""`foleybox generate`: labels and seeds become sound files. And what every verb that writes sounds shares: `Files`."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands.output import (
    SUFFIXES,
    Files,
    Sheets,
    Source,
    check_files,
    check_folder,
    check_seeds,
    check_sheet,
    is_file,
    size,
    write_clips,
)
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.studio.extend import finished
from foleybox.studio.recipe import find_recipe
from foleybox.studio.remake import again
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import BATCH, Clip, Synth, check_temperature

RECIPES = (".json", *SUFFIXES)  # what carries a recipe


@dataclass(frozen=True)
class Generate:
    """Make sounds: OUT/<Label>/<Label>_s<seed>.wav for the seeds S, S+1, ..., S+N-1 of every label.

    The same instrument, label and seed always make the same sound. `-o rain.wav` is one sound, in that very file.
    A recipe (`foleybox info FILE --recipe > x.json`) or a file that carries one, in place of labels, makes that very
    sound again: OUT/<its name>.wav.

    Example: foleybox generate dog_bark rain --count 4 --seed 100 -o out
    """

    labels: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL...|RECIPE...", help_behavior_hint="(required)")]
    "what to make, in any spelling (dog_bark, DogBark, 0); `all` for every label of the instrument; or recipes"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 1
    "sounds of each label"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first sound"
    temperature: float = 1.0
    "below 1: nearer to the typical sound of the label; above 1: further out"
    instrument: Source = None
    "instrument to play"
    batch: int = BATCH
    "sounds rendered at once"
    sheet: Sheets = None
    "also draw a contact sheet of the spectrograms (the first 12 sounds of each label)"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def generate(config: Generate) -> None:
    """Check everything, then render and write file by file; a file is whole or absent, whenever it stops.

    Raises UserError before the first render for labels, numbers, folders, existing files and lacking disk space.
    """
    if any(Path(text).suffix.lower() in RECIPES for text in config.labels):
        _generate_again(config)
        return
    synth = Synth.load(config.instrument)
    labels = _labels(config, synth)
    _check_numbers(config)
    total = len(labels) * config.count
    if is_file(config.files.out):
        config = _one_file(config, total)
    else:
        check_folder(config.files.out)
    seconds = config.shape.seconds or synth.instrument.seconds
    check_shape(config.shape, "--", synth.instrument.seconds)
    check_files(
        config.files, {_path(config, label, config.seed).parent: None for label in labels},
        existing=_existing(config, labels), bytes=total * seconds * size(config.files, config.shape, synth),
        rate=config.shape.rate,
    )  # fmt: skip
    pairs = ((label, seed) for label in labels for seed in _seeds(config))
    clips = (finished(synth, clip, config.shape) for clip in synth.render_many(pairs, config.batch, config.temperature))
    write_clips(config.files, total, ((_path(config, clip.label, clip.seed), clip) for clip in clips), config.sheet)


def _generate_again(config: Generate) -> None:
    """Make the very sounds of some recipes again, as `verify` does."""
    others = [text for text in config.labels if Path(text).suffix.lower() not in RECIPES]
    if others:
        raise UserError(f"{others[0]} beside recipes: expected labels alone, or recipes alone")
    plain = Generate(config.labels)
    knobs = ("count", "seed", "temperature")
    said = [knob for knob in knobs if getattr(config, knob) != getattr(plain, knob)] + list(config.shape.asked())
    if said:
        raise UserError(
            f"--{said[0]} with a recipe, which says that itself: drop it, or use `foleybox vary` for others like it"
        )
    _check_numbers(config)
    sources = [Path(text) for text in config.labels]
    recipes = [find_recipe(source) for source in sources]
    synths = {recipe.fingerprint: Synth.of(recipe, config.instrument, threads=1) for recipe in recipes}
    if is_file(config.files.out):
        config = _one_file(config, len(sources))
        paths = [config.files.out]
    else:
        check_folder(config.files.out)
        paths = [config.files.out / f"{source.stem}.{config.files.format}" for source in sources]
    if len(set(paths)) < len(paths):
        raise UserError(f"two recipes named {sources[0].stem} or alike: expected another name for each")
    existing = [path for path in [*paths, *filter(None, [config.sheet])] if path.exists()]
    highest = max(recipe.rate for recipe in recipes)
    check_files(config.files, {path.parent: None for path in paths}, existing, bytes=0, rate=highest)
    clips = (Clip(again(recipe, synths[recipe.fingerprint])[0], recipe) for recipe in recipes)
    write_clips(config.files, len(paths), zip(paths, clips), config.sheet)


def _labels(config: Generate, synth: Synth) -> list[str]:
    """Return the instrument's names of the asked labels, each once."""
    if not config.labels:
        raise UserError(f"no label: expected one or more of {', '.join(synth.labels)}, or `all`")
    names = synth.labels if "all" in config.labels else [synth.resolve(label) for label in config.labels]
    return list(dict.fromkeys(names))


def _seeds(config: Generate) -> range:
    return range(config.seed, config.seed + config.count)


def _one_file(config: Generate, total: int) -> Generate:
    """Return the settings with the format that the file's name says. Raises UserError for more than one sound."""
    out, format = config.files.out, SUFFIXES[config.files.out.suffix.lower()]
    if total > 1:
        raise UserError(
            f"-o {out} is one file, and {total:,} sounds were asked for: name a folder, or ask for one sound"
        )
    if config.files.format not in ("wav", format):
        raise UserError(f"-o {out} and --format {config.files.format}: expected one of them, or both alike")
    return replace(config, files=replace(config.files, format=format))


def _path(config: Generate, label: str, seed: int) -> Path:
    if is_file(config.files.out):
        return config.files.out
    name = safe_name(label)
    return config.files.out / name / f"{name}_s{seed}.{config.files.format}"


def _check_numbers(config: Generate) -> None:
    check_seeds(config.seed, config.count)
    if config.batch < 1:
        raise UserError(f"--batch {config.batch}: expected 1 or more")
    check_temperature(config.temperature, "--")
    check_sheet(config.sheet)


def _existing(config: Generate, labels: list[str]) -> list[Path]:
    """Return the files in the way. Folders are listed, not probed seed by seed: there may be a million seeds."""
    found = [config.sheet] if config.sheet and config.sheet.exists() else []
    if is_file(config.files.out):
        return [*found, *([config.files.out] if config.files.out.exists() else [])]
    for label in labels:
        names = re.compile(rf"{re.escape(safe_name(label))}_s(\d+)\.{config.files.format}")
        folder = config.files.out / safe_name(label)
        entries = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        seeds = sorted(int(match[1]) for name in entries if (match := names.fullmatch(name)))
        found += [_path(config, label, seed) for seed in seeds if seed in _seeds(config)]
    return found
