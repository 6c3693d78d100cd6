"""The VQ-VAE is the published one, weight for weight; its codebook moves as published or better; its training resumes.

B1 to B6, C7 and C8 are the acceptance facts of design/systems-baseline-cmu.md, section 5.
"""

import inspect
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from helpers_lab import configured, toy_folder
from torch import Tensor, nn

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline import train_vqvae as loop
from foleybox.lab.baseline.losses import commitment, perplexity
from foleybox.lab.baseline.runs import load_vqvae
from foleybox.lab.baseline.systems import VQ, VqSystem, learning_rate
from foleybox.lab.baseline.train_vqvae import (
    TrainVqvae,
    evenly_spaced,
    gather_batch,
    main,
    measure,
    train,
)
from foleybox.lab.baseline.vqvae import (
    KERNELS,
    Codebook,
    ResidualBlock,
    Vqvae,
    VqvaeConfig,
    draw_far,
    k_means,
    nearest,
    straight_through,
)
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips, split_by_recording
from foleybox.lab.core.mel import DCASE
from foleybox.lab.core.runs import fingerprint, read_run_config

TINY = VqvaeConfig(channels=4, residual=2, width=3, size=8)
PERIOD = 0.8  # epochs of 10 training clips at batch 2: 4 steps
draw_sheet = loop.mel_sheet


