"""A score while training is `foleybox evaluate`'s of the same sounds, selects the best weights, and changes no training."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_lab import configured, toy_folder, toy_wave
from toy_embedding import ToyEmbedding
from toy_runs import SNAIL, VOCOS, VQ, toy_codes, vocoder_run, vqvae_run

from foleybox import cli
from foleybox.audio import read_wave
from foleybox.errors import UserError
from foleybox.lab.baseline import pixelsnail
from foleybox.lab.baseline.codes import write_codes
from foleybox.lab.baseline.runs import load_pixelsnail, load_vqvae
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.runs import read_run_config, read_state
from foleybox.lab.evaluation.evaluate import Evaluate, run
from foleybox.lab.play import scored
from foleybox.lab.play.scored import (
    ReferenceDistance,
    ScoredPixelsnail,
    ScoredVqvae,
    as_written,
    train_pixelsnail,
    train_vqvae,
)
from foleybox.lab.vocoders import vocos
from foleybox.labels import LABELS


class Runs:
    """Recordings, an untrained VQ-VAE and vocoder, and codes."""

    def __init__(self, folder: Path) -> None:
        self.sounds = toy_folder(folder / "sounds", per_label=3)
        self.vqvae, self.vocoder, self.codes = folder / "vqvae", folder / "vocoder", folder / "codes.npz"
        self.fingerprint = vqvae_run(self.vqvae)
        vocoder_run(self.vocoder)
        write_codes(self.codes, toy_codes(self.fingerprint))

    def snail(self, out: Path, **changes: Any) -> ScoredPixelsnail:
        values: dict[str, Any] = {
            "size": "small", "held_out": 0.2, "batch": 4, "lr": 1e-2, "steps": 4, "device": "cpu", "tracker": "none",
            "log_every": 1, "save_every": 2, "sample_every": 4, "score_every": 2, "score_clips": 2, "vqvae": self.vqvae,
            "reference": str(self.sounds), "vocoder": self.vocoder,
        }  # fmt: skip
        return configured(ScoredPixelsnail, self.codes, out, **(values | changes))

    def vq(self, out: Path, **changes: Any) -> ScoredVqvae:
        values: dict[str, Any] = {
            "model": VQ, "held_out": 0.2, "batch": 4, "steps": 4, "device": "cpu", "tracker": "none", "log_every": 1,
            "save_every": 2, "sample_every": 4, "score_every": 2, "score_clips": 2, "reference": str(self.sounds),
            "vocoder": self.vocoder,
        }  # fmt: skip
        return configured(ScoredVqvae, (str(self.sounds),), out, **(values | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(vocos.SIZES, "small", VOCOS)
        patch.setitem(pixelsnail.SIZES, "small", SNAIL)
        patch.setattr("foleybox.lab.baseline.train_vqvae.mel_sheet", lambda *_, **__: None)
        patch.setattr(scored, "load_embedding", lambda *_: ToyEmbedding())
        patch.setattr("foleybox.lab.evaluation.evaluate.load_embedding", lambda *_: ToyEmbedding())
        yield Runs(tmp_path_factory.mktemp("runs"))


def scores(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["score"] for line in lines if "score" in line}


def evaluated(folder: Path, reference: Path) -> float:
    found = run(Evaluate((str(folder),), reference=str(reference), keep_silent=True))
    return found.systems[0].mean.figures["frechet"].value


# --- the score ----------------------------------------------------------------------------------------------------


def test_the_score_is_what_evaluate_says_of_the_same_sounds_in_files(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, distance = tmp_path / "snail", ReferenceDistance.distance
    scored_waves: dict[float, torch.Tensor] = {}

    def record(reference: ReferenceDistance, waves: torch.Tensor, labels: Sequence[int]) -> float:
        found = distance(reference, waves, labels)
        scored_waves[found] = as_written(waves)
        return found

    monkeypatch.setattr(ReferenceDistance, "distance", record)
    assert train_pixelsnail(runs.snail(out)) == 0
    found = scores(out)
    assert list(found) == [2, 4]
    step = load_pixelsnail(out)[2]
    words = ["sample", out, "all", "-n", "2", "--vqvae", runs.vqvae, "--vocoder", runs.vocoder]
    assert cli.main([*map(str, words), "--device", "cpu", "-o", str(tmp_path / "sounds")]) == 0
    assert evaluated(tmp_path / "sounds", runs.sounds) == pytest.approx(found[step], rel=1e-4)
    files = np.stack([read_wave(clip.path)[0] for clip in find_clips(tmp_path / "sounds")])
    scored_then = next(waves for score, waves in scored_waves.items() if score == pytest.approx(found[step], rel=1e-6))
    np.testing.assert_allclose(scored_then.numpy(), files, atol=1.1 * 2**-15)
    assert (
        (files[0::2] != files[1::2]).any(1).all()
    )  # of every label, two seeds; the training is too short for the labels


def test_the_score_of_reconstructions_is_against_the_very_clips_and_0_for_perfect_ones(runs: Runs) -> None:
    clips = scored.reference_clips(runs.vq(Path()), 2)
    assert [clip.label for clip in clips] == [label for label in LABELS for _ in range(2)]
    reference = ReferenceDistance(clips, ToyEmbedding())
    waves = np.stack([toy_wave(label.id, take) for label in LABELS for take in range(2)])
    labels = [label.id for label in LABELS for _ in range(2)]
    assert reference.distance(torch.from_numpy(waves), labels) == pytest.approx(0, abs=1e-3)
    quieter = reference.distance(torch.from_numpy(0.5 * waves), labels)
    mixed = reference.distance(torch.from_numpy(waves), labels[2:] + labels[:2])
    assert 1 < quieter < mixed


def test_sounds_are_scored_as_their_files_would_be() -> None:
    waves = torch.tensor([[0.1, -0.30001, 0.5], [2.0, -4.0, 1.0]])
    assert as_written(waves).tolist() == [[3277 / 32768, -9831 / 32768, 0.5], [0.5, -1.0, 0.25]]


# --- the loops ----------------------------------------------------------------------------------------------------


def planned(values: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scores be these, one after another."""
    left = iter(values)
    monkeypatch.setattr(ReferenceDistance, "distance", lambda *_: next(left))


