"""Selection keeps recognised clips that are distributed like the real ones, and no near-copies."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_lab import changed, configured, toy_folder
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.core.clips import ClipFile, find_clips, limit_per_recording
from foleybox.lab.kt import selection
from foleybox.lab.kt import train_encoder as loop
from foleybox.lab.kt.encoder import EncoderConfig
from foleybox.lab.kt.selection import (
    Select,
    choose,
    mel_statistics,
    near_copy_threshold,
    select,
    similarity,
    standardize,
)
from foleybox.lab.kt.train_encoder import TrainEncoder, train
from foleybox.labels import LABELS

SURE = 0.9


def draws(count: int, seed: int, shift: float = 0.0, spread: float = 1.0, width: int = 6) -> Tensor:
    return shift + spread * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def sure(count: int) -> Tensor:
    return torch.full((count,), SURE)


# --- choosing -----------------------------------------------------------------------------------------------------


def test_recognised_candidates_come_first() -> None:
    features, reference = draws(40, 0), draws(30, 1)
    confidence = torch.tensor([0.9, 0.1] * 20)
    choice = choose(features, confidence, reference, keep=20)
    assert sorted(choice.kept) == list(range(0, 40, 2))


def test_candidates_that_are_not_recognised_follow_by_confidence() -> None:
    confidence = torch.linspace(0, 0.6, 13)  # the last three are 0.5 or more
    choice = choose(draws(13, 0), confidence, draws(30, 1), keep=6)
    assert sorted(choice.kept[:3]) == [10, 11, 12]
    assert choice.kept[3:] == [9, 8, 7]


def test_one_of_several_near_copies_is_kept_and_the_others_name_it() -> None:
    originals, reference = draws(10, 0), draws(30, 1)
    features = torch.cat([originals, originals + 1e-3 * draws(10, 2), originals * 1.001])
    choice = choose(features, sure(30), reference, keep=30, near=0.99)
    assert sorted(i % 10 for i in choice.kept) == list(range(10))
    assert all(copy % 10 == kept % 10 and copy != kept for copy, kept in choice.copy_of.items())
    assert len(choice.kept) + len(choice.copy_of) == 30
    kept = features[choice.kept].double()
    alike = similarity(kept, kept, reference.double().mean(0)).fill_diagonal_(-1)
    assert alike.max() <= 0.99


def test_each_pick_is_the_one_that_the_herding_equation_names() -> None:
    features, reference = draws(9, 0).double(), draws(7, 1).double()
    distances = sorted(math.dist(a, b) for i, a in enumerate(reference) for b in reference[:i])
    scale = distances[(len(distances) - 1) // 2]  # torch's median

    def k(x: Tensor, y: Tensor) -> float:
        return math.exp(-(math.dist(x, y) ** 2) / (2 * scale**2))

    kept: list[int] = []
    for t in range(5):
        score = {
            i: sum(k(x, y) for y in reference) / len(reference) - sum(k(x, features[s]) for s in kept) / (t + 1)
            for i, x in enumerate(features)
            if i not in kept
        }
        kept.append(max(score, key=lambda i: score[i]))
    assert choose(features, sure(9), reference, keep=5).kept == kept


def test_the_first_of_a_selection_are_a_smaller_selection() -> None:
    features, reference = draws(40, 0), draws(30, 1)
    assert choose(features, sure(40), reference, 20).kept[:7] == choose(features, sure(40), reference, 7).kept


def test_herding_is_closer_than_random_choices_to_unseen_real_clips() -> None:
    """Candidates with a shifted mean and too large a deviation: those of the kept are closer to the real ones."""
    reference, unseen = draws(400, 1), draws(4000, 2)
    features = draws(400, 0, shift=0.4, spread=1.5)

    def off(chosen: Tensor) -> tuple[float, float]:
        return float((chosen.mean(0) - unseen.mean(0)).norm()), float((chosen.T.cov() - unseen.T.cov()).norm())

    mean, spread = off(features[choose(features, sure(400), reference, keep=40).kept])
    generator = torch.Generator().manual_seed(3)
    random = [off(features[torch.randperm(400, generator=generator)[:40]]) for _ in range(100)]
    assert mean < min(each[0] for each in random)
    assert spread < min(each[1] for each in random)


def test_the_threshold_of_near_copies_is_the_similarity_of_different_recordings() -> None:
    """Two takes of one recording, 1 degree apart, do not count; the nearest of two recordings are 29 degrees apart."""
    angles = torch.deg2rad(torch.tensor([0, 1, 90, 150, 151, 240], dtype=torch.float64))
    features = torch.stack([angles.cos(), angles.sin()], 1)
    features = torch.cat([features, -features])  # so that the mean is the origin
    clips = [ClipFile(Path("a.wav"), LABELS[0], name) for name in "aabccdeefggh"]
    assert near_copy_threshold(features, clips, LABELS[0]) == pytest.approx(math.cos(math.radians(29)), abs=1e-12)
    one = [replace(clip, recording="a") for clip in clips]
    with pytest.raises(UserError, match="the real clips of DogBark are of one recording"):
        near_copy_threshold(features, one, LABELS[0])


# --- the verb -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(loop, "sheet_of_views", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("sounds"), per_label=4)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "encoder"
    config = configured(
        TrainEncoder,
        (str(folder),), out, model=EncoderConfig(4, 16), batch=7, contrastive_steps=2, classifier_steps=2, held_out=0.0,
        device="cpu", threads=1, tracker="none",
    )  # fmt: skip
    train(config, find_clips(folder))
    return out


@pytest.fixture
def candidates(folder: Path, tmp_path: Path) -> Path:
    """Folders with other spellings of the labels; clip 3 of each label is a copy of clip 0."""
    made = tmp_path / "candidates"
    for label in LABELS:
        shutil.copytree(folder / label.name, made / label.slug)
        shutil.copy(made / label.slug / "000.wav", made / label.slug / "003.wav")
    return made


def settings(candidates: Path, run: Path, **changes: object) -> Select:
    config = Select(str(candidates), 3, run, candidates.parent / "selected", confidence=0.0, near=0.99999)
    return changed(config, **changes)


def test_the_kept_files_are_the_candidates_byte_for_byte_and_every_verdict_is_written(
    candidates: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(candidates, run)
    assert select(config) == 0
    record = json.loads((config.out / "selection.json").read_text())
    for label in LABELS:
        found = record["labels"][label.name]
        assert [row["file"] for row in found["clips"]] == ["000.wav", "001.wav", "002.wav", "003.wav"]
        kept = {row["file"] for row in found["clips"] if row["verdict"] == "kept"}
        assert kept == {path.name for path in (config.out / label.name).iterdir()}
        copy = next(row for row in found["clips"] if row["verdict"] == "near-copy")
        assert {copy["file"], copy["copy_of"]} == {"000.wav", "003.wav"}
        assert sorted(row["rank"] for row in found["clips"] if "rank" in row) == [1, 2, 3]
        for name in kept:
            theirs = candidates / label.slug / name
            assert (config.out / label.name / name).read_bytes() == theirs.read_bytes()
    assert "kept 3 of 4: 4 recognised as their label, 1 near-copies left out" in capsys.readouterr().out
    assert not list(config.out.parent.glob(".*"))


def test_the_same_command_chooses_the_same(candidates: Path, run: Path) -> None:
    first, second = (settings(candidates, run, out=candidates.parent / name) for name in "ab")
    select(first)
    select(second)
    assert (first.out / "selection.json").read_text() == (second.out / "selection.json").read_text()


def test_clips_that_are_not_recognised_are_taken_last_and_reported(
    candidates: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(candidates, run, confidence=1.0)  # no probability reaches it
    select(config)
    found = json.loads((config.out / "selection.json").read_text())["labels"]["Rain"]
    assert (found["recognised"], found["kept_not_recognised"]) == (0, 3)
    ranked = sorted((row for row in found["clips"] if "rank" in row), key=lambda row: row["rank"])
    assert [row["confidence"] for row in ranked] == sorted((row["confidence"] for row in ranked), reverse=True)
    assert "3 of the kept NOT recognised as their label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep": 5}, "DogBark has 4 candidates: expected at least --keep 5"),
        ({"keep": 4}, "DogBark: 3 of 4 candidates are left without near-copies"),
        ({"keep": 0}, "--keep 0: expected 1 or more"),
        ({"confidence": 50.0}, "--confidence 50.0: expected a probability"),
        ({"reference": "nowhere"}, "no folder nowhere"),
        ({"generated": "nowhere"}, "no folder nowhere"),
        ({"encoder": Path("nowhere")}, "nowhere is not a run folder"),
    ],
)
def test_a_mistake_is_reported_and_nothing_is_written(
    candidates: Path, run: Path, changes: dict[str, object], words: str
) -> None:
    config = settings(candidates, run, **changes)
    with pytest.raises(UserError, match=words):
        select(config)
    assert sorted(path.name for path in candidates.parent.iterdir()) == ["candidates"]


def test_an_earlier_selection_is_replaced_only_by_force_and_no_other_file_is_lost(candidates: Path, run: Path) -> None:
    config = settings(candidates, run)
    select(config)
    with pytest.raises(UserError, match="holds a selection already: add --force"):
        select(config)
    select(replace(config, keep=1, force=True))
    assert len(list(config.out.glob("*/*.wav"))) == 7
    (config.out / "Rain" / "mine.wav").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"mine\.wav is no file of the selection that --force would replace"):
        select(replace(config, force=True))
    for other in (candidates, candidates / "inside", candidates.parent):
        with pytest.raises(UserError, match="contain one another"):
            select(replace(config, out=other, force=True))
    (candidates.parent / "notes").mkdir()
    (candidates.parent / "notes" / "a.txt").write_text("precious")
    with pytest.raises(UserError, match="is no earlier selection"):
        select(replace(config, out=candidates.parent / "notes", force=True))


def test_a_selection_that_is_interrupted_leaves_no_folder(
    candidates: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Path] = []

    def stop_at_the_fifth(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(selection.shutil, "copy2", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        select(settings(candidates, run))
    assert [path.name for path in candidates.parent.iterdir()] == ["candidates"]


def test_an_earlier_selection_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "best"
    selection.write_selection(out, [], {"kept": "the first"})
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr("foleybox.files._exchange", lambda *_: False)  # a file system that cannot exchange two folders
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        selection.write_selection(out, [], {"kept": "the second"})
    assert "the first" in (out / "selection.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_without_an_encoder_clips_are_compared_by_statistics_of_their_mels(
    candidates: Path, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(candidates, run, encoder=None, reference=str(folder), confidence=1.0)
    assert select(config) == 0
    record = json.loads((config.out / "selection.json").read_text())
    assert record["encoder"] == "statistics of the mel"
    assert (
        "kept 3 of 4: 1 near-copies left out" in capsys.readouterr().out
    )  # without an encoder, labels are not checked
    for label in LABELS:
        verdicts = [row["verdict"] for row in record["labels"][label.name]["clips"]]
        assert sorted(verdicts) == ["kept", "kept", "kept", "near-copy"]  # clip 3 is clip 0
    with pytest.raises(UserError, match="no --reference: name a folder of real clips"):
        select(replace(config, reference=None, force=True))


def test_at_most_a_given_number_of_clips_of_a_recording_is_used(
    candidates: Path, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = find_clips(folder)
    long = [replace(clip, recording="long") for clip in clips[:7]]
    few = limit_per_recording([*long, *clips[7:9]], 2)
    assert few == [long[0], long[4], *clips[7:9]]
    assert limit_per_recording(long, 0) == limit_per_recording(long, 9) == long
    used = []
    features = selection.FeatureExtractor.features
    monkeypatch.setattr(
        selection.FeatureExtractor,
        "features",
        lambda self, *rest: (used.append(len(rest[0])), features(self, *rest))[1],
    )
    real = [
        replace(clip, recording=f"{clip.label} {place % 2}") for place, clip in enumerate(clips)
    ]  # two recordings of each
    monkeypatch.setattr(selection, "find_reference", lambda config: ([str(folder)], real))
    assert select(settings(candidates, run, most_of_recording=1)) == 0
    assert used == [2, 4] * len(LABELS)
    with pytest.raises(UserError, match="--most-of-recording -1"):
        select(settings(candidates, run, most_of_recording=-1, force=True))


def test_mel_statistics_are_level_deviation_and_roughness_of_bands_and_the_level_over_time() -> None:
    mel = torch.zeros(1, 80, 344)
    mel[:, 40:44] = 3.0  # the eleventh of twenty bands
    mel[:, :, 21:42] += 1.0  # the second of sixteen parts of 21 frames
    level, spread, rough, course = mel_statistics(mel)[0].split([20, 20, 20, 16])
    assert level[10] - level[0] == pytest.approx(3.0)
    assert spread[0] == pytest.approx(math.sqrt(1 / 16 * 15 / 16))
    assert rough[0] == pytest.approx(2 / 335)
    assert course[1] - course[0] == pytest.approx(1.0)
    real, made = torch.randn(50, 76), torch.randn(20, 76) * 2 + 5
    reference, features = standardize(real * 3 + 1, made * 3 + 1)
    torch.testing.assert_close(reference.mean(0), torch.zeros(76), rtol=0, atol=1e-5)
    torch.testing.assert_close(reference.std(0, correction=0), torch.ones(76), rtol=0, atol=1e-2)
    assert features.mean() > 3


def test_two_candidates_of_one_name_are_refused(candidates: Path, run: Path) -> None:
    (candidates / "more").mkdir()
    shutil.copytree(candidates / "rain", candidates / "more" / "rain")
    with pytest.raises(UserError, match=r"2 candidates are called Rain/000\.wav"):
        select(settings(candidates, run))


def test_without_reference_the_real_clips_are_the_encoders_training_clips(
    candidates: Path, run: Path, folder: Path
) -> None:
    config = settings(candidates, run)
    select(config)
    assert json.loads((config.out / "selection.json").read_text())["reference"] == [str(folder)]
