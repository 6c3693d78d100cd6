"""Tables of sounds: each line of a CSV asks for sounds of a label, each sound becomes one file.

Each sound is rendered alone, so that its file does not depend on the other lines or on how many are rendered at once.
Memory depends on the number of lines (about half a kilobyte each), not on that of sounds: there is no list of all files.
"""

import csv
import difflib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import soundfile

from foleybox.audio import BITS, Format, Subtype, check_format, libsndfile_path, read_wave
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.instrument import Instrument
from foleybox.licences import TERMS
from foleybox.studio.extend import finished
from foleybox.studio.recipe import read_recipe
from foleybox.studio.seeds import SEEDS, check_seed
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import Clip, Synth, check_temperature
from foleybox.studio.table import NUMBER, Row, parse_number, parse_whole_number, read_rows

MAX_SOUNDS = 1_000_000  # of one line
MAX_LINES = 1_000_000
OPTIONS = tuple(each.name for each in fields(Shape))
COLUMNS = ("label", "count", "seed", "name", "temperature", *OPTIONS, "format", "subtype")
MANIFEST_COLUMNS = (
    "file", "label", "seed", "temperature", "seconds", "rate", "line", "instrument", "licence", "licence_tier", "generated",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
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
    more: Mapping[str, str] = field(default_factory=dict)  # cells of other columns, which the manifest repeats


@dataclass(frozen=True, slots=True)
class Task:
    """One file."""

    path: Path  # relative to the output folder
    seed: int
    job: Job


def read_jobs(path: Path, synth: Synth, defaults: Job | None = None) -> list[Job]:
    """Read a table and check all its lines. `defaults` has the values of empty cells.

    Columns of other names are kept in `Job.more`. Raises UserError, with the line number, for the first line that cannot
    be rendered, and for lines that have a file in common.
    """
    columns, rows = read_rows(path)
    others = [column for column in columns if column not in COLUMNS]
    for column in others:
        if near := difflib.get_close_matches(column, COLUMNS, 1, 0.75):
            raise UserError(f"{path} has the unknown column {column!r}: did you mean {near[0]}?")
        if column in MANIFEST_COLUMNS:
            raise UserError(
                f"{path} has the column {column!r}, which `jobs` writes in its manifest: give it another name"
            )
    if "label" not in columns:
        raise UserError(f"{path} has no column `label`: expected {', '.join(COLUMNS)}")
    found: list[Job] = []
    shapes: dict[Shape, Shape] = {}  # equal ones are one object
    for row in rows:
        if len(found) == MAX_LINES:
            raise UserError(f"{path} has more than {MAX_LINES:,} lines: expected fewer, split it into several tables")
        try:
            job = _job(row, synth, defaults or Job(), others)
        except UserError as error:
            raise UserError(f"{path}, line {row.line}: {error}") from None
        found.append(replace(job, shape=shapes.setdefault(job.shape, job.shape)))
    if not found:
        raise UserError(f"{path} has no line below its header: expected a line for each set of sounds")
    if conflict := Makers(found).conflict():
        job, other, file = conflict
        raise UserError(
            f"{path}, line {job.line} would make {file}, as line {other.line} does: give one of them another seed, or a name"
        )
    return found


class Makers:
    """Which line makes a file: by ranges of seeds, so that a line of a million sounds takes no more memory than another."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.spans: dict[tuple[str, str], list[tuple[int, int, Job]]] = {}
        "(first seed, last seed, line) by (what precedes the seed in the file's path, suffix), sorted"
        for job in jobs:
            first = _stem(job, job.seed)
            start, seed = _parts(f"{_folder(job)}/{first}")
            self.spans.setdefault((start, job.format), []).append((seed, seed + job.count - 1, job))
        for spans in self.spans.values():
            spans.sort(key=lambda span: span[:2])

    def conflict(self) -> tuple[Job, Job, Path] | None:
        """Return (a line, an earlier line, the first file that both make) of the first such line, None if there is none."""
        found: list[tuple[Job, Job, int]] = []
        for spans in self.spans.values():
            furthest = spans[0]
            for span in spans[1:]:
                if span[0] <= furthest[1]:
                    earlier, later = sorted((span[2], furthest[2]), key=lambda job: job.line)
                    found.append((later, earlier, span[0]))
                furthest = max(furthest, span, key=lambda each: each[1])
        if not found:
            return None
        job, other, seed = min(found, key=lambda each: each[0].line)
        return job, other, Path(_folder(job)) / f"{_stem(job, max(seed, job.seed))}.{job.format}"

    def makes(self, file: str) -> bool:
        """Return whether a line makes this file, a path relative to the output folder."""
        path, _, suffix = file.rpartition(".")
        start, seed = _parts(path)
        spans = self.spans.get((start, suffix), [])
        place = bisect_right(spans, seed, key=lambda span: span[0]) - 1
        return place >= 0 and seed <= spans[place][1]


def _parts(path: str) -> tuple[str, int]:
    """Return a path without suffix, as file systems compare them that ignore case, as (what precedes a seed, the seed).

    A path without a seed is its own beginning, with -1.
    """
    match = re.fullmatch(r"(.*_s)(0|[1-9][0-9]{0,15})", path.casefold(), re.DOTALL)
    return (match[1], int(match[2])) if match else (path.casefold(), -1)


def _folder(job: Job) -> str:
    return safe_name(job.label)


def _stem(job: Job, seed: int) -> str:
    return job.name if job.name and job.count == 1 else f"{job.name or safe_name(job.label)}_s{seed}"


def _job(row: Row, synth: Synth, defaults: Job, others: Iterable[str] = ()) -> Job:
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
    if f"x{row['name']}" != safe_name(f"x{row['name']}") or row["name"][:1] == "." or len(row["name"].encode()) > 200:
        raise UserError(
            f'name {row["name"][:60]!r}: expected a file name, without any of / \\ : * ? " < > | or a leading dot'
        )
    more = {column: row[column] for column in others} if others else defaults.more
    return Job(row.line, label, count, seed, row["name"], temperature, shape, format, subtype, more)


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
        folder = Path(_folder(job))
        for seed in range(job.seed, job.seed + job.count):
            yield Task(folder / f"{_stem(job, seed)}.{job.format}", seed, job)


def render_task(task: Task, synth: Synth) -> Clip:
    """Return the sound of a task, processed as its line states."""
    return finished(synth, synth.render(task.job.label, task.seed, task.job.temperature), task.job.shape)


def is_made_by(path: Path, task: Task, synth: Synth) -> bool:
    """Return whether an existing file is what a task makes, judged by its recipe and its format."""
    try:
        recipe = read_recipe(path)
        if recipe is None:
            return False
        rendered, job = recipe.make.get("of", recipe.make), task.job
        found = (rendered.get("label"), rendered.get("seed"), rendered.get("temperature"), recipe.asked)
        same = found == (job.label, task.seed, job.temperature, job.shape.asked())
        same = same and synth.instrument.matches(recipe.fingerprint)
        return same and (job.format == "ogg" or soundfile.info(libsndfile_path(path)).subtype == job.subtype)
    except (UserError, soundfile.SoundFileError):
        return False


def length_if_whole(path: Path, task: Task, synth: Synth) -> tuple[int, int] | None:
    """Return (samples, rate in Hz) of a file that a task made, None if it is another or cannot be decoded to its end."""
    if not is_made_by(path, task, synth):
        return None
    try:
        wave, rate = read_wave(path)
    except UserError:
        return None
    return len(wave), rate


# --- the manifest -------------------------------------------------------------------------------------------------


def manifest_row(task: Task, samples: int, rate: int, instrument: Instrument) -> dict[str, str]:
    """Return the line of a file in the manifest, by column. `foleybox data check`, `train` and `evaluate` read it."""
    job, terms = task.job, instrument.licence.terms
    tier = next(tier for tier, stated, _ in TERMS if stated == terms)
    values = (
        task.path.as_posix(), job.label, task.seed, job.temperature, f"{samples / rate:.4f}", rate, job.line,
        instrument.name, terms, tier, 1,
    )  # fmt: skip
    return {column: no_formula(str(value)) for column, value in (*zip(MANIFEST_COLUMNS, values), *job.more.items())}


def no_formula(text: str) -> str:
    """Return a text that spreadsheets do not take for a formula: `'` precedes what begins like one and is no number."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") and not NUMBER.fullmatch(text) else text


def read_manifest(path: Path) -> tuple[tuple[str, ...], Iterator[dict[str, str]]]:
    """Return (the columns that are not in every manifest, the lines, which are read one by one).

    Raises ValueError for what `jobs` did not write, also while the lines are read.
    """
    rows = _manifest_lines(path)
    columns = tuple(next(rows, ()))
    usual = len(MANIFEST_COLUMNS)
    if columns[:usual] != MANIFEST_COLUMNS or len(set(columns)) < len(columns):
        raise ValueError(f"{path} has other columns")

    def lines() -> Iterator[dict[str, str]]:
        for row in rows:
            if len(row) != len(columns) or "\0" in row[0]:
                raise ValueError(f"{path} has a damaged line")
            yield dict(zip(columns, row))

    return columns[usual:], lines()


def _manifest_lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file, strict=True)
    except csv.Error as error:
        raise ValueError(str(error)) from None
