"""Tables of sounds: each line of a CSV asks for sounds of a label, each sound becomes one file.

Each sound is rendered alone, so that its file does not depend on the other lines or on how many are rendered at once.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import soundfile

from foleybox.audio import BITS, Format, Subtype, check_format, libsndfile_path
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.licences import TERMS
from foleybox.studio.extend import finished
from foleybox.studio.recipe import read_recipe
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import Clip, Synth, check_temperature
from foleybox.studio.table import Row, parse_number, parse_whole_number, read_table

MAX_SOUNDS = 1_000_000  # of one line
OPTIONS = tuple(each.name for each in fields(Shape))
COLUMNS = ("label", "count", "seed", "name", "temperature", *OPTIONS, "format", "subtype")
MANIFEST_COLUMNS = (
    "file", "label", "seed", "temperature", "seconds", "rate", "line", "instrument", "licence", "licence_tier", "generated",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One line of the table. The default values are those of empty cells."""

    line: int = 0
    label: str = ""  # the instrument's own name
    count: int = 1
    seed: int = 0
    name: str = ""  # in the file names; "": the label's
    temperature: float = 1.0
    shape: Shape = field(default_factory=Shape)
    format: Format = "wav"
    subtype: Subtype = "PCM_16"


@dataclass(frozen=True)
class Task:
    """One file."""

    path: Path  # relative to the output folder
    seed: int
    job: Job


def read_jobs(path: Path, synth: Synth, defaults: Job | None = None) -> list[Job]:
    """Read a table and check all its lines. `defaults` has the values of empty cells.

    Raises UserError, with the line number, for the first line that cannot be rendered or has a file in common with another.
    """
    table = read_table(path)
    unknown = [column for column in table.columns if column not in COLUMNS]
    if unknown or "label" not in table.columns:
        problem = f"has the unknown column {unknown[0]!r}" if unknown else "has no column `label`"
        raise UserError(f"{path} {problem}: expected {', '.join(COLUMNS)}")
    if not table.rows:
        raise UserError(f"{path} has no line below its header: expected a line for each set of sounds")
    found: list[Job] = []
    lines: dict[str, int] = {}  # by file
    for row in table.rows:
        try:
            job = _job(row, synth, defaults or Job())
        except UserError as error:
            raise UserError(f"{path}, line {row.line}: {error}") from None
        found.append(job)
        for task in tasks_of([job]):
            other = lines.setdefault(str(task.path).casefold(), job.line)
            if other != job.line:
                raise UserError(
                    f"{path}, line {job.line} would make {task.path}, as line {other} does: "
                    "give one of them another seed, or a name"
                )
    return found


def _job(row: Row, synth: Synth, defaults: Job) -> Job:
    label = synth.resolve(row["label"])
    count = _cell(row, "count", parse_whole_number, defaults.count)
    seed = check_seed(_cell(row, "seed", parse_whole_number, defaults.seed))
    if not 1 <= count <= MAX_SOUNDS:
        raise UserError(f"count {count}: expected 1 to {MAX_SOUNDS:,}")
    if seed + count > SEEDS:
        raise UserError(f"seed {seed}, count {count}: the last seed would exceed {SEEDS - 1}")
    temperature = _cell(row, "temperature", parse_number, defaults.temperature)
    check_temperature(temperature)
    values = {
        name: _cell(row, name, parse_whole_number if name == "rate" else parse_number, getattr(defaults.shape, name))
        for name in OPTIONS
    }
    shape = Shape(**values)
    check_shape(shape, seconds=synth.instrument.seconds)
    format = row["format"].lower() or defaults.format
    # The default subtype is for lines in other formats: OGG has none.
    subtype = row["subtype"].upper() or ("PCM_16" if row["format"].lower() == "ogg" else defaults.subtype)
    if format not in ("wav", "flac", "ogg"):
        raise UserError(f"format {row['format']!r}: expected wav, flac or ogg")
    if subtype not in BITS:
        raise UserError(f"subtype {row['subtype']!r}: expected {', '.join(BITS)}")
    subtype = cast(Subtype, subtype)
    check_format(format, subtype, "", shape.rate)
    if row["name"] != safe_name(row["name"]) or len(row["name"].encode()) > 200:
        raise UserError(
            f'name {row["name"][:60]!r}: expected a file name, without any of / \\ : * ? " < > | or a leading dot'
        )
    return Job(row.line, label, count, seed, row["name"], temperature, shape, format, subtype)


def _cell(row: Row, column: str, parse: Callable[[str], Any], default: Any) -> Any:
    if not row[column]:
        return default
    try:
        return parse(row[column])
    except UserError as error:
        raise UserError(f"{column} {error}") from None


def tasks_of(jobs: Iterable[Job]) -> Iterator[Task]:
    """Yield the files of some lines, in order: <Label>/<name>_s<seed>.<format>, without the seed for one named sound."""
    for job in jobs:
        folder, name = safe_name(job.label), job.name or safe_name(job.label)
        for seed in range(job.seed, job.seed + job.count):
            suffix = "" if job.name and job.count == 1 else f"_s{seed}"
            yield Task(Path(folder) / f"{name}{suffix}.{job.format}", seed, job)


def render_task(task: Task, synth: Synth) -> Clip:
    """Return the sound of a task, processed as its line states."""
    return finished(synth, synth.render(task.job.label, task.seed, task.job.temperature), task.job.shape)


def is_done(path: Path, task: Task, synth: Synth) -> bool:
    """Return whether an existing file is what a task makes, judged by its recipe and its format."""
    try:
        recipe = read_recipe(path)
    except UserError:
        return False
    if recipe is None:
        return False
    rendered, job = recipe.make.get("of", recipe.make), task.job
    found = (rendered.get("label"), rendered.get("seed"), rendered.get("temperature"), recipe.asked)
    same = found == (job.label, task.seed, job.temperature, job.shape.asked())
    same = same and synth.instrument.matches(recipe.fingerprint)
    return same and (job.format == "ogg" or soundfile.info(libsndfile_path(path)).subtype == job.subtype)


def manifest(out: Path, tasks: Iterable[Task], synth: Synth, earlier: Iterable[list[str]] = ()) -> str:
    """Return the files of tasks as CSV, a line for each, then the lines `earlier`.

    `foleybox data check`, `train` and `evaluate` read it.
    """
    instrument = synth.instrument
    tier = next(tier for tier, terms, _ in TERMS if terms == instrument.licence.terms)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MANIFEST_COLUMNS)
    for task in tasks:
        about, job = soundfile.info(libsndfile_path(out / task.path)), task.job
        writer.writerow(
            [task.path.as_posix(), job.label, task.seed, job.temperature, f"{about.frames / about.samplerate:.4f}",
             about.samplerate, job.line, instrument.name, instrument.licence.terms, tier, 1]
        )  # fmt: skip
    writer.writerows(earlier)
    return text.getvalue()


def read_manifest(path: Path) -> list[list[str]] | None:
    """Return the lines of a manifest without its header, or None if `manifest` did not write it."""
    try:
        header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
    except (OSError, ValueError, csv.Error):  # ValueError: not UTF-8, or empty
        return None
    return rows if header == list(MANIFEST_COLUMNS) and all(len(row) == len(header) for row in rows) else None
