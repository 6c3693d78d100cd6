"""Files and folders: atomic writes, one writer at a time, checks before a long job, checksums, portable names."""

import ctypes
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foleybox.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


_SWEPT: set[Path] = set()
"folders to which this process has written"


@contextmanager
def atomic_path(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is renamed to `path` in one operation.

    On any exception, including a full disk and Ctrl-C, the temporary file is removed and `path` stays as it was. A process
    that is killed leaves the temporary file, which the next process that writes to the folder removes (`sweep_files`). The
    suffix is kept because writers choose the format by it. `durable`: the content is on the disk before the rename, and the
    rename afterwards.
    """
    temporary, handle = path, -1
    if path.parent not in _SWEPT:
        _SWEPT.add(path.parent)
        with suppress(OSError):
            sweep_files(path.parent)
    try:
        while handle < 0:
            temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            if _lock(handle) is False or not os.fstat(handle).st_nlink:  # another process swept it before it was locked
                os.close(handle)
                handle = -1
        if sys.platform == "win32":  # an open file cannot be renamed there
            os.close(handle)
            handle = -1
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except BaseException as error:
        if temporary != path:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # a full disk names no file, or the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        if handle >= 0:
            os.close(handle)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk (`fsync`)."""
    if sys.platform == "win32" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically and durably."""
    with atomic_path(path, durable=True) as temporary, temporary.open("wb") as file:
        file.write(content)


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
    """Create folders, test that files can be created in them, and remove what killed processes left there.

    Raises UserError for a folder that cannot be written to; it asks for another `option`, the name of the setting.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            sweep_files(folder)
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): name another {option}") from None


# --- folders in one step ------------------------------------------------------------------------------------------


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `folder`; on success it replaces `folder` (`replace_folder`), durably.

    On any exception the temporary folder is removed and `folder` stays as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    handle = -1
    try:
        partial.mkdir()
        if sys.platform != "win32":
            handle = os.open(partial, os.O_RDONLY)
            _lock(handle)
        yield partial
        for each in (*partial.rglob("*"), partial):
            sync(each)
        replace_folder(partial, folder)
        sync(folder.parent)
        sweep(folder)  # what an interrupted write of earlier left, if `folder` was absent before
    finally:
        if handle >= 0:
            os.close(handle)
        shutil.rmtree(partial, ignore_errors=True)


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


def _leftovers(folder: Path, suffix: str) -> list[Path]:
    names = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.{suffix}")
    return [each for each in folder.parent.iterdir() if names.fullmatch(each.name) and each.is_dir()]


# --- what killed processes left -----------------------------------------------------------------------------------

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.partial(\.\w+)?", re.DOTALL)
"the names of `atomic_path`"


def sweep(folder: Path) -> None:
    """Remove what killed processes left of writes of `folder`: `.<name>.<digits>.partial` and `.old` next to it.

    What a running process is writing stays, and an `.old` as long as there is no `folder`.
    """
    for left in (*_leftovers(folder, "partial"), *(_leftovers(folder, "old") if folder.exists() else ())):
        if not _in_use(left):
            shutil.rmtree(left, ignore_errors=True)


def sweep_files(folder: Path) -> None:
    """Remove the temporary files of killed processes in `folder`; those that a running process is writing stay."""
    for entry in os.scandir(folder):
        if TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and not _in_use(Path(entry.path)):
            Path(entry.path).unlink(missing_ok=True)


def _in_use(path: Path) -> bool:
    """Return whether a running process holds the lock of a temporary file or folder.

    Where the system has no such locks: whether it changed within an hour.
    """
    free = None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY if path.is_dir() or sys.platform == "win32" else os.O_RDWR)
        free = None if sys.platform == "win32" else _lock(handle)
        os.close(handle)
    try:
        return time.time() - path.stat().st_mtime < 3600 if free is None else not free
    except FileNotFoundError:  # its writer has finished
        return True


