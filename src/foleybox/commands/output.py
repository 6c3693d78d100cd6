"""What the commands that write sounds share: where files go, checks before the first render, progress, and a summary."""

import json as json_module
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import arg

from foleybox.audio import BITS, Subtype, check_format, peak_db
from foleybox.errors import UserError
from foleybox.files import make_folders
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape
from foleybox.studio.sheet import Sheet, write_png
from foleybox.studio.synth import Clip, Synth

SUFFIXES: dict[str, Literal["wav", "flac", "ogg"]] = {".wav": "wav", ".flac": "flac", ".ogg": "ogg"}
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


def is_file(out: Path) -> bool:
    """Return whether -o names a sound file, and not a folder."""
    return out.suffix.lower() in SUFFIXES and not out.is_dir()


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
    told, first = LevelReport(total), None
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


class LevelReport:
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
