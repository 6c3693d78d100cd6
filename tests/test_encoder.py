"""The encoder has ResNet18's weights, SupCon equals its equation, each stage trains its own part, training resumes exactly."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers_lab import changed, configured, toy_folder
from torch import Tensor

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.core.augment import NEPER_PER_DB
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import DCASE, SILENCE
from foleybox.lab.evaluation.embeddings import embed_clips, load_embedding
from foleybox.lab.kt import augment
from foleybox.lab.kt import train_encoder as loop
from foleybox.lab.kt.augment import draw_view, fade
from foleybox.lab.kt.encoder import MEL_LOW, Encoder, EncoderConfig, embed_mels, encode_mels
from foleybox.lab.kt.losses import supervised_contrastive
from foleybox.lab.kt.runs import load_encoder
from foleybox.lab.kt.train_encoder import TrainEncoder, cosine, main, train

TINY = EncoderConfig(width=4, embedding=16)
draw_sheet = loop.sheet_of_views


def unit(*shape: int, seed: int = 0) -> Tensor:
    draws = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(draws, dim=-1)


# --- the network --------------------------------------------------------------------------------------------------


def weights_by_hand(width: int, embedding: int) -> int:
    """ResNet18 with a one-channel stem, the head and the classifier, added up layer by layer."""
    total = 49 * width + 2 * width
    before = width
    for after in (width, 2 * width, 4 * width, 8 * width):
        total += (
            9 * before * after + 3 * 9 * after * after + 4 * 2 * after
        )  # two blocks, each convolution with its norm
        total += before * after + 2 * after if after != before else 0  # the 1 x 1 shortcut with its norm
        before = after
    return total + before * before + before + before * embedding + embedding + 7 * before + 7


@pytest.mark.parametrize(("width", "weights"), [(64, 11_502_151), (16, 734_455)])
def test_the_encoder_has_resnet18s_number_of_weights(width: int, weights: int) -> None:
    """torchvision's ResNet18 has 11,689,512: less 513,000 (1,000 classes) and 6,272 (two channels), plus 331,911."""
    assert weights == weights_by_hand(width, 128)
    assert sum(parameter.numel() for parameter in Encoder(EncoderConfig(width)).parameters()) == weights


def test_a_mel_becomes_eight_widths_of_features_and_a_unit_embedding() -> None:
    encoder = Encoder(TINY)
    encoded = encoder(torch.randn(3, 80, 344))
    assert encoded.feature.shape == (3, 32)
    assert encoded.embedding.shape == (3, 16)
    assert encoder.classifier(encoded.feature).shape == (3, 7)
    torch.testing.assert_close(encoded.embedding.norm(dim=1), torch.ones(3))
    assert MEL_LOW == SILENCE  # the model may not import the number; it is the same


def test_embedding_moves_no_statistic_and_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY)
    mels = torch.randn(7, 80, 344)
    encoder(mels)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    whole, parts = embed_mels(encoder, mels), embed_mels(encoder, mels, batch=2)
    assert encoder.training
    assert not whole.requires_grad
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


# --- the loss -----------------------------------------------------------------------------------------------------


def by_loops(z: Tensor, labels: Tensor, tau: float) -> float:
    """Khosla et al. 2020, equation 2, item by item, with its exponentials."""
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        below = sum(math.exp(float(z[i] @ z[a]) / tau) for a in others)
        terms = [math.log(math.exp(float(z[i] @ z[p]) / tau) / below) for p in positives]
        total += -sum(terms) / len(terms) if terms else 0.0
    return total / len(z)


@pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])
def test_supcon_equals_the_double_loop(tau: float) -> None:
    z, labels = unit(13, 8), torch.arange(13) % 5
    assert float(supervised_contrastive(z, labels, tau)) == pytest.approx(by_loops(z, labels, tau), abs=1e-10)


def test_with_the_clips_numbers_as_labels_supcon_is_simclr() -> None:
    z = unit(12, 8)  # six clips, two views of each
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    other_view = (torch.arange(12) + 6) % 12
    simclr = F.cross_entropy(logits, other_view)
    assert float(supervised_contrastive(z, torch.arange(6).repeat(2))) == pytest.approx(float(simclr), abs=1e-12)


def test_an_item_without_a_positive_costs_nothing() -> None:
    z, labels = unit(5, 4), torch.tensor([0, 0, 1, 2, 0])
    assert float(supervised_contrastive(z, labels)) == pytest.approx(by_loops(z, labels, 0.1), abs=1e-10)
    for few in (unit(3, 4), unit(1, 4)):  # no item has one
        few.requires_grad_()
        loss = supervised_contrastive(few, torch.arange(len(few)))
        loss.backward()
        assert float(loss.detach()) == 0
        assert few.grad is not None
        assert torch.equal(few.grad, torch.zeros_like(few))


def test_the_gradient_of_supcon_is_that_of_its_values() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive(z, labels), unit(6, 4).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_supcon_is_full_precision_under_autocast(dtype: torch.dtype) -> None:
    z, labels = unit(64, 16).float(), torch.arange(64) % 7
    with torch.autocast("cpu", dtype=dtype):
        inside = supervised_contrastive(z, labels)
    assert torch.equal(inside, supervised_contrastive(z, labels))
    assert torch.isfinite(supervised_contrastive(torch.ones(64, 1, dtype=dtype), labels))