def weights(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def on_paper(config: VqvaeConfig, head: Any = "none") -> Vqvae:
    """A model whose weights are counted and never made."""
    with torch.device("meta"):
        return Vqvae(config, head)


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mel", "grid"), [((80, 344), (20, 86)), ((1152, 300), (288, 75))])
def test_b1_a_mel_becomes_a_grid_of_a_quarter_and_comes_back(mel: tuple[int, int], grid: tuple[int, int]) -> None:
    made = Vqvae(TINY)(torch.randn(2, *mel))
    assert made.codes.shape == (2, *grid)
    assert made.latent.shape == made.quantised.shape == (2, TINY.width, *grid)
    assert made.output.shape == (2, *mel)
    assert made.logits is None
    assert Vqvae(TINY, "pre")(torch.randn(2, 80, 344)).logits.shape == (2, 7)


def test_b2_the_baseline_has_2207297_weights_in_four_branches_and_a_decoder() -> None:
    vqvae = on_paper(VqvaeConfig())
    assert weights(vqvae) == 2_207_297
    assert dict(zip(KERNELS, map(weights, vqvae.branches))) == {2: 263_040, 4: 362_112, 6: 527_232, 8: 758_400}
    assert weights(vqvae.narrow) == 8_256
    assert weights(vqvae.decoder) == 288_257


def test_b2_the_head_and_cmus_wider_ones_have_the_measured_number_of_weights() -> None:
    """v0, v1, v2 of the public copy: batch norm and head; the head is 128 x 7 + 7 in the last."""
    assert weights(on_paper(VqvaeConfig(), "pre")) == 2_207_297 + 64 * 7 + 7
    assert weights(on_paper(VqvaeConfig(norm=True), "post")) == 2_213_512
    assert weights(on_paper(VqvaeConfig(256, 2, 64, 64, 512, norm=True), "post")) == 8_653_576
    largest = on_paper(VqvaeConfig(256, 3, 64, 128, 1024, norm=True), "post")
    assert weights(largest) == 9_641_928
    assert weights(largest.classifier) == 903


@pytest.mark.parametrize(("blocks", "fields"), [(2, (28, 34, 40, 46)), (3, (36, 42, 48, 54))])
def test_b6_a_place_of_the_grid_sees_as_much_of_the_mel_as_published(blocks: int, fields: tuple[int, ...]) -> None:
    """By the support of the gradient, with positive weights so that no ReLU hides a part of it."""
    vqvae = Vqvae(replace(TINY, blocks=blocks))
    for parameter in vqvae.parameters():
        parameter.data.abs_()
    for way, field in zip(vqvae.branches, fields, strict=True):
        mel = torch.ones(1, 1, 80, 120, requires_grad=True)
        way(mel)[0, :, 10, 15].sum().backward()
        assert mel.grad is not None
        rows, columns = (mel.grad[0, 0].sum(dim).nonzero().flatten() for dim in (1, 0))
        assert len(rows) == len(columns) == int(rows[-1] - rows[0]) + 1 == field


def test_the_skip_of_a_residual_block_carries_what_the_published_in_place_relu_leaves() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(TINY), torch.randn(1, 4, 5, 6)
    published = nn.Sequential(nn.ReLU(inplace=True), *block.body)
    seen = x.clone()
    expected = published(seen)
    expected += seen
    assert torch.equal(block(x), expected)
    assert not torch.allclose(block(x), x + block.body(F.relu(x)))


# --- the codebook -------------------------------------------------------------------------------------------------


def grid(points: Tensor) -> Tensor:
    """Points [P, D] as encoder's outputs [1, D, P, 1]."""
    return points.T[None, :, :, None]


def test_b3_an_update_by_hand() -> None:
    """Two codes, two vectors: N, m and the vectors after the published update, in plain arithmetic."""
    book = Codebook(VqvaeConfig(width=2, size=2, codebook="faithful"))
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    book.sums.copy_(book.vectors)
    book.counts.copy_(torch.tensor([3.0, 5.0]))
    before = grid(torch.tensor([[0.2, -0.4], [0.8, 1.2]]))
    codes = book(before)
    assert codes.flatten().tolist() == [0, 1]
    book.update(before, codes, step=0)

    n0, n1 = 0.99 * 3 + 0.01, 0.99 * 5 + 0.01
    m0, m1 = [0.01 * 0.2, 0.01 * -0.4], [0.99 + 0.01 * 0.8, 0.99 + 0.01 * 1.2]
    total = n0 + n1
    smooth0, smooth1 = ((n + 1e-5) / (total + 2e-5) * total for n in (n0, n1))
    expected = torch.tensor([[m / smooth0 for m in m0], [m / smooth1 for m in m1]])
    torch.testing.assert_close(book.vectors, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(book.counts, torch.tensor([n0, n1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(book.sums, torch.tensor([m0, m1]), atol=1e-7, rtol=0)


def test_b3_the_codebook_is_the_published_one_update_after_update() -> None:
    """Sonnet's arithmetic with one-hot matrices, as every published copy has it."""
    torch.manual_seed(0)
    book = Codebook(VqvaeConfig(width=4, size=6, codebook="faithful"))
    embed, size = book.vectors.T.clone(), torch.zeros(6)
    average = embed.clone()
    for step in range(5):
        before = 0.5 * torch.randn(2, 4, 3, 5)
        flat = before.permute(0, 2, 3, 1).reshape(-1, 4)
        distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ embed + embed.pow(2).sum(0, keepdim=True)
        one_hot = F.one_hot((-distance).max(1)[1], 6).float()
        codes = book(before)
        assert torch.equal(codes.flatten(), one_hot.argmax(1))
        torch.testing.assert_close(book.lookup(codes), (one_hot @ embed.T).view(2, 3, 5, 4).permute(0, 3, 1, 2))
        size = 0.99 * size + 0.01 * one_hot.sum(0)
        average = 0.99 * average + 0.01 * flat.T @ one_hot
        embed = average / ((size + 1e-5) / (size.sum() + 6e-5) * size.sum())
        book.update(before, codes, step)
        torch.testing.assert_close(book.vectors, embed.T, rtol=1e-5, atol=1e-6)


def test_b3_nothing_but_follow_moves_the_codebook_and_it_is_no_parameter() -> None:
    vqvae = Vqvae(TINY, "post")
    before = {name: value.clone() for name, value in vqvae.codebook.state_dict().items()}
    assert set(before) == {"vectors", "counts", "sums"}
    assert not list(vqvae.codebook.parameters())
    for training in (True, False):
        made = vqvae.train(training)(torch.randn(2, 16, 16))
        (made.output.sum() + commitment(made.latent, made.quantised) + made.logits.sum()).backward()
    assert all(torch.equal(value, before[name]) for name, value in vqvae.codebook.state_dict().items())
    assert not any(value.requires_grad for value in vqvae.codebook.buffers())
    counts = made.codes.flatten().bincount(minlength=TINY.size)
    assert int(counts.sum()) == 2 * 4 * 4


def outputs(seed: int) -> Tensor:
    """Two clips of encoder's outputs as they are at the start: small, around 0."""
    return 0.3 * torch.randn(2, 64, 20, 86, generator=torch.Generator().manual_seed(seed))


def used_after(book: Codebook, updates: int) -> tuple[int, float]:
    for step in range(updates):
        before = outputs(step)
        book.update(before, book(before), step)
    counts = book(outputs(updates)).flatten().bincount(minlength=512)
    return int((counts > 0).sum()), float(perplexity(counts))


def test_b3_the_published_codebook_explodes_at_its_first_update() -> None:
    """Counts start at 0, so a code that the first batch did not use is divided by about 1e-5 and lost."""
    torch.manual_seed(0)
    book = Codebook(VqvaeConfig(codebook="faithful"))
    assert float(book.vectors.norm(dim=1).median()) == pytest.approx(8, abs=0.3)  # N(0, 1) in 64 dimensions
    used, various = used_after(book, 1)
    assert float(book.vectors.norm(dim=1).median()) == pytest.approx(7.9e5, rel=0.05)
    assert used <= 10
    used, various = used_after(book, 10)
    assert used <= 10  # and does not come back: design/systems-baseline-cmu.md counts 1,200 updates
    assert various < 10


def test_the_default_codebook_starts_on_the_data_and_stays_in_use() -> None:
    """On the same outputs, which are noise without any structure: real ones spread over more codes."""
    torch.manual_seed(0)
    book = Codebook(VqvaeConfig())
    book.initialise(outputs(99))
    used, various = used_after(book, 10)
    assert used > 150
    assert various > 120
    assert float(book.vectors.norm(dim=1).max()) < 4  # the outputs' length is 2.4


def test_the_default_codebook_keeps_up_with_an_encoder_that_has_just_begun() -> None:
    """Its outputs grow a hundredfold in the first steps of training; an average over a hundred steps stays behind."""
    torch.manual_seed(0)
    book = Codebook(VqvaeConfig(width=8, size=64))
    places = torch.randn(40, 8)
    clips = places[torch.randint(40, (2, 20, 86))].permute(0, 3, 1, 2)
    book.initialise(0.01 * clips)
    before, codes = clips, book(clips)
    for step in range(20):
        before = 1.3**step * 0.01 * clips
        book.update(before, book(before), step)
    last = 1.3**19 * 0.01 * clips
    codes = book(last)
    assert float(commitment(last, book.lookup(codes)) / last.square().mean()) < 0.1
    assert len(codes.unique()) > 30


def test_an_unused_code_is_replaced_where_the_data_is_coded_worst() -> None:
    torch.manual_seed(0)
    book = Codebook(VqvaeConfig(width=2, size=4))
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [50.0, 50.0]]))
    book.sums.copy_(book.vectors)
    points = torch.tensor([[0.0, 0.0]] * 40 + [[1.0, 0.0]] * 20 + [[0.0, 1.0]] * 20 + [[5.0, 5.0]])
    drawn = []
    for _ in range(400):
        drawn.append(book.update(grid(points), book(grid(points)), step=10_000))
        if drawn[-1]:
            break
    assert drawn == [0] * (len(drawn) - 1) + [1]
    assert len(drawn) > 20  # it had its time
    assert book.vectors[3].tolist() == [5, 5]
    assert book(grid(points)).flatten().tolist() == [0] * 40 + [1] * 20 + [2] * 20 + [3]
    assert float(book.counts[3]) == pytest.approx(0.1 * float(book.counts[:3].sum() / 4), rel=0.02)


def test_points_that_lie_on_their_code_are_never_drawn() -> None:
    """Digital silence: half of a data set can be one and the same point."""
    torch.manual_seed(0)
    points = torch.cat([torch.zeros(1000, 2), torch.ones(3, 2)])
    assert torch.equal(draw_far(points, torch.zeros(1003, 2), 50), torch.ones(50, 2))
    assert torch.equal(draw_far(points[:5], points[:5], 2), torch.zeros(2, 2))  # nothing else: no error


def test_k_means_finds_what_is_there() -> None:
    torch.manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    points = truth.repeat_interleave(torch.tensor([900, 50, 30, 20]), 0) + 0.01 * torch.randn(1000, 2)
    centres = k_means(points, 12)  # all of them start in the first, as good as
    torch.testing.assert_close(centres[nearest(truth, centres)], truth, atol=0.05, rtol=0)


def test_perplexity_is_the_number_of_equally_used_codes() -> None:
    assert float(perplexity(torch.tensor([5, 5, 0, 5, 5]))) == pytest.approx(4)
    assert float(perplexity(torch.tensor([7, 0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([3, 1]))) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_codebook_is_float32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vqvae = Vqvae(TINY, "pre")
    with torch.autocast("cpu", dtype=dtype):
        made = vqvae(torch.randn(2, 16, 16))
    assert made.logits is not None
    assert {part.dtype for part in (made.latent, made.quantised, made.output, made.logits)} == {torch.float32}
    assert torch.equal(made.codes, vqvae.codebook(made.latent))
    assert torch.equal(made.logits, vqvae.classifier(made.latent.mean((2, 3))))  # type: ignore[misc]


# --- the losses ---------------------------------------------------------------------------------------------------


def test_b4_the_gradient_goes_straight_through() -> None:
    torch.manual_seed(0)
    before, after = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    passed = straight_through(before, after)
    torch.testing.assert_close(passed, after)
    weight = torch.randn(3, 4)
    (passed * weight).sum().backward()
    assert before.grad is not None
    assert torch.equal(before.grad, weight)  # d out / d z is the identity
    assert after.grad is None


def test_b4_the_latent_difference_pulls_the_encoder_and_not_the_codebook() -> None:
    before, after = torch.tensor([1.0, 4.0], requires_grad=True), torch.tensor([3.0, 1.0], requires_grad=True)
    difference = commitment(before, after)
    assert float(difference.detach()) == pytest.approx((4 + 9) / 2)
    difference.backward()
    assert before.grad is not None
    assert before.grad.tolist() == [-2, 3]  # 2 (z - e) / 2
    assert after.grad is None


def test_b4_a_head_that_knows_nothing_costs_the_logarithm_of_seven() -> None:
    vqvae = Vqvae(TINY, "pre")
    assert vqvae.classifier is not None
    for parameter in vqvae.classifier.parameters():
        nn.init.zeros_(parameter)
    found = measure(vqvae, torch.randn(3, 16, 16), torch.tensor([0, 3, 6]), "train")
    assert found["train_cross_entropy"] == pytest.approx(math.log(7), abs=1e-6)


def test_the_head_reads_before_or_after_quantisation_and_changes_no_code() -> None:
    mel = torch.randn(2, 16, 16)
    made = {}
    for head in ("none", "pre", "post"):
        torch.manual_seed(0)
        vqvae = Vqvae(TINY, head)
        made[head] = vqvae(mel)
        if vqvae.classifier is not None:
            read = made[head].latent if head == "pre" else made[head].quantised
            assert torch.equal(made[head].logits, vqvae.classifier(read.mean((2, 3))))
    assert not torch.equal(made["pre"].logits, made["post"].logits)
    assert torch.equal(made["none"].codes, made["pre"].codes)
    assert torch.equal(made["none"].output, made["pre"].output)
    assert list(inspect.signature(Vqvae.forward).parameters) == ["self", "mel"]  # the label is a target, not an input


@pytest.mark.parametrize("batch", [1, 2])
def test_b5_the_means_of_three_clips_do_not_depend_on_the_batch(batch: int) -> None:
    """The public copy of CMU's code divides sums of batch means by clips: Table 3's last two columns are 16 times small."""
    torch.manual_seed(0)
    vqvae = Vqvae(TINY, "pre")
    mels, labels = torch.randn(3, 16, 16) * torch.tensor([1.0, 3.0, 9.0])[:, None, None], torch.tensor([0, 1, 2])
    whole_set, parts = measure(vqvae, mels, labels, "x", batch=3), measure(vqvae, mels, labels, "x", batch=batch)
    assert parts == pytest.approx(whole_set, rel=1e-5)
    made = vqvae(mels)
    by_clip = [float(F.mse_loss(mine, real).detach()) for mine, real in zip(made.output, mels)]
    assert whole_set["x_mse"] == pytest.approx(sum(by_clip) / 3, rel=1e-5)
    difference = (made.latent - made.quantised).square().mean().detach()
    assert whole_set["x_latent"] == pytest.approx(float(difference), rel=1e-4)
    assert whole_set["x_clips"] == 3


# --- the rate -----------------------------------------------------------------------------------------------------


def test_c8_the_cyclic_rate_starts_low_returns_after_a_period_and_stays_between() -> None:
    rates = [learning_rate("triangle", 2.5e-4, step, 20, 1000) for step in range(60)]
    assert rates[0] == rates[20] == rates[40] == pytest.approx(1e-5, rel=1e-12)
    assert rates[10] == rates[30] == pytest.approx(2.5e-4, rel=1e-12)
    assert all(1e-5 < rate < 2.5e-4 for step, rate in enumerate(rates) if step % 10)
    assert rates[:20] == pytest.approx(rates[40:])
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:21] == sorted(rates[10:21], reverse=True)
    assert rates[2] == pytest.approx(1e-5 + 0.2 * 2.4e-4)


def test_the_one_cycle_rate_is_the_public_schedulers() -> None:
    """`CycleScheduler` of the public baseline, written out: two phases, counted from 1."""
    lr, steps = 3e-4, 200
    first = [lr / 25 + n / 10 * (lr - lr / 25) for n in range(1, 11)]
    end = lr / 25 / 1e4
    second = [end + (lr - end) / 2 * (math.cos(math.pi * n / 190) + 1) for n in range(1, 191)]
    assert [learning_rate("one-cycle", lr, step, 20, steps) for step in range(steps)] == pytest.approx(first + second)
    assert learning_rate("constant", lr, 7, 20, steps) == lr


def test_the_systems_are_the_reports() -> None:
    assert set(VQ) == set(get_args(VqSystem)) == {"baseline", "cmu-b"}
    baseline, cmu = VQ["baseline"], VQ["cmu-b"]
    assert (baseline.head, baseline.batch, baseline.schedule, baseline.lr) == ("none", 16, "constant", 3e-4)
    assert replace(cmu, head="none", precision="no") == baseline  # one rate: they differ in the head
    assert (cmu.head, TrainVqvae().head_weight, cmu.precision) == ("pre", 0.01, "bf16")
    assert TrainVqvae().settled.model == VqvaeConfig()


def test_given_settings_replace_those_of_the_system() -> None:
    config = configured(TrainVqvae, system="cmu-b", head="none", lr=1e-3, precision="no")
    assert config.plan == replace(VQ["cmu-b"], head="none", lr=1e-3, precision="no")
    assert (config.settled.head, config.settled.lr, config.settled.batch) == ("none", 1e-3, 16)
    assert config.settled.run.precision == "no"


def test_a_period_is_twenty_epochs_of_the_training_clips(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    periods = []
    monkeypatch.setattr(loop, "learning_rate", lambda schedule, lr, step, period, steps: periods.append(period) or lr)
    config = tiny_run(tmp_path, steps=1, batch=4, schedule="triangle", period_epochs=20.0)
    train(config, find_clips(folder), tmp_path)
    kept, _ = split_by_recording(find_clips(folder), 0.3)
    assert periods == [round(20 * len(kept) / 4)]


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["FOLEYBOX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return toy_folder(tmp_path_factory.mktemp("sounds"), per_label=2)


def tiny_run(out: Path, **changes: Any) -> TrainVqvae:
    values: dict[str, Any] = {
        "out": out,
        "system": "cmu-b",
        "model": TINY,
        "held_out": 0.3,
        "batch": 2,
        "steps": 4,
        "schedule": "triangle",
        "lr": 2.5e-4,
        "period_epochs": PERIOD,
        "device": "cpu",
        "threads": 1,
        "tracker": "none",
        "log_every": 1,
        "save_every": 1,
        "sample_every": 100,
    }
    return configured(TrainVqvae, **{**values, **changes})


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "state.pt", weights_only=True)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "mel_sheet", lambda *_, **__: None)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditioned run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "mel_sheet", lambda *_, **__: None)
        train(tiny_run(out), find_clips(folder), out)
    return out


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
            train(tiny_run(out), find_clips(folder), out)


def test_a_stopped_run_resumes_bit_for_bit_codebook_and_rate_too(finished: Path, folder: Path, tmp_path: Path) -> None:
    train_and_stop_at(2, folder, tmp_path)
    train(tiny_run(tmp_path), find_clips(folder), tmp_path)
    mine, theirs = state(tmp_path), state(finished)
    assert mine["step"] == theirs["step"] == 4
    assert all(torch.equal(value, mine["vqvae"][name]) for name, value in theirs["vqvae"].items())
    moments = [
        (mine["optimizer"]["state"][key][name], value)
        for key, values in theirs["optimizer"]["state"].items()
        for name, value in values.items()
    ]
    assert moments
    assert all(torch.equal(a, b) for a, b in moments)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    rates = [line["rate"] for line in lines(tmp_path)]
    assert rates == [line["rate"] for line in lines(finished)] == pytest.approx([1e-5, 1.3e-4, 2.5e-4, 1.3e-4])


def test_b4_what_is_optimised_is_squared_error_and_a_quarter_of_the_difference_and_a_hundredth_of_the_head(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimised = []
    backward = Accelerator.backward

    def spy(self: Accelerator, loss: Tensor, **rest: Any) -> None:
        optimised.append(float(loss.detach()))
        backward(self, loss, **rest)

    monkeypatch.setattr(Accelerator, "backward", spy)
    train(tiny_run(tmp_path, steps=2, precision="no"), find_clips(folder), tmp_path)
    for line, loss in zip(lines(tmp_path), optimised, strict=True):
        assert loss == pytest.approx(line["mse"] + 0.25 * line["latent"] + 0.01 * line["cross_entropy"], rel=1e-6)
        assert loss == pytest.approx(line["mse"] + line["commitment"] + line["foley"], rel=1e-6)
    kept, _ = split_by_recording(find_clips(folder), 0.3)
    mel = load_mels(kept, DCASE)[loop.batch_indices(0, 2, len(kept), 0)]
    torch.manual_seed(0)
    vqvae = Vqvae(TINY, "pre")
    vqvae.codebook.initialise(vqvae.encode(mel))
    made = vqvae(mel)
    assert lines(tmp_path)[0]["mse"] == pytest.approx(float(F.mse_loss(made.output, mel).detach()), rel=1e-5)
    assert lines(tmp_path)[0]["latent"] == pytest.approx(
        float(commitment(made.latent, made.quantised).detach()), rel=1e-4
    )


def test_table_3_can_be_read_from_the_last_line_and_held_out_recordings_were_not_trained_on(
    finished: Path, folder: Path
) -> None:
    clips = find_clips(folder)
    kept, held = split_by_recording(clips, 0.3)
    line = lines(finished)[-1]
    listed = {json.loads(row)["clip"].split()[0] for row in (finished / "clips.jsonl").read_text().splitlines()}
    assert listed == {f"{clip.path.parent.name}/{clip.path.name}" for clip in kept}
    measured = [kept[i] for i in evenly_spaced(len(kept), len(held)).tolist()]  # as many as are held out, at every step
    assert (line["train_clips"], line["held_out_clips"]) == (len(measured), len(held))
    assert len(measured) < len(kept)
    vqvae, step = load_vqvae(finished)
    assert step == 4
    for side, chosen in (("train", measured), ("held_out", held)):
        mels = load_mels(chosen, DCASE)
        made = vqvae(mels)
        assert line[f"{side}_mse"] == pytest.approx(float(F.mse_loss(made.output, mels)), rel=1e-4)
        assert line[f"{side}_latent"] == pytest.approx(float(commitment(made.latent, made.quantised)), rel=1e-3)
        assert line[f"{side}_used"] == len(made.codes.unique())
        assert 0 <= line[f"{side}_accuracy"] <= 1
        assert line[f"{side}_cross_entropy"] > 0


def test_a_run_without_a_head_has_no_cross_entropy(folder: Path, tmp_path: Path) -> None:
    train(tiny_run(tmp_path, head="none", held_out=0.0, steps=1), find_clips(folder), tmp_path)
    (line,) = lines(tmp_path)
    assert not [name for name in line if "cross_entropy" in name or "foley" in name or "held_out" in name]
    assert read_run_config(tmp_path)["head"] == "none"
    assert load_vqvae(tmp_path)[0].classifier is None


def test_the_run_folder_names_what_the_system_stands_for(finished: Path) -> None:
    settings = read_run_config(finished)
    given = {"batch": 2, "schedule": "triangle", "lr": 2.5e-4}
    assert {name: settings[name] for name in asdict(VQ["cmu-b"])} == asdict(VQ["cmu-b"]) | given


def test_training_lowers_the_error_and_uses_the_codebook(folder: Path, tmp_path: Path) -> None:
    config = tiny_run(
        tmp_path, system="baseline", lr=2e-2, steps=20, batch=4, save_every=20, model=replace(TINY, channels=8, size=16)
    )
    train(config, find_clips(folder), tmp_path)
    curve = [line["mse"] for line in lines(tmp_path)]
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])
    assert lines(tmp_path)[-1]["used"] > 8


def test_c7_a_step_that_is_not_finite_leaves_weights_optimizer_and_codebook_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = loop.commitment
    calls = []

    def commitment(before: Tensor, after: Tensor) -> Tensor:
        calls.append(1)
        return really(before, after) * (torch.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(loop, "commitment", commitment)
    monkeypatch.setattr(loop, "measure", lambda *_: {})
    states = []
    save = loop.save_state
    monkeypatch.setattr(
        loop, "save_state", lambda path, step, parts: (save(path, step, parts), states.append(state(tmp_path)))
    )
    train(tiny_run(tmp_path, steps=3), find_clips(folder), tmp_path)
    assert [line["skipped"] for line in lines(tmp_path)] == [0, 1, 0]
    first, second, third = states
    assert all(torch.equal(value, second["vqvae"][name]) for name, value in first["vqvae"].items())
    assert str(first["optimizer"]["state"]) == str(second["optimizer"]["state"])
    assert all(torch.isfinite(value).all() for value in third["vqvae"].values())
    assert not torch.equal(third["vqvae"]["codebook.counts"], second["vqvae"]["codebook.counts"])


class HalfPrecision(Accelerator):
    """fp16 with a gradient scaler on a processor, where accelerate refuses it: the arithmetic is a GPU's."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(mixed_precision="bf16", cpu=True, **rest)
        self.state._mixed_precision = "fp16"
        self.scaler = torch.amp.GradScaler("cpu", init_scale=65_536.0)  # type: ignore[assignment]


def test_c7_gradients_are_unscaled_before_their_norm_and_the_scale_falls_after_a_bad_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norm is that of the true gradients; the optimiser gets those, and not their 65,536-fold."""
    monkeypatch.setattr(loop, "accelerator_for", lambda *_, **rest: HalfPrecision(kwargs_handlers=rest["handlers"]))
    monkeypatch.setattr(HalfPrecision, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    norms = []
    adam = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *rest: Any) -> Any:
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()))
        return adam(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    really, calls = loop.commitment, []

    def commitment(before: Tensor, after: Tensor) -> Tensor:
        calls.append(1)
        return really(before, after) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(loop, "commitment", commitment)
    monkeypatch.setattr(loop, "measure", lambda *_: {})
    train(tiny_run(tmp_path, steps=3), find_clips(folder), tmp_path)
    found = lines(tmp_path)
    assert norms == pytest.approx([found[0]["norm"], found[2]["norm"]], rel=1e-3)
    assert 1 < found[0]["norm"] < 1000
    assert [line["skipped"] for line in found] == [0, 1, 0]
    assert state(tmp_path)["scaler"]["scale"] == 32_768


def test_processes_put_a_batch_together_in_the_order_that_one_has() -> None:
    batch = torch.arange(12).view(6, 2)
    shares = [batch[rank::3] for rank in range(3)]
    three = SimpleNamespace(num_processes=3, gather=lambda _: torch.cat(shares))
    assert torch.equal(gather_batch(shares[1], three), batch)  # type: ignore[arg-type]
    one = SimpleNamespace(num_processes=1)
    assert gather_batch(batch, one) is batch  # type: ignore[arg-type]


def test_two_processes_train_as_one_does_on_the_same_batch(folder: Path, tmp_path: Path) -> None:
    """Losses, the use of the codebook and the codebook: statistics are of the whole batch, random draws are the same."""
    flags = (
        f"{folder} --system cmu-b --steps 3 --batch 4 --size tiny --lr 2e-2 --precision no --held-out 0.3 --device cpu "
        f"--threads 1 --tracker none --sample-every 100"
    )
    command = [sys.executable, "-m", "foleybox", "train", "vqvae", *flags.split(), "-o", str(tmp_path / "two")]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}  # as torchrun
    processes = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **both, "RANK": r, "LOCAL_RANK": r}
        )
        for r in "01"
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "".join(said)[-2000:]
    assert cli.main(["train", "vqvae", *flags.split(), "-o", str(tmp_path / "one")]) == 0
    for alone, together in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        del alone["steps_per_second"], together["steps_per_second"]
        assert together == pytest.approx(alone, rel=2e-3, abs=2e-3)
    books = [state(tmp_path / name)["vqvae"]["codebook.vectors"] for name in ("one", "two")]
    torch.testing.assert_close(books[0], books[1], rtol=1e-3, atol=1e-3)


