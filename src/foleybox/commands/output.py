"""Shared by the commands that write sounds: options, checks before the first render, progress, and a summary."""

import json as json_module
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import arg

from foleybox.audio import BITS, Format, Subtype, check_format, peak_db
from foleybox.errors import UserError
from foleybox.files import make_folders
from foleybox.instrument import Instrument
from foleybox.licences import NOT_FOR_DISTRIBUTION
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape
from foleybox.studio.sheet import Sheet, is_sheet
from foleybox.studio.synth import Clip, Synth

FORMATS: dict[str, Format] = {".wav": "wav", ".flac": "flac", ".ogg": "ogg"}
AUDIO_SUFFIXES = (*FORMATS, ".mp3", ".aif", ".aiff", ".m4a", ".aac", ".opus", ".wma", ".caf")  # not names of folders
STDOUT = Path("-")  # as -o: write one sound to stdout


@dataclass(frozen=True)
class Files:
    """Where the sounds are written, and in which format."""

    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("out")
    "folder to write to; with `generate` also the name of one sound file, or - for stdout"
    format: Annotated[Format | None, arg(help_behavior_hint="(default: wav, or as -o says)")] = None
    "file format"
    subtype: Subtype = "PCM_16"
    "16 bits, 24 bits, or floating point (WAV only); no effect on OGG, which is Vorbis"
    force: bool = False
    "overwrite existing files"
    json: bool = False
    "print a line of JSON for each file"

    @property
    def kind(self) -> Format:
        """The format of the files."""
        return self.format or "wav"


TERMS = {
    NOT_FOR_DISTRIBUTION: "do not publish them",
    "CC-BY-NC-4.0": "not for commercial use, credit needed",
    "CC-BY-4.0": "for any use, credit needed",
}
"terms of an instrument -> what they mean for its sounds"


SheetFile = Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: no)")]
InstrumentName = Annotated[
    str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="(default: the first that `foleybox info` lists)")
]


def is_file(out: Path) -> bool:
    """Return whether -o names a sound file rather than a folder."""
    return out.suffix.lower() in FORMATS and not out.is_dir()


# --- checks -------------------------------------------------------------------------------------------------------


def resolve_labels(synth: Synth, texts: Iterable[str]) -> list[str]:
    """Return the instrument's own names of labels in any spelling, each once; `all` stands for every label.

    Raises UserError for no label, and for one that the instrument does not play.
    """
    names = [name for text in texts for name in (synth.labels if text == "all" else [synth.resolve(text)])]
    if not names:
        raise UserError(f"no label: expected one or more of {', '.join(synth.labels)}, or `all`")
    return list(dict.fromkeys(names))


def check_seeds(seed: int, count: int) -> None:
    """Raise UserError unless `seed` and the `count` - 1 whole numbers after it are valid seeds."""
    check_seed(seed)
    if count < 1:
        raise UserError(f"--count {count}: expected 1 or more")
    if seed + count > SEEDS:
        raise UserError(f"--seed {seed} --count {count}: the last seed would exceed {SEEDS - 1}")


def check_sheet(sheet: Path | None, force: bool = False) -> None:
    """Raise UserError unless --sheet is absent, or names a PNG in a folder that can be written to.

    A contact sheet that foleybox drew is overwritten, any other file only with `force`.
    """
    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet}: expected a name that ends in .png")
    if sheet.is_dir():
        raise UserError(f"--sheet {sheet} is a folder: name a .png in it")
    if sheet.exists() and not force and not is_sheet(sheet):
        raise UserError(
            f"{sheet} exists and is no contact sheet of foleybox: add --force to overwrite it, or use another name"
        )
    make_folders([sheet.parent], f"--sheet {sheet}")


def check_folder(out: Path) -> None:
    """Raise UserError if -o is stdout or has the name of a sound file where a folder is expected."""
    if out == STDOUT:
        raise UserError("-o -: expected a folder; `generate` writes one sound to stdout")
    if out.suffix.lower() in AUDIO_SUFFIXES and not out.is_dir():
        raise UserError(
            f"-o {out} is a sound file's name: expected a folder, or with `generate` one .wav, .flac or .ogg file"
        )


def check_overwrite(existing: list[Path], force: bool, advice: str = "use another -o") -> None:
    """Raise UserError for files that would be overwritten without --force."""
    if existing and not force:
        others = f" and {len(existing) - 1:,} more exist" if existing[1:] else " exists"
        raise UserError(f"{existing[0]}{others} already: add --force to overwrite, or {advice}")


def check_files(
    files: Files, folders: Iterable[Path], existing: list[Path], bytes: float, rate: int | None = None
) -> None:
    """Check the format, the files that would be overwritten and the free space, and create the folders.

    `rate` is that of the files in Hz, None for the instrument's.
    """
    check_format(files.kind, files.subtype, rate=rate)
    check_overwrite(existing, files.force, "use another --seed or -o")
    check_space(files.out, folders, bytes)


def check_space(out: Path, folders: Iterable[Path], bytes: float) -> None:
    """Raise UserError if the disk has less than `bytes` free; create the folders and test that they can be written to."""
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if bytes > free:
        raise UserError(f"{out} has {free / 1e6:,.0f} MB free, the sounds need about {bytes / 1e6:,.0f} MB")
    make_folders(folders, "-o")


