"""The loops of the autoencoder and of the patches: what they learn from, how they resume, and what they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_lab import changed, configured, toy_folder

from foleybox.errors import UserError
from foleybox.lab.core.cache import load_mels, load_wave_cache
from foleybox.lab.core.clips import find_clips, training_rows
from foleybox.lab.core.loop import STEADY
from foleybox.lab.core.mel import WIDE
from foleybox.lab.core.runs import clips_seen, read_clips, read_run_config, read_state
from foleybox.lab.export import export
from foleybox.lab.export.graphs import NextGraph
from foleybox.lab.patches import distil
from foleybox.lab.patches import train_autoencoder as autoencoder
from foleybox.lab.patches import train_patches as patches
from foleybox.lab.patches.autoencoder import AutoencoderConfig, MelDiscriminatorConfig
from foleybox.lab.patches.distil import DistilPatches
from foleybox.lab.patches.runs import load_autoencoder, load_patches
from foleybox.lab.patches.train_autoencoder import TrainAutoencoder, crop
from foleybox.lab.patches.train_patches import OTHER, TrainPatches, augment, valid_rows
from foleybox.lab.patches.transformer import START, TEMPERATURE, Patches, PatchesConfig, flow
from foleybox.lab.play.train_vocoder import Redrawing, redraw_clips
from foleybox.lab.vocoders import train_vocos as vocoder
from foleybox.lab.vocoders.train_vocos import TrainVocoder
from foleybox.lab.vocoders.waves import Decoded
from foleybox.labels import LABELS

FORM = AutoencoderConfig(latent=6, width=16, fine=16, coarse_layers=1, fine_layers=1, noise=2)
SIZE = PatchesConfig(latent=6, width=16, heads=2, layers=1, head_width=16, head_layers=1)
QUICK: dict[str, Any] = {
    "held_out": 0.3,
    "device": "cpu",
    "threads": 1,
    "tracker": "none",
    "log_every": 1,
    "save_every": 2,
    "sample_every": 4,
    "steps": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("sounds") / "toy", per_label=4)


def of_autoencoder(out: Path) -> TrainAutoencoder:
    return configured(
        TrainAutoencoder,
        out=out,
        model=FORM,
        discriminator=MelDiscriminatorConfig(2),
        segment=32,
        batch=4,
        discriminator_from=1,
        **QUICK,
    )


def of_patches(out: Path, run: Path) -> TrainPatches:
    return configured(TrainPatches, out=out, autoencoder=run, model=SIZE, batch=7, **QUICK)


@pytest.fixture(scope="module")
def latents(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "autoencoder"
    autoencoder.train(of_autoencoder(out), find_clips(folder))
    return out


@pytest.fixture(autouse=True)
def without_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no sample sheet at the last step, which takes longer than the steps; those of `latents` and `finished` exist."""
    monkeypatch.setattr(patches, "sample_sheet", lambda *_: {})
    monkeypatch.setattr(autoencoder, "reconstruction_sheet", lambda *_: None)


@pytest.fixture(scope="module")
def finished(folder: Path, latents: Path) -> Path:
    out = latents.parent / "patches"
    patches.train(of_patches(out, latents), find_clips(folder))
    return out


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "state.pt", weights_only=True)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_stopped_autoencoder_resumes_bit_for_bit(folder: Path, latents: Path, tmp_path: Path) -> None:
    config = of_autoencoder(tmp_path)
    autoencoder.train(replace(config, steps=2), find_clips(folder))
    autoencoder.train(config, find_clips(folder))
    assert equal(state(tmp_path), state(latents))


def test_stopped_patches_resume_bit_for_bit(folder: Path, latents: Path, finished: Path, tmp_path: Path) -> None:
    config = of_patches(tmp_path, latents)
    patches.train(replace(config, steps=2), find_clips(folder))
    patches.train(config, find_clips(folder))
    assert equal(state(tmp_path), state(finished))


def test_held_out_numbers_and_a_picture_are_written(latents: Path, finished: Path) -> None:
    last = json.loads((latents / "log.jsonl").read_text().splitlines()[-1])
    assert last["held_out_mel"] > 0
    last = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    assert last["held_out_flow"] > 0
    assert {f"rough_{label.slug}" for label in LABELS} <= last.keys()
    assert (finished / "samples" / "step-000004.png").stat().st_size > 1000