# --- the views ----------------------------------------------------------------------------------------------------


def test_a_fade_is_straight_in_db_and_stops_at_silence() -> None:
    image = torch.zeros(2, 1, 3, 100)
    faded = fade(image, torch.tensor([40.0, 0.0]), torch.tensor([0.0, 10.0]), depth=6.0, floor=-5.0)
    expected = (-6 + 6 * torch.arange(40) / 40).clamp(min=-5)
    torch.testing.assert_close(faded[0, 0, 1], torch.cat([expected, torch.zeros(60)]))
    assert faded[1, 0, 0, :90].eq(0).all()
    torch.testing.assert_close(faded[1, 0, 2, 90:], (-0.6 * torch.arange(1, 11)).clamp(min=-5))


def test_a_view_is_never_louder_keeps_silence_and_masks_at_most_two_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    image = 2 * torch.rand(50, 1, 4, 200) - 1
    view = draw_view(image, SILENCE)
    assert (view <= image).all()
    silence = torch.full((4, 1, 4, 200), SILENCE)
    assert torch.equal(draw_view(silence, SILENCE), silence)
    untouched = (view == image).all(2)[:, 0].sum(1)  # frames: outside two fades of 40 % and two masks of 15 %
    assert untouched.min() >= 200 * (1 - 0.8) - 2 * 30
    cut = (view == SILENCE).all(2)[:, 0].sum(1)
    assert cut.max() <= 2 * 30
    assert 1 < cut.float().mean() < 60
    assert (image - view)[view > SILENCE].max() <= 60 * NEPER_PER_DB + 1e-4
    monkeypatch.setattr(augment, "MASK", 0.0)
    faded = draw_view(torch.zeros(50, 1, 4, 200), SILENCE)
    assert faded[:, 0, 0, 10].unique().numel() > 20  # a draw for each item
    assert faded[:, 0, 0, -10].unique().numel() > 20
    monkeypatch.setattr(augment, "FADE", 0.0)
    assert torch.equal(draw_view(image, SILENCE), image)


# --- training -----------------------------------------------------------------------------------------------------


def tiny_run(out: Path, **changes: object) -> TrainEncoder:
    settings = configured(
        TrainEncoder,
        ("unused",), out, model=TINY, batch=7, contrastive_steps=3, classifier_steps=3, device="cpu", threads=1,
        tracker="none", log_every=1, save_every=1, held_out=0.1,
    )  # fmt: skip
    return changed(settings, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("sounds"), per_label=4)


