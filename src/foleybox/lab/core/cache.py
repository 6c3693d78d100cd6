"""A cache on disk for waves and mels of clips."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foleybox.files import atomic_path, sha256
from foleybox.lab.core.clips import ClipFile, load_waves
from foleybox.lab.core.mel import LogMel, MelConfig


def cache_folder() -> Path:
    """Return the cache folder: the environment variable `FOLEYBOX_CACHE`, else `~/.cache/foleybox`."""
    return Path(os.environ.get("FOLEYBOX_CACHE") or Path.home() / ".cache" / "foleybox")


def cached(name: str, clips: Sequence[ClipFile], settings: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return `compute()`, cached on disk under a hash of `name`, `settings` and the files (path, size, modification time).

    A changed file or setting gives another hash, so outdated values are never read. Files are written atomically and verified
    by their SHA-256; one that is damaged is computed again.
    """
    key = hashlib.sha256(f"2 {name} {settings}".encode())
    for clip in clips:
        state = clip.path.stat()
        key.update(f"\n{clip.path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    path = cache_folder() / f"{name}-{key.hexdigest()[:24]}.npy"
    try:
        return torch.from_numpy(read_array(path))
    except FileNotFoundError:
        pass
    except ValueError as error:
        print(f"foleybox: {path} is damaged ({error}) and is computed again", file=sys.stderr)
    tensor = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, tensor.numpy())
    return tensor


SEAL = b"foleybox sha256 "
"precedes the SHA-256 of an array, 64 hexadecimal digits, at the end of its file"


def write_array(path: Path, array: NDArray) -> None:
    """Write an array as .npy atomically, followed by its SHA-256, which numpy ignores."""
    with atomic_path(path) as temporary:
        np.save(temporary, array)
        digest = sha256(temporary)
        with temporary.open("ab") as file:
            file.write(SEAL + digest.encode())


def read_array(path: Path) -> NDArray:
    """Read what `write_array` wrote. Raises FileNotFoundError, and ValueError for a file that was changed."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - len(SEAL) - 64
        file.seek(max(0, size))
        seal = file.read()
        file.seek(0)
        digest = hashlib.sha256()
        for start in range(0, size, 2**20):
            digest.update(file.read(min(2**20, size - start)))
        if seal != SEAL + digest.hexdigest().encode():
            raise ValueError("its SHA-256 does not fit")
        file.seek(0)
        return np.load(file, allow_pickle=False)


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
