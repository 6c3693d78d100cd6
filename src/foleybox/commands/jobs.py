"""`foleybox jobs`: a table of labels, counts, seeds and knobs becomes files and a manifest.

A verb of its own, since a table takes the place of the labels, seeds and knobs of `generate`. Every line is checked
before the first render. A file is whole or absent and carries its recipe, so that what is done is seen from the files
themselves: the same command again goes on where it was stopped, by whatever, and never makes a file twice.
Each sound is rendered alone on one thread, so the files are the same to the byte whatever the number of workers.
"""

import csv
import io
import json as json_module
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import soundfile
from tyro.conf import Positional, arg

from foleybox.audio import BITS, Subtype, check_format, libsndfile_path
from foleybox.commands.output import MOST, Files, LevelReport, Source, check_folder, check_room, progress, size
from foleybox.errors import UserError
from foleybox.files import safe_name, write_text
from foleybox.licences import TERMS
from foleybox.studio.extend import finished
from foleybox.studio.recipe import read_recipe
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import Clip, Synth, check_temperature, cores
from foleybox.studio.table import Row, number, read_table, whole_number

MANIFEST = "manifest.csv"
KNOBS = tuple(each.name for each in fields(Shape))
LISTED = (
    "file", "label", "seed", "temperature", "seconds", "rate", "line", "instrument", "licence", "licence_tier", "generated",
)  # fmt: skip
COLUMNS = ("label", "count", "seed", "name", "temperature", *KNOBS, "format", "subtype")


@dataclass(frozen=True)
class Jobs:
    """Make what a table asks for: OUT/<Label>/<Label>_s<seed>.wav for each seed of each line, and OUT/manifest.csv.

    The table is a CSV with the columns label, and if you like count, seed, name, temperature, trim, seconds, fade, rate,
    lufs, peak, format, subtype. An empty cell is what the flag below says. `name` takes the place of the label in the
    file's name. The same command again goes on where it stopped, and never makes a file twice. Other tables may add to
    the same folder: the manifest lists them all.

    Example: foleybox jobs jobs.csv -o aug --lufs -23 --format flac
    """

    table: Annotated[Positional[Path], arg(metavar="JOBS.csv")]
    "the table"
    workers: int = field(default_factory=cores)
    "sounds made at the same time"
    temperature: float = 1.0
    "below 1: nearer to the typical sound of the label; above 1: further out"
    instrument: Source = None
    "instrument to play"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


@dataclass(frozen=True)
class Job:
    """One line of the table, complete."""

    line: int
    label: str  # the instrument's own name
    count: int
    seed: int
    name: str  # "" for the label's
    temperature: float
    shape: Shape
    format: Literal["wav", "flac", "ogg"]
    subtype: Subtype


@dataclass(frozen=True)
class Task:
    """One file."""

    path: Path  # under the output folder
    seed: int
    job: Job


def jobs(config: Jobs) -> None:
    """Check the whole table, then make what is not there yet, and write the manifest.

    Raises UserError before the first render for any line that cannot be done, and for files of other sounds in the way.
    """
    synth = Synth.load(config.instrument, threads=1)
    if config.workers < 1:
        raise UserError(f"--workers {config.workers}: expected 1 or more")
    lines = read_jobs(config, synth)
    tasks = list(tasks_of(lines))
    out = config.files.out
    check_folder(out)
    earlier = _earlier(config, {task.path.as_posix() for task in tasks})
    todo = _todo(config, tasks, synth)
    told = LevelReport(len(todo))
    needed = sum(
        (task.job.shape.seconds or synth.instrument.seconds) * size(_files(config, task.job), task.job.shape, synth)
        for task in todo
    )
    check_room(out, sorted({(out / task.path).parent for task in tasks}), needed)
    _sweep(out, tasks)
    try:
        with progress(len(todo), lines=config.files.json) as bar:
            for task, clip, gain in _made(out, todo, synth, config.workers):
                told.add(clip, gain)
                if config.files.json:
                    facts = {
                        "file": str(out / task.path),
                        "line": task.job.line,
                        "label": clip.label,
                        "seed": clip.seed,
                    }
                    print(json_module.dumps(facts, ensure_ascii=False), flush=True)
                bar(clip.label)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {told.done:,} of {len(todo):,} files; the same command again goes on from there"
        ) from None
    write_text(out / MANIFEST, manifest(out, tasks, synth, earlier))
    told.tell()
    if not config.files.json:
        before = f", {len(tasks) - len(todo):,} were there" if len(todo) < len(tasks) else ""
        print(f"made {len(todo):,} of {len(tasks):,} sounds in {out}/{before}; they are listed in {out / MANIFEST}")