def test_mistakes_are_reported_before_a_folder_is_made(folder: Path, tmp_path: Path) -> None:
    clips, out = find_clips(folder), tmp_path / "run"
    with pytest.raises(UserError, match="no data"):
        main(tiny_run(out, data=()))
    for changes, complaint in (
        ({"held_out": 1.0}, "14 clips, all of them held out"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
        ({"period_epochs": -1.0}, "--period-epochs -1.0: expected 0 or more"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"model": replace(TINY, size=70_000)}, "a codebook of 70000 codes: expected 2 to 65536"),
        ({"model": replace(TINY, size=1)}, "a codebook of 1 codes: expected 2 to 65536"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(tiny_run(out, **changes), clips, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "changes",
    [{"head": "post"}, {"period_epochs": 5.0}, {"system": "baseline"}, {"model": replace(TINY, size=9)}, {"lr": 1e-4}],
)
def test_another_head_or_cycle_is_another_run(changes: dict[str, Any], finished: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="was started with"):
        train(tiny_run(finished, **changes), find_clips(folder), finished)


def test_trained_weights_are_read_whole_or_refused_in_one_line(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text((finished / "config.json").read_text())
    good = state(finished)
    partial = {**good, "vqvae": {k: v for k, v in good["vqvae"].items() if k != "branches.2.2.weight"}}
    wrapped = {**good, "vqvae": {f"_orig_mod.{name}": value for name, value in good["vqvae"].items()}}
    for content, complaint in (
        (partial, r"Missing key\(s\) in state_dict: .branches.2.2.weight"),
        (wrapped, "does not fit the model"),
        ({"step": 4}, "holds no 'vqvae'"),
    ):
        torch.save(content, run / "state.pt")
        with pytest.raises(UserError, match=complaint) as caught:
            load_vqvae(run)
        assert "\n" not in str(caught.value)


def test_a_fingerprint_is_of_the_weights_and_of_nothing_else(finished: Path) -> None:
    mine, again = load_vqvae(finished)[0], load_vqvae(finished)[0]
    assert fingerprint(mine) == fingerprint(again.train())
    with torch.no_grad():
        again.codebook.vectors[0, 0] += 1e-6
    assert fingerprint(mine) != fingerprint(again)


def test_clips_are_spread_evenly_and_each_once() -> None:
    assert evenly_spaced(10, 3).tolist() == [0, 3, 6]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert len(evenly_spaced(2283, 101).unique()) == 101


def test_a_one_cycle_schedule_cannot_be_lengthened_and_the_others_can(folder: Path, tmp_path: Path) -> None:
    for schedule in ("one-cycle", "constant"):
        train(tiny_run(tmp_path / schedule, schedule=schedule, steps=1), find_clips(folder), tmp_path / schedule)
    train(tiny_run(tmp_path / "constant", schedule="constant", steps=2), find_clips(folder), tmp_path / "constant")
    longer = tiny_run(tmp_path / "one-cycle", schedule="one-cycle", steps=2)
    with pytest.raises(UserError, match="was started with one_cycle = 1, now 2"):
        train(longer, find_clips(folder), tmp_path / "one-cycle")


def test_a_run_of_the_version_before_can_be_resumed_and_loaded(folder: Path, tmp_path: Path) -> None:
    """Its settings had a lowest rate, a period in steps and a clipping norm."""
    flags = {"system": "baseline", "schedule": None, "lr": None, "steps": 1, "precision": "bf16"}
    train(tiny_run(tmp_path, **flags), find_clips(folder), tmp_path)
    settings = read_run_config(tmp_path)
    for name in ("size", "period_epochs", "one_cycle"):
        del settings[name]
    settings |= {"lr_low": 3e-4, "period": 5450, "clip_norm": 0.0, "period_epochs": PERIOD}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    train(tiny_run(tmp_path, **{**flags, "steps": 2}), find_clips(folder), tmp_path)
    assert load_vqvae(tmp_path)[1] == 2


def test_the_verb_trains_from_a_folder_and_draws_reconstructions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "mel_sheet", draw_sheet)
    main(tiny_run(tmp_path / "run", data=(str(folder),), steps=1))
    assert (tmp_path / "run" / "samples" / "step-000001.png").stat().st_size > 1000
