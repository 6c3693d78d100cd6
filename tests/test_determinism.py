"""On one machine and one version of onnxruntime, a sound is the same bit for bit however it is rendered."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from foleybox.commands.verify import ROUNDING_DB, verify_files
from foleybox.instrument import SHIPPED, shipped
from foleybox.studio.stream import MAX_CLIPS, guidance_rows
from foleybox.studio.synth import Synth

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import determinism  # noqa: E402 (a script outside the package, found by the line above)

RECORD = ROOT / "results" / "determinism.json"
DEFAULT = SHIPPED / "foley"
PAIRS = [("dog_bark", 3), ("rain", 4), ("gunshot", 5)]  # one of them without guidance

Waves = dict[tuple[str, int], np.ndarray]


def render(pairs: list[tuple[str, int]], threads: int, batch: int) -> Waves:
    clips = Synth.load(DEFAULT, threads).render_many(pairs, batch)
    return {pair: clip.wave for pair, clip in zip(pairs, clips, strict=True)}


@pytest.fixture(scope="module")
def canonical() -> Waves:
    """Rendered one at a time on one thread, as `verify` does."""
    return render(PAIRS, threads=1, batch=1)


@pytest.mark.parametrize(
    ("threads", "batch", "order"),
    [(1, 3, [2, 0, 1]), (1, 2, [1, 2, 0]), (2, 1, [2, 1, 0]), (6, 1, [0, 1, 2]), (8, 64, [1, 0, 2])],
)
def test_batch_order_and_threads_change_no_bit(canonical: Waves, threads: int, batch: int, order: list[int]) -> None:
    for pair, wave in render([PAIRS[place] for place in order], threads, batch).items():
        np.testing.assert_array_equal(wave, canonical[pair])


def test_another_process_changes_no_bit(canonical: Waves, tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from foleybox.studio.synth import Synth; s = Synth.load(sys.argv[1], threads=2);"
        f"np.save(sys.argv[2], np.stack([clip.wave for clip in s.render_many({PAIRS[::-1]})]))"
    )
    subprocess.run([sys.executable, "-c", code, DEFAULT, tmp_path / "x.npy"], check=True, timeout=120)
    for pair, wave in zip(PAIRS[::-1], np.load(tmp_path / "x.npy"), strict=True):
        np.testing.assert_array_equal(wave, canonical[pair])


def test_a_float_file_above_full_scale_from_many_threads_is_identical(tmp_path: Path) -> None:
    """Louder sounds differ more, and a file of integers turns them down: this was up to 1.84 steps on several threads."""
    clips = Synth.load(DEFAULT, threads=6).render_many(("dog", seed) for seed in range(12))
    clip = max(clips, key=lambda each: np.abs(each.wave).max())
    assert np.abs(clip.wave).max() > 1
    clip.save(tmp_path / "x.wav", "FLOAT")
    assert next(verify_files([tmp_path / "x.wav"], DEFAULT)).verdict == "identical"


def test_the_rows_of_the_largest_call_are_added_up_in_one_part() -> None:
    """onnxruntime cuts sums of more than 128 terms."""
    _, label, _ = guidance_rows(np.zeros(MAX_CLIPS, np.int64), np.full(MAX_CLIPS, 2.0, np.float32))
    assert len(label) <= 128


def test_the_page_of_results_is_its_record() -> None:
    assert RECORD.with_suffix(".md").read_text(encoding="utf-8") == determinism.page(determinism.read_store(RECORD))


@pytest.mark.parametrize("name", [folder.name for folder in shipped()])
def test_every_allowed_version_was_measured_on_every_instrument(name: str) -> None:
    rows = [row for row in determinism.read_store(RECORD) if row["instrument"] == name and not row["emulated"]]
    assert all(Synth.load(SHIPPED / name).instrument.matches(row["fingerprint"]) for row in rows)
    assert min(row["n"] for row in rows) >= 50
    assert max(row["residual_db"] for row in rows if row["steps"]) < ROUNDING_DB - 10
    minors = sorted(determinism.numbers(row["onnxruntime"])[1] for row in rows)
    assert minors == list(range(minors[0], minors[-1] + 1))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"onnxruntime>=1.{minors[0]},<1.{minors[-1] + 1}" in project["dependencies"]


def test_the_record_says_that_conditions_change_nothing() -> None:
    found = [row["conditions"] for row in determinism.read_store(RECORD) if "conditions" in row]
    assert found
    for conditions in found:
        assert set(conditions) == {*determinism.CONDITIONS, determinism.PROCESSES}
        assert all(each["identical"] == each["n"] for each in conditions.values())