def _files(config: Jobs, job: Job) -> Files:
    return replace(config.files, format=job.format, subtype=job.subtype)


# --- the table ----------------------------------------------------------------------------------------------------


def read_jobs(config: Jobs, synth: Synth) -> list[Job]:
    """Read and check the table, every line of it. Raises UserError, with the line, for the first that cannot be done."""
    table = read_table(config.table)
    unknown = [column for column in table.columns if column not in COLUMNS]
    if unknown or "label" not in table.columns:
        problem = f"has the unknown column {unknown[0]!r}" if unknown else "has no column `label`"
        raise UserError(f"{config.table} {problem}: expected {', '.join(COLUMNS)}")
    if not table.rows:
        raise UserError(f"{config.table} has no line under its header: nothing to make")
    read, made_by = [], {}
    for row in table.rows:
        try:
            job = _job(row, config, synth)
        except UserError as error:
            raise UserError(f"{config.table}, line {row.line}: {error}") from None
        read.append(job)
        for task in tasks_of([job]):
            other = made_by.setdefault(str(task.path).casefold(), job.line)
            if other != job.line:
                raise UserError(
                    f"{config.table}, line {job.line} would make {task.path}, as line {other} does: "
                    "give one of them another seed, or a name"
                )
    return read


def _job(row: Row, config: Jobs, synth: Synth) -> Job:
    """Return a line of the table with its empty cells filled in."""
    label = synth.resolve(row["label"])
    count = _cell(row, "count", whole_number, 1)
    seed = check_seed(_cell(row, "seed", whole_number, 0))
    if not 1 <= count <= MOST:
        raise UserError(f"count {count}: expected 1 to {MOST:,}")
    if seed + count > SEEDS:
        raise UserError(f"seed {seed}, count {count}: the last seed would exceed {SEEDS - 1}")
    temperature = _cell(row, "temperature", number, config.temperature)
    check_temperature(temperature)
    shape = Shape(
        **{
            knob: _cell(row, knob, whole_number if knob == "rate" else number, getattr(config.shape, knob))
            for knob in KNOBS
        }
    )
    check_shape(shape, seconds=synth.instrument.seconds)
    format = row["format"].lower() or config.files.format
    # OGG has no subtype: a flag's is that of the other lines.
    subtype = row["subtype"].upper() or ("PCM_16" if row["format"].lower() == "ogg" else config.files.subtype)
    if format not in ("wav", "flac", "ogg"):
        raise UserError(f"format {row['format']!r}: expected wav, flac or ogg")
    if subtype not in BITS:
        raise UserError(f"subtype {row['subtype']!r}: expected {', '.join(BITS)}")
    check_format(format, cast(Subtype, subtype), "", shape.rate)
    if row["name"] != safe_name(row["name"]) or len(row["name"].encode()) > 200:
        raise UserError(
            f"name {row['name'][:60]!r}: expected a file's name, without any of / \\ : * ? \" < > | or a dot in front"
        )
    return Job(row.line, label, count, seed, row["name"], temperature, shape, format, cast(Subtype, subtype))


def _cell(row: Row, column: str, read: Any, otherwise: Any) -> Any:
    if not row[column]:
        return otherwise
    try:
        return read(row[column])
    except UserError as error:
        raise UserError(f"{column} {error}") from None


def tasks_of(lines: Iterable[Job]) -> Iterator[Task]:
    """Yield the files of some lines, in order: `<name>.wav` where a line with a name makes one, else `<name>_s<seed>.wav`."""
    for job in lines:
        folder, name = safe_name(job.label), job.name or safe_name(job.label)
        for seed in range(job.seed, job.seed + job.count):
            number = "" if job.name and job.count == 1 else f"_s{seed}"
            yield Task(Path(folder) / f"{name}{number}.{job.format}", seed, job)


# --- the work -----------------------------------------------------------------------------------------------------