@pytest.mark.parametrize("every", [0, 2])
def test_the_best_by_score_is_what_is_read_from_either_run(
    every: int, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"steps": 6, "score_every": every, "sample_every": 2}
    planned([3.0, 1.0, 2.0], monkeypatch)
    train_pixelsnail(runs.snail(tmp_path / "snail", **steps))
    planned([3.0, 1.0, 2.0], monkeypatch)
    train_vqvae(runs.vq(tmp_path / "vq", steps=6, score_every=every, sample_every=2))
    assert scores(tmp_path / "snail") == scores(tmp_path / "vq") == {2: 3.0, 4: 1.0, 6: 2.0}
    assert (load_pixelsnail(tmp_path / "snail")[2], load_vqvae(tmp_path / "vq")[1]) == (4, 4)


def go(part: str, runs: Runs, out: Path, **changes: Any) -> int:
    """Train one of the two parts."""
    return train_vqvae(runs.vq(out, **changes)) if part == "vqvae" else train_pixelsnail(runs.snail(out, **changes))


@pytest.mark.parametrize("part", ["pixelsnail", "vqvae"])
def test_a_resumed_run_does_not_forget_its_best(
    part: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned([1.0, 2.0], monkeypatch)
    go(part, runs, tmp_path, steps=2)
    go(part, runs, tmp_path, steps=4)
    assert read_state(tmp_path / "state.pt")["best"]["step"] == 2


@pytest.mark.parametrize("part", ["pixelsnail", "vqvae"])
def test_a_score_does_not_change_the_training(part: str, runs: Runs, tmp_path: Path) -> None:
    free = {"reference": None, "vocoder": None, "score_every": 0} | ({} if part == "vqvae" else {"vqvae": None})
    go(part, runs, tmp_path / "scored")
    go(part, runs, tmp_path / "free", **free)
    mine, theirs = (read_state(tmp_path / name / "state.pt")[part] for name in ("scored", "free"))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert read_run_config(tmp_path / "free")["scored"] is None


def test_a_run_that_is_scored_otherwise_is_another_run(runs: Runs, tmp_path: Path) -> None:
    train_pixelsnail(runs.snail(tmp_path / "snail", steps=1))
    for changes in ({"score_clips": 3}, {"reference": None, "vocoder": None, "vqvae": None, "score_every": 0}):
        with pytest.raises(
            UserError, match="was started with scored = 'Fréchet distance of 2 drawn clips a label, toy"
        ):
            train_pixelsnail(runs.snail(tmp_path / "snail", **changes))
    train_pixelsnail(runs.snail(tmp_path / "snail", steps=2, score_every=1))  # the number of scores may change


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_mistakes_are_reported_before_a_folder_is_made(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    vqvae_run(other, seed=1)
    one = toy_folder(tmp_path / "one", per_label=1)
    scoring = {"--reference": str(runs.sounds), "--vocoder": str(runs.vocoder)}
    for verb, flags, complaint in (
        ("pixelsnail", {**scoring, "--vqvae": str(other)}, "was made with the VQ-VAE of fingerprint"),
        ("pixelsnail", scoring, "--reference needs --vqvae"),
        ("pixelsnail", {"--reference": str(runs.sounds)}, "--reference needs --vocoder"),
        ("pixelsnail", {"--vocoder": str(runs.vocoder)}, "--vocoder goes with --reference"),
        ("pixelsnail", {"--vqvae": str(runs.vqvae)}, "--vqvae goes with --reference"),
        ("pixelsnail", {"--score-every": "3"}, "--score-every goes with --reference"),
        ("vqvae", {**scoring, "--vocoder": str(runs.vqvae)}, "expected one of `foleybox train vocoder`"),
        ("vqvae", {**scoring, "--reference": str(one)}, "has 1 clip of DogBark: a distance needs at least 2"),
        ("vqvae", {**scoring, "--reference": str(tmp_path / "none")}, "no folder"),
    ):
        words = [str(runs.codes) if verb == "pixelsnail" else str(runs.sounds), "-o", str(tmp_path / "out")]
        words += [word for pair in flags.items() for word in pair]
        assert cli.main(["train", verb, *words, "--device", "cpu", "--tracker", "none"]) == 2, complaint
        said = capsys.readouterr().err
        assert complaint in said
        assert len(said.splitlines()) == 1
    for changes, complaint in (
        ({"score_clips": 1}, "--score-clips 1: expected 2 or more"),
        ({"reference": None, "vocoder": None, "vqvae": None, "weights": Path("x.pt")}, "score_every|weights goes with"),
    ):
        with pytest.raises(UserError, match=complaint):
            train_pixelsnail(runs.snail(tmp_path / "out", **{"score_every": 0, **changes}))
    assert not (tmp_path / "out").exists()


def test_scored_clips_are_spread_over_recordings(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first by name, which may all be cut from one recording."""
    clips = [
        replace(clip, recording=f"r{take // 3}") for clip in find_clips(runs.sounds)[:1] for take in range(12)
    ]  # four recordings of three clips each
    numbered = [replace(clip, path=Path(f"{index}.wav")) for index, clip in enumerate(clips)]

    def chosen(most: int) -> list[int]:
        return [int(clip.path.stem) for clip in scored.spread_over_recordings(numbered, most)]

    assert chosen(4) == [0, 3, 6, 9]
    assert chosen(2) == [0, 6]
    assert chosen(6) == [0, 1, 3, 6, 7, 9]
    assert chosen(12) == chosen(99) == [*range(12)]
    monkeypatch.setattr(scored, "find_clips", lambda _: numbered)
    assert [int(clip.path.stem) for clip in scored.reference_clips(runs.vq(Path()), 4)] == [0, 3, 6, 9]
    assert len(scored.reference_clips(runs.vq(Path()))) == 12


def test_weights_of_the_embedding_that_are_missing_are_named_before_training(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foleybox.lab.evaluation import embeddings

    monkeypatch.setattr(scored, "load_embedding", embeddings.load_embedding)
    with pytest.raises(UserError, match=r"none\.pt"):
        train_vqvae(runs.vq(tmp_path / "out", weights=tmp_path / "none.pt"))
    assert not (tmp_path / "out").exists()


def test_codes_of_another_grid_cannot_be_scored(runs: Runs, tmp_path: Path) -> None:
    codes = toy_codes(runs.fingerprint)
    write_codes(tmp_path / "tall.npz", replace(codes, codes=codes.codes[:, :10]))
    with pytest.raises(UserError, match="has codes of 10 rows, mels of 40 bands: expected 20, for 80"):
        train_pixelsnail(replace(runs.snail(tmp_path / "out"), data=tmp_path / "tall.npz"))


def test_a_run_scored_from_the_command_line_plays(runs: Runs, tmp_path: Path) -> None:
    words = [
        "train",
        "vqvae",
        runs.sounds,
        "-o",
        tmp_path / "vq",
        "--reference",
        runs.sounds,
        "--vocoder",
        runs.vocoder,
    ]
    flags = "--size tiny --steps 1 --batch 2 --tracker none --device cpu"
    assert cli.main([*map(str, words), *flags.split()]) == 0
    assert list(scores(tmp_path / "vq")) == [1]
    assert len(find_clips(runs.sounds)) == 21
