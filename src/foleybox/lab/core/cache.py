"""A cache on disk for waves and mels of clips."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from foleybox.files import atomic_path
from foleybox.lab.core.clips import ClipFile, load_waves
from foleybox.lab.core.mel import LogMel, MelConfig


def cache_folder() -> Path:
    """Return the cache folder: the environment variable `FOLEYBOX_CACHE`, else `~/.cache/foleybox`."""
    return Path(os.environ.get("FOLEYBOX_CACHE") or Path.home() / ".cache" / "foleybox")


def cached(name: str, clips: Sequence[ClipFile], settings: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return `compute()`, cached on disk under a hash of `name`, `settings` and the files (path, size, modification time).

    A changed file or setting gives another hash, so outdated values are never read. Files are written atomically; one
    that cannot be read is computed again.
    """
    key = hashlib.sha256(f"1 {name} {settings}".encode())
    for clip in clips:
        state = clip.path.stat()
        key.update(f"\n{clip.path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    path = cache_folder() / f"{name}-{key.hexdigest()[:24]}.npy"
    try:
        return torch.from_numpy(np.load(path))
    except (FileNotFoundError, EOFError, ValueError, TokenError):  # absent, or damaged (an empty file, a bad header)
        tensor = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.save(temporary, tensor.numpy())
    return tensor


def load_wave_cache(clips: Sequence[ClipFile], rate: int, seconds: float) -> Tensor:
    """Return `load_waves` of the clips, int16 [N, L], cached; L = `seconds` x `rate`."""
    samples = round(seconds * rate)
    return cached("waves", clips, f"{rate} {samples}", lambda: load_waves(clips, rate, samples))


@torch.no_grad()
def load_mels(clips: Sequence[ClipFile], mel: MelConfig, seconds: float = 4.0) -> Tensor:
    """Return the log-mels of the clips, float32 [N, M, T], cached."""

    def compute() -> Tensor:
        front_end = LogMel(mel)
        waves = load_waves(clips, mel.rate, round(seconds * mel.rate))
        return torch.cat([front_end(chunk.float() / 32768) for chunk in waves.split(64)])

    return cached("mels", clips, f"{mel} {seconds}", compute)
