"""KT's GAN has the report's shapes, each step moves its own network, and training resumes bit for bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from helpers_lab import changed, configured, toy_folder
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foleybox.errors import UserError
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import DCASE, SILENCE
from foleybox.lab.core.runs import read_clips, read_run_config
from foleybox.lab.kt import train_sagan as loop
from foleybox.lab.kt.encoder import Encoder, EncoderConfig, embed_mels
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.sagan import (
    FLOOR,
    ConditionalBatchNorm,
    Discriminator,
    DiscriminatorBlock,
    Generator,
    SaganConfig,
    SelfAttention,
    conv_and_pool,
    refresh_batch_norm,
    to_mel,
    to_network,
)
from foleybox.lab.kt.systems import KT, KtSystem
from foleybox.lab.kt.train_sagan import PRESETS, TrainSagan, main, train

TINY = SaganConfig(width=8, latent=16, embedding=16)


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("plan", "width", "generator", "discriminator"),
    [("A", 64, 21.8, 9.7), ("A", 32, 9.0, 2.4), ("A", 16, 4.0, 0.63), ("S", 16, 4.0, 0.63)],
)
def test_the_networks_have_the_measured_number_of_weights(
    plan: str, width: int, generator: float, discriminator: float
) -> None:
    config = SaganConfig(plan, width)
    assert millions(Generator(config)) == pytest.approx(generator, rel=0.012)
    assert millions(Discriminator(config)) == pytest.approx(discriminator, rel=0.025)


@pytest.mark.parametrize("plan", ["A", "S"])
def test_every_plan_makes_80_by_344_within_tanh(plan: str) -> None:
    image = Generator(replace(TINY, plan=plan))(torch.randn(2, 16), torch.tensor([0, 6]))
    assert image.shape == (2, 1, 80, 344)
    assert image.abs().max() < 1


@pytest.mark.parametrize("plan", ["A", "S"])
def test_every_pixel_has_a_gradient_of_the_discriminator(plan: str) -> None:
    """Five floor-poolings would see only 64 of 80 bands and 320 of 344 frames."""
    torch.manual_seed(0)
    image = (0.1 * torch.randn(1, 1, 80, 344)).requires_grad_()
    Discriminator(replace(TINY, plan=plan))(image, torch.tensor([1])).logit.sum().backward()
    assert image.grad is not None
    assert (image.grad != 0).all()


def test_an_unknown_plan_is_a_user_error() -> None:
    with pytest.raises(UserError, match="plan 'B': expected A or S"):
        SaganConfig("B")


def test_a_new_pixel_shuffle_generator_draws_no_pattern_within_blocks_of_two_by_two() -> None:
    """ICNR: the four channels that become a block of pixels have equal kernels."""
    torch.manual_seed(0)
    image = Generator(replace(TINY, plan="S"))(torch.randn(3, 16), torch.tensor([0, 3, 6]))
    blocks = F.pixel_unshuffle(image, 2)  # [B, 4, 40, 172]
    torch.testing.assert_close(blocks, blocks[:, :1].expand_as(blocks))
    assert blocks.std() > 0.01


@pytest.mark.parametrize("pool", [(1, 1), (2, 1), (2, 2)])
def test_a_convolution_with_its_average_pooling_is_one_strided_convolution(pool: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 5, 3, padding=1).double(), torch.randn(2, 3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(conv_and_pool(x, conv, pool), F.avg_pool2d(conv(x), pool))
    block = DiscriminatorBlock(3, 3, pool).double().eval()
    expected = F.avg_pool2d(block.conv2(F.relu(block.conv1(F.relu(x)))) + x, pool)
    torch.testing.assert_close(block(x), expected)


def test_embeddings_and_proxies_have_unit_length() -> None:
    output = Discriminator(TINY)(torch.randn(3, 1, 80, 344), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(output.proxy.norm(dim=1), torch.ones(3))


def test_the_scale_of_a_label_embedding_or_a_projection_has_no_effect() -> None:
    discriminator = Discriminator(TINY).eval()
    image, label = torch.randn(3, 1, 80, 344), torch.tensor([0, 1, 2])
    with torch.no_grad():
        before = discriminator(image, label)
        discriminator.label_embedding.weight.mul_(5)
        discriminator.projection.register_forward_hook(lambda *given: 5 * given[-1])
        after = discriminator(image, label)
    torch.testing.assert_close(after, before)


def test_the_label_enters_the_logit_only_with_the_projection() -> None:
    assert SaganConfig().conditional_logit
    image = torch.randn(1, 1, 80, 344)
    for wanted in (False, True):
        torch.manual_seed(0)
        discriminator = Discriminator(replace(TINY, conditional_logit=wanted)).eval()
        logits = [discriminator(image, torch.tensor([label])).logit.item() for label in (0, 1)]
        assert (logits[0] != logits[1]) == wanted


def test_spectral_norm_holds_every_weight_at_one() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(TINY)
    for part in discriminator.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                part.parametrizations.weight.original.mul_(3)  # type: ignore[union-attr]
    with torch.no_grad():
        for _ in range(30):
            discriminator(torch.randn(1, 1, 80, 344), torch.tensor([0]))
    discriminator.eval()
    for part in discriminator.modules():
        if parametrize.is_parametrized(part):
            largest = torch.linalg.matrix_norm(part.weight.flatten(1), ord=2)  # type: ignore[operator]
            assert largest.item() == pytest.approx(1, abs=0.02)
    image = torch.randn(1, 1, 80, 344)
    first, second = (discriminator(image, torch.tensor([0])).logit for _ in range(2))
    assert torch.equal(first, second)


def test_attention_starts_as_the_identity_and_equals_softmax_by_hand() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16).eval()
    x = torch.randn(2, 16, 5, 43)  # odd sizes: pooled keys are 2 x 21
    assert torch.equal(attention(x), x)
    with torch.no_grad():
        attention.gamma.fill_(0.7)
    query = attention.query(x).flatten(2)  # [B, 2, HW]
    key, value = (F.max_pool2d(part(x), 2).flatten(2) for part in (attention.key, attention.value))
    weights = (query.transpose(1, 2) @ key).softmax(-1)  # no 1/sqrt(d)
    y = (value @ weights.transpose(1, 2)).unflatten(2, (5, 43))
    torch.testing.assert_close(attention(x), x + 0.7 * attention.out(y), atol=1e-5, rtol=1e-5)


def test_conditional_batch_norm_starts_plain_and_a_label_moves_only_its_own_item() -> None:
    norm = ConditionalBatchNorm(4, labels=7)
    x = torch.randn(6, 4, 3, 3)
    label = torch.tensor([0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(norm(x, label), nn.BatchNorm2d(4, eps=1e-4)(x))
    norm.eval()
    with torch.no_grad():
        norm.gamma.normal_()
    other = label.clone()
    other[2] = 6
    changed = (norm(x, label) != norm(x, other)).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_a_sound_is_the_same_alone_and_among_other_labels() -> None:
    torch.manual_seed(0)
    generator = Generator(TINY)
    refresh_batch_norm(generator, batches=2, batch=14)
    generator.eval()
    z, label = torch.randn(7, 16), torch.arange(7)
    with torch.no_grad():
        torch.testing.assert_close(generator(z, label)[3:4], generator(z[3:4], label[3:4]), atol=1e-5, rtol=1e-4)


def test_refreshing_an_average_gives_it_its_own_statistics_and_norms() -> None:
    torch.manual_seed(0)
    generator = Generator(TINY)
    with torch.no_grad():  # weights far from those that the norms and statistics were estimated for
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: value.clone() for name, value in generator.named_parameters()}
    refresh_batch_norm(generator, batches=4, batch=14)
    assert all(torch.equal(before[name], value) for name, value in generator.named_parameters())
    z, label = torch.randn(70, 16), torch.arange(70) % 7
    with torch.no_grad():
        by_own = generator.eval()(z, label)
        by_batch = generator.train()(z, label)
    assert (by_own - by_batch).abs().mean() < 0.1 * by_batch.std()


def test_the_scale_is_inverted_and_silence_is_its_floor() -> None:
    config = SaganConfig()
    mel = torch.linspace(SILENCE, 2.5, 80 * 344).reshape(1, 80, 344)
    torch.testing.assert_close(to_mel(to_network(mel, config), config), mel, atol=1e-5, rtol=0)
    silence = torch.full((1, 80, 344), SILENCE)
    assert torch.allclose(to_network(silence, config), torch.tensor(FLOOR))
    assert torch.allclose(
        to_mel(torch.full((1, 1, 80, 344), -1.0), config), silence
    )  # tanh reaches values below the floor


# --- training -----------------------------------------------------------------------------------------------------


draw_sheet = loop.sample_sheet


def tiny_run(out: Path, **changes: object) -> TrainSagan:
    settings = configured(
        TrainSagan,
        ("unused",), out, model=TINY, batch=7, steps=4, lr_generator=1e-4, lr_discriminator=1e-4,
        precision="no", device="cpu", threads=1, tracker="none",
        log_every=1, save_every=2, sample_every=100,
    )  # fmt: skip
    return changed(settings, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("sounds"), per_label=2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet of 42 sounds costs more than these trainings; one that is started as a command draws it."""
    monkeypatch.setattr(loop, "sample_sheet", lambda *_: None)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    clips = find_clips(folder)
    real: dict[str, Any] = {"precision": "bf16", "augment_probability": 0.5, "average": 0.9}
    train(tiny_run(tmp_path / "whole", steps=2, **real), clips)
    train(tiny_run(tmp_path / "parts", steps=1, **real), clips)
    train(tiny_run(tmp_path / "parts", steps=2, **real), clips)
    whole, parts = (torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 2
    for part in ("generator", "discriminator", "average"):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), (part, name)
    lines = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert lines == [1, 2]


