"""A page of results says what its record says, and nothing else."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the benchmarks use the lab")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

import learning_curve  # noqa: E402 (scripts beside the package, found by the line above)
import systems  # noqa: E402


def test_the_page_of_all_systems_is_its_record_and_what_was_seen() -> None:
    store = systems.read_store(RESULTS / "systems.json")
    written = (RESULTS / "systems.md").read_text(encoding="utf-8")
    made = systems.page(store, "systems.png")
    assert written.startswith(made)
    assert written[len(made) :].strip() == (RESULTS / "systems_seen.md").read_text(encoding="utf-8").strip()


def test_every_row_has_a_commit_and_the_real_clips_score_beside_it() -> None:
    store = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))
    assert {"foley-small", "foley-open", "sagan-small", "kt-2c", "kt-csupcon", "baseline", "cmu-b"} <= set(
        store["systems"]
    )
    for name, system in store["systems"].items():
        assert system["commit"], name
        for part in system["record"]["labels"].values():
            found = part["figures"]["frechet"]
            assert found["low"] <= found["value"] <= found["high"], name
            assert found["floor"] > 0, name


def test_a_system_whose_run_is_gone_keeps_its_row(tmp_path: Path) -> None:
    store = systems.read_store(RESULTS / "systems.json")
    config = systems.Benchmark(tmp_path, instruments=(), out=tmp_path / "systems.md")
    (tmp_path / "systems.json").write_text(json.dumps(store), encoding="utf-8")
    systems.main(config)
    row = next(line for line in (tmp_path / "systems.md").read_text().splitlines() if line.startswith("| cmu-b |"))
    assert "18.4 (18.4 to 18.5)" in row


def test_the_page_of_the_learning_curve_is_its_record_and_what_was_seen() -> None:
    store = json.loads((RESULTS / "learning_curve.json").read_text(encoding="utf-8"))
    written = (RESULTS / "learning_curve.md").read_text(encoding="utf-8")
    made = learning_curve.page(store, "learning_curve.png")
    assert written.startswith(made)
    assert written[len(made) :].strip() == (RESULTS / "learning_curve_seen.md").read_text(encoding="utf-8").strip()


def test_where_a_line_leads_is_the_law_that_its_points_follow() -> None:
    seen = np.array([1e4, 3e4, 2e5])
    found = learning_curve.fit(seen, 80 * seen**-0.4)
    assert found == pytest.approx((80, 0.4))


@pytest.mark.parametrize(
    "short",
    [
        pytest.param([1.0, 0.5], id="two points"),
        pytest.param([0.5, 0.6, 0.7], id="what rises"),
        pytest.param([0.5, 0.1, -0.1], id="what is nearer than real clips"),
    ],
)
def test_no_line_is_led_on_from(short: list[float]) -> None:
    assert learning_curve.fit(np.geomspace(1e4, 1e5, len(short)), np.array(short)) is None
