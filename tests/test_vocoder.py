"""The vocoder's loop: crops that fit their mels, exact resume, an average, losses that fall, one-line refusals."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import accelerate.state
import pytest
import torch
from accelerate import Accelerator
from helpers_lab import changed, configured, toy_folder
from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import DCASE, SILENCE, WIDE, LogMel
from foleybox.lab.core.runs import open_run, read_clips, read_state, save_state
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.patches.train_autoencoder import TrainAutoencoder
from foleybox.lab.play.train_vocoder import Redrawing, decode_clips, main
from foleybox.lab.vocoders import train_vocos as vocoder
from foleybox.lab.vocoders import vocos
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.lab.vocoders.train_vocos import Crops, TrainVocoder, learning_rate, train
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
    """Clips int16 [N, L]: noise that decays, so that every place has a level of its own."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(count, frames * 256, generator=generator)
    return (noise * torch.linspace(9000, 900, frames * 256)).clamp(-32768, 32767).to(torch.int16)


def settings(out: Path, **changes: object) -> TrainVocoder:
    base = configured(
        TrainVocoder,
        out=out,
        size="small",
        segment=8,
        judged=8,
        batch=2,
        steps=4,
        adversarial_from=2,
        period_width=2,
        resolution_width=4,
        warm_up=2,
        device="cpu",
        threads=1,
        log_every=1,
        save_every=2,
        sample_every=100,
        tracker="none",
    )
    return changed(base, **changes)


def test_repetition_is_a_term_of_the_loss_only_where_it_is_asked_for(tmp_path: Path) -> None:
    for weight in (0.0, 20.0):
        run = tmp_path / f"{weight:g}"
        train(settings(run, steps=1, segment=40, repetition_weight=weight), sounds(), sounds(2), [])
        (line,) = (json.loads(each) for each in (run / "log.jsonl").read_text().splitlines())
        assert ("repetition" in line) == (weight > 0)


def test_what_was_drawn_again_has_no_attacks_to_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch drawn anew begins elsewhere: beside the recording's attack it would teach the vocoder to smear it."""
    rows = []
    monkeypatch.setattr(vocoder.losses, "attack_distance", lambda real, fake: (rows.append(len(real)), fake.mean())[1])
    mels = LogMel(DCASE)(sounds().float() / 32768)
    decoded = Decoded(torch.cat([mels, mels[:2]]), mels[:2], "0" * 64, torch.tensor([0, 1]))
    config = settings(tmp_path / "run", steps=2, batch=4, attack_weight=1.0, redrawing=Redrawing(redrawn_share=0.5))
    train(config, sounds(), sounds(2), [], decoded)
    assert rows == [2, 2]


def test_an_infinite_step_in_fp16_is_skipped_and_halves_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halves(*_: object) -> Accelerator:
        made = Accelerator(mixed_precision="bf16", cpu=True)
        made.state._mixed_precision = "fp16"
        made.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)  # type: ignore[assignment]
        return made

    really, calls = vocoder.losses.mel_distance, []

    def mel_distance(real: Tensor, fake: Tensor) -> Tensor:
        calls.append(1)
        return really(real, fake) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(vocoder, "accelerator_for", halves)
    monkeypatch.setattr(vocoder.losses, "mel_distance", mel_distance)
    train(settings(tmp_path / "run", steps=4, adversarial_from=100), sounds(), sounds(2), [])
    found = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in found] == [0, 1, 0, 0]
    assert read_state(tmp_path / "run" / "state.pt")["scaler"]["scale"] == 8


def test_what_an_autoencoder_heard_is_heard_by_a_vocoder_that_reads_its_mels(tmp_path: Path) -> None:
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
        config = settings(tmp_path / f"{main_process}", steps=5, log_every=3, sample_every=2, adversarial_from=100)
        train(config, sounds(), sounds(2), [])
    assert steps[True] == steps[False] == [2, 3, 4, 5]