def _lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process ends, however it ends.

    Return whether it is locked now; False if another one holds it, None if the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            os.lseek(handle, 2**30, os.SEEK_SET)  # a byte after the content, which stays readable
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


# --- one writer at a time -----------------------------------------------------------------------------------------

LOCK = ".foleybox.lock"


class FolderLock:
    """The right to write to a folder, which one process has at a time.

    The file `.foleybox.lock` in it is locked and states its owner: process id, host, time. The system releases it when the
    process ends, however it ends; then the file stays and is taken over. `work` identifies what is being done:
    `continued` is whether an owner that was killed or interrupted did the same.

    Raises UserError if a running process has the folder, or if the file names another host, whose processes cannot be
    looked for.
    """

    def __init__(self, folder: Path, work: str = "") -> None:
        make_folders([folder], "-o")
        self.path = folder / LOCK
        self.handle = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666)
        taken = _lock(self.handle)
        while not os.fstat(self.handle).st_nlink:  # its owner ended meanwhile and removed it
            os.close(self.handle)
            self.handle = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666)
            taken = _lock(self.handle)
        found = _owner(self.handle)
        owner = f"process {found.get('pid', '(unknown)')} on {found.get('host', 'this machine')}"
        since = f" since {found['since']}" if "since" in found else ""
        foreign = found.get("host", platform.node()) != platform.node()
        if taken is False or (taken is None and not foreign and _runs(found.get("pid"))):
            os.close(self.handle)
            raise UserError(f"{folder} is in use by {owner}{since}: wait for it, or name another folder with -o")
        if foreign:
            os.close(self.handle)
            raise UserError(f"{folder} is in use by {owner}{since}: if it no longer runs there, remove {self.path}")
        self.continued = bool(work) and found.get("work") == work
        owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "work": work}
        try:
            os.ftruncate(self.handle, 0)
            os.lseek(self.handle, 0, os.SEEK_SET)
            os.write(self.handle, json.dumps(owner).encode())
        except BaseException as error:
            self.release(keep=self.continued)
            if isinstance(error, OSError) and error.errno:  # a full disk names no file
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            raise

    def release(self, keep: bool = False) -> None:
        """Let others write to the folder. `keep`: the file stays, so that `continued` is true for the same work."""
        if sys.platform == "win32":  # an open file cannot be removed there
            os.close(self.handle)
        if not keep:
            self.path.unlink(missing_ok=True)
        if sys.platform != "win32":
            os.close(self.handle)


@contextmanager
def locked_folder(folder: Path, work: str = "") -> Iterator[bool]:
    """Have a folder for this process alone; yield whether the same `work` was interrupted there (`FolderLock`).

    After an exception other than UserError, the same work can be continued. Folders that were made for it and are empty
    are removed after an exception.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        lock, keep = FolderLock(folder, work), False
        try:
            yield lock.continued
        except UserError:
            keep = lock.continued
            raise
        except BaseException:
            keep = bool(work)
            raise
        finally:
            lock.release(keep)
    except BaseException:
        with suppress(OSError):  # not empty
            for each in made:
                each.rmdir()
        raise


def work_of(*parts: object) -> str:
    """Return the name of some work for `locked_folder`: a digest of what determines its files."""
    return hashlib.sha256(repr(parts).encode(errors="replace")).hexdigest()[:16]


def _owner(handle: int) -> dict[str, Any]:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        found = json.loads(os.read(handle, 4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _runs(pid: object) -> bool:
    """Return whether a process of this host runs; True if that cannot be known."""
    if not isinstance(pid, int) or pid <= 0 or sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


# --- contents and names -------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(text: str) -> str:
    """Return a label as a file name: characters that some operating system forbids become `_`.

    So do dots at its beginning, which would hide the file, and what begins a formula in a spreadsheet: `= + - @`.
    """
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]|^[.=+@-]+', "_", text)
