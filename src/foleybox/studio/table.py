"""Tables that people write: CSV as a spreadsheet saves it, with any of the separators and either decimal mark."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from foleybox.errors import UserError

NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One line of a table. A cell that is not there is empty."""

    line: int  # in the file, from 1, of its last line where a quoted cell spans several
    cells: dict[str, str]  # without spaces round them

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


@dataclass(frozen=True)
class Table:
    """A header and the rows under it."""

    columns: tuple[str, ...]  # in small letters, without spaces round them
    rows: tuple[Row, ...]


def read_table(path: str | Path) -> Table:
    """Read a CSV of UTF-8: cells apart by `;`, tab or `,` (the first of these that the header has), blank lines left out.

    A byte-order mark and a first line `sep=;` are taken for what they are. Raises UserError, with the line, for a file
    that cannot be read, is not UTF-8, has no header, a column twice or without a name, or a row longer than the header.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    text, first = _decoded(content, path), 1
    if match := re.match(r"sep=(.)\r?\n", text):  # as Excel begins a file
        text, first = text[match.end() :], 2
    header = text.partition("\n")[0]
    separator = match[1] if match else next((sign for sign in ";\t" if sign in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: tuple[str, ...] = ()
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            line = reader.line_num + first - 1
            if not columns:
                columns = _columns(cells, path)
                continue
            if any(cells[len(columns) :]):
                hint = "; a decimal comma needs `;` between cells, or quotes" if separator == "," else ""
                raise UserError(f"{path}, line {line} has {len(cells)} cells, the header {len(columns)}{hint}")
            rows.append(Row(line, dict(zip(columns, cells))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + first - 1} is not CSV ({error})") from None
    if not columns:
        raise UserError(f"{path} is empty: expected a line of column names, and lines of cells")
    return Table(columns, tuple(rows))


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
    while cells and not cells[-1]:  # a spreadsheet's empty columns
        cells.pop()
    columns = tuple(cell.casefold() for cell in cells)
    if "" in columns:
        raise UserError(f"{path} has a column without a name: expected a name over each")
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice: expected each name once")
    return columns


def number(text: str) -> float:
    """Return the number that a cell holds, with a decimal point or a decimal comma.

    >>> number("0,8"), number("-23"), number("1e-3")
    (0.8, -23.0, 0.001)

    Raises UserError for anything else; a mark of thousands is not guessed at.
    """
    if not NUMBER.fullmatch(text) or abs(value := float(text.replace(",", "."))) == float("inf"):
        raise UserError(f"{text!r}: expected a number such as 0.8 or 0,8")
    return value


def whole_number(text: str) -> int:
    """Return the whole number that a cell holds; a spreadsheet's `3.0` is 3. Raises UserError for anything else."""
    digits = re.fullmatch(r"([+-]?\d{1,18})([.,]0+)?", text, re.ASCII)
    if not digits:
        raise UserError(f"{text!r}: expected a whole number such as 3")
    return int(digits[1])
