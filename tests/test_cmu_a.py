"""The page of CMU's track A is written from run folders: its tables say what the runs say, and whose encoder it was."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import accelerate.state
import pytest
import torch
from helpers_lab import configured, toy_folder
from toy_embedding import ToyEmbedding
from toy_runs import SNAIL

from foleybox.errors import UserError
from foleybox.lab.baseline import pixelsnail
from foleybox.lab.baseline.codes import read_codes
from foleybox.lab.baseline.train_pixelsnail import TrainPixelsnail
from foleybox.lab.baseline.train_pixelsnail import train as train_pixelsnail
from foleybox.lab.cmu.cembed import CembedConfig, Cembeds
from foleybox.lab.cmu.mvqvae import MvqvaeConfig
from foleybox.lab.cmu.train_mhifigan import TrainMhifigan
from foleybox.lab.cmu.train_mhifigan import main as main_mhifigan
from foleybox.lab.cmu.train_mvqvae import TrainMvqvae
from foleybox.lab.cmu.train_mvqvae import train as train_mvqvae
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.play.encode import Encode, encode
from foleybox.labels import LABELS

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "tracker": "none",
    "held_out": 0.3,
    "batch": 2,
    "precision": "no",
}
MVQ = MvqvaeConfig(channels=4, residual=2, width=3, size=8, stride=16, depth=2, components=2)
STAND_IN = CembedConfig(encoder="stand-in")
HEADS: dict[str, dict[str, Any]] = {"rvq": {}, "rvq-none": {"head": "none"}}
ATTENTIONS: dict[str, dict[str, Any]] = {"zen": {}, "plain": {"zen": 0}}
ELSEWHERE = ("cmu.train_mvqvae", "cmu.train_mhifigan", "play.encode")


class MadeUp(Cembeds):
    """CEmbeds of no encoder: a clip's are the same whatever the set, its rows move together."""

    def __getitem__(self, which: torch.Tensor) -> torch.Tensor:
        made = []
        for index in which.tolist():
            seed = sum(map(ord, "/".join(self.paths[index].parts[-2:])))
            made.append(torch.randn(1152, 300, generator=torch.Generator().manual_seed(seed)).cumsum(0) / 8)
        return torch.stack(made) if made else torch.empty(0, 1152, 300)


