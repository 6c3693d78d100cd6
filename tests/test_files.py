"""Files: one writer of a folder at a time, and what killed processes leave is removed by the next one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foleybox.errors import UserError
from foleybox.files import LOCK, FolderLock, atomic_path, locked_folder, make_folders

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def in_child(work) -> int:
    """Run a function in a forked process; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except UserError:
            os._exit(2)
        except BaseException:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_temporary_file_of_a_killed_process_is_swept_and_that_of_a_running_one_stays(tmp_path: Path) -> None:
    def killed() -> None:
        with atomic_path(tmp_path / "a.wav") as temporary:
            temporary.write_bytes(b"RIFF")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / ".mine.partial.wav").write_bytes(b"")
    with atomic_path(tmp_path / "b.wav") as running:
        running.write_bytes(b"RIFF")
        make_folders([tmp_path], "-o")
        assert not left.exists()
        assert running.exists()
    assert {path.name for path in tmp_path.iterdir()} == {".mine.partial.wav", "b.wav"}


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .* since 20.*: wait for it"):
            FolderLock(tmp_path)
        assert in_child(lambda: FolderLock(tmp_path)) == 2
    assert not list(tmp_path.iterdir())
    assert in_child(lambda: FolderLock(tmp_path)) == 0


def test_a_lock_of_a_dead_process_is_taken_over_and_says_whether_the_same_work_goes_on(tmp_path: Path) -> None:
    def killed() -> None:
        with locked_folder(tmp_path, "rain"):
            os.kill(os.getpid(), signal.SIGKILL)

    for work, goes_on in (("rain", True), ("dog", False)):
        assert in_child(killed) == -signal.SIGKILL
        with locked_folder(tmp_path, work) as continued:
            assert continued is goes_on
        assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), locked_folder(tmp_path, "rain"):
        raise KeyboardInterrupt
    with locked_folder(tmp_path, "rain") as continued:
        assert continued
    with pytest.raises(UserError), locked_folder(tmp_path, "rain"):
        raise UserError("a mistake, before anything was written")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 4000, '{"pid": "x"}', "\xff"])
def test_a_damaged_lock_of_a_dead_process_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content, encoding="latin-1")
    with locked_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2026-01-01 00:00:00"}))
    with pytest.raises(
        UserError, match=r"process 1 on elsewhere since 2026.*: if it no longer runs there, remove .*lock"
    ):
        FolderLock(tmp_path)


def test_of_many_processes_one_at_a_time_has_a_folder(tmp_path: Path) -> None:
    """Each appends to a file between two reads of it; a second one inside would be seen."""
    program = """
import sys
from pathlib import Path
from foleybox.errors import UserError
from foleybox.files import locked_folder
folder, had = Path(sys.argv[1]), 0
while had < 50:
    try:
        with locked_folder(folder):
            path = folder / "log"
            before = path.read_text() if path.exists() else ""
            path.write_text(before + sys.argv[2])
            assert path.read_text() == before + sys.argv[2]
            had += 1
    except UserError:
        pass
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), sign]) for sign in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text()) == sorted("abc" * 50)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
