"""`foleybox generate`: labels and seeds become sound files. And what every verb that writes sounds shares: `Files`."""

import json as json_module
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import Positional, arg

from foleybox.audio import BITS, HIGHEST, Subtype, peak_db
from foleybox.doors import UserError, make_folders
from foleybox.studio.extend import finished
from foleybox.studio.recipe import find_recipe
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.sheet import Sheet, write_png
from foleybox.studio.synth import BATCH, Clip, Synth, check_temperature

SUFFIXES: dict[str, Literal["wav", "flac", "ogg"]] = {".wav": "wav", ".flac": "flac", ".ogg": "ogg"}
RECIPES = (".json", *SUFFIXES)  # what carries a recipe
SOUNDS = (*SUFFIXES, ".mp3", ".aif", ".aiff", ".m4a", ".aac", ".opus", ".wma", ".caf")  # no names of folders
SHEET_COLUMNS = 12  # as the help of --sheet says


@dataclass(frozen=True)
class Files:
    """Where the sounds go, and as what."""

    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("out")
    "folder to write to (of `generate` also a file, for one sound)"
    format: Literal["wav", "flac", "ogg"] = "wav"
    "kind of file"
    subtype: Subtype = "PCM_16"
    "16 or 24 bits, or float (WAV only); ogg is Vorbis"
    force: bool = False
    "overwrite existing files"
    json: bool = False
    "print a line of JSON for each file"


Sheets = Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: no)")]
Source = Annotated[
    str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="(default: the first that `foleybox info` lists)")
]


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
    from foleybox.studio.verify import again

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


def is_file(out: Path) -> bool:
    """Return whether -o names a sound file, and not a folder."""
    return out.suffix.lower() in SUFFIXES and not out.is_dir()


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


def safe_name(text: str) -> str:
    """Return a label as a file name: what some system forbids in one becomes `_`."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]|^\.+', "_", text)


def _check_numbers(config: Generate) -> None:
    check_seeds(config.seed, config.count)
    if config.batch < 1:
        raise UserError(f"--batch {config.batch}: expected 1 or more")
    check_temperature(config.temperature, "--")
    check_sheet(config.sheet)


def check_seeds(seed: int, count: int) -> None:
    """Raise UserError unless `count` seeds from `seed` on are seeds."""
    check_seed(seed)
    if count < 1:
        raise UserError(f"--count {count}: expected 1 or more")
    if seed + count > SEEDS:
        raise UserError(f"--seed {seed} --count {count}: the last seed would exceed {SEEDS - 1}")


MOST = 1_000_000  # sounds of one line of a table, or of one sound's neighbours


def check_sheet(sheet: Path | None) -> None:
    """Raise UserError unless the sheet, if any, is a PNG that can be written."""
    if sheet and sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet}: expected a name that ends in .png")
    if sheet and sheet.is_dir():
        raise UserError(f"--sheet {sheet} is a folder: name a .png in it")
    if sheet:
        make_folders([sheet.parent], f"--sheet {sheet}")


def check_format(format: str, subtype: Subtype, flag: str = "--", rate: int | None = None) -> None:
    """Raise UserError for a kind of file that cannot hold such samples, or at such a rate."""
    if rate is not None and rate > HIGHEST.get(format, rate):
        raise UserError(f"{flag}rate {rate} {flag}format {format}: expected {HIGHEST[format]:,} Hz or less, or wav")
    if format == "flac" and subtype == "FLOAT":
        raise UserError(
            f"{flag}format flac {flag}subtype FLOAT: FLAC holds whole numbers; expected PCM_16 or PCM_24, or wav"
        )
    if format == "ogg" and subtype != "PCM_16":
        raise UserError(
            f"{flag}format ogg {flag}subtype {subtype}: OGG is Vorbis, which counts no bits; drop the subtype"
        )


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


# --- what every verb that writes sounds shares --------------------------------------------------------------------


def size(files: Files, shape: Shape, synth: Synth) -> float:
    """Return how many bytes a second of sound takes at the least."""
    share = {"wav": 1.0, "flac": 0.3, "ogg": 0.05}[files.format]  # of the plain samples
    return (shape.rate or synth.instrument.rate) * BITS[files.subtype] / 8 * share


def check_folder(out: Path) -> None:
    """Raise UserError if -o has a sound file's name where a folder is meant."""
    if out.suffix.lower() in SOUNDS and not out.is_dir():
        raise UserError(
            f"-o {out} is a sound file's name: expected a folder, or of `generate` one .wav, .flac or .ogg file"
        )