def bytes_per_sound(format: Format, subtype: Subtype, shape: Shape, synth: Synth) -> float:
    """Return about how many bytes a sound takes on the disk, at the least."""
    compression = {"wav": 1.0, "flac": 0.3, "ogg": 0.05}[format]
    seconds, rate = shape.seconds or synth.instrument.seconds, shape.rate or synth.instrument.rate
    return seconds * rate * BITS[subtype] / 8 * compression


# --- writing ------------------------------------------------------------------------------------------------------


def write_clips(
    files: Files,
    total: int,
    clips: Iterator[tuple[Path, Clip]],
    sheet: Path | None = None,
    exact: bool = False,
    kept: Container[Path] = (),
) -> None:
    """Write each clip to its path as soon as it is rendered, and print a summary.

    `exact`: as its recipe states it. Clips whose path is in `kept` are files that exist: they are only drawn on the sheet.
    """
    drawn = Sheet(sheet) if sheet else None
    levels, first, existed = LevelReport(total), None, 0
    shortest, longest = math.inf, 0.0  # seconds
    try:
        with progress(total, lines=files.json) as advance:
            for path, clip in clips:
                first = first or path
                seconds = len(clip.wave) / clip.rate
                shortest, longest = min(shortest, seconds), max(longest, seconds)
                if drawn:
                    number = re.search(r"_([vwm]\d+)$", path.stem)  # of a variation, a walk, a morph
                    drawn.add(clip, number[1] if number else "")
                if path in kept:
                    existed += 1
                else:
                    gain = clip.save(path, files.subtype, exact=exact)
                    levels.add(clip, gain)
                    if files.json:
                        print_json(path, clip, gain)
                advance(clip.label)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {levels.done + existed:,} of {total:,} files; those in {files.out} are complete"
        ) from None
    levels.total = levels.done
    levels.print()
    pages = drawn.close() if drawn else []
    if not files.json:
        length = " to ".join(dict.fromkeys((f"{shortest:.3g}", f"{longest:.3g}")))
        where = files.out if first == files.out else f"{files.out}/ (the first: {first})"
        there = f"; {existed:,} of them existed" if existed else ""
        print(f"wrote {total:,} sound{'s' * (total > 1)} of {length} s to {where}{there}")
        if pages:
            more = f" to {pages[-1].name}" if pages[1:] else ""
            print(f"drew {pages[0]}{more}")


def write_stdout(files: Files, clip: Clip, exact: bool = False) -> None:
    """Write a clip to stdout as a sound file. Raises UserError if that is a terminal."""
    if sys.stdout.isatty():
        raise UserError("-o - writes a sound to stdout, which is a terminal: pipe it to a program or a file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sound.{files.kind}"
        clip.save(path, files.subtype, exact=exact)
        sys.stdout.buffer.write(path.read_bytes())
    sys.stdout.flush()


class LevelReport:
    """Counts the sounds that did not get the loudness that was asked for."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.quieter, self.most, self.lufs = 0, 0.0, 0.0  # sounds, LU, LUFS

    def add(self, clip: Clip, gain: float = 1.0) -> None:
        """Count a clip that was written."""
        self.done += 1
        for step in clip.recipe.process:
            if "withheld" in step:
                self.quieter, self.most = self.quieter + 1, max(self.most, step["withheld"])
        self.lufs = min(self.lufs, clip.recipe.asked.get("lufs", 0.0))

    def print(self) -> None:
        """Print a line on stderr if the true-peak ceiling kept sounds below the loudness, with one that all can have."""
        if self.quieter:
            print(
                f"foleybox: {self.quieter:,} of {self.total:,} sounds are up to {self.most:.1f} dB quieter than "
                f"--lufs {self.lufs:g}, because their peaks reach the ceiling; "
                f"--lufs {math.floor(self.lufs - self.most):g} makes all equally loud",
                file=sys.stderr,
            )


def print_terms(instrument: Instrument) -> None:
    """Print the terms of an instrument's sounds as one line on stderr; for commands whose files are published."""
    terms = instrument.licence.terms
    meaning = f", {TERMS[terms]}" if terms in TERMS else ""
    print(
        f"foleybox: sounds of {instrument.name} are {terms}{meaning}; foleybox info {instrument.name} says why",
        file=sys.stderr,
    )


@contextmanager
def progress(total: int, lines: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function that advances a progress bar by one and shows a text; the bar is on stderr if that is a terminal.

    There is no bar for fewer than two. `lines`: whether lines are printed on stdout meanwhile; if that is a terminal too,
    they show the progress.
    """
    if total < 2 or not sys.stderr.isatty() or (lines and sys.stdout.isatty()):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, leave=False, dynamic_ncols=True, file=sys.stderr) as bar:

        def advance(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        yield advance


def print_json(path: Path, clip: Clip, gain: float, **more: int) -> None:
    """Print the facts of a file that was just written with a gain as a line of JSON."""
    peak = peak_db(clip.wave * np.float32(gain))
    facts = {
        "file": str(path),
        "label": clip.label,
        "seed": clip.seed,
        "rate": clip.rate,
        "seconds": round(len(clip.wave) / clip.rate, 4),
        "peak_db": round(peak, 2) + 0.0 if math.isfinite(peak) else None,
    }
    print(json_module.dumps(facts | more, ensure_ascii=False), flush=True)
