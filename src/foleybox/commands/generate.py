"""`foleybox generate`: labels and seeds, or recipes, become sound files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from foleybox.audio import read_wave
from foleybox.commands import output
from foleybox.commands.output import Files, InstrumentName, SheetFile
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.labels import find_label
from foleybox.studio.extend import check_width, finished
from foleybox.studio.jobs import Job, Task, length_if_whole
from foleybox.studio.recipe import find_recipe, has_recipe
from foleybox.studio.remake import rerender
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import BATCH, Clip, Synth, check_temperature

RECIPE_SUFFIXES = (".json", *output.FORMATS)  # of files with a recipe


@dataclass(frozen=True)
class Generate:
    """Make sounds: OUT/<Label>/<Label>_s<seed>.wav for the seeds S, S+1, ..., S+N-1 of every label.

    The same instrument, label and seed always give the same sound. `-o rain.wav` writes one sound to that file, `-o -` to
    stdout. The same command again continues where it was stopped: files that are there and are what it makes are kept.
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
    "also draw the spectrograms of all sounds, in pages of 600"
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
    kept, others = _existing(config, files, labels, synth)
    size = (
        config.channels * (total - len(kept)) * output.bytes_per_sound(files.kind, files.subtype, config.shape, synth)
    )
    output.check_files(files, folders, others, size, config.shape.rate)
    pairs = [(label, range(config.seed, config.seed + config.count)) for label in labels]
    missing = ((label, seed) for label, seeds in pairs for seed in seeds if _path(files, label, seed) not in kept)
    width = config.width if config.channels == 2 else None
    rendered = synth.render_many(missing, config.batch, config.temperature)
    made = (finished(synth, clip, config.shape, width) for clip in rendered)
    if files.out == output.STDOUT:
        output.write_stdout(files, next(made))
        return

    def clips() -> Iterator[tuple[Path, Clip]]:
        for label, seeds in pairs:
            for path in (_path(files, label, seed) for seed in seeds):
                yield path, _read(path) if path in kept else next(made)

    output.write_clips(files, total, clips(), config.sheet, kept=kept)


def _read(path: Path) -> Clip:
    """Return the clip of a file that foleybox wrote."""
    return Clip(read_wave(path)[0], find_recipe(path))


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
        [files.out]
        if files.out == output.STDOUT or output.is_file(files.out)
        else [files.out / f"{source.stem}.{files.kind}" for source in sources]
    )
    if len(set(paths)) < len(paths):
        raise UserError(f"several recipes named {sources[0].stem}: expected a different name for each")
    existing = [path for path in paths if path.exists() and path != output.STDOUT]
    highest = max(recipe.rate for recipe in recipes)
    output.check_files(files, {path.parent: None for path in paths}, existing, bytes=0, rate=highest)
    clips = (Clip(rerender(recipe, synths[recipe.fingerprint])[0], recipe) for recipe in recipes)
    if files.out == output.STDOUT:
        output.write_stdout(files, next(clips), exact=True)
        return
    output.write_clips(files, len(paths), zip(paths, clips), config.sheet, exact=True)


def _files(config: Generate, total: int) -> Files:
    """Return where to write; if -o names a file, in the format of its name. Raises UserError for several sounds in one file."""
    out, asked = config.files.out, config.files.format
    to_stdout = out == output.STDOUT
    if not to_stdout and not output.is_file(out):
        output.check_folder(out)
        return config.files
    if total > 1:
        raise UserError(
            f"-o {out} is one file, and {total:,} sounds were asked for: name a folder, or ask for one sound"
        )
    if to_stdout and (config.files.json or config.sheet):
        raise UserError(f"-o - with --{'json' if config.files.json else 'sheet'}: expected one of the two, or a file")
    format = config.files.kind if to_stdout else output.FORMATS[out.suffix.lower()]
    if asked not in (None, format):
        raise UserError(f"-o {out} and --format {asked}: expected the same format, or only one of the two")
    return replace(config.files, format=format)


def _path(files: Files, label: str, seed: int) -> Path:
    if files.out == output.STDOUT or output.is_file(files.out):
        return files.out
    name = safe_name(label)
    return files.out / name / f"{name}_s{seed}.{files.kind}"


def _check_numbers(config: Generate) -> None:
    output.check_seeds(config.seed, config.count)
    if config.batch < 1:
        raise UserError(f"--batch {config.batch}: expected 1 or more")
    check_temperature(config.temperature, "--")
    output.check_sheet(config.sheet, config.files.force)


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


def _existing(config: Generate, files: Files, labels: list[str], synth: Synth) -> tuple[set[Path], list[Path]]:
    """Return the files that exist and are what the command makes, and those that are not; with --force, neither.

    Folders are listed instead of looking for each seed, which may be a million. Stereo files count as others.
    """
    found: list[tuple[Path, str, int]] = []
    seeds = range(config.seed, config.seed + config.count)
    if output.is_file(files.out):
        found = [(files.out, labels[0], config.seed)] if files.out.exists() else []
    elif files.out != output.STDOUT:
        for label in labels:
            names = re.compile(rf"{re.escape(safe_name(label))}_s(\d+)\.{files.kind}")
            folder = files.out / safe_name(label)
            entries = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            matches = sorted(int(match[1]) for name in entries if (match := names.fullmatch(name)))
            found += [(_path(files, label, seed), label, seed) for seed in matches if seed in seeds]
    if config.files.force:
        return set(), []
    job = Job(temperature=config.temperature, shape=config.shape, format=files.kind, subtype=files.subtype)
    kept, others = set(), []
    for path, label, seed in found:
        task = Task(path, seed, replace(job, label=label))
        same = config.channels == 1 and length_if_whole(path, task, synth) and not has_recipe(path, "stereo")
        kept |= {path} if same else set()
        others += [] if same else [path]
    return kept, others
