"""Tables as spreadsheets write them are read; mistakes are errors of one line that state the line number."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foleybox.errors import UserError
from foleybox.studio.table import Table, parse_number, parse_whole_number, read_table


def table(tmp_path: Path, content: str | bytes):
    path = tmp_path / "Tabelle für alle.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path)


@pytest.mark.parametrize(
    "content",
    [
        "Label,Name\nrain,Straße im Regen\ndog,ö\n",
        "\ufefflabel;NAME\r\nrain;Straße im Regen\r\n;\r\ndog;ö\r\n",
        "sep=;\nlabel;name\nrain;Straße im Regen\n\n\ndog;ö",
        " label \tname\t\n rain \t Straße im Regen\t\ndog\tö\n",
        '"label","name"\n"rain","Straße im Regen"\n"dog","ö"\n',
    ],
)
def test_a_table_is_the_same_however_a_spreadsheet_writes_it(tmp_path: Path, content: str) -> None:
    found = table(tmp_path, content)
    assert found.columns == ("label", "name")
    assert [row.cells for row in found.rows] == [
        {"label": "rain", "name": "Straße im Regen"},
        {"label": "dog", "name": "ö"},
    ]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    assert [row.line for row in table(tmp_path, "sep=;\na;b\n\n1;2\n\n\n3;4\n").rows] == [4, 7]
    assert [row.line for row in table(tmp_path, 'a,b\n"1\n1",2\n3,4\n').rows] == [3, 4]


def test_a_missing_cell_is_empty(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "a,b,c\n1\n").rows
    assert (row["a"], row["b"], row["nowhere"]) == ("1", "", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("\n , \n", "is empty"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells, the header 2; a decimal comma needs `;`"),
        ("a;b\n\n1;2;3\n", "line 3 has 3 cells, the header 2"),
        ("a,A\n", "has the column a twice"),
        ("a,,b\n", "a column without a name"),
        ('a,b\n1,2\n"3,4\n', "is not CSV"),
        ("a,b\n1,2\nä,3\n".encode("cp1252"), "line 3 is not UTF-8: save it as UTF-8"),
        ("a,b\n".encode("utf-16"), "is UTF-16"),
        ("a,b\0\n", "is not a text file"),
    ],
)
def test_a_file_that_is_no_table_is_an_error(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        table(tmp_path, content)
    assert "Tabelle für alle.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*x\.csv: No such file"):
        read_table(tmp_path / "x.csv")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(st.sampled_from('ab,;\t"\n\r= sep1\ufeffä'), max_size=40).map(str.encode))
def test_any_bytes_are_a_table_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    found, refused = Table((), ()), ""
    try:
        found = read_table(path)
    except UserError as error:
        refused = str(error)
    assert bool(found.columns) != (len(refused.splitlines()) == 1)
    assert all(set(row.cells) <= set(found.columns) for row in found.rows)
    assert [row.line for row in found.rows] == sorted({row.line for row in found.rows})


@pytest.mark.parametrize(
    ("text", "value"), [("0.8", 0.8), ("0,8", 0.8), ("-23", -23), ("+1e-3", 0.001), (",5", 0.5), ("3.", 3)]
)
def test_numbers_have_a_point_or_a_comma(text: str, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e999", "1.234,5", "1 000", "0x10", "1_0", "٣", "--1"])
def test_a_text_that_is_no_number_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="expected a number"):
        parse_number(text)


@given(st.integers(-(10**17), 10**17))
def test_integers_are_read_as_written_or_as_a_spreadsheet_writes_them(value: int) -> None:
    assert (
        parse_whole_number(str(value)) == parse_whole_number(f"{value}.0") == parse_whole_number(f"{value},00") == value
    )


@pytest.mark.parametrize("text", ["", "1.5", "1e3", "ten", "9" * 19, "1_000", "٣"])
def test_a_text_that_is_no_integer_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="expected a whole number"):
        parse_whole_number(text)
