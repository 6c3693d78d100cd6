"""The long requests of the server, scenes and packs: jobs that are done one after the other, with progress and cancel.

The files of a job are kept in a folder of the server until KEPT later jobs are done, or for KEPT_SECONDS.
"""

import secrets
import shutil
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from foleybox.audio import Subtype
from foleybox.errors import UserError
from foleybox.files import safe_name, write_text
from foleybox.studio import pack as packs
from foleybox.studio.engines import Engine
from foleybox.studio.events import Event
from foleybox.studio.pack import licence_text
from foleybox.studio.scene import Curve, Style, perform
from foleybox.studio.synth import Synth
from foleybox.web.renders import FullError

MOST_WAITING = 4
KEPT, KEPT_SECONDS = 16, 3600.0

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


class CancelledError(Exception):
    """Raised inside a job that was cancelled."""


@dataclass
class Job:
    """One job; `about` is what the client reads."""

    kind: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "queued"
    done: int = 0  # sounds
    total: int = 0
    error: str = ""
    note: str = ""
    files: dict[str, Path] = field(default_factory=dict)
    ended: float = 0.0
    cancelling: bool = False

    def about(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        files = {
            name: {"url": f"/v1/jobs/{self.id}/{name}", "bytes": path.stat().st_size}
            for name, path in self.files.items()
        }
        keys = ("id", "kind", "state", "done", "total", "error", "note")
        return {**{key: getattr(self, key) for key in keys}, "url": f"/v1/jobs/{self.id}", "files": files}

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[str], None]]:
        """Yield a function to call after each sound, which raises CancelledError if the job was cancelled."""
        self.total, self.done = total, 0

        def advance(_: str = "") -> None:
            self.done += 1
            self.check()

        self.check()
        yield advance

    def check(self) -> None:
        """Raise CancelledError if the job was cancelled."""
        if self.cancelling:
            raise CancelledError


class Jobs:
    """Does jobs on a thread of its own, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, Job] = {}
        self._waiting: deque[tuple[Job, Callable[[Job, Path], dict[str, Path]]]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, kind: str, work: Callable[[Job, Path], dict[str, Path]]) -> Job:
        """Queue `work(job, folder)`, which returns the files that it wrote by name. Raises FullError."""
        job = Job(kind)
        with self._change:
            if len(self._waiting) >= MOST_WAITING or self._closed:
                raise FullError(30)
            self._forget()
            self.jobs[job.id] = job
            self._waiting.append((job, work))
            self._change.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stop a job that has not ended, and remove one that has."""
        with self._change:
            job.cancelling = True
            if job.state == "queued":
                self._waiting = deque(each for each in self._waiting if each[0] is not job)
                job.state, job.ended = "cancelled", time.monotonic()
            elif job.state in ENDED:
                self._remove(job)

    def close(self) -> None:
        """Cancel all jobs, and wait for the one that is running."""
        with self._change:
            self._closed = True
            for job, _ in self._waiting:
                job.state = "cancelled"
            self._waiting.clear()
            for job in self.jobs.values():
                job.cancelling = True
            self._change.notify()
        self._thread.join()

    def _forget(self) -> None:
        """Remove the jobs that ended long ago, or too many others since."""
        ended = sorted((job for job in self.jobs.values() if job.state in ENDED), key=lambda job: job.ended)
        old = time.monotonic() - KEPT_SECONDS
        for index, job in enumerate(ended):
            if job.ended < old or index < len(ended) - KEPT:
                self._remove(job)

    def _remove(self, job: Job) -> None:
        self.jobs.pop(job.id, None)
        shutil.rmtree(self.folder / job.id, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    if self._closed:
                        return
                    self._change.wait()
                job, work = self._waiting.popleft()
                job.state = "running"
            folder = self.folder / job.id
            folder.mkdir()
            state: State = "failed"
            try:
                job.check()
                job.files = work(job, folder)
                state = "done"
            except CancelledError:
                state = "cancelled"
            except UserError as error:
                job.error = str(error)
            except Exception as error:  # the thread must go on
                job.error = f"the job failed ({type(error).__name__}): see the server's messages"
                print(f"foleybox: job {job.id} failed: {error!r}", flush=True)
            if state != "done":
                shutil.rmtree(folder, ignore_errors=True)
            job.ended, job.state = time.monotonic(), state


# --- scenes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneRequest:
    """What `perform` is asked for."""

    synth: Synth
    events: Sequence[Event]
    label: str | None
    surfaces: Mapping[str, Curve]
    seconds: float | None
    seed: int
    style: Style
    subtype: Subtype
    rate: int | None


def scene_files(wanted: SceneRequest, job: Job, folder: Path) -> dict[str, Path]:
    """Play a scene; write mix.wav, and scene.zip with mix, stems, markers and licence."""
    scene = perform(
        wanted.synth, wanted.events, wanted.label, surfaces=wanted.surfaces, seconds=wanted.seconds, seed=wanted.seed,
        style=wanted.style, progress=job.progress,
    )  # fmt: skip
    job.check()
    scene.save(folder / "scene", subtype=wanted.subtype, rate=wanted.rate)
    write_text(folder / "scene" / "LICENSE.txt", licence_text(wanted.synth.instrument))
    return {"mix.wav": folder / "scene" / "mix.wav", "scene.zip": zipped(folder / "scene", folder / "scene.zip")}


# --- packs --------------------------------------------------------------------------------------------------------


def pack_files(
    synth: Synth, labels: Sequence[str], engine: Engine, selection: packs.Selection, job: Job, folder: Path
) -> dict[str, Path]:
    """Make a pack as `foleybox pack` does; write pack.zip."""
    out = folder / "pack"
    items: list[packs.Item] = []
    cards: list[str] = []
    missing = []
    with job.progress(len(labels) * selection.count) as advance:
        for label in labels:
            (out / safe_name(label)).mkdir(parents=True)
            kind, rejected, number = packs.default_kind(label), {}, 0
            for number, clip in enumerate(packs.select_sounds(synth, label, kind, selection, rejected), 1):
                name = packs.ucs_name(label, number, selection.count, "foleybox", clip.recipe.instrument)
                item, card = packs.write_sound(out, clip, kind, label, name)
                items.append(item)
                cards.append(card)
                advance(label)
            if number < selection.count:
                reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
                missing.append(f"{number} of {selection.count} sounds of {label} (rejected: {reasons})")
    job.note = "; ".join(missing)
    for name, text in packs.texts(synth.instrument, engine, selection, items, cards).items():
        write_text(out / name, text)
    return {"pack.zip": zipped(out, folder / "pack.zip")}


def zipped(folder: Path, archive: Path) -> Path:
    """Write the files of a folder to a zip archive, without compression; return its path."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder).as_posix())
    return archive