def test_the_components_stay_while_the_decoder_learns(folder: Path, latents: Path, tmp_path: Path) -> None:
    """Patches that were trained on them stay good."""
    autoencoder.train(replace(of_autoencoder(tmp_path), steps=1), find_clips(folder))
    early, late = load_autoencoder(tmp_path)[0], load_autoencoder(latents)[0]
    assert equal(early.components.state_dict(), late.components.state_dict())
    assert not equal(early.decoder.state_dict(), late.decoder.state_dict())


def test_an_autoencoder_starts_from_another_and_keeps_its_components(
    folder: Path, latents: Path, tmp_path: Path
) -> None:
    config = replace(of_autoencoder(tmp_path / "second"), start_from=latents, steps=1, lr=0.0)
    clips = find_clips(folder)
    autoencoder.train(config, clips[::2])
    first, second = load_autoencoder(latents)[0], load_autoencoder(config.out)[0]
    assert equal(first.state_dict(), second.state_dict())
    assert {row["clip"] for row in read_clips(config.out)} >= {row["clip"] for row in read_clips(latents)}
    assert clips_seen(config.out) == clips_seen(latents) + config.batch
    with pytest.raises(UserError, match=r"--start-from .*: expected AutoencoderConfig"):
        autoencoder.train(replace(config, out=tmp_path / "third", model=replace(FORM, width=8)), clips)