def test_a_crop_too_short_to_repeat_itself_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--segment 11 with --repetition-weight: expected 12 frames"):
        train(settings(tmp_path / "run", segment=11, repetition_weight=1.0), sounds(), sounds(2), [])
    assert not (tmp_path / "run").exists()


def test_the_mel_of_a_crop_is_cut_from_the_clips_mel_at_every_place() -> None:
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
    steps = [json.loads(line)["step"] for line in (tmp_path / "halves" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_thirty_steps_on_two_clips_lower_the_mel_loss(tmp_path: Path) -> None:
    waves = sounds(2, 12)
    train(settings(tmp_path / "run", steps=30, adversarial_from=100, lr=3e-3), waves, waves, [])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["mel"] < 0.8 * lines[0]["mel"]


def test_the_critics_take_the_place_of_the_stft_terms_at_their_step(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "run"), waves, waves[:1], [])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
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


def test_the_rate_rises_halves_and_starts_anew_with_the_critics() -> None:
    config = configured(TrainVocoder, lr=1e-3, adversarial_lr=3e-4, half_life=1000, warm_up=10, adversarial_from=2000)
    assert learning_rate(config, 0) == pytest.approx(1e-4, rel=1e-2)
    assert learning_rate(config, 1000) == pytest.approx(5e-4)
    assert learning_rate(config, 1999) == pytest.approx(2.5e-4, rel=1e-2)
    assert learning_rate(config, 2000) == pytest.approx(3e-5)
    assert learning_rate(config, 3000) == pytest.approx(1.5e-4)
    assert learning_rate(dataclasses.replace(config, steps=7), 3000) == learning_rate(config, 3000)


def test_the_loaded_vocoder_is_the_average_with_its_mel(tmp_path: Path) -> None:
    waves = sounds()
    average = train(settings(tmp_path / "run"), waves, waves[:1], [])
    model, mel, step = load_vocoder(tmp_path / "run")
    assert (mel, step, model.training) == (DCASE, 4, False)
    features = torch.randn(1, 80, 20)
    with torch.no_grad():
        assert torch.equal(model(features), average(features))


def test_a_run_starts_from_the_average_of_another_and_from_its_critics(tmp_path: Path) -> None:
    waves = sounds()
    heard = {"label": "Rain", "tier": "open", "licence": "CC0", "source": "me"}
    train(settings(tmp_path / "first"), waves, waves[:1], [{**heard, "clip": "1"}])
    second = settings(tmp_path / "second", steps=1, adversarial_from=0, start_from=tmp_path / "first", warm_up=10**9)
    train(second, waves, waves[:1], [{**heard, "clip": "2"}])
    before, after = (read_state(tmp_path / name / "state.pt") for name in ("first", "second"))
    for name, value in before["average"].items():
        torch.testing.assert_close(after["generator"][name], value)
    for name, value in before["critics"].items():
        torch.testing.assert_close(after["critics"][name], value)
    assert [row["clip"] for row in read_clips(tmp_path / "second")] == ["2", "1"]


def test_critics_that_saw_something_else_start_anew(tmp_path: Path) -> None:
    waves = sounds()
    train(settings(tmp_path / "first"), waves, waves[:1], [])
    still = {"steps": 1, "adversarial_from": 0, "start_from": tmp_path / "first", "warm_up": 10**9, "seed": 1}
    train(settings(tmp_path / "log", resolution_sees="log", **still), waves, waves[:1], [])
    before, after = (read_state(tmp_path / name / "state.pt") for name in ("first", "log"))
    torch.testing.assert_close(after["generator"]["head.weight"], before["average"]["head.weight"])
    name = "1.parts.0.score.parametrizations.weight.original1"
    assert not torch.allclose(after["critics"][name], before["critics"][name], atol=1e-3)


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
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert {"held_mel", "held_wide", "held_roughness"} <= last.keys()


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
