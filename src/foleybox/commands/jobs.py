"""`foleybox jobs`: a table of labels, counts, seeds and options becomes sound files and a manifest.

All lines are checked before the first render. A file is complete or absent and contains its recipe, so that the same
command continues where it was stopped and makes no file twice.
"""

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands import output
from foleybox.commands.output import Files, InstrumentName
from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.studio.jobs import Job, Task, is_done, manifest, read_jobs, read_manifest, render_task, tasks_of
from foleybox.studio.shape import Shape
from foleybox.studio.synth import Clip, Synth, cores

MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Jobs:
    """Make the sounds of a table: OUT/<Label>/<Label>_s<seed>.wav for each seed of each line, and OUT/manifest.csv.

    The table is a CSV with the column label, and optionally count, seed, name, temperature, trim, seconds, fade, rate, lufs,
    peak, format, subtype. An empty cell stands for the value of the flag below. `name` replaces the label in the file
    name. The same command again continues where it stopped, and makes no file twice. Several tables may write to the same
    folder: the manifest lists the files of all.

    Example: foleybox jobs jobs.csv -o aug --lufs -23 --format flac
    """

    table: Annotated[Positional[Path], arg(metavar="JOBS.csv")]
    "the table"
    workers: Annotated[int, arg(metavar="N")] = field(default_factory=cores)
    "sounds rendered at the same time"
    temperature: Annotated[float, arg(metavar="T")] = 1.0
    "below 1: closer to the typical sound of the label; above 1: more unusual sounds"
    instrument: InstrumentName = None
    "instrument to play"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def jobs(config: Jobs) -> None:
    """Check the whole table, make the files that do not exist yet, and write the manifest.

    Raises UserError before the first render for a line that cannot be rendered, and for existing files of other sounds.
    """
    synth = Synth.load(config.instrument, threads=1)
    if config.workers < 1:
        raise UserError(f"--workers {config.workers}: expected 1 or more")
    files = config.files
    defaults = Job(temperature=config.temperature, shape=config.shape, format=files.format, subtype=files.subtype)
    tasks = list(tasks_of(read_jobs(config.table, synth, defaults)))
    out = config.files.out
    output.check_folder(out)
    earlier = _earlier(config, {task.path.as_posix() for task in tasks})
    todo = _todo(config, tasks, synth)
    levels = output.LevelReport(len(todo))
    jobs_todo = (task.job for task in todo)
    size = sum(output.bytes_per_sound(job.format, job.subtype, job.shape, synth) for job in jobs_todo)
    output.check_space(out, sorted({(out / task.path).parent for task in tasks}), size)
    _remove_partial(out, tasks)
    try:
        with output.progress(len(todo), lines=config.files.json) as advance:
            for task, clip, gain in _written(out, todo, synth, config.workers):
                levels.add(clip, gain)
                if config.files.json:
                    output.print_json(out / task.path, clip, gain, line=task.job.line)
                advance(clip.label)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {levels.done:,} of {len(todo):,} files; the same command again continues from there"
        ) from None
    write_text(out / MANIFEST, manifest(out, tasks, synth, earlier))
    levels.print()
    if not config.files.json:
        existing = f", {len(tasks) - len(todo):,} existed" if len(todo) < len(tasks) else ""
        print(f"made {len(todo):,} of {len(tasks):,} sounds in {out}/{existing}; they are listed in {out / MANIFEST}")
    output.print_terms(synth.instrument)


def _todo(config: Jobs, tasks: list[Task], synth: Synth) -> list[Task]:
    """Return the tasks whose file does not exist. Raises UserError for existing files of other sounds."""
    out = config.files.out
    existing = [task for task in tasks if (out / task.path).exists()]
    done = {task.path for task in existing if is_done(out / task.path, task, synth)}
    others = [task for task in existing if task.path not in done]
    if others and not config.files.force:
        more = f" and {len(others) - 1:,} more exist and are" if others[1:] else " exists and is"
        raise UserError(
            f"{out / others[0].path}{more} not what line {others[0].job.line} asks for: "
            "add --force to overwrite, or use another -o"
        )
    return [task for task in tasks if task.path not in done]


def _earlier(config: Jobs, asked: set[str]) -> list[list[str]]:
    """Return the manifest's lines of earlier tables: of files that still exist and that this table does not make.

    Raises UserError for a manifest that `jobs` did not write, unless --force is given.
    """
    path = config.files.out / MANIFEST
    rows = read_manifest(path) if path.exists() else []
    if rows is None and not config.files.force:
        raise UserError(f"{path} is not a list that `jobs` wrote: add --force to overwrite it, or use another -o")
    return [row for row in rows or [] if row[0] not in asked and (config.files.out / row[0]).is_file()]


def _remove_partial(out: Path, tasks: list[Task]) -> None:
    """Remove the incomplete files that a killed run left of these tasks."""
    stems: dict[Path, set[str]] = {}
    for task in tasks:
        stems.setdefault((out / task.path).parent, set()).add(task.path.stem)
    for folder, names in stems.items():
        for path in folder.glob(".*.partial.*"):
            match = re.fullmatch(r"\.(.*)\.[0-9a-f]{8}\.partial\.\w+", path.name)
            if match and match[1] in names:
                path.unlink(missing_ok=True)


def _written(out: Path, tasks: list[Task], synth: Synth, workers: int) -> Iterator[tuple[Task, Clip, float]]:
    """Make the files on several threads (the work is outside Python); yield each with its gain, in the order of tasks."""

    def make(task: Task) -> tuple[Task, Clip, float]:
        clip = render_task(task, synth)
        return task, clip, clip.save(out / task.path, task.job.subtype)

    assert synth.sessions  # loaded once, before the threads need them
    running: deque[Future[tuple[Task, Clip, float]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for task in tasks:
            running.append(pool.submit(make, task))
            if len(running) >= 2 * workers:  # no more, since each keeps a sound in memory
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C and errors, files that are being written are completed
