"""`foleybox generate`: labels and seeds become sound files."""

import json as json_module
import re
import shutil
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from foleybox.audio import BITS, Subtype, peak_db
from foleybox.doors import UserError
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.sheet import Sheet, write_png
from foleybox.studio.synth import BATCH, Clip, Synth

if TYPE_CHECKING:
    from rich.progress import Progress

SHEET_COLUMNS = 12  # as the help of --sheet says


@dataclass(frozen=True)
class Generate:
    """Make sounds: OUT/<Label>/<Label>_s<seed>.wav for the seeds S, S+1, ..., S+N-1 of every label.

    The same instrument, label and seed always make the same sound.

    Example: foleybox generate dog_bark rain --count 4 --seed 100 -o out
    """

    labels: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL...", help_behavior_hint="(required)")]
    "what to make, in any spelling (dog_bark, DogBark, 0); `all` for every label of the instrument"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 1
    "sounds of each label"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first sound"
    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("out")
    "folder to write to"
    instrument: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="(default: the one that ships)")] = None
    "instrument to play"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: the instrument's)")] = None
    "resample to this rate"
    format: Literal["wav", "flac", "ogg"] = "wav"
    "kind of file"
    subtype: Subtype = "PCM_16"
    "16 or 24 bits, or float (WAV only); ogg is Vorbis"
    temperature: float = 1.0
    "below 1: nearer to the typical sound of the label; above 1: further out"
    batch: int = BATCH
    "sounds rendered at once"
    force: bool = False
    "overwrite existing files"
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: no)")] = None
    "also draw a contact sheet of the spectrograms (the first 12 seeds of each label)"
    json: bool = False
    "print a line of JSON for each file"


def generate(config: Generate) -> None:
    """Check everything, then render and write file by file; a file is whole or absent, whenever it stops.

    Raises UserError before the first render for labels, numbers, folders, existing files and lacking disk space.
    """
    synth = Synth.load(config.instrument)
    labels = _labels(config, synth)
    _check_numbers(config)
    total = len(labels) * config.count
    _check_disk(config, labels, synth)

    pairs = ((label, seed) for label in labels for seed in _seeds(config))
    sheet = Sheet() if config.sheet else None
    done, lowered, loudest = 0, 0, 0.0
    try:
        with _progress(total) as bar:
            task = bar.add_task("", total=total) if bar else None
            for clip in synth.render_many(pairs, config.batch, config.temperature):
                shaped = clip if config.rate is None else clip.resampled(config.rate)
                path = _path(config, clip.label, clip.seed)
                gain = shaped.save(path, config.subtype)
                done += 1
                lowered += gain < 1
                loudest = max(loudest, 1 / gain)
                if sheet and clip.seed - config.seed < SHEET_COLUMNS:
                    sheet.add(shaped)
                if config.json:
                    print(_line(path, shaped), flush=True)
                if bar and task is not None:
                    bar.update(task, advance=1, description=clip.label)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped after {done:,} of {total:,} files; those in {config.out} are whole") from None
    if sheet and config.sheet:
        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        write_png(config.sheet, sheet.image())
    if lowered:
        print(
            f"foleybox: {lowered:,} of {total:,} sounds went above full scale and were turned down (the loudest by "
            f"{loudest:.2f} times)",
            file=sys.stderr,
        )
    if not config.json:
        seconds = synth.instrument.seconds
        first = _path(config, labels[0], config.seed)
        print(f"wrote {total:,} sound{'s' * (total > 1)} of {seconds:.3g} s to {config.out}/ (the first: {first})")
        if config.sheet:
            print(f"drew {config.sheet}")


def _labels(config: Generate, synth: Synth) -> list[str]:
    """Return the instrument's names of the asked labels, each once."""
    if not config.labels:
        raise UserError(f"no label: expected one or more of {', '.join(synth.labels)}, or `all`")
    names = synth.labels if "all" in config.labels else [synth.resolve(label) for label in config.labels]
    return list(dict.fromkeys(names))


def _seeds(config: Generate) -> range:
    return range(config.seed, config.seed + config.count)


def _path(config: Generate, label: str, seed: int) -> Path:
    return config.out / label / f"{label}_s{seed}.{config.format}"


def _check_numbers(config: Generate) -> None:
    check_seed(config.seed)
    if config.count < 1:
        raise UserError(f"--count {config.count}: expected 1 or more")
    if config.seed + config.count > SEEDS:
        raise UserError(f"--seed {config.seed} --count {config.count}: the last seed would exceed {SEEDS - 1}")
    if config.rate is not None and not 1_000 <= config.rate <= 768_000:
        raise UserError(f"--rate {config.rate}: expected 1000 to 768000 Hz")
    if config.format == "flac" and config.subtype == "FLOAT":
        raise UserError("--format flac --subtype FLOAT: FLAC holds whole numbers; expected PCM_16 or PCM_24, or wav")
    if config.batch < 1:
        raise UserError(f"--batch {config.batch}: expected 1 or more")
    if not 0 <= config.temperature < float("inf"):
        raise UserError(f"--temperature {config.temperature}: expected 0 or more")
    if config.sheet and config.sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {config.sheet}: expected a name that ends in .png")


def _existing(config: Generate, labels: list[str]) -> list[Path]:
    """Return the files in the way. Folders are listed, not probed seed by seed: there may be a million seeds."""
    found = [config.sheet] if config.sheet and config.sheet.exists() else []
    for label in labels:
        names = re.compile(rf"{re.escape(label)}_s(\d+)\.{config.format}")
        folder = config.out / label
        entries = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        seeds = sorted(int(match[1]) for name in entries if (match := names.fullmatch(name)))
        found += [_path(config, label, seed) for seed in seeds if seed in _seeds(config)]
    return found


def _check_disk(config: Generate, labels: list[str], synth: Synth) -> None:
    """See that nothing is overwritten and that there is room, make the folders, and see that they can be written to."""
    if not config.force and (existing := _existing(config, labels)):
        others = f" and {len(existing) - 1:,} more exist" if existing[1:] else " exists"
        raise UserError(f"{existing[0]}{others} already: add --force to overwrite, or use another --seed or -o")
    samples = synth.instrument.samples * (config.rate or synth.instrument.rate) / synth.instrument.rate
    share = {"wav": 1.0, "flac": 0.3, "ogg": 0.05}[config.format]  # of the plain samples, at the least
    needed = len(labels) * config.count * samples * BITS[config.subtype] / 8 * share
    there = next(folder for folder in (config.out, *config.out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{config.out} has {free / 1e6:,.0f} MB free, the sounds need some {needed / 1e6:,.0f} MB")
    try:
        for label in labels:
            (config.out / label).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=config.out / label):
                pass
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or config.out} ({error.strerror}): name another -o") from None


def _progress(total: int) -> "AbstractContextManager[Progress | None]":
    """Return a progress bar on a terminal, nothing when the output goes elsewhere or there is one sound."""
    if total < 2 or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _line(path: Path, clip: Clip) -> str:
    peak = peak_db(clip.wave)
    facts = {
        "file": str(path),
        "label": clip.label,
        "seed": clip.seed,
        "rate": clip.rate,
        "seconds": round(len(clip.wave) / clip.rate, 4),
        "peak_db": round(peak, 2) if peak > float("-inf") else None,
    }
    return json_module.dumps(facts, ensure_ascii=False)
