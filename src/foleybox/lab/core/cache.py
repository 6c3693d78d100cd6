"""Waves and mels of clips, computed once and kept on disk."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foleybox.files import atomic_path
from foleybox.lab.core.clips import ClipFile, load_waves
from foleybox.lab.core.mel import LogMel, MelConfig


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
    with atomic_path(path) as beside:
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