def terms_of(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_losses_of_the_autoencoder_fall(folder: Path, tmp_path: Path) -> None:
    """Measured on the held-out clips, since crops of a few random clips differ more than the loss falls."""
    config = changed(of_autoencoder(tmp_path / "run"), steps=25, warm_up=1, lr=5e-3, decay=0.0, sample_every=1)
    autoencoder.train(replace(config, discriminator_from=100, latent_noise=0.0), find_clips(folder))
    for name in ("held_out_mel", "held_out_pooled"):
        first, *_, last = terms_of(config.out, name)
        assert last < 0.8 * first


def test_the_loss_of_the_patches_falls(folder: Path, latents: Path, tmp_path: Path) -> None:
    config = replace(of_patches(tmp_path / "run", latents), steps=30, warm_up=1, lr=1e-2, clip_norm=10.0)
    patches.train(config, find_clips(folder))
    losses = terms_of(config.out, "flow")
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_steady_sounds_are_rotated_and_others_start_up_to_a_patch_later() -> None:
    torch.manual_seed(0)
    mel = torch.full((64, 100, 40), -11.0)
    mel[:, :, 0] = 0.0
    config = TrainPatches(gain=0.0, shift_bands=0, colour=0.0)
    moved = augment(config, mel, torch.arange(64) < 32, patch=4).amax(1).argmax(1)
    assert moved[:32].max() > 20
    assert moved[32:].max() == 3
    assert moved[32:].min() == 0
    assert [label.name for label, steady in zip(LABELS, STEADY) if steady] == ["MovingMotorVehicle", "Rain"]


def test_a_recording_of_many_clips_is_drawn_as_seldom_as_asked(
    folder: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_clips(folder)  # four of each label: one of a recording of its own, three of another
    clips = [replace(clip, recording=f"{clip.label} {place % 4 > 0}") for place, clip in enumerate(found)]
    batches, balanced = [], patches.balanced_indices
    monkeypatch.setattr(patches, "balanced_indices", lambda *rest: (batches.append(balanced(*rest)), batches[-1])[1])
    config = replace(of_patches(tmp_path / "run", latents), held_out=0.0, steps=2, batch=14, most_of_recording=1)
    patches.train(config, clips)
    for batch in batches:
        assert sorted(clips[place].recording for place in batch.tolist()) == sorted({clip.recording for clip in clips})
    with pytest.raises(UserError, match="most_of_recording needs balanced"):
        patches.train(replace(config, balanced=False), clips)


def test_of_two_places_the_louder_is_cropped() -> None:
    torch.manual_seed(0)
    mel = torch.full((400, 2, 40), -11.0)
    mel[:, :, 30:] = 0.0
    loud = (crop(mel, 8).amax((1, 2)) == 0).float().mean()
    assert 0.42 < float(loud) < 0.6  # 10 of 33 positions contain it: 1 - (23 / 33) ** 2 = 0.51; one position alone 0.30


def test_other_sounds_have_a_label_of_their_own_that_no_instrument_plays(
    folder: Path, latents: Path, tmp_path: Path
) -> None:
    clips = find_clips(folder)
    others = [replace(clip, label=None) for clip in clips[::3]]
    moved, run = {}, tmp_path
    for share in (0.0, 0.5):
        run = tmp_path / f"run-{share}"
        patches.train(replace(of_patches(run, latents), others_share=share, no_label=0.0), clips, others)
        learnt = load_patches(run)[0].label.weight.detach()
        assert len(learnt) == len(LABELS) + 2  # the seven, the others, none
        torch.manual_seed(0)
        moved[share] = (learnt - Patches(replace(SIZE, labels=OTHER + 1)).label.weight.detach())[OTHER].abs().max()
    assert moved[0.0] < 1e-6 < 1e-5 < moved[0.5]
    # What an instrument draws without a label is drawn by the label "none", not by "others".
    model, noise = load_patches(run)[0].eval(), torch.randn(2, SIZE.latent)
    kept = [torch.zeros(2, SIZE.heads, 4, SIZE.width // SIZE.heads)] * 2 * SIZE.layers
    start = torch.zeros(2, SIZE.latent), torch.tensor([3, -1]), torch.eye(2), torch.tensor(0), noise
    with torch.no_grad():
        drawn = NextGraph(model, 2)(*start, *kept)[0]
        context = model(torch.zeros(2, 1, SIZE.latent), torch.tensor([3, OTHER + 1]), torch.tensor([START, START]))
        torch.testing.assert_close(drawn, flow(model.head, noise, context[:, 0], steps=2))


def test_patches_start_from_those_of_another_run_and_remember_its_training_clips(
    folder: Path, latents: Path, finished: Path, tmp_path: Path
) -> None:
    config = replace(of_patches(tmp_path / "second", latents), start_from=finished, lr=0.0, steps=1)
    patches.train(config, find_clips(folder)[::2])
    assert equal(load_patches(config.out)[0].state_dict(), load_patches(finished)[0].state_dict())
    assert {row["clip"] for row in read_clips(config.out)} == {row["clip"] for row in read_clips(finished)}
    assert clips_seen(config.out) == clips_seen(finished) + config.batch > config.batch
    with pytest.raises(UserError, match="expected those of --autoencoder"):
        patches.train(replace(config, out=tmp_path / "third", model=replace(SIZE, layers=2)), find_clips(folder))


def test_bands_and_colour_are_changed_as_far_as_asked() -> None:
    torch.manual_seed(0)
    mel, events = torch.zeros(400, 100, 8), torch.zeros(400, dtype=torch.bool)
    mel[:, 50] = 3.0
    moved = augment(TrainPatches(gain=0.0, shift_bands=2, colour=0.0), mel, events, patch=1)
    assert (moved[:, :, 4].argmax(1) - 50).unique().tolist() == [-2, -1, 0, 1, 2]
    coloured = augment(TrainPatches(gain=0.0, shift_bands=0, colour=3.0), 0 * mel, events, patch=1)
    decibels = coloured[:, :, 4] * 20 / torch.log(torch.tensor(10.0))
    assert float(decibels[:, [0, -1]].std()) == pytest.approx(3.0, rel=0.1)
    assert float(decibels.diff(dim=1).abs().max()) < 1  # a smooth curve


def test_others_may_join_a_run_that_had_none_and_begin_as_the_embedding_of_no_label(
    folder: Path, latents: Path, finished: Path, tmp_path: Path
) -> None:
    clips = find_clips(folder)
    others = [replace(clip, label=None) for clip in clips[::3]]
    config = replace(of_patches(tmp_path / "joined", latents), start_from=finished, lr=0.0, steps=1)
    patches.train(config, clips, others)
    before, after = (load_patches(run)[0].state_dict() for run in (finished, config.out))
    known, joined = before.pop("label.weight"), after.pop("label.weight")
    assert equal(before, after)
    assert joined.equal(known[[*range(OTHER), OTHER, OTHER]])  # the seven, the others, none


def test_a_run_that_had_others_goes_on_without_them(
    folder: Path, latents: Path, finished: Path, tmp_path: Path
) -> None:
    clips = find_clips(folder)
    others = [replace(clip, label=None) for clip in clips[::3]]
    joined = replace(of_patches(tmp_path / "joined", latents), start_from=finished, steps=2, warm_up=1, decay=0.0)
    patches.train(joined, clips, others)
    config = replace(of_patches(tmp_path / "alone", latents), start_from=joined.out, lr=0.0, steps=1)
    patches.train(config, clips)
    before, after = (load_patches(run)[0].state_dict()["label.weight"] for run in (joined.out, config.out))
    assert not before[OTHER].equal(before[OTHER + 1])  # others are not none
    assert after.equal(before[[*range(OTHER), OTHER + 1]])


def test_every_valid_position_is_a_row_and_no_other_is() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    rows = valid_rows(valid)
    assert len(rows) == 6
    assert rows.bincount(minlength=6).tolist() == [2, 2, 0, 2, 0, 0]


def test_the_latent_width_is_the_autoencoders(folder: Path, latents: Path, tmp_path: Path) -> None:
    config = replace(of_patches(tmp_path, latents), model=None, size="tiny", steps=1)
    assert patches.train(config, find_clips(folder)).config.latent == FORM.latent
    assert read_run_config(tmp_path)["model"]["latent"] == FORM.latent


def test_runs_of_earlier_versions_are_read_unless_a_removed_setting_had_an_effect(
    folder: Path, latents: Path, finished: Path, tmp_path: Path
) -> None:
    """Weights and settings had other names, and a model could be conditioned on its augmentation (`told`)."""
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    names = {".fc1.": ".rises.", ".fc2.": ".falls.", ".modulation": ".own", ".velocity.": ".speed.", ".down.": ".fall."}
    names |= {".context_mlp.": ".of_context.", ".time_mlp.": ".of_time.", "start_token.": "first."}
    content = state(old)
    for part in ("patches", "average"):
        for new, before in names.items():
            content[part] = {name.replace(new, before): value for name, value in content[part].items()}
    torch.save(content, old / "state.pt")
    settings = json.loads((old / "config.json").read_text())
    settings["model"]["told"] = False
    (old / "config.json").write_text(json.dumps(settings))
    assert equal(load_patches(old)[0].state_dict(), load_patches(finished)[0].state_dict())
    (old / "config.json").write_text(json.dumps({**settings, "amid": 0.15}))
    with pytest.raises(UserError, match=r"was started by another version of foleybox, with amid = 0\.15"):
        patches.train(of_patches(old, latents), find_clips(folder))
    settings["model"]["told"] = True
    (old / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="was trained with told = True, which this version of foleybox does not have"):
        load_patches(old)


def test_patches_of_other_latents_are_refused_by_export(
    folder: Path, latents: Path, finished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    autoencoder.train(replace(of_autoencoder(other), steps=1), find_clips(folder)[::2])
    with pytest.raises(UserError, match="draws latents of another autoencoder"):
        export.main(export.Export(finished, latents, tmp_path / "x", autoencoder=other))
    with pytest.raises(UserError, match="name its run with --autoencoder"):
        export.main(export.Export(finished, latents, tmp_path / "x"))


def test_a_run_of_another_part_is_no_run_of_patches(latents: Path, finished: Path) -> None:
    assert load_patches(finished)[2] == 4
    with pytest.raises(UserError, match="expected one of `foleybox train patches`"):
        load_patches(latents)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"segment": 30}, "multiple of 4 frames"), ({"batch": 1}, "--batch 1"), ({"segment": 400}, "at most 344")],
)
def test_settings_that_do_not_go_together_are_refused(
    change: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        autoencoder.train(replace(of_autoencoder(tmp_path), **change), find_clips(folder))


def redrawing(run: Path, **changes: Any) -> Redrawing:
    return replace(Redrawing(redrawn_by=run, redrawn_clips=2, redrawn_since=(0.9, 0.9)), **changes)


def test_a_vocoder_reads_redrawn_clips_with_the_recordings_they_were_drawn_from(
    folder: Path, latents: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    clips = find_clips(folder)[:25]  # of the last labels fewer, or none
    mels = load_mels(clips, WIDE)
    decoded = redraw_clips(redrawing(finished), Decoded(mels, mels[:1], "f" * 64), latents, clips, 4.0)
    wanted = [min(2, sum(clip.label == label for clip in clips)) for label in LABELS]
    assert [sum(clips[i].label == label for i in decoded.redrawn.tolist()) for label in LABELS] == wanted
    assert len(decoded.mels) == len(clips) + len(decoded.redrawn)
    torch.testing.assert_close(decoded.mels[: len(clips)], mels)
    drawn = decoded.mels[len(clips) :].flatten(1)
    nearest = torch.cdist(drawn, mels.flatten(1)).argmin(1)
    assert (nearest == decoded.redrawn).float().mean() > 0.6  # near the end of the flow they resemble the recording

    waves = load_wave_cache(clips, WIDE.rate, 4.0)
    quick = {key: QUICK[key] for key in ("device", "threads", "tracker", "log_every", "save_every")}
    settings = configured(
        TrainVocoder,
        out=tmp_path / "vocoder", mel="wide", size="small", preset="textures", steps=1, batch=4, segment=16,
        mels_from=latents, redrawing=redrawing(finished), **quick,
    )  # fmt: skip
    vocoder.train(settings, waves, waves[:1], training_rows(clips[:1]), decoded)
    assert {row["clip"] for row in read_clips(tmp_path / "vocoder")} >= {row["clip"] for row in read_clips(finished)}
    record = read_run_config(tmp_path / "vocoder")
    assert record["mels_from"] == record["redrawing"]["redrawn_by"] == decoded.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"redrawn_since": (0.2, 1.0)}, "times from 0 to below 1"),
        ({"redrawn_share": 1.0}, "a share between 0 and 1"),
        ({"redrawn_clips": 0}, "1 clip or more"),
    ],
)
def test_a_redrawing_that_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, folder: Path, latents: Path, finished: Path
) -> None:
    nothing = Decoded(torch.zeros(0), torch.zeros(0), "")
    with pytest.raises(UserError, match=message):
        redraw_clips(redrawing(finished, **changes), nothing, latents, find_clips(folder), 4.0)


