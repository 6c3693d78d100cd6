"""`foleybox report`: one row a system, training seeds joined, files that cannot be compared refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from foleybox.errors import UserError
from foleybox.lab.evaluation.measures import Figure
from foleybox.lab.evaluation.report import Report, joined, page, read_rows, report
from foleybox.lab.evaluation.result import Means, Part, Protocol, Result, Run, System, write_result
from foleybox.labels import LABELS

PROTOCOL = Protocol(
    "default", "FD", "toy", 8, "w", "none", 4.0, "real", {label.slug: 9 for label in LABELS},
    {label.slug: 63 for label in LABELS}, "more", 5, 0, 200, 0.95,
)  # fmt: skip


def result(name: str, distance: float, seed: int | None = 0, protocol: Protocol = PROTOCOL) -> Result:
    """Return a result of one system whose distance is the same for every label."""
    figures = {
        "frechet": Figure(distance, distance - 0.25, distance + 0.25, 1.5),
        "accuracy": Figure(0.5, 0.4, 0.6, 0.9),
        **{name: Figure(0.5, 0.4, 0.6, 0.7) for name in ("precision", "recall", "coverage", "diversity")},
    }
    parts = {label.slug: Part(figures, n=100, kept=100, windows=700, floor_n=100) for label in LABELS}
    run = Run("a test system", 32_000, seed, ("open",), (0, 99))
    return Result(
        "0", protocol, [System(name, name, parts, Means(figures), None, run)], [], [], "the command", "abc1234"
    )


def write(folder: Path, *results: Result) -> Path:
    folder.mkdir(exist_ok=True)
    for index, each in enumerate(results):
        (folder / f"{index}.json").write_text(write_result(each), encoding="utf-8")
    return folder


def test_a_row_states_budget_seeds_n_commit_command_interval_and_real_clips(tmp_path: Path) -> None:
    files = write(tmp_path / "files", result("far", 9.125), result("near", 2.5))
    assert report(Report((files,), tmp_path / "page.md")) == 0
    lines = (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(("| near |", "| far |"))]
    assert [row.split(" | ")[0] for row in rows[:2]] == ["| near", "| far"]  # nearest first
    assert rows[0].startswith("| near | 2.50 (2.25 to 2.75) | 1.50 | 0.5 (0.4 to 0.6) | 0.9 |")
    assert rows[0].endswith("| 32,000 | 0 | 100 |")
    assert rows[2] == "| near | a test system | 32,000 | 0 | open | 0 to 99 | 100 | abc1234 | `the command` |"
    by_label = lines[lines.index("## FD ↓, by label") :]
    assert by_label[4].count("|") == by_label[6].count("|") == len(LABELS) + 3


def test_training_seeds_share_a_row_whose_interval_covers_all_of_them(tmp_path: Path) -> None:
    files = write(tmp_path / "files", result("kt", 8.0, 0), result("kt", 9.0, 1))
    rows = read_rows((files,))
    found = joined(rows["kt"])
    assert found.mean.figures["frechet"] == Figure(8.5, 7.75, 9.25, 1.5)
    assert found.labels["rain"].figures["frechet"] == Figure(8.5, 7.75, 9.25, 1.5)
    text = page(rows, "Systems", "x")
    assert "| 32,000 | 0, 1 | 100 |" in text
    apart = text[text.index("## Training seeds apart") :].splitlines()
    assert apart[4].startswith("| kt | 0 | 8.00 (7.75 to 8.25) |")
    assert apart[5].startswith("| kt | 1 | 9.00 (8.75 to 9.25) |")


def test_rounded_figures_are_not_written_with_more_digits_than_they_have(tmp_path: Path) -> None:
    rounded = result("old", 8.0)
    figures = {"frechet": Figure(7.8, 7.5, 8.2, 2.4), "accuracy": Figure(0.6, 0.56, 0.63, 0.87)}
    labels = {slug: replace(part, figures=figures) for slug, part in rounded.systems[0].labels.items()}
    part = replace(rounded.systems[0], labels=labels, mean=Means(figures))
    text = page(read_rows((write(tmp_path / "files", replace(rounded, systems=[part])),)), "Systems", "x")
    assert "| old | 7.8 (7.5 to 8.2) | 2.4 | 0.60 (0.56 to 0.63) | 0.87 | - |" in text


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ((), "no JSON files in"),
        (
            (result("a", 1), result("b", 2, protocol=replace(PROTOCOL, embedding="mn04"))),
            "measured with embedding mn04",
        ),
        ((result("a", 1), result("a", 2)), "both hold a with training seed 0: remove one"),
    ],
)
def test_files_that_make_no_table_are_refused(tmp_path: Path, results: tuple[Result, ...], complaint: str) -> None:
    files = write(tmp_path / "files", *results)
    with pytest.raises(UserError, match=complaint):
        report(Report((files,), tmp_path / "page.md"))
    assert not (tmp_path / "page.md").exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"systems": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="expected a JSON file of `foleybox evaluate --json`"):
        report(Report((tmp_path / "x.json",), tmp_path / "page.md"))
