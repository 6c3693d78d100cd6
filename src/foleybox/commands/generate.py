"""`foleybox generate`: labels and seeds, or recipes, become sound files."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from foleybox.commands import output
from foleybox.commands.output import Files, InstrumentName, SheetFile
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.labels import find_label
from foleybox.studio.extend import check_width, finished
from foleybox.studio.recipe import find_recipe
from foleybox.studio.remake import rerender
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import BATCH, Clip, Synth, check_temperature

RECIPE_SUFFIXES = (".json", *output.FORMATS)  # of files with a recipe


@dataclass(frozen=True)
class Generate:
    """Make sounds: OUT/<Label>/<Label>_s<seed>.wav for the seeds S, S+1, ..., S+N-1 of every label.

    The same instrument, label and seed always give the same sound. `-o rain.wav` writes one sound to that file.
    A recipe (`foleybox info FILE --recipe > x.json`), or a sound file that contains one, instead of labels makes the same
    sound again: OUT/<its name>.wav.

    Example: foleybox generate dog_bark rain --count 4 --seed 100 -o out
    """

    labels: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL...|RECIPE...", help_behavior_hint="(required)")]
    "labels in any spelling (dog_bark, DogBark, 0), `all` for every label of the instrument, or recipes"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 1
    "sounds of each label"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first sound"
    temperature: Annotated[float, arg(metavar="T")] = 1.0
    "below 1: closer to the typical sound of the label; above 1: more unusual sounds"
    channels: Literal[1, 2] = 1
    "2: stereo, for rain and motors; `perform --pan` places events between left and right"
    width: Annotated[float, arg(metavar="W")] = 1.0
    "of stereo: from 0 (both channels alike) to 1 (their sum is 1 dB quieter)"
    instrument: InstrumentName = None
    "instrument to play"
    batch: Annotated[int, arg(metavar="N")] = BATCH
    "sounds rendered at once"
    sheet: SheetFile = None
    "also draw the spectrograms of the first 12 sounds of each label"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def generate(config: Generate) -> None:
    """Check everything, then render and write one file after the other; each file is complete or absent.

    Raises UserError before the first render for labels, numbers, folders, existing files and a full disk.
    """
    if any(Path(text).suffix.lower() in RECIPE_SUFFIXES for text in config.labels):
        _generate_recipes(config)
        return
    synth = Synth.load(config.instrument)
    labels = output.resolve_labels(synth, config.labels)
    _check_numbers(config)
    _check_channels(config, labels)
    total = len(labels) * config.count
    files = _files(config, total)
    check_shape(config.shape, "--", synth.instrument.seconds)
    folders = list(dict.fromkeys(_path(files, label, config.seed).parent for label in labels))
    size = config.channels * total * output.bytes_per_sound(files.format, files.subtype, config.shape, synth)
    output.check_files(files, folders, _existing(config, files, labels), size, config.shape.rate)
    pairs = ((label, seed) for label in labels for seed in _seeds(config))
    width = config.width if config.channels == 2 else None
    rendered = synth.render_many(pairs, config.batch, config.temperature)
    clips = (finished(synth, clip, config.shape, width) for clip in rendered)
    output.write_clips(files, total, ((_path(files, clip.label, clip.seed), clip) for clip in clips), config.sheet)


def _generate_recipes(config: Generate) -> None:
    """Render recipes again, as `verify` does."""
    others = [text for text in config.labels if Path(text).suffix.lower() not in RECIPE_SUFFIXES]
    if others:
        raise UserError(f"{others[0]} next to recipes: expected either labels or recipes")
    default = Generate(config.labels)
    options = [
        name
        for name in ("count", "seed", "temperature", "channels", "width")
        if getattr(config, name) != getattr(default, name)
    ]
    if options := [*options, *config.shape.asked()]:
        raise UserError(
            f"--{options[0]} with a recipe, which contains it: leave it out, or use `foleybox vary` for similar sounds"
        )
    _check_numbers(config)
    sources = [Path(text) for text in config.labels]
    recipes = [find_recipe(source) for source in sources]
    synths = {recipe.fingerprint: Synth.of(recipe, config.instrument, threads=1) for recipe in recipes}
    files = _files(config, len(sources))
    paths = (
        [files.out / f"{source.stem}.{files.format}" for source in sources]
        if not output.is_file(files.out)
        else [files.out]
    )
    if len(set(paths)) < len(paths):
        raise UserError(f"several recipes named {sources[0].stem}: expected a different name for each")
    existing = [path for path in [*paths, *filter(None, [config.sheet])] if path.exists()]
    highest = max(recipe.rate for recipe in recipes)
    output.check_files(files, {path.parent: None for path in paths}, existing, bytes=0, rate=highest)
    clips = (Clip(rerender(recipe, synths[recipe.fingerprint])[0], recipe) for recipe in recipes)
    output.write_clips(files, len(paths), zip(paths, clips), config.sheet, exact=True)


def _seeds(config: Generate) -> range:
    return range(config.seed, config.seed + config.count)


def _files(config: Generate, total: int) -> Files:
    """Return where to write; if -o names a file, in the format of its name. Raises UserError for several sounds in one file."""
    out = config.files.out
    if not output.is_file(out):
        output.check_folder(out)
        return config.files
    format = output.FORMATS[out.suffix.lower()]
    if total > 1:
        raise UserError(
            f"-o {out} is one file, and {total:,} sounds were asked for: name a folder, or ask for one sound"
        )
    if config.files.format not in ("wav", format):
        raise UserError(
            f"-o {out} and --format {config.files.format}: expected the same format, or only one of the two"
        )
    return replace(config.files, format=format)


def _path(files: Files, label: str, seed: int) -> Path:
    if output.is_file(files.out):
        return files.out
    name = safe_name(label)
    return files.out / name / f"{name}_s{seed}.{files.format}"


def _check_numbers(config: Generate) -> None:
    output.check_seeds(config.seed, config.count)
    if config.batch < 1:
        raise UserError(f"--batch {config.batch}: expected 1 or more")
    check_temperature(config.temperature, "--")
    output.check_sheet(config.sheet)


def _check_channels(config: Generate, labels: list[str]) -> None:
    """Raise UserError for a width out of range or of one channel, and for a stereo sound of a label with events."""
    check_width(config.width, "--")
    if config.channels == 1 and config.width != 1:
        raise UserError(f"--width {config.width:g} of one channel: add --channels 2")
    for label in labels if config.channels == 2 else ():
        if not ((known := find_label(label)) and known.steady):
            raise UserError(
                f"--channels 2 with {label}: expected steady labels (rain, motor); "
                f"`foleybox perform --label {known.slug if known else label} --pan 0.5` places events between left and right"
            )


def _existing(config: Generate, files: Files, labels: list[str]) -> list[Path]:
    """Return the files that exist. Folders are listed instead of looking for each seed, which may be a million."""
    found = [
        path for path in (config.sheet, files.out if output.is_file(files.out) else None) if path and path.exists()
    ]
    for label in labels if not output.is_file(files.out) else []:
        names = re.compile(rf"{re.escape(safe_name(label))}_s(\d+)\.{files.format}")
        folder = files.out / safe_name(label)
        entries = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        seeds = sorted(int(match[1]) for name in entries if (match := names.fullmatch(name)))
        found += [_path(files, label, seed) for seed in seeds if seed in _seeds(config)]
    return found
