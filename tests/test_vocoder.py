"""The loop of Vocos: crops that fit their mels, presets, exact resume, average, falling losses, one-line refusals."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate.state
import pytest
import torch
from accelerate import Accelerator
from helpers_lab import changed, configured, toy_folder
from torch import Tensor

from foleybox.errors import UserError
from foleybox.flags import options_of
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import DCASE, SILENCE, WIDE, LogMel
from foleybox.lab.core.runs import open_run, read_clips, read_state, save_state
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.patches.train_autoencoder import TrainAutoencoder
from foleybox.lab.patches.train_patches import TrainPatches
from foleybox.lab.play.train_vocoder import Redrawing, decode_clips, main
from foleybox.lab.vocoders import train_vocos as vocoder
from foleybox.lab.vocoders import vocos
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.lab.vocoders.train_hifigan import TrainHifigan
from foleybox.lab.vocoders.train_vocos import PRESETS, Crops, TrainVocoder, VocosRecipe, learning_rate, train
from foleybox.lab.vocoders.waves import Decoded, measure


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tiny "small" size and an accelerator that is not the one of the test before."""
    monkeypatch.setitem(vocos.SIZES, "small", vocos.VocosConfig(width=16, inner=32, layers=2))
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def sounds(count: int = 4, frames: int = 40) -> Tensor:
    """Clips int16 [N, L]: noise that decays, so that the level differs at every position."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(count, frames * 256, generator=generator)
    return (noise * torch.linspace(9000, 900, frames * 256)).clamp(-32768, 32767).to(torch.int16)


RECIPE = VocosRecipe(discriminators_from=2, period_width=2, resolution_width=4, discriminated=8, warm_up=2)


def settings(out: Path, **changes: Any) -> TrainVocoder:
    """Tiny settings, with changes of the training, of its RunConfig and of its recipe."""
    recipe = {each.name: changes.pop(each.name) for each in dataclasses.fields(VocosRecipe) if each.name in changes}
    base = configured(
        TrainVocoder,
        out=out,
        size="small",
        segment=8,
        batch=2,
        steps=4,
        recipe=dataclasses.replace(RECIPE, **recipe),
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


def test_repetition_is_a_term_of_the_loss_only_where_it_is_asked_for(tmp_path: Path) -> None:
    for weight in (0.0, 20.0):
        run = tmp_path / f"{weight:g}"
        train(settings(run, steps=1, segment=40, repetition=weight), sounds(), sounds(2), [])
        (line,) = log_of(run)
        assert ("repetition" in line) == (weight > 0)


def test_attacks_of_redrawn_clips_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redrawn patch begins at another time: compared with the recording's attack it would teach smeared attacks."""
    rows = []
    monkeypatch.setattr(vocoder, "attack_distance", lambda real, fake, factor: (rows.append(len(real)), fake.mean())[1])
    mels = LogMel(DCASE)(sounds().float() / 32768)
    decoded = Decoded(torch.cat([mels, mels[:2]]), mels[:2], "0" * 64, torch.tensor([0, 1]))
    config = settings(tmp_path / "run", steps=2, batch=4, attack=1.0, redrawing=Redrawing(redrawn_share=0.5))
    train(config, sounds(), sounds(2), [], decoded)
    assert rows == [2, 2]


def test_a_full_band_vocoder_starts_from_one_of_half_the_rate(tmp_path: Path) -> None:
    """At the first step its lower band is the other's sound at twice the rate."""
    half, full = tmp_path / "half", tmp_path / "full"
    train(settings(half, steps=1, segment=40), sounds(), sounds(2), [])
    mels = LogMel(DCASE)(sounds().float() / 32768)
    both = sounds().repeat_interleave(2, 1)
    config = settings(full, steps=1, segment=40, full_band=True, start_from=half, adversarial_lr=1e-9, lr=1e-9)
    train(config, both, both[:2], [], Decoded(mels, mels[:2], ""))
    (small, mel, _), (large, same, _) = load_vocoder(half), load_vocoder(full)
    assert mel == same == DCASE
    with torch.no_grad():
        low, high = small(mels[:1, :, :40]), large(mels[:1, :, :40])
    assert high.shape[1] == 2 * low.shape[1]
    spectra = [
        torch.stft(w, 1024 * f, 256 * f, window=torch.hann_window(1024 * f), return_complex=True)
        for w, f in ((low, 1), (high, 2))
    ]
    torch.testing.assert_close(spectra[1][:, :500, 4:-4] / 2, spectra[0][:, :500, 4:-4], rtol=0.05, atol=0.02)


