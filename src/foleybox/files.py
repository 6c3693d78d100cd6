"""Files and folders: atomic writes, checks before a long job, checksums, portable names."""

import ctypes
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from foleybox.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is renamed to `path` in one operation.

    On any exception, including a full disk and Ctrl-C, the temporary file is removed and `path` stays as it was. The
    suffix is kept because writers choose the format by it.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # a full disk names no file, or the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically; it is on the disk before the rename."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def check_writable(*files: Path | None) -> None:
    """Create the folders of files that a long job writes at its end; None is ignored.

    Raises UserError for a file that is a folder, or whose folder cannot be written to.
    """
    for path in files:
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file in it")
        make_folders([path.parent], f"folder for {path.name}")


def make_folders(folders: Iterable[Path], option: str) -> None:
    """Create folders and test that files can be created in them.

    Raises UserError for a folder that cannot be written to; it asks for another `option`, the name of the setting.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): name another {option}") from None


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, which it replaces.

    Linux and macOS exchange the two in one operation, so that `folder` exists at every moment. Elsewhere the previous
    folder is renamed to `.<name>.<digits>.old` before, and restored if the second rename fails: a process that is killed
    between the two leaves it there (`earlier_folder` finds it).
    """
    if not folder.exists():
        new.replace(folder)
        return
    if _exchange(new, folder):
        shutil.rmtree(new)
        return
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed
    folder.replace(old)
    try:
        new.replace(folder)
    except BaseException:
        old.replace(folder)
        raise
    shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one operation of the system; return False where the system or file system cannot."""
    paths = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "linux":
            here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            return ctypes.CDLL(None).renameat2(here, paths[0], here, paths[1], exchange) == 0
        if sys.platform == "darwin":
            return ctypes.CDLL(None).renamex_np(*paths, 2) == 0  # RENAME_SWAP
    except (AttributeError, OSError):  # a C library without the function
        pass
    return False


def earlier_folder(folder: Path) -> Path | None:
    """Return what an interrupted `replace_folder` left of an absent folder, if anything."""
    return next(iter(sorted(_leftovers(folder, "old"))), None) if not folder.exists() else None


def sweep(folder: Path) -> None:
    """Remove what killed processes left of earlier writes of `folder`: `.<name>.<digits>.partial` and `.old` next to it.

    Only what has not changed for an hour is removed, since a write may be going on, and `.old` only if `folder` exists.
    """
    for left in (*_leftovers(folder, "partial"), *(_leftovers(folder, "old") if folder.exists() else ())):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


def _leftovers(folder: Path, suffix: str) -> list[Path]:
    names = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.{suffix}")
    return [each for each in folder.parent.iterdir() if names.fullmatch(each.name) and each.is_dir()]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(text: str) -> str:
    """Return a label as a file name: characters that some operating system forbids become `_`."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]|^\.+', "_", text)
