"""Stop the commands that write files at each of their file operations, and see what is left.

    python tests/crash.py                      # every operation of every command: `make crash`
    python tests/crash.py --every 25           # a part of them
    python tests/crash.py --only jobs --point 17 --fault torn
    python tests/crash.py --only jobs train --at-once 100    # instead: two of each at the same time

A command is run once to count its operations: files that are opened for writing, each write, fsync, rename, remove, new
and removed folders. Then it is run again for each operation and each fault:

    kill        the process is killed before the operation
    torn        half of a write reaches the file, then the process is killed
    full        from this operation on, the disk is full: half of a write reaches the file
    interrupt   Ctrl-C arrives before the operation

Afterwards every file under its final name must be whole (as in the undisturbed run, or before), a full disk and Ctrl-C must
be one line on stderr with exit code 2 and 130, and the same command again must succeed, without --force, and leave exactly
the files of the undisturbed run: no hidden ones.
"""

import argparse
import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked safely

from helpers import toy_instrument

from foleybox import cli

FAULTS = ("kill", "torn", "full", "interrupt")
GROWS = ("open", "write", "mkdir", "fsync")  # what a full disk refuses
LIMIT = 120  # seconds of a run


# --- faults -----------------------------------------------------------------------------------------------------------


class Faults:
    """Counts the file operations of this process in a folder, and makes one of them fail."""

    def __init__(self, folder: Path, fault: str, point: int, counted: Path) -> None:
        self.folder, self.fault, self.point, self.counted = str(folder), fault, point, counted
        self.operations: list[str] = []
        self.full = self.busy = False
        self.open, self.fsync, self.os_write = io.open, os.fsync, os.write

    def install(self) -> None:
        """Watch this process from now on; there is no way back."""
        sys.addaudithook(self.audit)
        io.open = builtins.open = self.opened  # type: ignore[assignment]
        os.fsync = self.synced
        os.write = self.written

    def operation(self, kind: str) -> bool:
        """Count an operation, and stop the process if it is the one; return whether it is torn or refused."""
        here = len(self.operations) == self.point
        self.operations.append(kind)
        if here and self.fault == "full":
            self.full = True
        if self.full and kind in GROWS:
            if kind == "write":
                return True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if here and self.fault == "torn" and kind == "write":
            return True
        if here and self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if here and self.fault == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        return False

    def half(self, write: Callable[[Any], int], flush: Callable[[], None], data: Any) -> int:
        write(data[: len(data) // 2])
        flush()
        if self.fault == "torn":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def inside(self, path: Any) -> bool:
        return not isinstance(path, int) and str(Path.cwd() / os.fsdecode(path)).startswith(self.folder + os.sep)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}.get(event)
        if event == "open":
            path, _, flags = arguments
            kind = "open" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self.busy else None
            if kind is None or isinstance(path, int) or path is None:
                return
        if event == "os.truncate" or (kind and self.inside(arguments[0])):
            self.operation(kind or "truncate")

    def opened(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        stream = self.open(file, mode, *rest, **named)
        return Stream(stream, self) if set(mode) & set("wax+") and self.inside(file) else stream

    def synced(self, handle: int) -> None:
        self.operation("fsync")
        self.fsync(handle)

    def written(self, handle: int, data: bytes) -> int:
        if self.operation("write"):
            return self.half(lambda part: self.os_write(handle, part), lambda: None, data)
        return self.os_write(handle, data)


class Stream:
    """A file whose writes are counted."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.file, self.faults = file, faults

    def write(self, data: Any) -> int:
        if self.faults.operation("write"):
            return self.faults.half(self.file.write, self.file.flush, data)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __iter__(self) -> Any:
        return iter(self.file)


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command line, the files it begins with, and how its files are compared."""

    name: str
    arguments: list[str]
    given: Callable[[Path], None] = lambda folder: None
    exact: bool = True  # byte for byte, else as `training` reads them
    before: Callable[[], None] = field(default=lambda: None)  # in the process, before the command


def run(command: Command, folder: Path, fault: str = "", point: int = -1) -> tuple[int, str, list[str]]:
    """Run a command in a forked process in a folder; return (exit code, stderr, its operations)."""
    return end(*start(command, folder, fault, point))


def start(command: Command, folder: Path, fault: str = "", point: int = -1, name: str = "") -> tuple[int, Path, Path]:
    """Start a command in a forked process in a folder; return (process id, the files of its operations and its stderr)."""
    counted, said = folder.with_name(f"operations{name}.json"), folder.with_name(f"stderr{name}.txt")
    counted.unlink(missing_ok=True)
    said.touch()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666), 2)
            sys.stderr = os.fdopen(2, "w")
            sys.stdout = os.fdopen(1, "w")
            command.before()
            faults = Faults(folder, fault, point, counted)
            faults.install()
            code = cli.main(command.arguments)
            faults.full = False
            faults.point = -1
            with faults.open(counted, "w") as file:
                json.dump(faults.operations, file)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            if runs := sys.modules.get("foleybox.lab.core.runs"):
                runs._close_runs()  # as at the end of an interpreter
            sys.stderr.flush()
            os._exit(code)
    return child, counted, said