@pytest.fixture(scope="module", autouse=True)
def _own_cache_and_no_pictures(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(loop, "sheet_of_views", lambda *_: None)  # half the time of a tiny run
        yield


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, in the precision that real runs have."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_run(out), find_clips(folder))
    return out


def state(run: Path) -> dict:
    return torch.load(run / "state.pt", weights_only=True)


def train_and_stop_at(step: int, folder: Path, out: Path) -> None:
    """Train until Ctrl-C comes at the beginning of a step."""
    really = loop.seed_step

    def seed_step(seed: int, now: int) -> None:
        if now == step:
            raise KeyboardInterrupt
        really(seed, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "seed_step", seed_step)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
            train(tiny_run(out), find_clips(folder))


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_stopped_in_either_stage_resumes_bit_for_bit(
    step: int, whole: Path, folder: Path, tmp_path: Path
) -> None:
    train_and_stop_at(step, folder, tmp_path)
    train(tiny_run(tmp_path), find_clips(folder))
    mine, theirs = state(tmp_path), state(whole)
    assert mine["step"] == theirs["step"] == 6
    assert all(torch.equal(value, mine["encoder"][name]) for name, value in theirs["encoder"].items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_each_stage_moves_only_its_own_part(whole: Path, folder: Path, tmp_path: Path) -> None:
    """The classifier stage leaves the backbone, its batch statistics and the head as they are: the table s stays valid."""
    train_and_stop_at(3, folder, tmp_path)
    torch.manual_seed(0)
    start = Encoder(TINY).state_dict()
    halfway, end = state(tmp_path)["encoder"], state(whole)["encoder"]
    for name, value in end.items():
        if name.startswith("classifier"):
            assert torch.equal(start[name], halfway[name])
            assert not torch.equal(halfway[name], value)
        else:
            assert torch.equal(halfway[name], value), name
    assert not torch.equal(start["backbone.0.weight"], halfway["backbone.0.weight"])
    assert not torch.equal(start["head.0.weight"], halfway["head.0.weight"])


def test_the_frozen_encoder_gives_the_table_again(whole: Path, folder: Path) -> None:
    mels = load_mels(find_clips(folder), DCASE)
    encoder, step = load_encoder(whole)
    table = embed_mels(encoder, mels)
    assert step == 6
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        torch.testing.assert_close(encoder(mels[5:6]).embedding, table[5:6], atol=1e-5, rtol=1e-4)
    assert torch.equal(embed_mels(load_encoder(whole)[0], mels), table)


def test_both_accuracies_are_logged_and_held_out_recordings_are_no_training_clips(whole: Path, folder: Path) -> None:
    line = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    trained = {json.loads(row)["clip"] for row in (whole / "clips.jsonl").read_text().splitlines()}
    assert len(trained) + line["held_out_clips"] == len(find_clips(folder))
    assert line["held_out_clips"] >= 1
    assert 0 <= line["train_accuracy"] <= 1
    assert 0 <= line["held_out_accuracy"] <= 1
    assert any(name.startswith("held_out_") and name[9:] not in ("accuracy", "clips") for name in line)


def test_the_encoder_learns_the_labels(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "FADE", 0.1)  # a short training needs easy views
    monkeypatch.setattr(augment, "MASK", 0.05)
    config = tiny_run(tmp_path, contrastive_steps=30, classifier_steps=30, batch=14, precision="no", save_every=60)
    train(config, find_clips(folder))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    curve = [line["supcon"] for line in lines[:30]]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert lines[-1]["train_accuracy"] > 0.7


def test_the_rate_of_a_stage_falls_from_its_peak_to_nothing(whole: Path) -> None:
    for optimizer, peak in (("optimizer", 0.05), ("classifier_optimizer", 0.01)):
        assert state(whole)[optimizer]["param_groups"][0]["lr"] == cosine(peak, 2, 3)
    assert cosine(0.05, 0, 100) == 0.05
    assert cosine(0.05, 50, 100) == pytest.approx(0.025)
    assert cosine(0.05, 100, 100) == pytest.approx(0, abs=1e-12)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "supervised_contrastive", lambda z, *_: z.sum() * torch.nan)
    train(tiny_run(tmp_path), find_clips(folder))
    assert all(torch.isfinite(value).all() for value in state(tmp_path)["encoder"].values())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [1, 1, 1, 0, 0, 0]


def test_mistakes_are_reported_before_a_folder_is_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, out = find_clips(folder), tmp_path / "run"
    with pytest.raises(UserError, match="no data"):
        main(tiny_run(out, data=()))
    with pytest.raises(UserError, match=r"DogBark has 1 clip\(s\) to train on, 0 held out: expected at least 2"):
        train(tiny_run(out, held_out=0.0), clips[3:])
    with pytest.raises(UserError, match=r"DogBark has 0 clip\(s\) to train on, 4 held out"):
        train(tiny_run(out, held_out=1.0), clips)
    with pytest.raises(UserError, match="--batch 1: expected 7 or more"):
        train(tiny_run(out, batch=1), clips)
    monkeypatch.setattr(loop, "accelerator_for", lambda *_: SimpleNamespace(num_processes=2))
    with pytest.raises(UserError, match="2 processes: the encoder is trained in one"):
        train(tiny_run(out), clips)
    assert not out.exists()


def test_a_resumed_run_must_keep_its_length(whole: Path, folder: Path) -> None:
    """The rate is a function of it."""
    with pytest.raises(UserError, match="was started with contrastive_steps = 3, now 9"):
        train(tiny_run(whole, contrastive_steps=9), find_clips(folder))


# --- as an embedding ----------------------------------------------------------------------------------------------


def test_evaluate_uses_features_and_probabilities_and_does_not_change_the_encoder(whole: Path, folder: Path) -> None:
    embedding = load_embedding("encoder", whole)
    before = {name: value.clone() for name, value in embedding.encoder.state_dict().items()}  # type: ignore[attr-defined]
    clips = find_clips(folder)[::5]
    found = embed_clips(clips, embedding, 4.0)
    encoder, _ = load_encoder(whole)
    features = encode_mels(encoder, load_mels(clips, DCASE)).feature
    assert found.vectors.shape == (len(clips), 1, 32)
    torch.testing.assert_close(torch.from_numpy(found.vectors[:, 0].copy()), features, atol=1e-4, rtol=1e-4)
    assert found.tags is not None
    torch.testing.assert_close(
        torch.from_numpy(found.tags.copy()), encoder.classifier(features).softmax(1), atol=1e-4, rtol=1e-3
    )
    after = embedding.encoder.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "step 6" in embedding.weights


def test_a_run_that_is_no_finished_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        load_embedding("encoder", folder)
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / "config.json").write_text('{"part": "sagan"}')
    with pytest.raises(UserError, match="is a run of 'sagan': expected one of `foleybox train encoder`"):
        load_embedding("encoder", tmp_path / "gan")
    train_and_stop_at(4, folder, tmp_path / "half")
    with pytest.raises(UserError, match="is at step 4 of 6"):
        load_encoder(tmp_path / "half")


def test_the_verb_trains_and_draws_the_views(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "sheet_of_views", draw_sheet)
    flags = "--width 4 --batch 7 --contrastive-steps 1 --classifier-steps 1 --device cpu --threads 1 --tracker none"
    assert cli.main(["train", "encoder", str(folder), "-o", str(tmp_path / "run"), *flags.split()]) == 0
    assert (tmp_path / "run" / "samples" / "views.png").stat().st_size > 1000
    assert load_encoder(tmp_path / "run")[1] == 2