# --- distillation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose flow is far from straight, as that of trained patches is; four steps of training have hardly any."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    shutil.copytree(finished, run)
    content = read_state(run / "state.pt")
    torch.manual_seed(3)
    for name, value in content["average"].items():
        if name.startswith("head.") and value.ndim == 2:
            value.normal_(std=1.5 / value.shape[1] ** 0.5)
    torch.save(content, run / "state.pt")
    return run


def of_distillation(run: Path, out: Path, **changes: Any) -> DistilPatches:
    quick = {key: value for key, value in QUICK.items() if key != "held_out"}
    base = configured(DistilPatches, teacher=run, out=out, sounds=2, positions=20, rows=64, **quick)
    return changed(base, **changes)


def test_a_student_learns_what_the_guided_teacher_draws(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    distil.train(
        of_distillation(teacher, out, flow_steps=1, steps=150, sample_every=5, save_every=150, decay=0.9, half_life=100)
    )
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if "held_out_spread" in line)
    assert last["held_out_unexplained"] < 0.5 * first["held_out_unexplained"]
    assert abs(last["held_out_spread"] - 1) < 0.15
    assert read_clips(out) == read_clips(teacher)


def test_only_the_head_of_a_student_differs_from_the_teacher(teacher: Path, tmp_path: Path) -> None:
    student = distil.train(of_distillation(teacher, tmp_path / "student")).state_dict()
    for name, value in load_patches(teacher)[0].state_dict().items():
        assert torch.equal(value, student[name]) == (not name.startswith("head.")), name


