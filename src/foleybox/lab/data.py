"""Real recordings on disk: find them, check them, split them by recording, cache their features.

Three layouts are read: a folder of class folders in any spelling (the DCASE 2023 development set among them); the same
under one `train`/`dev` style folder; a folder with `manifest.csv` or `metadata.csv` (columns `file` or `file_name`,
and `label`; `split`, `recording_id`, `licence_tier`, `licence`, `source_repo` when present).
"""

import csv
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from foleybox.audio import fit, read_wave
from foleybox.doors import UserError, make_room, write_beside, write_text
from foleybox.lab.features import LogMel, MelConfig
from foleybox.labels import LABELS, Label, find_folder_label

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
MANIFESTS = ("manifest.csv", "metadata.csv")


@dataclass(frozen=True)
class ClipFile:
    """One recording on disk and what is known of it. `label` is None for sounds outside the seven labels."""

    path: Path
    label: Label | None
    recording: str
    "clips cut from one recording share it: the unit of splitting"
    tier: str = ""
    licence: str = ""
    source: str = ""
    "the collection it is from, for credit"
    split: str = ""


def find_clips(
    source: str | Path, split: str | None = None, tiers: Sequence[str] | None = None, any_label: bool = False
) -> list[ClipFile]:
    """Find the clips of a folder, sorted by path, so that the order never depends on the file system.

    `source` is a folder, or "folder:split". `tiers` keeps clips of those licence tiers only (a manifest must state
    them). `any_label` also returns sounds that are none of the seven labels, with `label` None.

    Raises UserError for a folder that is not there, holds no clips, or has no such split or tier.
    """
    text = str(source)
    if split is None and ":" in text and not Path(text).exists():
        text, split = text.rsplit(":", 1)
    folder = Path(text)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: expected a folder of class folders, or one with manifest.csv")
    manifest = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    found = _read_manifest(manifest) if manifest else _walk(folder)
    known = [clip for clip in found if any_label or clip.label is not None]
    if not known:
        names = ", ".join(sorted({path.name for path in folder.iterdir() if path.is_dir()})[:8]) or "no folders"
        raise UserError(
            f"no clips of the seven labels in {folder} (found: {names}): expected class folders such as DogBark/ or "
            "dog_bark/ with audio files in them, or a manifest.csv with columns file and label"
        )
    chosen = [clip for clip in known if split is None or clip.split == split]
    if not chosen:
        splits = ", ".join(sorted({clip.split for clip in known if clip.split})) or "none"
        raise UserError(f"no clips of split {split!r} in {folder}: its splits are {splits}")
    if tiers is not None:
        chosen = [clip for clip in chosen if clip.tier in tiers]
        if not chosen:
            stated = ", ".join(sorted({clip.tier or "(not stated)" for clip in known}))
            raise UserError(f"no clips of tiers {', '.join(tiers)} in {folder}: it states {stated}")
    return sorted(chosen, key=lambda clip: clip.path.as_posix())


def _walk(folder: Path) -> list[ClipFile]:
    """Class folders, at the top or one level down (`dev/DogBark/000.wav`: the level above is the split)."""
    clips = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or len(parts) not in (2, 3):
            continue
        split = parts[0] if len(parts) == 3 else ""
        clips.append(ClipFile(path, find_folder_label(parts[-2]), "/".join(parts), split=split))
    return clips


def _read_manifest(manifest: Path) -> list[ClipFile]:
    try:
        rows, columns = _read_rows(manifest)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{manifest} cannot be read as a table ({error}): save it as CSV in UTF-8") from None
    name = next((column for column in ("file", "file_name", "filename", "path") if column in columns), None)
    if name is None or "label" not in columns:
        raise UserError(
            f"{manifest} has columns {', '.join(sorted(columns)) or '(none)'}: expected `file` (or `file_name`) and `label`"
        )
    clips = []
    for number, row in enumerate(rows, start=2):
        if not row[name] or not row["label"]:
            raise UserError(f"{manifest}, line {number}: file or label is empty")
        clips.append(
            ClipFile(
                manifest.parent / row[name],
                find_folder_label(row["label"]),
                row.get("recording_id") or row[name],
                row.get("licence_tier") or "",
                row.get("licence") or "",
                row.get("source_repo") or row.get("source") or "",
                row.get("split") or "",
            )
        )
    return clips


def _read_rows(manifest: Path) -> tuple[list[dict[str, str]], set[str]]:
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        return list(reader), set(reader.fieldnames or ())