def end(child: int, counted: Path, said: Path) -> tuple[int, str, list[str]]:
    """Wait for a command that was started; return (exit code, stderr, its operations)."""
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1000, "did not end", []
        time.sleep(0.002)
    operations = json.loads(counted.read_text()) if counted.is_file() else []
    return os.waitstatus_to_exitcode(status), said.read_text(), operations


def files_of(folder: Path, command: Command) -> dict[str, Any]:
    """Return what is in each file of a folder, the hidden ones too."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = content_of(path, command)
        elif path.name.startswith("."):
            found[name] = "a folder"
    return found


def content_of(path: Path, command: Command) -> Any:
    """Return what must be the same in a file: its bytes, but of pictures, which are drawn of the files that are there."""
    return "" if path.suffix == ".png" else path.read_bytes() if command.exact else training(path)


def training(path: Path) -> Any:
    """Return what must be the same in a file of a training."""
    from foleybox.lab.core.runs import read_state

    if path.suffix == ".pt":
        return repr(read_state(path, ours=True))
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [line["step"] for line in lines]  # a mean is of the steps since the line before, or since the resumption
    return path.read_bytes()


def problem(command: Command, folder: Path, whole: dict[str, Any], fault: str, point: int) -> str | None:
    """Run a command with a fault and then without; return what is wrong, None if nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command.given(folder)
    before = files_of(folder, command)
    code, said, _ = run(command, folder, fault, point)
    expected = {"kill": -signal.SIGKILL, "torn": -signal.SIGKILL, "full": 2, "interrupt": 130}[fault]
    if code not in (expected, 0):
        return f"exit code {code}: {said.strip()[-300:]}"
    lines = [line for line in said.splitlines() if " are CC-" not in line]  # the terms, at the end
    if code in (2, 130) and len(lines) != 1:
        return f"not one line: {said.strip()[-300:]}"
    if fault in ("full", "interrupt") and (hidden := hidden_files(folder) - {".foleybox.lock"}):
        return f"left {sorted(hidden)}"
    for name, content in files_of_finals(folder, command).items():
        if content not in (whole.get(name), before.get(name)) and command.exact:
            return f"{name} is not whole"
    if lost := [name for name in before if not (folder / name).exists()]:
        return f"lost {lost}"
    code, said, _ = run(command, folder)
    if code != 0:
        return f"the same command again: exit code {code}: {said.strip()[-300:]}"
    after = files_of(folder, command)
    if after != whole:
        names = [name for name in sorted({*after, *whole}) if after.get(name) != whole.get(name)]
        return f"after the same command again, other than undisturbed: {names}"
    return None