def made_up(clips: list[ClipFile], _: CembedConfig) -> MadeUp:
    return MadeUp([clip.path for clip in clips])


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("cmu_a")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def shared(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of toy recordings with the runs of the page beside it, trained for a step or two."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("foleybox.lab.evaluation.report.load_embedding", lambda *_: ToyEmbedding())
        patch.setattr("foleybox.lab.cmu.train_mvqvae.sheet", lambda *_: None)
        patch.setitem(pixelsnail.SIZES, "small", SNAIL)
        patch.setattr(bench.zen, "training", lambda config: f"(a step at {config.train_grid})")  # it has processes
        patch.setattr(bench, "load_cembeds", made_up)
        for module in ELSEWHERE:
            patch.setattr(f"foleybox.lab.{module}.load_cembeds", made_up)
        for split, takes in (("dev", 2), ("train", 3)):
            toy_folder(folder / "data" / "foley" / split, takes)
        data, runs = str(folder / "data" / "foley" / "train"), folder / "runs"
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of the file before
        for name, more in HEADS.items():
            run = configured(TrainMvqvae, (data,), runs / name, features=STAND_IN, model=MVQ, steps=2, **QUICK, **more)
            train_mvqvae(run, find_clips(data), runs / name)
        encode(Encode(runs / "rvq", (data,), folder / "codes.npz", device="cpu"))
        for name, more in ATTENTIONS.items():
            snail = configured(
                TrainPixelsnail, folder / "codes.npz", runs / name, "cmu-a", "small", steps=1, **QUICK, **more
            )
            train_pixelsnail(snail, read_codes(snail.data), runs / name)
        main_mhifigan(
            configured(
                TrainMhifigan,
                (data,),
                runs / "voice",
                width=16,
                segment=8,
                features=STAND_IN,
                period_width=1,
                scale_width=2,
                steps=1,
                sample_every=100,
                **QUICK,
            )
        )
        yield folder


def page(bench: ModuleType, shared: Path, runs: Path, tmp_path: Path) -> Any:
    return bench.Benchmark(
        shared, runs, work=tmp_path / "work", reference=str(shared / "data" / "foley" / "dev"),
        floor=str(shared / "data" / "foley" / "train"), clips=2, trips=2, batch=14, out=tmp_path / "page.md",
    )  # fmt: skip


def test_the_page_says_what_the_runs_say_and_keeps_the_sounds(
    bench: ModuleType, shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = page(bench, shared, shared / "runs", tmp_path)
    bench.main(config)
    text = config.out.read_text()
    logs = [
        json.loads((shared / "runs" / run / "log.jsonl").read_text().splitlines()[-1]) for run in ("rvq", "rvq-none")
    ]
    for side in ("train", "held_out"):
        for log, name in zip(logs, ("conditioned", "not")):
            row = next(
                line for line in text.splitlines() if line.startswith(f"| {name} | 2 x 19 | {side.replace('_', ' ')} |")
            )
            cells = [cell.strip() for cell in row.split("|")[4:8]]
            assert cells == [f"{log[f'{side}_{key}']:.4f}" for key in ("mse", "mse_encoder", "mse_mel", "latent")]
    ratio = logs[0]["held_out_latent"] / logs[1]["held_out_latent"]
    assert f"| latent difference, held out | 2 x 19 | {ratio:.3f} | 0.057 |" in text
    assert "| rvq | 2 x 19 | 38 | 114 |" in text  # 38 codes of 3 bits
    for label in LABELS:
        assert text.count(f"| {label.name} |") == 2
    assert "foleybox train mvqvae" in text
    assert (
        "--encoder stand-in --channels 4 --residual 2 --width 3 --size 8 --stride 16 --depth 2 --components 2" in text
    )
    assert "--head none" in text
    assert "(a step at (2, 19))" in text
    assert len(list((tmp_path / "work").glob("*/*/*.wav"))) == 3 * 14
    assert config.out.with_suffix(".png").is_file()

    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(bench, "write_wave", refuse)
    monkeypatch.setattr(bench, "foleybox", refuse)  # neither `generate` nor `evaluate`
    bench.main(config)


def test_every_table_of_a_stand_in_says_so(bench: ModuleType, shared: Path, tmp_path: Path) -> None:
    made = bench.Bench(page(bench, shared, shared / "runs", tmp_path))
    for text in (bench.table4(made), bench.claim4(made), bench.grids(made), bench.drawing(made), bench.table5(made)):
        assert "(stand-in)" in text.splitlines()[0]
    assert "random weights" in bench.about_encoder(made.features)
    assert "random weights" not in bench.about_encoder(replace(made.features, encoder="m-a-p/MERT-v1-330M"))


def test_errors_are_those_of_the_raw_rows(bench: ModuleType) -> None:
    real = torch.randn(3, 1152, 300)
    deviation = torch.full((1152,), 2.0)
    shift = torch.cat([torch.full((1023, 1), 1.0), torch.full((129, 1), -3.0)])
    assert bench.kept_of(real, deviation, lambda each: each + shift) == pytest.approx((0.25, 9.0, 3.0), rel=1e-4)


def test_runs_that_do_not_belong_together_are_refused(bench: ModuleType, shared: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for run in (shared / "runs").iterdir():
        (runs / run.name).symlink_to(run)
    (runs / "rvq").unlink()  # whose codes were learnt
    with pytest.raises(UserError, match="zen was made with the VQ-VAE of fingerprint"):
        bench.Bench(page(bench, shared, runs, tmp_path))
    (runs / "voice").unlink()
    with pytest.raises(UserError, match="holds 1 MVQVAEs, 0 MHiFiGANs"):
        bench.Bench(page(bench, shared, runs, tmp_path))


def test_a_pair_that_differs_in_more_than_the_head_is_no_pair(bench: ModuleType, shared: Path, tmp_path: Path) -> None:
    made = bench.Bench(page(bench, shared, shared / "runs", tmp_path))
    run = made.chosen.with_name("rvq-none")
    made.mvqvaes[run] = (*made.mvqvaes[run][:2], 5)
    with pytest.raises(UserError, match="differ in more than the head"):
        bench.table4(made)