def split_by_recording(clips: Sequence[ClipFile], held_out: float) -> tuple[list[ClipFile], list[ClipFile]]:
    """Split into (kept, held out), the held-out share by recording: no recording is on both sides.

    The side is a hash of the recording's name, so adding clips moves no other clip.
    """
    sides: tuple[list[ClipFile], list[ClipFile]] = ([], [])
    for clip in clips:
        draw = int.from_bytes(hashlib.sha256(clip.recording.encode()).digest()[:8]) / 2**64
        sides[draw < held_out].append(clip)
    return sides


def load_waves(clips: Sequence[ClipFile], rate: int, samples: int) -> Tensor:
    """Read clips as one int16 tensor [N, L] at `rate`, cut or zero-padded at the end to `samples`.

    Sixteen bits keep 2,000 clips in 350 MB; `wave / 32768` is the wave. Raises UserError for an unreadable file.
    """
    waves = torch.empty(len(clips), samples, dtype=torch.int16)

    def read(index: int) -> None:
        wave, _ = read_wave(clips[index].path, rate)
        scaled = np.clip(np.round(fit(wave, samples) * 32768), -32768, 32767)
        waves[index] = torch.from_numpy(scaled.astype(np.int16))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(clips))):
            pass
    return waves


def cache_folder() -> Path:
    """Return where features are cached: `FOLEYBOX_CACHE`, else `~/.cache/foleybox`."""
    return Path(os.environ.get("FOLEYBOX_CACHE") or Path.home() / ".cache" / "foleybox")


