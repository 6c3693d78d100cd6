"""Every page of results that is made from a committed record says what its record says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmarks use the lab")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

import learning_curve  # noqa: E402 (a script next to the package, found by the line above)
import speed  # noqa: E402

from foleybox.lab.evaluation.report import NOTES, Report, page, read_rows, report  # noqa: E402


def made(path: Path) -> str:
    """Return a page without its notes."""
    return path.read_text(encoding="utf-8").partition(f"\n{NOTES}\n")[0].rstrip() + "\n"


def test_the_page_of_systems_is_made_from_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = read_rows([Path("results/systems")])
    text = page(rows, "Systems", "foleybox report results/systems -o results/systems.md")
    assert made(RESULTS / "systems.md") == text


def test_every_system_has_a_commit_a_budget_intervals_and_the_scores_of_real_clips() -> None:
    rows = read_rows([RESULTS / "systems"])
    assert {"foley-small", "foley-open", "sagan-small", "kt-2c", "kt-csupcon", "baseline", "cmu-b"} <= set(rows)
    for name, same in rows.items():
        for each in same:
            assert each.result.commit, name
            assert each.run.about, name
            assert each.run.clips_seen or name.startswith("real"), name
            for part in each.system.labels.values():
                found = part.figures["frechet"]
                assert found.low is not None
                assert found.high is not None
                assert found.low <= found.value <= found.high, name
                assert found.floor, name


def test_the_page_of_the_learning_curve_is_made_from_its_record() -> None:
    store = json.loads((RESULTS / "learning_curve.json").read_text(encoding="utf-8"))
    assert made(RESULTS / "learning_curve.md") == learning_curve.page(store, "learning_curve.png")


def test_the_page_of_speed_is_made_from_its_record() -> None:
    record = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    assert set(record) <= set(speed.PARTS)
    assert made(RESULTS / "speed.md") == speed.page(record)


def test_there_are_at_most_13_benchmarks_and_every_result_is_in_the_list() -> None:
    assert len(list((ROOT / "benchmarks").glob("*.py"))) <= 13
    listed = (RESULTS / "README.md").read_text(encoding="utf-8")
    named = {word.rstrip("/") for word in listed.split("`")} | {"README.md"}
    missing = [path.name for path in RESULTS.iterdir() if path.name not in named]
    assert missing == []


def test_notes_stay_when_a_page_is_written_again(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    report(Report((RESULTS / "systems",), out))
    out.write_text(out.read_text(encoding="utf-8") + f"\n{NOTES}\n\nBy hand.\n\n## More\n", encoding="utf-8")
    before = out.read_bytes()
    report(Report((RESULTS / "systems",), out))
    assert out.read_bytes() == before


def test_the_extrapolation_of_points_on_a_power_law_is_that_law() -> None:
    seen = np.array([1e4, 3e4, 2e5])
    found = learning_curve.fit(seen, 80 * seen**-0.4)
    assert found == pytest.approx((80, 0.4))


@pytest.mark.parametrize(
    "short",
    [
        pytest.param([1.0, 0.5], id="two points"),
        pytest.param([0.5, 0.6, 0.7], id="rising"),
        pytest.param([0.5, 0.1, -0.1], id="nearer than real clips"),
    ],
)
def test_what_does_not_fall_towards_real_clips_is_not_extrapolated(short: list[float]) -> None:
    assert learning_curve.fit(np.geomspace(1e4, 1e5, len(short)), np.array(short)) is None