def test_an_infinite_step_in_fp16_is_skipped_and_halves_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halves(*_: object) -> Accelerator:
        made = Accelerator(mixed_precision="bf16", cpu=True)
        made.state._mixed_precision = "fp16"
        made.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)  # type: ignore[assignment]
        return made

    really, calls = vocoder.mel_distance, []

    def mel_distance(real: Tensor, fake: Tensor) -> Tensor:
        calls.append(1)
        return really(real, fake) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(vocoder, "accelerator_for", halves)
    monkeypatch.setattr(vocoder, "mel_distance", mel_distance)
    train(settings(tmp_path / "run", steps=4, discriminators_from=100), sounds(), sounds(2), [])
    assert [line["skipped"] for line in log_of(tmp_path / "run")] == [0, 1, 0, 0]
    assert read_state(tmp_path / "run" / "state.pt")["scaler"]["scale"] == 8


def test_the_clips_of_an_autoencoder_are_training_clips_of_a_vocoder_that_reads_its_mels(tmp_path: Path) -> None:
    theirs = [{"clip": "Rain/9.wav 1", "label": "Rain", "tier": "nc", "licence": "CC BY-NC", "source": "them"}]
    form = AutoencoderConfig(latent=6, width=8, fine=8, coarse_layers=1, fine_layers=1, noise=2)
    open_run(tmp_path / "ours", "autoencoder", configured(TrainAutoencoder, model=form), theirs)
    mels = LogMel(DCASE)(sounds().float() / 32768)
    config = settings(tmp_path / "run", steps=1, mels_from=tmp_path / "ours")
    train(config, sounds(), sounds(2), [], Decoded(mels, mels[:2], "0" * 64))
    assert read_clips(tmp_path / "run") == theirs