def check_files(
    files: Files, folders: Iterable[Path], existing: list[Path], bytes: float, rate: int | None = None
) -> None:
    """See that nothing is overwritten and that there is room, make the folders, and see that they can be written to.

    `rate`: that of the files, if another than the instrument's is asked for.
    """
    check_format(files.format, files.subtype, rate=rate)
    if not files.force and existing:
        others = f" and {len(existing) - 1:,} more exist" if existing[1:] else " exists"
        raise UserError(f"{existing[0]}{others} already: add --force to overwrite, or use another --seed or -o")
    check_room(files.out, folders, bytes)


def check_room(out: Path, folders: Iterable[Path], bytes: float) -> None:
    """Raise UserError if the disk lacks room for so many bytes; make the folders, and see that they can be written to."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if bytes > free:
        raise UserError(f"{out} has {free / 1e6:,.0f} MB free, the sounds need some {bytes / 1e6:,.0f} MB")
    make_folders(folders, "-o")


def write_clips(files: Files, total: int, clips: Iterator[tuple[Path, Clip]], sheet: Path | None = None) -> None:
    """Write each clip to its path as it comes, and say what was written."""
    pictures = Sheet() if sheet else None
    told, first = Told(total), None
    shortest, longest = float("inf"), 0.0  # seconds
    try:
        with progress(total, lines=files.json) as bar:
            for path, clip in clips:
                gain = clip.save(path, files.subtype)
                told.add(clip, gain)
                first = first or path
                seconds = len(clip.wave) / clip.rate
                shortest, longest = min(shortest, seconds), max(longest, seconds)
                if pictures and len(pictures.rows.get(clip.label, [])) < SHEET_COLUMNS:
                    pictures.add(clip)
                if files.json:
                    print(_line(path, clip, gain), flush=True)
                bar(clip.label)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {told.done:,} of {total:,} files; those in {files.out} are whole"
        ) from None
    told.tell()
    if pictures and sheet:
        write_png(sheet, pictures.image())
    if not files.json:
        length = " to ".join(dict.fromkeys((f"{shortest:.3g}", f"{longest:.3g}")))
        place = files.out if first == files.out else f"{files.out}/ (the first: {first})"
        print(f"wrote {total:,} sound{'s' * (total > 1)} of {length} s to {place}")
        if sheet:
            print(f"drew {sheet}")


class Told:
    """Counts what a user should be told about the levels of some sounds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.lowered, self.loudest = 0, 0.0
        self.withheld: list[float] = []

    def add(self, clip: Clip, gain: float) -> None:
        self.done += 1
        self.lowered += gain < 1
        self.loudest = max(self.loudest, 1 / gain)
        self.withheld += [step["withheld"] for step in clip.recipe.process if "withheld" in step]

    def tell(self) -> None:
        """Say so on stderr, a line for each."""
        if self.lowered:
            print(
                f"foleybox: {self.lowered:,} of {self.total:,} sounds went above full scale and were turned down "
                f"(the loudest by {self.loudest:.2f} times)",
                file=sys.stderr,
            )
        if self.withheld:
            print(
                f"foleybox: {len(self.withheld):,} of {self.total:,} sounds stay below the loudness asked for (by up to "
                f"{max(self.withheld):.1f} LU): their true peak may not pass the ceiling",
                file=sys.stderr,
            )


@contextmanager
def progress(total: int, lines: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield what moves a progress bar on by one; there is a bar on a terminal, for more than one, on stderr.

    `lines`: whether lines are printed on stdout meanwhile; if that is a terminal too, they are the progress.
    """
    if total < 2 or not sys.stderr.isatty() or (lines and sys.stdout.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    # Not redirected: lines for a pipe would end up on the terminal.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def _line(path: Path, clip: Clip, gain: float) -> str:
    peak = peak_db(clip.wave * np.float32(gain))  # as the file has it
    facts = {
        "file": str(path),
        "label": clip.label,
        "seed": clip.seed,
        "rate": clip.rate,
        "seconds": round(len(clip.wave) / clip.rate, 4),
        "peak_db": round(peak, 2) + 0.0 if peak > float("-inf") else None,
    }
    return json_module.dumps(facts, ensure_ascii=False)