def test_each_step_moves_only_its_own_network(folder: Path, tmp_path: Path) -> None:
    clips = find_clips(folder)
    for frozen, moving, changes in (
        ("generator", "discriminator", {"lr_generator": 0.0}),
        ("discriminator", "generator", {"lr_discriminator": 0.0}),
    ):
        states = []
        for steps in (1, 3):
            out = tmp_path / f"{frozen}{steps}"
            train(tiny_run(out, steps=steps, save_every=1, **changes), clips)
            states.append(torch.load(out / "state.pt", weights_only=True))
        names = [
            name
            for name in states[0][frozen]
            if name.endswith(("original", "bias", "gamma", "beta", "embedding.weight"))
        ]
        assert names
        assert all(torch.equal(states[0][frozen][name], states[1][frozen][name]) for name in names)
        assert any(not torch.equal(states[0][moving][name], value) for name, value in states[1][moving].items())


def test_the_contrastive_loss_of_real_clips_falls_by_a_tenth(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny_run(out, model=replace(TINY, embedding=128), steps=20, save_every=20, lr_discriminator=5e-4)
    train(config, find_clips(folder))
    curve = [json.loads(line)["d_contrast"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("foleybox.lab.kt.train_sagan.hinge_discriminator", lambda real, fake: real.sum() * torch.nan)
    train(tiny_run(out, steps=1, save_every=1), find_clips(folder))
    state = torch.load(out / "state.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["generator"].values())
    fresh = Generator(TINY).state_dict()
    statistics = [name for name in fresh if "running" in name or name.endswith("num_batches_tracked")]
    assert statistics
    assert all(torch.equal(state["generator"][name], fresh[name]) for name in statistics)  # unchanged by the step
    assert json.loads((out / "log.jsonl").read_text().splitlines()[0])["skipped"] == 1


def test_training_gives_up_when_no_step_is_finite(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "hinge_generator", lambda fake: fake.sum() * torch.inf)
    monkeypatch.setattr("foleybox.lab.core.loop.PATIENCE", 2)
    with pytest.raises(UserError, match=r"NaN or infinite for \d+ steps up to \d+: lower the learning rate"):
        train(tiny_run(tmp_path / "run", save_every=100), find_clips(folder))
    assert not (tmp_path / "run" / "state.pt").exists()


def test_the_six_systems_have_the_reports_losses_and_temperatures() -> None:
    table = {name: (loss.source, loss.labels, loss.tau_data, loss.tau_class) for name, loss in KT.items()}
    assert table == {
        "kt-2c-t01": (False, False, 0.1, 0.1),  # S0
        "kt-2c": (False, False, 0.1, 1.0),  # S1
        "kt-csupcon-t01": (True, False, 0.1, 0.1),  # S2
        "kt-csupcon": (True, False, 0.1, 1.0),  # S3
        "kt-2c-label": (False, True, 0.1, 1.0),
        "kt-csupcon-label": (True, True, 0.1, 1.0),
    }
    assert set(KT) == set(get_args(KtSystem))


SOURCED = replace(TINY, embedding=128)
ENCODER_CLIP = {"clip": "Rain/1.wav 9", "label": "Rain", "tier": "nc", "licence": "CC BY-NC", "source": "them"}


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Used instead of a trained encoder."""
    torch.manual_seed(1)
    encoder = Encoder(EncoderConfig(width=4)).eval()
    monkeypatch.setattr(loop, "load_encoder", lambda run: (encoder, 1))
    monkeypatch.setattr(loop, "read_clips", lambda run: [ENCODER_CLIP])
    return encoder


@pytest.mark.parametrize("system", KT)
def test_a_system_trains_with_its_loss_and_no_other(
    system: KtSystem, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    calls = []

    def spy(data: Tensor, proxy: Tensor, source: Tensor | None, labels: Tensor | None, **tau: float) -> Tensor:
        calls.append((source is not None, labels is not None, tau["tau_data"], tau["tau_class"]))
        return (data - proxy).square().mean()

    monkeypatch.setattr(loop, "conditional_contrastive", spy)
    sourced = {"encoder": Path("run"), "model": SOURCED} if KT[system].source else {}
    train(tiny_run(tmp_path / "run", system=system, steps=1, **sourced), find_clips(folder))
    assert calls == [astuple(KT[system])] * 2  # the discriminator's, the generator's
    # The encoder's training clips shape the weights too.
    assert (ENCODER_CLIP in read_clips(tmp_path / "run")) == KT[system].source


def test_the_source_of_a_fake_is_the_embedding_of_the_real_clip_in_its_slot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    table = embed_mels(encoder, load_mels(find_clips(folder), DCASE))  # [N, E]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    sources: list[Tensor] = []

    def spy(data: Tensor, proxy: Tensor, source: Tensor, labels: None, **_: float) -> Tensor:
        sources.append(source)
        return (data - proxy).square().mean()

    monkeypatch.setattr(loop, "conditional_contrastive", spy)
    config = tiny_run(tmp_path / "run", system="kt-csupcon", encoder=Path("run"), model=SOURCED, steps=3)
    train(config, find_clips(folder))
    assert len(sources) == 6
    for of_reals, of_fakes in zip(sources[::2], sources[1::2]):
        assert torch.equal(of_reals, of_fakes)
        assert all(any(torch.equal(row, known) for known in table) for row in of_reals)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())  # frozen
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_an_encoder_of_another_width_is_refused(folder: Path, tmp_path: Path, encoder: Encoder) -> None:
    config = tiny_run(tmp_path / "run", system="kt-csupcon", encoder=Path("run"))
    with pytest.raises(UserError, match="--encoder run has embeddings of width 128: expected 16"):
        train(config, find_clips(folder))
    assert not (tmp_path / "run").exists()


def test_the_label_embedding_moves_in_the_discriminators_step_only(folder: Path, tmp_path: Path) -> None:
    tables = []
    for rate in (0.0, 1e-3):
        out = tmp_path / str(rate)
        train(tiny_run(out, steps=2, lr_discriminator=rate, lr_generator=1e-2), find_clips(folder))
        tables.append(torch.load(out / "state.pt", weights_only=True)["discriminator"]["label_embedding.weight"])
    torch.manual_seed(0)
    Generator(TINY)
    start = Discriminator(TINY).label_embedding.weight
    assert torch.equal(tables[0], start)
    assert not torch.equal(tables[1], start)


def test_reals_and_fakes_are_augmented_with_one_probability_and_separate_draws(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = loop.draw_changes

    def spy(count: int, bands: int, frames: int, probability: float) -> Any:
        drawn.append((probability, draw(count, bands, frames, probability)))
        return drawn[-1][1]

    monkeypatch.setattr(loop, "draw_changes", spy)
    train(tiny_run(tmp_path / "run", steps=1, augment_probability=0.9), find_clips(folder))
    assert [used for used, _ in drawn] == [0.9, 0.9]  # the fakes once: both networks' steps use the same
    assert not torch.equal(drawn[0][1].shift, drawn[1][1].shift)


def test_the_presets_are_recorded_with_what_was_set_otherwise(folder: Path, tmp_path: Path) -> None:
    small = TrainSagan().resolved()
    assert (small.model.plan, small.model.width, small.batch) == ("S", 16, 16)
    assert (small.lr_generator, small.lr_discriminator) == (2e-4, 4e-4)
    report = TrainSagan(preset="report", logit="unconditional").resolved()
    assert (report.model.plan, report.model.width, report.batch) == ("A", 64, 64)
    assert (report.lr_generator, report.lr_discriminator, report.model.conditional_logit) == (1e-4, 1e-4, False)
    config = tiny_run(tmp_path, preset="tiny", model=None, batch=8, lr_generator=1e-3, lr_discriminator=None, steps=1)
    train(config, find_clips(folder))
    stored = read_run_config(tmp_path)
    assert (stored["model"]["width"], stored["batch"], stored["steps"]) == (4, 8, 1)
    assert (stored["lr_generator"], stored["lr_discriminator"]) == (1e-3, PRESETS["tiny"].lr_discriminator)


def test_snapshots_are_the_average_of_their_step_without_optimisers(folder: Path, tmp_path: Path) -> None:
    train(tiny_run(tmp_path, steps=3, save_every=2, snapshots=(2,), average=0.5), find_clips(folder))
    saved = torch.load(tmp_path / "snapshot_2.pt", weights_only=True)
    assert set(saved) == {"step", "average"}
    snapshot, step = load_generator(tmp_path, "snapshot_2")
    assert (step, load_generator(tmp_path)[1]) == (2, 3)
    last = load_generator(tmp_path)[0].state_dict()
    assert any(not torch.equal(value, last[name]) for name, value in snapshot.state_dict().items())
    with pytest.raises(UserError, match="has no weights 'snapshot_3': expected average, last, snapshot_2"):
        load_generator(tmp_path, "snapshot_3")


def test_a_run_of_an_earlier_version_loads_and_resumes(folder: Path, tmp_path: Path) -> None:
    """Settings that were removed had the values that remain; one with another value is refused."""
    train(tiny_run(tmp_path, steps=1, save_every=1), find_clips(folder))
    stored = read_run_config(tmp_path)
    for name in ("preset", "logit", "augment_probability", "snapshots"):
        del stored[name]
    old = json.loads(json.dumps(TrainSagan.REMOVED))
    (tmp_path / "config.json").write_text(json.dumps(stored | old))
    assert load_generator(tmp_path)[1] == 1
    train(tiny_run(tmp_path, steps=2), find_clips(folder))
    assert load_generator(tmp_path)[1] == 2
    (tmp_path / "config.json").write_text(json.dumps(read_run_config(tmp_path) | {"d_steps": 5}))
    with pytest.raises(UserError, match="by another version of foleybox, with d_steps = 5"):
        train(tiny_run(tmp_path, steps=3), find_clips(folder))


def test_a_new_discriminator_is_trained_alone_at_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only the generator is given, as by `restore`."""
    clips = find_clips(folder)
    train(tiny_run(tmp_path / "given", steps=1), clips)
    state = torch.load(tmp_path / "given" / "state.pt", weights_only=True)
    torch.save({name: state[name] for name in ("step", "generator", "average")}, tmp_path / "given" / "state.pt")
    monkeypatch.setattr(loop, "DISCRIMINATOR_FIRST", 2)
    given = dict(load_generator(tmp_path / "given")[0].named_parameters())
    for steps, moved in ((2, False), (3, True)):
        train(tiny_run(tmp_path / "run", steps=steps, start_from=tmp_path / "given"), clips)
        weights = dict(load_generator(tmp_path / "run", "last")[0].named_parameters())
        assert any(not torch.equal(value, given[name]) for name, value in weights.items()) == moved
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert ["g_hinge" in line for line in lines] == [False, False, True]


def test_two_processes_train_as_one_does_on_the_same_batch(folder: Path, tmp_path: Path) -> None:
    """Mean losses of two steps, with everything that mixes the items of a batch: 2C, batch norm, augmentation."""
    flags = (
        f"{folder} --preset tiny --steps 2 --batch 14 --precision no --device cpu --threads 1 --tracker none "
        "--save-every 2 --augment-probability 0.5"
    )
    curves = []
    for start in (["-m", "foleybox"], ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "foleybox"]):
        out = tmp_path / str(len(curves))
        command = [sys.executable, *start, "train", "sagan", *flags.split(), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        curves.append([{name: value for name, value in line.items() if name != "steps_per_second"} for line in lines])
    for alone, together in zip(*curves, strict=True):
        assert together == pytest.approx(alone, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"system": "kt-csupcon"}, "--system kt-csupcon needs a frozen encoder"),
        ({"encoder": Path("runs/encoder")}, "--system kt-2c has no encoder in its loss"),
        ({"snapshots": (0,)}, "--snapshots 0: expected 1 or more"),
        ({"steps": 0}, "--steps 0: expected 1 or more"),
        ({"average": -0.1}, "--average -0.1: expected 0 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, Any], complaint: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        train(tiny_run(tmp_path / "run", **changes), find_clips(folder))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_other_settings_is_refused_and_more_steps_are_not(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    clips = find_clips(folder)
    train(tiny_run(out, steps=1, save_every=1), clips)
    with pytest.raises(UserError, match=r"was started with seed = 0, now 1: give the same settings"):
        train(tiny_run(out, seed=1), clips)
    with pytest.raises(UserError, match="is not empty and not a run folder"):
        train(tiny_run(folder), clips)
    assert load_generator(out)[1] == 1


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    clips = find_clips(folder)
    train(tiny_run(out, steps=1, save_every=1), clips)
    (out / "state.pt").write_bytes((out / "state.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        train(tiny_run(out), clips)


def test_a_label_with_one_clip_and_a_batch_of_one_are_refused(folder: Path, tmp_path: Path) -> None:
    clips = find_clips(folder)
    with pytest.raises(UserError, match=r"DogBark has 1 clip\(s\): expected at least 2"):
        train(tiny_run(tmp_path / "a"), clips[1:])
    with pytest.raises(UserError, match="--batch 1: expected 7 or more"):
        train(tiny_run(tmp_path / "b", batch=1), clips)
    assert not (tmp_path / "a").exists()


def test_the_verb_trains_from_a_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "sample_sheet", draw_sheet)
    out = tmp_path / "run"
    main(tiny_run(out, data=(str(folder),), steps=1, save_every=1, sample_every=1))
    assert (out / "samples" / "step-000001.png").stat().st_size > 1000
    assert (out / "samples" / "real.png").is_file()


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_or_interrupted_training_resumes_with_the_same_command(
    folder: Path, tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    flags = "--preset tiny --steps 5 --precision no --device cpu --threads 1 --tracker none --save-every 1"
    command = [sys.executable, "-m", "foleybox", "train", "sagan", str(folder), "-o", str(out), *flags.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not (out / "state.pt").exists() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(stop)
        said = running.communicate()[1]
    assert running.returncode == code
    if stop == signal.SIGINT:
        assert len(said.strip().splitlines()) == 1
        assert "the same command resumes" in said
    assert not list(out.glob(".*.partial*")) or stop == signal.SIGKILL  # kill -9 may leave a temporary file, no more
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 5
    lines = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines == [5]