def test_processes_log_at_the_same_steps_whatever_one_of_them_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line asks every process for its numbers, and only the first measures: were it to ask alone, all would hang."""
    steps: dict[bool, list[int]] = {True: [], False: []}
    for main_process in (True, False):
        monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _, main=main_process: main))
        monkeypatch.setattr(vocoder.Log, "write", lambda _, step, *rest, of=steps[main_process]: of.append(step))
        monkeypatch.setattr(vocoder, "open_run", lambda *_: None)
        (tmp_path / f"{main_process}").mkdir()
        config = settings(tmp_path / f"{main_process}", steps=5, log_every=3, sample_every=2, discriminators_from=100)
        train(config, sounds(), sounds(2), [])
    assert steps[True] == steps[False] == [2, 3, 4, 5]


def test_a_crop_too_short_to_repeat_itself_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="segment 11 with a repetition loss: expected 12 frames"):
        train(settings(tmp_path / "run", segment=11, repetition=1.0), sounds(), sounds(2), [])
    assert not (tmp_path / "run").exists()


def test_the_mel_of_a_crop_is_cut_from_the_clips_mel_at_every_position() -> None:
    waves = sounds()
    crops = Crops(waves, DCASE, 8, 0.1)
    whole = waves.float() / 32768
    mels = LogMel()(whole)
    for start in (0, 1, 13, 31, 32):  # both ends of the clip, where the front end reflects, and between
        wave, mel = crops.cut(torch.tensor([2, 0]), torch.tensor([start, start]))
        torch.testing.assert_close(wave, whole[[2, 0], start * 256 : (start + 8) * 256])
        torch.testing.assert_close(mel, mels[[2, 0], :, start : start + 8], atol=2e-4, rtol=0)


def test_gain_moves_wave_and_mel_together_and_never_past_full_scale() -> None:
    crops = Crops(sounds(), DCASE, 8, 0.1)
    places = torch.tensor([1]), torch.tensor([30])
    wave, mel = crops.cut(*places)
    louder, louder_mel = crops.cut(*places, torch.tensor([2.0]))
    torch.testing.assert_close(louder, 2 * wave)
    torch.testing.assert_close(louder_mel, mel + torch.log(torch.tensor(2.0)), atol=1e-3, rtol=0)
    loudest, _ = crops.cut(*places, torch.tensor([1e6]))
    assert float(loudest.abs().max()) <= 1


def test_given_mels_are_cut_where_the_wave_is_and_move_with_its_gain() -> None:
    marks = torch.arange(4)[:, None, None] * 100.0 + torch.arange(40.0).expand(4, 80, 40)  # clip and frame
    waves, places = sounds(), (torch.tensor([2, 0]), torch.tensor([5, 32]))
    crops = Crops(waves, DCASE, 8, 0.1, marks)
    wave, mel = crops.cut(*places, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(wave, Crops(waves, DCASE, 8, 0.1).cut(*places)[0] / 2)
    expected = torch.stack([marks[2, :, 5:13], marks[0, :, 32:40]]) - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(mel, expected)
    assert float(crops.cut(*places, torch.tensor([0.0, 0.0]))[1].min()) == pytest.approx(SILENCE)


def test_silence_stays_silent_however_loud_a_given_mel_is_made() -> None:
    crops = Crops(torch.zeros(1, 40 * 256, dtype=torch.int16), DCASE, 8, 0.1, torch.full((1, 80, 40), SILENCE))
    assert torch.equal(
        crops.cut(torch.tensor([0]), torch.tensor([5]), torch.tensor([2.0]))[1], torch.full((1, 80, 8), SILENCE)
    )


def test_crops_hold_sound_but_for_the_silent_share() -> None:
    waves = torch.zeros(1, 344 * 256, dtype=torch.int16)
    waves[:, 256 * 300 : 256 * 302] = 5000  # sound in frames 300 and 301 of 344
    clips = torch.zeros(2000, dtype=torch.int64)
    torch.manual_seed(0)
    share = {}
    for silent in (0.0, 0.5):
        starts = Crops(waves, DCASE, 32, silent).starts(clips)
        assert int(starts.min()) >= 0
        assert int(starts.max()) <= 344 - 32
        assert len(starts.unique()) > 25  # the sound lies anywhere in its crop
        share[silent] = float(((starts > 300 - 32) & (starts <= 301)).float().mean())
    assert share[0.0] == 1
    assert 0.5 < share[0.5] < 0.65  # of those drawn anywhere, about a tenth meet the sound by chance
    assert len(Crops(waves * 0, DCASE, 32, 0.0).starts(clips).unique()) > 100  # a silent clip is cropped anywhere


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "whole"), waves, waves[:1], [])
    train(settings(tmp_path / "halves", steps=3), waves, waves[:1], [])  # stops inside phase B
    train(settings(tmp_path / "halves"), waves, waves[:1], [])
    whole, halves = (read_state(tmp_path / name / "state.pt") for name in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 4
    for part in ("generator", "average", "critics"):
        for name, value in whole[part].items():
            assert torch.equal(value, halves[part][name]), f"{part}.{name}"
    assert [line["step"] for line in log_of(tmp_path / "halves")] == [1, 2, 3, 4]


def test_thirty_steps_on_two_clips_lower_the_mel_loss(tmp_path: Path) -> None:
    waves = sounds(2, 12)
    train(settings(tmp_path / "run", steps=30, discriminators_from=100, lr=3e-3), waves, waves, [])
    lines = log_of(tmp_path / "run")
    assert lines[-1]["mel"] < 0.8 * lines[0]["mel"]


def test_the_discriminators_replace_the_stft_terms_at_their_step(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "run"), waves, waves[:1], [])
    lines = log_of(tmp_path / "run")
    assert ["adversarial_periods" in line for line in lines] == [False, False, True, True]
    assert ["stft_distance" in line for line in lines] == [True, True, False, False]
    terms = [name for name in lines[3] if name.startswith(("adversarial", "matching", "mel"))]
    assert lines[3]["loss"] == pytest.approx(sum(lines[3][name] for name in terms), rel=1e-5)


def test_the_average_is_the_model_at_decay_0_and_lags_behind_it_otherwise(tmp_path: Path) -> None:
    waves = sounds()
    for decay in (0.0, 0.9):
        out = tmp_path / f"decay_{decay}"
        train(settings(out, decay=decay, steps=3), waves, waves[:1], [])
        state = read_state(out / "state.pt")
        same = [torch.equal(value, state["average"][name]) for name, value in state["generator"].items()]
        assert all(same) == (decay == 0)


def test_at_rate_0_no_weight_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = sounds()
    monkeypatch.setattr(vocoder, "learning_rate", lambda config, step: 0.0)
    train(settings(tmp_path / "run"), waves, waves[:1], [])
    state = read_state(tmp_path / "run" / "state.pt")
    torch.manual_seed(0)
    fresh = vocos.Vocos(vocos.SIZES["small"])
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state["generator"][name])


def test_the_rate_rises_halves_and_starts_anew_with_the_discriminators() -> None:
    recipe = VocosRecipe(lr=1e-3, adversarial_lr=3e-4, half_life=1000, warm_up=10, discriminators_from=2000)
    assert learning_rate(recipe, 0) == pytest.approx(1e-4, rel=1e-2)
    assert learning_rate(recipe, 1000) == pytest.approx(5e-4)
    assert learning_rate(recipe, 1999) == pytest.approx(2.5e-4, rel=1e-2)
    assert learning_rate(recipe, 2000) == pytest.approx(3e-5)
    assert learning_rate(recipe, 3000) == pytest.approx(1.5e-4)
    never = dataclasses.replace(recipe, discriminators_from=None)
    assert learning_rate(never, 2000) == pytest.approx(2.5e-4)


@pytest.mark.parametrize("kind", [TrainVocoder, TrainHifigan, TrainAutoencoder, TrainPatches])
def test_a_training_command_has_about_twenty_flags(kind: type) -> None:
    shown = [option for option in options_of(kind) if option.flags and option.name != "LOG_EVERY"]  # which help hides
    assert len(shown) <= 21


def test_the_presets_are_those_of_the_released_instruments() -> None:
    """foley-small's vocoder, foley-open's and sagan-small's: see made_with.vocoder of their instrument.json."""
    textures, plain, narrow = (PRESETS[name] for name in ("textures", "textures-plain", "adversarial-cpu"))
    for each in (textures, plain):
        assert (each.mel, each.stft, each.texture, each.decay, each.discriminators_from) == (4, 0, 10, 0.995, None)
    assert (textures.repetition, textures.attack, textures.mean_spectrum) == (7, 10, 10)
    assert (plain.repetition, plain.attack, plain.mean_spectrum, plain.lr, plain.half_life) == (10, 0, 0, 3e-4, 800)
    assert (narrow.period_width, narrow.resolution_width, narrow.discriminators_from) == (4, 16, 5000)


