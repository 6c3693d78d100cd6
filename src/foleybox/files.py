"""What every door shares: the one-line error of a user's mistake, the file that is never half-written, the checksum."""

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from foleybox.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path` in one rename.

    On any exception (a full disk and Ctrl-C among them) the temporary file is removed and `path` is as it was.
    The suffix is kept, since writers choose the format by it.
    """
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # a full disk does not name the file, or names the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, whole or not at all, on the disk before the rename."""
    with atomic_path(path) as beside, beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, as `write_bytes` does."""
    write_bytes(path, text.encode())


def check_writable(*files: Path | None) -> None:
    """Make the folders of files that a long job will write at its end. Raises UserError for one that cannot be written."""
    for path in files:
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file in it")
        make_folders([path.parent], f"folder for {path.name}")


def make_folders(folders: Iterable[Path], other: str) -> None:
    """Make folders and see that they can be written to. Raises UserError for one that cannot: name another `other`."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): name another {other}") from None


def replace_folder(beside: Path, folder: Path) -> None:
    """Let the folder `beside` take the place of `folder`; what was there goes last, and comes back if that fails."""
    if not folder.exists():
        beside.replace(folder)
        return
    old = beside.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)  # what kill -9 left of an earlier one
    folder.replace(old)
    try:
        beside.replace(folder)
    except BaseException:
        old.replace(folder)
        raise
    shutil.rmtree(old)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(text: str) -> str:
    """Return a label as a file name: what some system forbids in one becomes `_`."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]|^\.+', "_", text)
