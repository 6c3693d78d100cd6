"""CSV tables as spreadsheets write them: any of the usual separators, decimal point or decimal comma."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foleybox.errors import UserError

MOST_BYTES = 2**28
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One row of a table; `row[column]` is "" for a missing cell."""

    line: int  # line number in the file, from 1; the last line of a row with a quoted line break
    cells: dict[str, str]  # stripped, by column

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


@dataclass(frozen=True)
class Table:
    """The column names of a table, and its rows."""

    columns: tuple[str, ...]  # stripped, lower case
    rows: tuple[Row, ...]


def read_table(path: str | Path) -> Table:
    """Return the whole table of `read_rows`, and raise what it raises."""
    columns, rows = read_rows(path)
    return Table(columns, tuple(rows))


def read_rows(path: str | Path) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Read a UTF-8 CSV whose first line has the column names; return those and its rows, which are parsed as they are read.

    Blank lines are skipped. The separator is the first of `;`, tab, `,` that occurs in the header, or what a first line
    `sep=;` states. A byte-order mark is ignored. Raises UserError, with the line number, for a file that cannot be read, is
    larger than `MOST_BYTES` or not UTF-8, a missing header, a column without a name or with the name of another, and, while
    reading, a row longer than the header.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MOST_BYTES else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if size > MOST_BYTES:
        raise UserError(
            f"{path} has more than {MOST_BYTES // 2**20} MB: expected a smaller table, split it into several"
        )
    text, first = _decoded(content, path), 1
    if match := re.match(r"sep=(.)\r?\n", text):  # as Excel begins a file
        text, first = text[match.end() :], 2
    header = text.partition("\n")[0]
    separator = match[1] if match else next((sign for sign in ";\t" if sign in header), ",")
    records = _records(text, separator, first, path)
    _, cells = next(records, (0, []))
    if not cells:
        raise UserError(f"{path} is empty: expected a line of column names, and lines of cells")
    columns = _columns(cells, path)
    return columns, _rows(records, columns, separator, path)


def _records(text: str, separator: str, first: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield reader.line_num + first - 1, cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + first - 1} is not CSV ({error})") from None


def _rows(
    records: Iterator[tuple[int, list[str]]], columns: tuple[str, ...], separator: str, path: Path
) -> Iterator[Row]:
    for line, cells in records:
        if any(cells[len(columns) :]):
            hint = "; a decimal comma needs `;` between cells, or quotes" if separator == "," else ""
            raise UserError(f"{path}, line {line} has {len(cells)} cells, the header {len(columns)}{hint}")
        yield Row(line, dict(zip(columns, cells)))


def _decoded(content: bytes, path: Path) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16: save it as UTF-8 (in Excel: `CSV UTF-8`)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8: save it as UTF-8 (in Excel: `CSV UTF-8`)") from None
    if "\0" in text:
        raise UserError(f"{path} is not a text file: expected CSV")
    return text


def _columns(cells: list[str], path: Path) -> tuple[str, ...]:
    while cells and not cells[-1]:  # empty columns of a spreadsheet
        cells.pop()
    columns = tuple(cell.casefold() for cell in cells)
    if "" in columns:
        raise UserError(f"{path} has a column without a name: expected a name for each")
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice: expected each name once")
    return columns


def parse_number(text: str) -> float:
    """Return the number in a cell, written with a decimal point or a decimal comma.

    >>> parse_number("0,8"), parse_number("-23"), parse_number("1e-3")
    (0.8, -23.0, 0.001)

    Raises UserError for anything else, thousands separators among it.
    """
    if not NUMBER.fullmatch(text) or abs(value := float(text.replace(",", "."))) == float("inf"):
        raise UserError(f"{text!r}: expected a number such as 0.8 or 0,8")
    return value


def parse_whole_number(text: str) -> int:
    """Return the integer in a cell, also where a spreadsheet wrote `3.0`. Raises UserError for anything else."""
    digits = re.fullmatch(r"([+-]?\d{1,18})([.,]0+)?", text, re.ASCII)
    if not digits:
        raise UserError(f"{text!r}: expected a whole number such as 3")
    return int(digits[1])