def test_flags_change_a_preset_and_initial_weights_skip_the_first_phase() -> None:
    assert TrainVocoder().resolved() == VocosRecipe()
    changed = TrainVocoder(preset="textures", lr=1e-4, half_life=700).resolved()
    assert changed == dataclasses.replace(PRESETS["textures"], lr=1e-4, half_life=700)
    again = TrainVocoder(start_from=Path("run"), lr=1e-4).resolved()
    assert again == VocosRecipe(discriminators_from=0, adversarial_lr=1e-4)
    assert TrainVocoder(preset="textures", start_from=Path("run")).resolved() == PRESETS["textures"]


def test_the_textures_preset_trains_without_discriminators(tmp_path: Path) -> None:
    config = changed(settings(tmp_path / "run", segment=40, steps=2), recipe=None, preset="textures")
    train(config, sounds(), sounds(2), [])
    terms = {"mel", "texture", "long_texture", "repetition", "attack", "mean_spectrum"}
    others = {"step", "steps_per_second", "loss", "norm", "skipped", "lr"}
    for line in log_of(tmp_path / "run"):
        assert line.keys() == terms | others
        assert line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-5)
    assert read_state(tmp_path / "run" / "state.pt").keys() == {"step", "generator", "average", "optimizer"}


def test_the_loaded_vocoder_is_the_average_with_its_mel(tmp_path: Path) -> None:
    waves = sounds()
    average = train(settings(tmp_path / "run"), waves, waves[:1], [])
    model, mel, step = load_vocoder(tmp_path / "run")
    assert (mel, step, model.training) == (DCASE, 4, False)
    features = torch.randn(1, 80, 20)
    with torch.no_grad():
        assert torch.equal(model(features), average(features))


