"""`foleybox data check`: examine a folder of recordings before training on it."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from foleybox.audio import read_wave
from foleybox.errors import UserError
from foleybox.files import check_writable, write_text
from foleybox.lab.core.clips import SUFFIXES, ClipFile, find_clips
from foleybox.labels import LABELS


@dataclass(frozen=True)
class DataCheck:
    """Read every clip of a folder and report problems for training. No file is changed.

    Example: foleybox data check my_sounds/
    """

    source: tyro.conf.Positional[str]
    "a folder of class folders, or one with manifest.csv; `folder:split` for one split"
    seconds: float = 4.0
    "length to which training cuts or pads clips"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "also write the report to this file"


@dataclass
class Findings:
    """The result of `inspect`: file names by problem."""

    clips: int = 0
    other: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    rates: dict[int, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    long: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)


AUDIO_SUFFIXES = SUFFIXES | {".m4a", ".aac", ".wma", ".opus", ".mp4", ".webm", ".caf", ".raw"}
SHORT_SECONDS = 0.1
SILENT_DB = -60.0
CLIPPED_RUN = 8  # consecutive samples at full scale


def inspect(clips: Sequence[ClipFile], folder: Path, seconds: float) -> Findings:
    """Read every clip and collect its problems."""
    found = Findings(clips=sum(clip.label is not None for clip in clips))
    found.other = [_short_name(clip.path, folder) for clip in clips if clip.label is None]
    clips = [clip for clip in clips if clip.label is not None]
    found.labels = dict(Counter(clip.label.name for clip in clips if clip.label))
    same: dict[str, list[str]] = {}
    lock = Lock()

    def examine(clip: ClipFile) -> None:
        name = _short_name(clip.path, folder)
        try:
            wave, rate = read_wave(clip.path)
        except UserError as error:
            found.unreadable[name] = str(error)
            return
        peak = float(np.abs(wave).max())
        checks = {
            "silent": peak < 10 ** (SILENT_DB / 20),
            "clipped": peak >= 0.999 and _longest_run(np.abs(wave) >= 0.999 * peak) >= CLIPPED_RUN,
            "short": len(wave) < SHORT_SECONDS * rate,
            "long": len(wave) > seconds * rate * 1.001,
        }
        digest = hashlib.sha256(wave.tobytes()).hexdigest()
        with lock:
            found.rates[rate] = found.rates.get(rate, 0) + 1
            same.setdefault(digest, []).append(name)
            for problem, applies in checks.items():
                if applies:
                    getattr(found, problem).append(name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(examine, clips))
    for names in (found.silent, found.clipped, found.short, found.long, *same.values()):
        names.sort()
    found.duplicates = sorted(names for names in same.values() if len(names) > 1)
    return found


def _short_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.view(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def check(config: DataCheck) -> int:
    """Print the report of `inspect`; return 0 if every clip can be read and every label found has two clips, else 1."""
    folder = Path(config.source) if Path(config.source).exists() else Path(config.source.rsplit(":", 1)[0])
    check_writable(config.json)
    find_clips(config.source)  # raises UserError for a folder without clips of the seven labels
    found = inspect(find_clips(config.source, any_label=True), folder, config.seconds)
    known = {clip.path.resolve() for clip in find_clips(folder, any_label=True)}
    unread = [
        _short_name(path, folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES and path.resolve() not in known
    ]
    print(f"{found.clips} clips in {folder}")
    for label in LABELS:
        if count := found.labels.get(label.name, 0):
            print(f"  {label.name:20} {count:5}")
    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in sorted(found.rates.items()))
    print(f"  rates: {rates or 'none readable'}")
    missing = [label.name for label in LABELS if label.name not in found.labels]
    single = [name for name, count in found.labels.items() if count < 2]
    problems: list[tuple[str, Sequence[str]]] = [
        ("unreadable", [f"{name}: {problem}" for name, problem in found.unreadable.items()]),
        (f"silent (peak under {SILENT_DB:g} dBFS)", found.silent),
        (f"clipped ({CLIPPED_RUN} or more samples in a row at full scale)", found.clipped),
        (f"short (under {SHORT_SECONDS:g} s)", found.short),
        (f"longer than {config.seconds:g} s: training uses the first {config.seconds:g} s", found.long),
        ("outside the seven labels, not trained on", found.other),
        ("audio files outside the class folders, or of a format that is not read", unread),
        ("exact duplicates", [" = ".join(names) for names in found.duplicates]),
        ("labels without clips", missing),
        ("labels with one clip: expected at least two", single),
    ]
    for title, names in problems:
        if names:
            print(f"{len(names)} {title}:")
            for name in names[:5]:
                print(f"  {name}")
            if len(names) > 5:
                print(f"  ... and {len(names) - 5} more" + ("" if config.json else " (--json FILE lists all)"))
    if config.json:
        write_text(config.json, json.dumps(vars(found), indent=1, ensure_ascii=False) + "\n")
    if found.unreadable or single:
        print("not ready for training: see the unreadable files and labels with one clip above", file=sys.stderr)
        return 1
    return 0