def cached(name: str, clips: Sequence[ClipFile], settings: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return `compute()`, kept on disk under a key of the files (path, size, time) and the settings.

    A changed file or setting is another key, so a stale answer is never read; the file appears whole or not at all.
    """
    key = hashlib.sha256(f"1 {name} {settings}".encode())
    for clip in clips:
        state = clip.path.stat()
        key.update(f"\n{clip.path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    path = cache_folder() / f"{name}-{key.hexdigest()[:24]}.npy"
    try:
        return torch.from_numpy(np.load(path))
    except (FileNotFoundError, EOFError, ValueError):  # not there, or a loss of power left it empty
        tensor = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(path) as beside:
        np.save(beside, tensor.numpy())
    return tensor


def load_wave_cache(clips: Sequence[ClipFile], rate: int, seconds: float) -> Tensor:
    """Return `load_waves` of the clips, int16 [N, L], from the cache when it is there."""
    samples = round(seconds * rate)
    return cached("waves", clips, f"{rate} {samples}", lambda: load_waves(clips, rate, samples))


@torch.no_grad()
def load_mels(clips: Sequence[ClipFile], mel: MelConfig, seconds: float = 4.0, speed: float = 1.0) -> Tensor:
    """Return the log-mels of the clips, float32 [N, M, T], from the cache when they are there.

    At another `speed` they are as a tape would play them: read at a lower rate, a clip is shorter and higher.
    """

    def compute() -> Tensor:
        front_end = LogMel(mel)
        waves = load_waves(clips, round(mel.rate / speed), round(seconds * mel.rate))
        return torch.cat([front_end(chunk.float() / 32768) for chunk in waves.split(64)])

    return cached("mels", clips, f"{mel} {seconds}" + (f" {speed}" if speed != 1 else ""), compute)


def label_ids(clips: Iterable[ClipFile]) -> Tensor:
    """Return the label ids of the clips, int64 [N]."""
    return torch.tensor([clip.label.id for clip in clips if clip.label is not None])


def recording_ids(clips: Sequence[ClipFile]) -> Tensor:
    """Return a number for each clip, int64 [N], the same for those cut from one recording."""
    return torch.from_numpy(np.unique([clip.recording for clip in clips], return_inverse=True)[1])


def few_of_each(clips: Sequence[ClipFile], most: int) -> list[ClipFile]:
    """Return at most `most` clips of each recording, evenly spread over its clips, in their order; all of them for 0."""
    total, nth = Counter(clip.recording for clip in clips), Counter[str]()
    kept = []
    for clip in clips:
        place, count = nth[clip.recording], total[clip.recording]
        nth[clip.recording] += 1
        if not most or place * most // count != (place - 1) * most // count:  # the first of each of `most` equal parts
            kept.append(clip)
    return kept


def heard(clips: Iterable[ClipFile]) -> list[dict[str, str]]:
    """Return a row for each clip: what a run folder keeps of what it was trained on.

    `clip` names the file by folder, name and size, so that moving the collection changes nothing, and two runs on the
    same clips can be told from two runs on as many others.
    """
    return [
        {
            "clip": f"{clip.path.parent.name}/{clip.path.name} {clip.path.stat().st_size}",
            "label": clip.label.name if clip.label else "(other)",
            "tier": clip.tier,
            "licence": clip.licence,
            "source": clip.source,
        }
        for clip in clips
    ]


# --- foleybox data check ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataCheck:
    """Look at every clip of a folder and report what training would stumble over. Nothing is dropped or changed.

    Example: foleybox data check my_sounds/
    """

    source: tyro.conf.Positional[str]
    "a folder of class folders, or one with manifest.csv; `folder:split` for one split"
    seconds: float = 4.0
    "the length that training will cut or pad to"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "also write the report to this file"


@dataclass
class Findings:
    """What `inspect` found: file names by complaint."""

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


LOOKS_LIKE_SOUND = SUFFIXES | {".m4a", ".aac", ".wma", ".opus", ".mp4", ".webm", ".caf", ".raw"}
SHORT_SECONDS = 0.1
SILENT_DB = -60.0
CLIPPED_RUN = 8  # consecutive samples at full scale


def inspect(clips: Sequence[ClipFile], folder: Path, seconds: float) -> Findings:
    """Read every clip and collect what is unusual about it."""
    found = Findings(clips=sum(clip.label is not None for clip in clips))
    found.other = [_short_name(clip.path, folder) for clip in clips if clip.label is None]
    clips = [clip for clip in clips if clip.label is not None]
    found.labels = dict(Counter(clip.label.name for clip in clips if clip.label))
    same: dict[str, list[str]] = {}
    lock = Lock()

    def look(clip: ClipFile) -> None:
        name = _short_name(clip.path, folder)
        try:
            wave, rate = read_wave(clip.path)
        except UserError as error:
            found.unreadable[name] = str(error)
            return
        peak = float(np.abs(wave).max())
        complaints = {
            "silent": peak < 10 ** (SILENT_DB / 20),
            "clipped": peak >= 0.999 and _longest_run(np.abs(wave) >= 0.999 * peak) >= CLIPPED_RUN,
            "short": len(wave) < SHORT_SECONDS * rate,
            "long": len(wave) > seconds * rate * 1.001,
        }
        digest = hashlib.sha256(wave.tobytes()).hexdigest()
        with lock:
            found.rates[rate] = found.rates.get(rate, 0) + 1
            same.setdefault(digest, []).append(name)
            for complaint, holds in complaints.items():
                if holds:
                    getattr(found, complaint).append(name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(look, clips))
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
    """Print the report of `inspect`; 0 if every clip can be read and no label has fewer than two clips, else 1."""
    folder = Path(config.source) if Path(config.source).exists() else Path(config.source.rsplit(":", 1)[0])
    make_room(config.json)
    find_clips(config.source)  # refuses a folder without any clip of the seven
    found = inspect(find_clips(config.source, any_label=True), folder, config.seconds)
    known = {clip.path.resolve() for clip in find_clips(folder, any_label=True)}
    unread = [
        _short_name(path, folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() in LOOKS_LIKE_SOUND and path.resolve() not in known
    ]
    print(f"{found.clips} clips in {folder}")
    for label in LABELS:
        if count := found.labels.get(label.name, 0):
            print(f"  {label.name:20} {count:5}")
    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in sorted(found.rates.items()))
    print(f"  rates: {rates or 'none readable'}")
    missing = [label.name for label in LABELS if label.name not in found.labels]
    lonely = [name for name, count in found.labels.items() if count < 2]
    complaints: list[tuple[str, Sequence[str]]] = [
        ("unreadable", [f"{name}: {problem}" for name, problem in found.unreadable.items()]),
        (f"silent (peak under {SILENT_DB:g} dBFS)", found.silent),
        (f"clipped ({CLIPPED_RUN} or more samples in a row at full scale)", found.clipped),
        (f"short (under {SHORT_SECONDS:g} s)", found.short),
        (f"longer than {config.seconds:g} s: training hears the first {config.seconds:g} s", found.long),
        ("outside the seven labels, not trained on", found.other),
        ("sound files that no layout reaches, or of a kind that is not read", unread),
        ("exact duplicates", [" = ".join(names) for names in found.duplicates]),
        ("labels without clips", missing),
        ("labels with one clip: nothing to hold out", lonely),
    ]
    for title, names in complaints:
        if names:
            print(f"{len(names)} {title}:")
            for name in names[:5]:
                print(f"  {name}")
            if len(names) > 5:
                print(f"  ... and {len(names) - 5} more" + ("" if config.json else " (--json FILE lists all)"))
    if config.json:
        write_text(config.json, json.dumps(vars(found), indent=1, ensure_ascii=False) + "\n")
    if found.unreadable or lonely:
        print("not ready for training: mend or remove the unreadable files and lonely labels above", file=sys.stderr)
        return 1
    return 0
