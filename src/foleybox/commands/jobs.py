"""`foleybox jobs`: a table of labels, counts, seeds and options becomes sound files and a manifest.

All lines are checked before the first render. A file is complete or absent and contains its recipe, so that the same
command continues where it was stopped and makes no file twice.
"""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import Positional, arg

from foleybox.commands import output
from foleybox.commands.output import Files, InstrumentName
from foleybox.errors import UserError
from foleybox.files import atomic_path, locked_folder, safe_name, sync
from foleybox.studio.jobs import (
    MANIFEST_COLUMNS,
    Job,
    Makers,
    Task,
    is_made_by,
    length_if_whole,
    manifest_row,
    read_jobs,
    read_manifest,
    render_task,
    tasks_of,
)
from foleybox.studio.shape import Shape
from foleybox.studio.synth import Clip, Synth, cores

MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Jobs:
    """Make the sounds of a table: OUT/<Label>/<Label>_s<seed>.wav for each seed of each line, and OUT/manifest.csv.

    The table is a CSV with the column label, and optionally count, seed, name, temperature, trim, seconds, fade, rate, lufs,
    peak, format, subtype. An empty cell stands for the value of the flag below. `name` replaces the label in the file
    name. The same command again continues where it stopped, and makes no file twice. Several tables may write to the same
    folder: the manifest lists the files of all. It repeats columns of other names, such as `split` or `recording_id`.

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
    files, out = config.files, config.files.out
    defaults = Job(temperature=config.temperature, shape=config.shape, format=files.kind, subtype=files.subtype)
    todo = read_jobs(config.table, synth, defaults)
    total = sum(job.count for job in todo)
    output.check_folder(out)
    with locked_folder(out):
        _check_manifest(config)
        missing, size = _missing(config, todo, synth)
        output.check_space(out, sorted({out / safe_name(job.label) for job in todo}), size)
        levels = output.LevelReport(missing)
        try:
            with output.progress(total, lines=files.json) as advance:
                _write(config, todo, synth, levels, advance)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after {levels.done:,} of {missing:,} files; the same command again continues from there"
            ) from None
    levels.total = levels.done
    levels.print()
    if not files.json:
        existing = f", {total - levels.done:,} existed" if levels.done < total else ""
        print(f"made {levels.done:,} of {total:,} sounds in {out}/{existing}; they are listed in {out / MANIFEST}")
    output.print_terms(synth.instrument)


def _check_manifest(config: Jobs) -> None:
    """Raise UserError for a manifest that `jobs` did not write, unless --force is given."""
    path = config.files.out / MANIFEST
    try:
        if path.exists():
            for _ in read_manifest(path)[1]:
                pass
    except (OSError, ValueError):
        if not config.files.force:
            raise UserError(
                f"{path} is not a list that `jobs` wrote: add --force to overwrite it, or use another -o"
            ) from None


def _missing(config: Jobs, todo: list[Job], synth: Synth) -> tuple[int, float]:
    """Return (how many files do not exist, about how many bytes they take).

    Raises UserError for existing files that are not what a line asks for, judged by their recipes, unless --force is given.
    """
    out, missing, size = config.files.out, 0, 0.0
    other, others = None, 0
    for job in todo:
        absent = job.count
        if (out / safe_name(job.label)).is_dir():
            for task in tasks_of([job]):
                if (path := out / task.path).exists():
                    absent -= 1
                    if not config.files.force and not is_made_by(path, task, synth):
                        other, others = other or task, others + 1
        missing += absent
        size += absent * output.bytes_per_sound(job.format, job.subtype, job.shape, synth)
    if other:
        more = f" and {others - 1:,} more exist and are" if others > 1 else " exists and is"
        raise UserError(
            f"{out / other.path}{more} not what line {other.job.line} asks for: add --force to overwrite, or use another -o"
        )
    return missing, size


def _write(
    config: Jobs, todo: list[Job], synth: Synth, levels: output.LevelReport, advance: Callable[[str], None]
) -> None:
    """Make the files that are not there whole, and the manifest as they are made."""
    out, instrument = config.files.out, synth.instrument
    makers, earlier_columns, earlier = Makers(todo), (), iter(())
    with suppress(OSError, ValueError):  # checked before: with --force, another file is overwritten
        earlier_columns, earlier = read_manifest(out / MANIFEST)
    columns = [*MANIFEST_COLUMNS, *dict.fromkeys([*todo[0].more, *earlier_columns])]
    with atomic_path(out / MANIFEST, durable=True) as path, path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        lines.writeheader()
        for made in _made(out, tasks_of(todo), synth, config.workers):
            if made.clip is not None:
                levels.add(made.clip)
                if config.files.json:
                    output.print_json(out / made.task.path, made.clip, made.gain, line=made.task.job.line)
            lines.writerow(manifest_row(made.task, made.samples, made.rate, instrument))
            advance(made.task.job.label)
        with suppress(OSError, ValueError):
            for row in earlier:  # of other tables
                if not makers.makes(row["file"]) and (out / row["file"]).is_file():
                    lines.writerow(row)
        for folder in {out / safe_name(job.label) for job in todo}:
            sync(folder)  # before the manifest says that the files are there


class Made(NamedTuple):
    """A file that is whole; `clip` is None for one that was there."""

    task: Task
    samples: int
    rate: int
    clip: Clip | None = None
    gain: float = 1.0


def _made(out: Path, tasks: Iterator[Task], synth: Synth, workers: int) -> Iterator[Made]:
    """Make files on several threads (the work is outside Python) unless they are there; yield them in the order of tasks."""

    def make(task: Task) -> Made:
        path = out / task.path
        if path.exists() and (found := length_if_whole(path, task, synth)):
            return Made(task, *found)
        clip = render_task(task, synth)
        gain = clip.save(path, task.job.subtype)
        sync(path)
        return Made(task, len(clip.wave), clip.rate, clip, gain)

    assert synth.sessions  # loaded once, before the threads need them
    running: deque[Future[Made]] = deque()
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
