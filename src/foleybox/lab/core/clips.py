"""Recordings on disk: find them, split them by recording, read their waves.

Three layouts are read: class folders with label names in any spelling, as in the DCASE 2023 development set; split
folders (such as `train/`, `dev/`) that contain class folders; a folder with `manifest.csv` or `metadata.csv`, whose
columns are `file` (or `file_name`) and `label`, and optionally `split`, `recording_id`, `licence_tier`, `licence`,
`source_repo`.

Letters: N clips, L samples.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from foleybox.audio import fit, read_wave
from foleybox.errors import UserError
from foleybox.files import sha256
from foleybox.labels import Label, find_folder_label
from foleybox.licences import in_tiers, tier_of
from foleybox.schema import CONTROL

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
MANIFESTS = ("manifest.csv", "metadata.csv")


@dataclass(frozen=True)
class ClipFile:
    """An audio file and its metadata. `label` is None for sounds outside the seven labels."""

    path: Path
    label: Label | None
    recording: str
    "the same for clips that were cut from one recording; splits never separate them"
    tier: str = ""
    licence: str = ""
    source: str = ""
    "the collection that it comes from, for attribution"
    split: str = ""


def find_clips(
    source: str | Path, split: str | None = None, tiers: Sequence[str] | None = None, any_label: bool = False
) -> list[ClipFile]:
    """Return the clips of a folder, sorted by path.

    `source` is a folder, or "folder:split". `tiers` keeps clips of these licence tiers only (a manifest must state
    them). `any_label` also returns sounds outside the seven labels, with `label` None.

    Raises UserError for a folder that does not exist, has no clips, or has no such split or tier.
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
        chosen = [clip for clip in chosen if in_tiers(clip.tier, tiers)]
        if not chosen:
            stated = ", ".join(sorted({clip.tier or "(not stated)" for clip in known}))
            raise UserError(f"no clips of tiers {', '.join(tiers)} in {folder}: it states {stated}")
    return sorted(chosen, key=lambda clip: clip.path.as_posix())


def _walk(folder: Path) -> list[ClipFile]:
    """Return the clips of class folders, at the top or one level down (in `dev/DogBark/000.wav`, `dev` is the split)."""
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
        if CONTROL.search(row[name]) or not is_inside(row[name]):
            raise UserError(f"{manifest}, line {number}: {row[name][:60]!a}: expected a file inside the folder")
        clips.append(
            ClipFile(
                manifest.parent / row[name],
                find_folder_label(row["label"]),
                row.get("recording_id") or row[name],
                tier_of(row.get("licence_tier") or "", row.get("licence") or ""),
                row.get("licence") or "",
                row.get("source_repo") or row.get("source") or "",
                row.get("split") or "",
            )
        )
    return clips


def is_inside(file: str) -> bool:
    """Return whether a path, relative to a folder, names something in it, on any operating system."""
    parts = PureWindowsPath(file)  # which knows both separators, and drives
    return not (parts.drive or parts.root or ".." in parts.parts)


def _read_rows(manifest: Path) -> tuple[list[dict[str, str]], set[str]]:
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        return list(reader), set(reader.fieldnames or ())


def split_by_recording(clips: Sequence[ClipFile], held_out: float) -> tuple[list[ClipFile], list[ClipFile]]:
    """Split clips into (kept, held out); all clips of a recording are on the same side.

    A recording is held out if a hash of its name, as a fraction, is below `held_out`: adding clips moves no other clip.
    """
    sides: tuple[list[ClipFile], list[ClipFile]] = ([], [])
    for clip in clips:
        draw = int.from_bytes(hashlib.sha256(clip.recording.encode()).digest()[:8]) / 2**64
        sides[draw < held_out].append(clip)
    return sides


def load_waves(clips: Sequence[ClipFile], rate: int, samples: int) -> Tensor:
    """Read clips as one int16 tensor [N, L] at `rate` Hz, cut or zero-padded at the end to L = `samples`.

    Divide by 32768 for waves in [-1, 1]. Raises UserError for a file that cannot be read.
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


def label_ids(clips: Iterable[ClipFile]) -> Tensor:
    """Return the label ids of the clips, int64 [N]."""
    return torch.tensor([clip.label.id for clip in clips if clip.label is not None])


def recording_ids(clips: Sequence[ClipFile]) -> Tensor:
    """Return a recording number for each clip, int64 [N]: the same for clips cut from one recording."""
    return torch.from_numpy(np.unique([clip.recording for clip in clips], return_inverse=True)[1])


def limit_per_recording(clips: Sequence[ClipFile], most: int) -> list[ClipFile]:
    """Return at most `most` clips of each recording, evenly spaced among its clips, in the given order; 0: all clips."""
    total, nth = Counter(clip.recording for clip in clips), Counter[str]()
    kept = []
    for clip in clips:
        place, count = nth[clip.recording], total[clip.recording]
        nth[clip.recording] += 1
        if not most or place * most // count != (place - 1) * most // count:  # the first of `most` equal parts
            kept.append(clip)
    return kept


def training_rows(clips: Iterable[ClipFile]) -> list[dict[str, str]]:
    """Return one row per clip for the list of training clips in a run folder.

    `clip` is the file's folder, name and size: it does not change when the collection is moved. `content` is the beginning
    of the file's SHA-256.
    """
    return [
        {
            "clip": f"{clip.path.parent.name}/{clip.path.name} {clip.path.stat().st_size}",
            "label": clip.label.name if clip.label else "(other)",
            "tier": clip.tier,
            "licence": clip.licence,
            "source": clip.source,
            "content": sha256(clip.path)[:16],
        }
        for clip in clips
    ]