def test_a_stopped_distillation_resumes_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    whole, stopped = (of_distillation(teacher, tmp_path / name) for name in ("whole", "stopped"))
    distil.train(whole)
    distil.train(replace(stopped, steps=2))
    distil.train(stopped)
    assert equal(state(whole.out), state(stopped.out))


def test_an_instrument_draws_as_its_student_was_distilled(teacher: Path, tmp_path: Path) -> None:
    distil.train(of_distillation(teacher, tmp_path, flow_steps=2, steps=1))
    run = read_run_config(tmp_path)
    made = export.sampling_of(run, export.Sampling())
    assert (made.flow_steps, set(made.guidance), made.temperature) == (2, {1.0}, TEMPERATURE)
    with pytest.raises(UserError, match="leave out the sampling flags"):
        export.sampling_of(run, export.Sampling(flow_steps=5))
    assert export.sampling_of(read_run_config(teacher), export.Sampling(flow_steps=5)).flow_steps == 5


def test_a_student_is_no_teacher(teacher: Path, latents: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "student"
    distil.train(of_distillation(teacher, run))
    with pytest.raises(UserError, match="cannot be distilled again"):
        distil.train(of_distillation(run, tmp_path / "second"))
    with pytest.raises(UserError, match="cannot redraw clips"):
        redraw_clips(redrawing(run), Decoded(torch.zeros(0), torch.zeros(0), ""), latents, find_clips(folder), 4.0)
    patches.train(
        replace(of_patches(tmp_path / "next", latents), start_from=run), find_clips(folder)
    )  # but it is a start
    with pytest.raises(UserError, match="expected 7 numbers"):
        distil.train(of_distillation(teacher, tmp_path / "third", guidance=(1.0,)))