def test_a_run_starts_from_the_average_of_another_and_from_its_discriminators(tmp_path: Path) -> None:
    waves = sounds()
    row = {"label": "Rain", "tier": "open", "licence": "CC0", "source": "me"}
    train(settings(tmp_path / "first"), waves, waves[:1], [{**row, "clip": "1"}])
    second = settings(tmp_path / "second", steps=1, discriminators_from=0, start_from=tmp_path / "first", warm_up=10**9)
    train(second, waves, waves[:1], [{**row, "clip": "2"}])
    before, after = (read_state(tmp_path / name / "state.pt") for name in ("first", "second"))
    for name, value in before["average"].items():
        torch.testing.assert_close(after["generator"][name], value)
    for name, value in before["critics"].items():
        torch.testing.assert_close(after["critics"][name], value)
    assert [row["clip"] for row in read_clips(tmp_path / "second")] == ["2", "1"]


def test_discriminators_of_another_size_or_input_start_anew(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "first"), waves, waves[:1], [])
    still = {"steps": 1, "discriminators_from": 0, "start_from": tmp_path / "first", "warm_up": 10**9, "seed": 1}
    before, name = read_state(tmp_path / "first" / "state.pt"), "1.parts.0.score.parametrizations.weight.original1"
    for changes in ({"resolution_input": "log"}, {"resolution_width": 5}):
        run = tmp_path / next(iter(changes))
        train(settings(run, **changes, **still), waves, waves[:1], [])
        after = read_state(run / "state.pt")
        torch.testing.assert_close(after["generator"]["head.weight"], before["average"]["head.weight"])
        assert not after["critics"][name].equal(before["critics"][name])


def test_settings_of_discriminators_are_found_in_runs_of_earlier_versions() -> None:
    old = {"part": "vocoder", "period_width": 4, "resolution_width": 16}
    assert vocoder.discriminator_sizes(old) == (4, 16, "complex")
    assert vocoder.discriminator_sizes({**old, "resolution_sees": "log"}) == (4, 16, "log")
    new = {"part": "vocoder", "recipe": dataclasses.asdict(PRESETS["adversarial-cpu"])}
    assert vocoder.discriminator_sizes(new) == (4, 16, "log")


def test_the_mels_of_our_autoencoder_can_be_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    form = AutoencoderConfig(latent=6, width=8, fine=8, coarse_layers=1, fine_layers=1, noise=2)
    open_run(tmp_path / "ours", "autoencoder", configured(TrainAutoencoder, model=form), [])
    save_state(tmp_path / "ours" / "state.pt", 3, {"average": Autoencoder(form)})
    toy_folder(tmp_path / "sounds", 1)
    clips = find_clips(f"{tmp_path}/sounds")
    decoded = decode_clips(tmp_path / "ours", clips[:4], clips[4:], WIDE, 4.0, "cpu")
    autoencoder = load_autoencoder(tmp_path / "ours")[0]
    wanted = autoencoder.components.decode(autoencoder.encode(load_mels(clips[:4], WIDE)))
    assert decoded.mels.shape == (4, 100, 344)
    torch.testing.assert_close(decoded.mels, wanted, atol=0.3, rtol=0)  # a decoder that learned nothing adds little
    assert decoded.held.shape[0] == len(clips) - 4
    with pytest.raises(UserError, match="give --mel wide"):
        decode_clips(tmp_path / "ours", clips[:4], clips[4:], DCASE, 4.0, "cpu")


def test_a_sample_sheet_and_the_held_out_numbers_come_at_their_step(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "run", sample_every=4, log_every=100), waves, waves[:2], [])
    assert (tmp_path / "run" / "samples" / "step_0000004.png").stat().st_size > 1000
    assert {"held_mel", "held_wide", "held_roughness"} <= log_of(tmp_path / "run")[-1].keys()


def test_a_perfect_vocoder_measures_0_and_0_and_1_and_0() -> None:
    waves = sounds(3, 40)

    class Perfect(vocos.Vocos):
        def forward(self, mel: Tensor) -> Tensor:
            return waves.float() / 32768

    found = measure(Perfect(vocos.VocosConfig(width=4, inner=4, layers=1)), waves, DCASE)
    assert found == {"held_mel": 0, "held_wide": 0, "held_roughness": 1, "held_repetition": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "no data"),
        ({"data": ("nowhere",)}, "no folder nowhere"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(settings(tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_crops_longer_than_the_clips_are_refused_before_the_run_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clips of 40 frames, crops of 64"):
        train(settings(tmp_path / "run", segment=64), sounds(), sounds(1), [])
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_system_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"part": "sagan"}')
    with pytest.raises(UserError, match="'sagan'"):
        load_vocoder(tmp_path)