def at_once(command: Command, folder: Path, whole: dict[str, Any], delay: float) -> str | None:
    """Run a command twice at the same time in a folder; return what is wrong, None if nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command.given(folder)
    first = start(command, folder, name="1")
    time.sleep(delay)
    ends = [end(*each) for each in (start(command, folder, name="2"), first)]
    codes = [code for code, _, _ in ends]
    told = [said for code, said, _ in ends if code == 2]
    if not ({*codes} <= {0, 2} and 0 in codes):
        return f"exit codes {codes}: {[said.strip()[-300:] for _, said, _ in ends]}"
    if not all(len(said.splitlines()) == 1 and (" is in use by " in said or " exist" in said) for said in told):
        return f"not told in one line: {told}"
    return None if files_of(folder, command) == whole else "other files than those of one"


def hidden_files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*")}


def files_of_finals(folder: Path, command: Command) -> dict[str, Any]:
    """Return what is in the files that are under their final names."""
    hidden = list(folder.rglob(".*"))
    return {
        path.relative_to(folder).as_posix(): content_of(path, command)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(each in (path, *path.parents) for each in hidden)
    }


def commands(base: Path, only: list[str]) -> list[Command]:
    """Return the commands, with what they read in the folder `base`."""
    for verb in only or ("generate", "jobs", "pack", "perform"):  # imported once, before the forks
        if verb in cli.VERBS:
            cli._load(cli.VERBS[verb][0])
    import_module("foleybox.flags")
    import_module("onnxruntime")
    toy = str(toy_instrument(base / "toy"))
    play = ["--instrument", toy]
    table = base / "jobs.csv"
    table.write_text("label,count,seconds,format\nrain,2,0.3,\ndog,1,,flac\n")

    (base / "jobs").mkdir()
    (base / "jobs/first.csv").write_text("label,seed\ngun,7\n")
    run(Command("", ["jobs", "first.csv", "-o", "out", *play]), base / "jobs")

    def earlier(folder: Path) -> None:
        """Sounds of another table are in the folder of `jobs`."""
        shutil.copytree(base / "jobs", folder, dirs_exist_ok=True)

    found = [
        Command("generate", ["generate", "rain", "dog", "-n", "2", "--sheet", "sheet.png", *play]),
        Command("jobs", ["jobs", str(table), "-o", "out", "--workers", "1", *play], earlier),
        Command("pack", ["pack", "rain", "dog", "-n", "2", "--kind", "loop", "--apart", "0", *play]),
        Command("perform", ["perform", "--bpm", "200", "--pattern", "x.x.", "--label", "dog", "--surface", "rain=0.5", *play]),
    ]  # fmt: skip
    found = [command for command in found if not only or command.name in only]
    if not only or "export" in only:
        found += exports(base)
    if not only or "train" in only:
        found += trainings(base)
    return found


def exports(base: Path) -> list[Command]:
    """Return an export into a new folder, and one over an existing instrument; the graphs are made once."""
    from toy_runs import autoencoder_run, patches_run, vocoder_run

    from foleybox.lab.export import export

    patches_run(base / "patches", autoencoder_run(base / "autoencoder"))
    vocoder_run(base / "vocoder", mel="wide")
    runs = [str(base / name) for name in ("patches", "vocoder", "autoencoder")]
    arguments = ["export", *runs[:2], "--autoencoder", runs[2], "-o", "ins"]
    graphs: list[dict[str, bytes]] = []
    build = export.build_patches

    def built(*parts: Any) -> dict[str, bytes]:
        if not graphs:
            graphs.append(build(*parts))
        return graphs[0]

    export.build_patches = built
    export.commit = lambda: "of the first run"
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        cli.main([*arguments[:-1], str(base / "exported"), "--name", "ins", "--version", "0.9"])

    def existing(folder: Path) -> None:
        shutil.copytree(base / "exported", folder / "ins")

    return [Command("export", arguments), Command("export over an instrument", [*arguments, "--force"], existing)]


def trainings(base: Path) -> list[Command]:
    """Return a training that reads recordings through the cache; it draws no pictures, which takes longer than all the rest."""
    import torch
    from helpers_lab import toy_folder

    from foleybox.lab.baseline import train_vqvae
    from foleybox.lab.play import scored  # noqa: F401 (imported once, before the forks)

    torch.set_num_threads(1)
    data = toy_folder(base / "sounds", 1, seconds=0.5)

    def prepare() -> None:
        os.environ["FOLEYBOX_CACHE"] = "cache"
        train_vqvae.sheet = lambda *_: None

    flags = "--size tiny --steps 3 --batch 2 --device cpu --threads 1 --tracker none --save-every 1 --sample-every 2"
    return [Command("train", ["train", "vqvae", str(data), "-o", "run", *flags.split()], exact=False, before=prepare)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--point", type=int)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument(
        "--at-once", type=int, default=0, help="instead: run each command twice at the same time, N times"
    )
    asked = parser.parse_args()
    failed = tried = place = 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name).resolve()
        for command in commands(base, asked.only):
            folder = base / "case"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            command.given(folder)
            code, said, operations = run(command, folder)
            if code:
                print(f"{command.name}: exit code {code} undisturbed: {said.strip()[-2000:]}")
                return 1
            whole, mine, began = files_of(folder, command), 0, time.monotonic()
            for attempt in range(asked.at_once):
                tried += 1
                if wrong := at_once(command, folder, whole, delay=0.004 * attempt):
                    failed += 1
                    print(f"{command.name}: twice at the same time, try {attempt}: {wrong}", flush=True)
            if asked.at_once:
                continue
            for point, kind in enumerate(operations):
                for fault in FAULTS:
                    if (fault == "torn" and kind != "write") or (fault == "full" and kind not in GROWS):
                        continue
                    place += 1
                    chosen = (place + asked.offset) % asked.every == 0 and asked.point in (None, point)
                    if not chosen or asked.fault not in (None, fault):
                        continue
                    tried, mine = tried + 1, mine + 1
                    if wrong := problem(command, folder, whole, fault, point):
                        failed += 1
                        print(f"{command.name}: {fault} at operation {point} ({kind}): {wrong}", flush=True)
            seconds = time.monotonic() - began
            print(f"{command.name}: {len(operations)} operations, {mine} faults tried in {seconds:.0f} s", flush=True)
    print(f"{tried} {'pairs' if asked.at_once else 'faults'} tried, {failed} failed")
    return 1 if failed or not tried else 0


if __name__ == "__main__":
    sys.exit(main())