def _todo(config: Jobs, tasks: list[Task], synth: Synth) -> list[Task]:
    """Return the tasks whose file is not there. Raises UserError for files that are there and hold another sound."""
    there = [task for task in tasks if (config.files.out / task.path).exists()]
    done = {task.path for task in there if _is_done(config.files.out / task.path, task, synth)}
    others = [task for task in there if task.path not in done]
    if others and not config.files.force:
        more = f" and {len(others) - 1:,} more are" if others[1:] else " is"
        raise UserError(
            f"{config.files.out / others[0].path}{more} there and not what line {others[0].job.line} asks for: "
            "add --force to overwrite, or use another -o"
        )
    return [task for task in tasks if task.path not in done]


def _is_done(path: Path, task: Task, synth: Synth) -> bool:
    """Say whether a file is what a task makes, by its recipe."""
    try:
        recipe = read_recipe(path)
    except UserError:
        return False
    if recipe is None:
        return False
    drawn = recipe.make.get("of", recipe.make)
    found = (drawn.get("label"), drawn.get("seed"), drawn.get("temperature"), recipe.asked)
    job = task.job
    same = found == (job.label, task.seed, job.temperature, job.shape.asked())
    same = same and synth.instrument.matches(recipe.fingerprint)
    return same and (job.format == "ogg" or soundfile.info(libsndfile_path(path)).subtype == job.subtype)


def _earlier(config: Jobs, asked: set[str]) -> list[list[str]]:
    """Return the manifest's lines of earlier tables: of files that are still there and are none of those asked for.

    Raises UserError for a manifest of something else, unless it may be overwritten.
    """
    path = config.files.out / MANIFEST
    if not path.exists():
        return []
    try:
        header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
    except (OSError, ValueError, csv.Error):  # ValueError: of the text, and of a file without a line
        header, rows = [], []
    if header != list(LISTED) or not all(len(row) == len(LISTED) for row in rows):
        if config.files.force:
            return []
        raise UserError(f"{path} is not a list that `jobs` wrote: add --force to overwrite it, or use another -o")
    return [row for row in rows if row[0] not in asked and (config.files.out / row[0]).is_file()]


def _sweep(out: Path, tasks: list[Task]) -> None:
    """Remove what a killed run left half-written of these files."""
    stems: dict[Path, set[str]] = {}
    for task in tasks:
        stems.setdefault((out / task.path).parent, set()).add(task.path.stem)
    for folder, names in stems.items():
        for path in folder.glob(".*.partial.*"):
            match = re.fullmatch(r"\.(.*)\.[0-9a-f]{8}\.partial\.\w+", path.name)
            if match and match[1] in names:
                path.unlink(missing_ok=True)


def _made(out: Path, tasks: list[Task], synth: Synth, workers: int) -> Iterator[tuple[Task, Clip, float]]:
    """Make the files on so many threads (the work is outside Python); yield each with its gain, in the order of tasks."""

    def make(task: Task) -> tuple[Task, Clip, float]:
        clip = finished(synth, synth.render(task.job.label, task.seed, task.job.temperature), task.job.shape)
        return task, clip, clip.save(out / task.path, task.job.subtype)

    assert synth.sessions  # loaded once, before the threads need them
    running: deque[Future[tuple[Task, Clip, float]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for task in tasks:
            running.append(pool.submit(make, task))
            if len(running) >= 2 * workers:  # no more: each holds a sound
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C and on errors, what is being written is finished


def manifest(out: Path, tasks: Iterable[Task], synth: Synth, earlier: Iterable[list[str]] = ()) -> str:
    """Return the list of files as CSV, a line each, those of earlier tables last.

    `foleybox data check`, `train` and `evaluate` read it.
    """
    made = synth.instrument
    tier = next(tier for tier, terms, _ in TERMS if terms == made.licence.terms)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LISTED)
    for task in tasks:
        about = soundfile.info(libsndfile_path(out / task.path))
        seconds = f"{about.frames / about.samplerate:.4f}"
        writer.writerow(
            [task.path.as_posix(), task.job.label, task.seed, task.job.temperature, seconds, about.samplerate, task.job.line,
             made.name, made.licence.terms, tier, 1]
        )  # fmt: skip
    writer.writerows(earlier)
    return text.getvalue()
