"""A page of results says what its record says, and nothing else."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the benchmarks use the lab")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))

import systems  # noqa: E402 (a script beside the package, found by the line above)


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
