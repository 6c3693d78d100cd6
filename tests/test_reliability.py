"""Every promise of docs/reliability.md names a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_tests_files_and_targets_that_the_page_names_exist() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", PAGE) if f"def {name}(" not in source] == []
    assert [path for path in re.findall(r"`(tests/[\w/.]+)`", PAGE) if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [verb for verb in re.findall(r"`make (\w+)", PAGE) if f"\n{verb}:" not in makefile] == []


def test_every_row_of_a_table_of_promises_names_what_holds_it() -> None:
    tables = re.findall(r"\| promise \| held by \|\n\|---\|---\|\n((?:\|.*\|\n)+)", PAGE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"\| [^|]*(`test_|`tests/|`make )[^|]*\|$", row)] == []
