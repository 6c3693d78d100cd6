"""HiFi-GAN's loop: the published batches, losses and rate, exact resume, fine-tuning on decoded mels, refusals."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from helpers_lab import changed, configured, toy_folder
from test_vocoder import sounds
from torch import Tensor

from foleybox import cli
from foleybox.errors import UserError
from foleybox.lab.baseline.train_vqvae import TrainVqvae
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.core.loop import batch_indices, seed_step
from foleybox.lab.core.losses import mel_distance
from foleybox.lab.core.mel import DCASE, LogMel, MelConfig
from foleybox.lab.core.runs import fingerprint, open_run, read_clips, read_state, save_state
from foleybox.lab.play.train_vocoder import main_hifigan
from foleybox.lab.vocoders import train_hifigan
from foleybox.lab.vocoders.hifigan import (
    Hifigan,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PeriodConfig,
    ScaleConfig,
    official_names,
)
from foleybox.lab.vocoders.runs import hifigan_config, load_vocoder
from foleybox.lab.vocoders.train_hifigan import Segments, TrainHifigan, discriminate, learning_rate, train
from foleybox.lab.vocoders.waves import Decoded

CPU = torch.device("cpu")
ROWS = [{"clip": "Rain/1.wav 9", "label": "Rain", "tier": "open", "licence": "CC0", "source": "me"}]


def settings(out: Path, **changes: object) -> TrainHifigan:
    base = configured(
        TrainHifigan,
        out=out,
        vocoder="hifigan-v3",
        width=8,
        segment=8,
        batch=2,
        steps=4,
        period_width=1,
        scale_width=2,
        device="cpu",
        threads=1,
        log_every=1,
        save_every=2,
        sample_every=100,
        tracker="none",
    )
    return changed(base, **changes)


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# --- what the networks are given ----------------------------------------------------------------------------------


def test_the_defaults_are_the_published_ones() -> None:
    config = TrainHifigan()
    assert (config.vocoder, config.width, config.segment * DCASE.hop, config.batch) == ("hifigan-v1", None, 8192, 16)
    assert (config.lr, config.lr_decay, config.mel_weight, config.matching_weight) == (2e-4, 0.999, 45, 2)
    assert (config.period_width, config.scale_width, config.peak) == (32, 128, 0.95)


def test_a_segment_is_part_of_its_clip_at_the_published_peak_with_the_mel_of_itself() -> None:
    waves = sounds()
    torch.manual_seed(0)
    wave, mel = Segments(waves, DCASE, 8, 0.95, None).draw(torch.tensor([2, 0, 2]))
    clip = waves[2].float()
    clip = clip / clip.abs().max() * 0.95
    places = (clip.unfold(0, 2048, 1) - wave[0]).abs().amax(1)
    assert float(places.min()) < 1e-6
    torch.testing.assert_close(mel, LogMel()(wave))


def test_segments_begin_anywhere_and_both_ends_of_a_clip_are_reached() -> None:
    waves = torch.arange(2048 + 40, dtype=torch.int16)[None]
    torch.manual_seed(0)
    wave, _ = Segments(waves, DCASE, 8, 0, None).draw(torch.zeros(1000, dtype=torch.int64))
    assert (wave[:, 0] * 32768).unique().tolist() == list(range(41))


def test_a_silent_clip_stays_silent() -> None:
    wave, mel = Segments(torch.zeros(1, 4096, dtype=torch.int16), DCASE, 8, 0.95, None).draw(torch.tensor([0]))
    assert float(wave.abs().max()) == 0
    assert mel.isfinite().all()


def test_decoded_mels_are_cut_where_the_wave_is_and_the_wave_stays_as_loud_as_it_was() -> None:
    waves = sounds()
    marks = torch.arange(4)[:, None, None] * 100.0 + torch.arange(40.0).expand(4, 80, 40)  # clip and frame
    torch.manual_seed(0)
    clips = torch.tensor([3, 1] * 100)
    wave, mel = Segments(waves, DCASE, 8, 0.95, marks).draw(clips)
    first = mel[:, 0, 0].long() - 100 * clips
    assert first.unique().tolist() == list(range(33))
    assert torch.equal(mel[:, 5], mel[:, :1, 0] + torch.arange(8.0))
    for row, (clip, frame) in enumerate(zip(clips.tolist(), first.tolist())):
        assert torch.equal(wave[row], waves[clip, frame * 256 : (frame + 8) * 256].float() / 32768)


# --- the loop -----------------------------------------------------------------------------------------------------


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "whole"), waves, waves[:1], [])
    train(settings(tmp_path / "halves", steps=3), waves, waves[:1], [])
    train(settings(tmp_path / "halves"), waves, waves[:1], [])
    whole, halves = (read_state(tmp_path / name / "state.pt") for name in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 4
    for part in ("generator", "critics"):
        for name, value in whole[part].items():
            assert torch.equal(value, halves[part][name]), f"{part}.{name}"
    for part in ("optimizer", "critics_optimizer"):
        for number, state in whole[part]["state"].items():
            assert torch.equal(state["exp_avg_sq"], halves[part]["state"][number]["exp_avg_sq"])
    assert [line["step"] for line in log_of(tmp_path / "halves")] == [1, 2, 3, 4]


def test_the_first_step_has_the_published_losses(tmp_path: Path) -> None:
    # Recomputed here from the formulas, at rate 0, where neither side moves (but for spectral norm's vectors).
    waves = sounds()
    train(settings(tmp_path / "run", steps=1, lr=0.0), waves, waves[:1], [])
    torch.manual_seed(0)
    generator = Hifigan(hifigan_config(DCASE, "hifigan-v3", 8))
    state = read_state(tmp_path / "run" / "state.pt")
    for name, value in generator.state_dict().items():
        assert torch.equal(value, state["generator"][name])
    seed_step(0, 0)
    real, mel = Segments(waves, DCASE, 8, 0.95, None).draw(batch_indices(0, 2, 4, 0))
    critics = torch.nn.ModuleList([MultiPeriodDiscriminator(PeriodConfig(1)), MultiScaleDiscriminator(ScaleConfig(2))])
    critics.load_state_dict(state["critics"])
    critics.eval()  # spectral norm's vectors stay
    adversarial = matching = discriminator = 0.0
    with torch.no_grad():
        fake = generator(mel)
        for critic in critics:
            (scores, layers), (fake_scores, fake_layers) = critic(real), critic(fake)
            for score, fake_score, seen, fake_seen in zip(scores, fake_scores, layers, fake_layers):
                adversarial += float(((1 - fake_score) ** 2).mean())
                discriminator += float(((1 - score) ** 2).mean() + (fake_score**2).mean())
                pairs = [*zip(seen, fake_seen), (score, fake_score)]  # the score is matched like a layer
                matching += 2 * sum(float((r - f).abs().mean()) for r, f in pairs)
    whole_band = LogMel(MelConfig(high=11_025.0))
    line = log_of(tmp_path / "run")[0]
    assert line["mel"] == pytest.approx(45 * float((whole_band(real) - whole_band(fake)).abs().mean()), rel=1e-4)
    assert line["adversarial"] == pytest.approx(adversarial, rel=1e-2)
    assert line["discriminator"] == pytest.approx(discriminator, rel=1e-2)
    assert line["matching"] == pytest.approx(matching, rel=1e-2)
    assert line["loss"] == pytest.approx(line["mel"] + line["adversarial"] + line["matching"], rel=1e-5)


def test_sixteen_steps_on_two_clips_lower_the_mel_loss(tmp_path: Path) -> None:
    waves = sounds(2, 12)
    train(settings(tmp_path / "run", steps=16, lr=5e-3), waves, waves, [])
    lines = log_of(tmp_path / "run")
    assert sum(line["mel"] for line in lines[-4:]) / 4 < 0.8 * lines[0]["mel"]


def test_the_rate_falls_by_a_thousandth_an_epoch_and_does_not_know_the_last_step() -> None:
    config = configured(TrainHifigan, batch=16)
    assert learning_rate(config, 0, 160) == learning_rate(config, 9, 160) == 2e-4
    assert learning_rate(config, 10, 160) == pytest.approx(2e-4 * 0.999)
    assert learning_rate(config, 1000, 160) == pytest.approx(2e-4 * 0.999**100)
    assert learning_rate(dataclasses.replace(config, steps=7), 1000, 160) == learning_rate(config, 1000, 160)


def test_a_step_that_is_not_finite_is_skipped_and_counted_and_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves, calls = sounds(), []
    distance = mel_distance

    def sometimes(real: Tensor, fake: Tensor) -> Tensor:
        calls.append(None)
        return distance(real, fake) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(train_hifigan, "mel_distance", sometimes)
    train(settings(tmp_path / "run", steps=2), waves, waves[:1], [])
    before = read_state(tmp_path / "run" / "state.pt")["generator"]
    train(settings(tmp_path / "run", steps=3), waves, waves[:1], [])
    after = read_state(tmp_path / "run" / "state.pt")
    assert after["step"] == 3
    assert all(torch.equal(value, after["generator"][name]) for name, value in before.items())
    train(settings(tmp_path / "run", steps=4), waves, waves[:1], [])
    assert all(value.isfinite().all() for value in read_state(tmp_path / "run" / "state.pt")["generator"].values())
    assert [line["skipped"] for line in log_of(tmp_path / "run")] == [0, 0, 1, 0]


def test_a_sample_sheet_and_the_held_out_numbers_come_at_their_step(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "run", sample_every=4, log_every=100), waves, waves[:2], [])
    assert (tmp_path / "run" / "samples" / "step_0000004.png").stat().st_size > 1000
    assert {"held_mel", "held_wide", "held_roughness"} <= log_of(tmp_path / "run")[-1].keys()


def test_the_loaded_vocoder_is_the_generator_with_its_weight_norms_folded_in(tmp_path: Path) -> None:
    waves = sounds()
    generator = train(settings(tmp_path / "run"), waves, waves[:1], [])
    model, mel, step = load_vocoder(tmp_path / "run")
    assert isinstance(model, Hifigan)
    assert (mel, step, model.training) == (DCASE, 4, False)
    assert not any("parametrizations" in name for name in model.state_dict())
    features = torch.randn(2, 80, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(features), generator(features), atol=1e-6, rtol=1e-4)


def test_all_eight_discriminators_are_used_and_their_scores_are_matched_too() -> None:
    torch.manual_seed(0)
    critics = torch.nn.ModuleList([MultiPeriodDiscriminator(PeriodConfig(2)), MultiScaleDiscriminator(ScaleConfig(2))])
    scores, seen = discriminate(critics, torch.randn(1, 2048))
    assert [len(layers) for layers in seen] == [6] * 5 + [8] * 3
    assert all(torch.equal(layers[-1], score) for layers, score in zip(seen, scores))


# --- weights to start from, mels to read --------------------------------------------------------------------------


def test_a_run_that_starts_from_another_has_its_weights_and_its_training_clips(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "first"), waves, waves[:1], ROWS)
    other = [{**ROWS[0], "clip": "Rain/2.wav 9"}]
    train(settings(tmp_path / "second", steps=1, lr=0.0, start_from=tmp_path / "first"), waves, waves[:1], other)
    first, second = (read_state(tmp_path / name / "state.pt") for name in ("first", "second"))
    for part in ("generator", "critics"):
        for name, value in first[part].items():
            if not name.endswith(("_u", "_v")):  # spectral norm's vectors follow the weights even at rate 0
                assert torch.equal(value, second[part][name]), name
    assert second["step"] == 1
    assert read_clips(tmp_path / "second") == other + ROWS


def test_a_run_starts_from_an_official_checkpoint_whose_training_clips_are_unclear(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = Hifigan(hifigan_config(DCASE, "hifigan-v3", 8))
    theirs = {name: model.state_dict()[mine] for mine, name in official_names(model.config).items()}
    torch.save({"generator": theirs}, tmp_path / "g_02500000")
    waves = sounds()
    made = train(
        settings(tmp_path / "run", steps=1, lr=0.0, start_from=tmp_path / "g_02500000"), waves, waves[:1], ROWS
    )
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in model.state_dict().items())
    assert [row["tier"] for row in read_clips(tmp_path / "run")] == ["open", "unclear"]


def test_what_cannot_be_started_from_is_refused(tmp_path: Path) -> None:
    waves = sounds()
    with pytest.raises(UserError, match="expected a run folder"):
        train(settings(tmp_path / "run", start_from=tmp_path / "nothing"), waves, waves[:1], [])
    train(settings(tmp_path / "first", steps=1), waves, waves[:1], [])
    with pytest.raises(UserError, match="does not fit the model"):
        train(settings(tmp_path / "wide", width=16, start_from=tmp_path / "first"), waves, waves[:1], [])
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "wide").exists()


def test_with_decoded_mels_the_generator_reads_those_and_the_target_is_the_real_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves = sounds()
    decoded = Decoded(torch.full((4, 80, 40), -3.0), torch.full((1, 80, 40), -3.0), "f" * 64)
    read = []
    forward = Hifigan.forward
    monkeypatch.setattr(Hifigan, "forward", lambda self, mel: read.append(mel.unique().tolist()) or forward(self, mel))
    train(settings(tmp_path / "run", steps=2, sample_every=2), waves, waves[:1], [], decoded)
    assert read == [[-3.0]] * 4  # two steps, the held-out numbers, the sheet
    assert json.loads((tmp_path / "run" / "config.json").read_text())["mels_from"] == "f" * 64
    with pytest.raises(UserError, match="was started with mels_from"):
        train(settings(tmp_path / "run"), waves, waves[:1], [], decoded._replace(fingerprint="e" * 64))


@pytest.fixture
def vqvae(tmp_path: Path) -> Path:
    """A run folder with an untrained VQ-VAE."""
    torch.manual_seed(0)
    config = configured(
        TrainVqvae, out=tmp_path / "vqvae", model=VqvaeConfig(channels=4, residual=2, width=4, size=8), head="none"
    )
    open_run(config.out, "vqvae", config, [])
    assert config.model is not None
    save_state(config.out / "state.pt", 3, {"vqvae": Vqvae(config.model)})
    return config.out


def test_the_command_fine_tunes_either_vocoder_on_what_a_vqvae_gives_back(
    vqvae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    toy_folder(tmp_path / "sounds", 1)
    common = "sounds --held-out .3 --steps 1 --batch 2 --device cpu --threads 1 --tracker none --mels-from"
    flags = [*common.split(), str(vqvae)]
    tiny = {"--vocoder": "hifigan-v2", "--width": 16, "--segment": 8, "--period-width": 1, "--scale-width": 2}
    hifigan = ["train", "hifigan", *(str(word) for pair in tiny.items() for word in pair)]
    assert cli.main([*hifigan, *flags, "-o", "hifigan"]) == 0
    assert cli.main(["train", "vocoder", *flags, "-o", "vocos", "--size", "small", "--preset", "textures"]) == 0
    name = fingerprint(Vqvae(VqvaeConfig(channels=4, residual=2, width=4, size=8)))
    for run in ("hifigan", "vocos"):
        config = json.loads((tmp_path / run / "config.json").read_text())
        assert len(config["mels_from"]) == len(name)
        assert type(load_vocoder(tmp_path / run)[0]).__name__.lower() == run
    assert cli.main([*hifigan, *flags, "-o", "x", "--mel", "wide"]) == 2
    assert "give --mel dcase" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "no data"),
        ({"data": ("nowhere",)}, "no folder nowhere"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main_hifigan(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment": 64}, "clips of 40 frames, segments of 64"),
        ({"width": 12}, "--width 12 of hifigan-v3: expected a multiple of 8"),
        ({"vocoder": "hifigan-v1", "width": 8}, "--width 8 of hifigan-v1: expected a multiple of 16"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run_folder_is_made(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(settings(tmp_path / "run", **changes), sounds(), sounds(1), [])
    assert not (tmp_path / "run").exists()
