"""The page of baseline and CMU's track B is written from run folders: its tables say what the runs' logs say."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import accelerate.state
import pytest
from helpers_lab import configured, toy_folder
from toy_embedding import ToyEmbedding
from toy_runs import SNAIL, VOCOS, VQ, vocoder_run, vqvae_run

from foleybox.errors import UserError
from foleybox.lab.baseline import pixelsnail
from foleybox.lab.baseline.codes import read_codes
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail
from foleybox.lab.baseline.train_pixelsnail import train as train_pixelsnail
from foleybox.lab.baseline.train_vqvae import TrainVqvae
from foleybox.lab.baseline.train_vqvae import train as train_vqvae
from foleybox.lab.core.clips import find_clips
from foleybox.lab.play.encode import Encode, encode
from foleybox.lab.vocoders import vocos
from foleybox.labels import LABELS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK = {"device": "cpu", "tracker": "none", "held_out": 0.3, "batch": 2, "precision": "no"}


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("baseline_cmu_b")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of toy recordings with the four runs of the page beside it, trained for a step or two on short clips."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(vocos.SIZES, "small", VOCOS)
        patch.setattr("foleybox.lab.baseline.train_vqvae.mel_sheet", lambda *_, **__: None)
        patch.setattr("foleybox.lab.evaluation.report.load_embedding", lambda *_: ToyEmbedding())
        patch.setitem(pixelsnail.SIZES, "small", SNAIL)
        for split, takes in (("dev", 2), ("train", 3)):
            toy_folder(folder / "data" / "foley" / split, takes)
        clips = find_clips(folder / "data" / "foley" / "train")
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of the file before
        for system in ("baseline", "cmu-b"):
            vqvae, snail = (folder / "runs" / f"{system}-{part}" for part in ("vqvae", "snail"))
            train_vqvae(configured(TrainVqvae, out=vqvae, system=system, model=VQ, steps=2, **QUICK), clips, vqvae)
            encode(Encode(vqvae, (str(folder / "data" / "foley" / "train"),), folder / f"{system}.npz", device="cpu"))
            config = configured(TrainPixelsnail, folder / f"{system}.npz", snail, system, "small", steps=1, **QUICK)
            train_pixelsnail(config, read_codes(config.data), snail)
        vocoder_run(folder / "runs" / "vocoder")
        yield folder


def test_the_page_says_what_the_runs_say_and_keeps_the_sounds(
    bench: ModuleType, shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = shared / "runs"
    out = tmp_path / "page.md"
    config = bench.Benchmark(
        shared, runs, runs / "vocoder", tmp_path / "work", str(shared / "data" / "foley" / "dev"),
        str(shared / "data" / "foley" / "train"), clips=2, batch=14, out=out,
    )  # fmt: skip
    bench.main(config)
    text = out.read_text()
    last = json.loads((runs / "cmu-b-vqvae" / "log.jsonl").read_text().splitlines()[-1])
    for side in ("train", "held_out"):
        row = next(line for line in text.splitlines() if line.startswith(f"| conditioned | {side.replace('_', ' ')}"))
        cells = [cell.strip() for cell in row.split("|")[3:6]]
        assert cells == [f"{last[f'{side}_{name}']:.5f}" for name in ("mse", "cross_entropy", "latent")]
    base = json.loads((runs / "baseline-vqvae" / "log.jsonl").read_text().splitlines()[-1])
    assert f"| MSE, train | {last['train_mse'] / base['train_mse']:.3f} | 0.976 |" in text
    assert "| baseline | train | " in text
    for label in LABELS:
        assert text.count(f"| {label.name} |") == 4
    assert "| mean | 9.702 | 6.616 |" in text  # as the report's rows give
    settings = "--held-out 0.3 --batch 2 --steps 2 --precision no --device cpu --tracker none --channels 4"
    assert f"foleybox train vqvae --system cmu-b -o {runs / 'cmu-b-vqvae'} {settings}" in text
    assert len(list((tmp_path / "work").glob("*/*/*.wav"))) == 5 * 14

    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr("foleybox.lab.play.sample.write_wave", refuse)
    monkeypatch.setattr(bench, "write_wave", refuse)
    bench.main(config)
    assert out.read_text() == text


def test_a_swapped_vqvae_is_refused_before_anything_is_drawn(bench: ModuleType, shared: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for run in (shared / "runs").iterdir():
        (runs / run.name).symlink_to(run)
    (runs / "cmu-b-vqvae").unlink()
    vqvae_run(runs / "cmu-b-vqvae")
    with pytest.raises(UserError, match="cmu-b-snail was made with the VQ-VAE of fingerprint"):
        bench.main(bench.Benchmark(shared, runs, runs / "vocoder", tmp_path / "work", out=tmp_path / "page.md"))
    assert not (tmp_path / "page.md").exists()


def test_a_run_that_has_measured_nothing_says_so(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has measured no clips yet"):
        bench.last_measured(tmp_path)
