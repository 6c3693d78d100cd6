"""MHiFiGAN makes 96,000 samples of a CEmbed, is trained on masked ones, and its run is loaded complete.

D1 is an acceptance fact of design/systems-baseline-cmu.md, section 5. The loop is HiFi-GAN's (test_train_hifigan.py).
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_lab import configured, toy_wave
from torch import Tensor

from foleybox.audio import resample
from foleybox.errors import UserError
from foleybox.lab.cmu.cembed import PARTS, CembedConfig, fill_value
from foleybox.lab.cmu.masks import PartMasks, draw_part_masks
from foleybox.lab.cmu.mhifigan import MHIFIGAN, MHIFIGAN_EVEN, Mhifigan, waves_of_cembeds
from foleybox.lab.cmu.runs import load_mhifigan
from foleybox.lab.cmu.train_mhifigan import MaskedSegments, TrainMhifigan, train
from foleybox.lab.core.mel import SILENCE
from foleybox.lab.vocoders import train_hifigan as loop
from foleybox.lab.vocoders.hifigan import Hifigan, HifiganConfig
from foleybox.lab.vocoders.runs import load_vocoder

NARROW = HifiganConfig(bands=1152, width=16, rates=(10, 8, 2, 2))


def count(config: HifiganConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Hifigan(config).parameters())


def test_d1_the_published_sizes_upsampling_rates_and_lengths() -> None:
    assert count(MHIFIGAN) == 17_778_178
    assert count(MHIFIGAN_EVEN) == 18_302_466
    for config in (MHIFIGAN, MHIFIGAN_EVEN):
        assert config.hop == 320
        assert config.bands == 1152
        assert all((kernel - rate) % 2 == 0 for kernel, rate in zip(config.kernels, config.rates, strict=True))
    assert any(kernel % rate for kernel, rate in zip(MHIFIGAN.kernels, MHIFIGAN.rates))
    assert not any(kernel % rate for kernel, rate in zip(MHIFIGAN_EVEN.kernels, MHIFIGAN_EVEN.rates))


def test_d1_a_cembed_is_96000_samples_at_24_kHz_and_88200_at_the_tasks_rate() -> None:  # noqa: N802 (a unit)
    torch.manual_seed(0)
    mhifigan, features = Mhifigan(NARROW), torch.randn(2, 1152, 300)
    native, task = waves_of_cembeds(mhifigan, features, 24_000), waves_of_cembeds(mhifigan, features)
    assert native.shape == (2, 96_000)
    assert task.shape == (2, 88_200)
    assert torch.equal(task[1], torch.from_numpy(resample(native[1].numpy(), 24_000, 22_050)))


def test_a_tone_keeps_its_pitch_on_the_way_to_the_tasks_rate() -> None:
    class Tone(Mhifigan):
        def forward(self, features: Tensor) -> Tensor:
            return torch.sin(2 * math.pi * 1000 * torch.arange(320 * features.shape[2]) / 24_000)[None]

    wave = waves_of_cembeds(Tone(NARROW), torch.zeros(1, 1152, 300))[0]
    hz = int(torch.fft.rfft(wave).abs().argmax()) * 22_050 / len(wave)
    assert hz == pytest.approx(1000, abs=0.5)


def test_it_reads_raw_rows_through_its_own_scale() -> None:
    torch.manual_seed(0)
    mhifigan, features = Mhifigan(NARROW), torch.randn(1, 1152, 4)
    before = mhifigan(features)
    mhifigan.rows.fill(torch.full((1152,), 3.0), torch.full((1152,), 2.0))
    torch.testing.assert_close(mhifigan(2 * features + 3), before, atol=1e-5, rtol=1e-4)


# --- segments and training ----------------------------------------------------------------------------------------


def waves() -> Tensor:
    return torch.stack([torch.from_numpy(32767 * toy_wave(label, 0, rate=24_000)).short() for label in (0, 2, 4)])


def cembeds() -> Any:
    return torch.randn(3, 1152, 300, generator=torch.Generator().manual_seed(0)) + torch.arange(300.0)


def config(out: Path, **changes: Any) -> TrainMhifigan:
    values: dict[str, Any] = {
        "out": out,
        "features": CembedConfig(encoder="stand-in"),
        "width": 16,
        "segment": 8,
        "batch": 2,
        "steps": 2,
        "period_width": 1,
        "scale_width": 2,
        "log_every": 1,
        "save_every": 1,
        "sample_every": 100,
        "device": "cpu",
        "threads": 1,
        "tracker": "none",
    }
    return configured(TrainMhifigan, **{**values, **changes})


def test_a_segment_is_the_wave_of_its_frames_and_parts_of_its_cembed_are_masked(tmp_path: Path) -> None:
    sounds, features, reader = waves(), cembeds(), Mhifigan(NARROW)
    reader.rows.fill(torch.full((1152,), 1e4), torch.ones(1152))
    segments = MaskedSegments(sounds, features, config(tmp_path), reader)
    clips = torch.tensor([2, 0])
    torch.manual_seed(3)
    wave, read = segments.draw(clips)
    assert (wave.shape, read.shape) == ((2, 2560), (2, 1152, 8))
    torch.manual_seed(3)
    masked = draw_part_masks(2, PARTS, 300, PartMasks())
    first = torch.randint(293, (2,))
    assert not torch.equal(first[0], first[1])
    for i, clip in enumerate(clips.tolist()):
        start = int(first[i])
        assert torch.equal(wave[i], sounds[clip, 320 * start : 320 * (start + 8)].float() / 32768)
        mask, clean = masked[i, :, start : start + 8], features[clip, :, start : start + 8]
        assert torch.equal(read[i][~mask], clean[~mask])
        assert torch.equal(read[i][mask], fill_value(reader.rows, "silence").expand(-1, 8)[mask])
        assert mask.any()
    assert set(read[:, :1023][read[:, :1023] > 5e3].tolist()) == {1e4}
    assert float(read[:, 1023:].min()) == pytest.approx(SILENCE)


def test_it_trains_resumes_bit_for_bit_and_says_stand_in(tmp_path: Path) -> None:
    training_rows = [{"clip": "x", "label": "Rain", "tier": "", "licence": "", "source": ""}]
    for name, stops in (("whole", (2,)), ("parts", (1, 2))):
        for steps in stops:
            settings = config(tmp_path / name, steps=steps, sample_every=2)
            train(settings, waves(), waves()[:1], training_rows, (cembeds(), cembeds()[:1]))
    mine, theirs = (torch.load(tmp_path / n / "state.pt", weights_only=True) for n in ("whole", "parts"))
    assert mine["step"] == theirs["step"] == 2
    assert {"rows.mean", "rows.deviation"} < set(mine["generator"])
    for part in ("generator", "critics"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in mine[part].items())
    torch.testing.assert_close(mine["generator"]["rows.mean"], cembeds().mean((0, 2)), atol=1e-3, rtol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(line["stand_in"] == 1 for line in lines)
    assert {"discriminator", "mel", "held_mel", "held_wide"} <= set(lines[-1])
    assert [path.name for path in (tmp_path / "whole" / "samples").iterdir()] == ["step_0000002-stand-in.png"]

    mhifigan, features, step = load_mhifigan(tmp_path / "whole")
    assert (features, step) == (CembedConfig(encoder="stand-in"), 2)
    assert mhifigan(torch.randn(1, 1152, 5)).shape == (1, 1600)
    with pytest.raises(UserError, match="is a run of 'mhifigan': expected one of `foleybox train vocoder`"):
        load_vocoder(tmp_path / "whole")


def test_the_first_steps_of_the_rate_are_the_copys() -> None:
    settings = TrainMhifigan()
    assert (settings.lr, settings.lr_decay, settings.mel_weight, settings.matching_weight) == (2e-4, 0.99, 45, 2)
    per_epoch = 4360 // settings.batch + 1
    assert loop.learning_rate(settings, 0, 4360) == 2e-4
    assert loop.learning_rate(settings, per_epoch, 4360) == pytest.approx(2e-4 * 0.99)


def test_mistakes_are_reported_before_a_folder_is_made(tmp_path: Path) -> None:
    for changes, complaint in (
        ({"segment": 301}, "--segment 301: expected 300 or less"),
        ({"width": 24}, "--width 24 of mhifigan: expected a multiple of 16, such as 512"),
        ({"masks": PartMasks(mask_mel_rows=-1)}, "--mask-mel-rows -1: expected 0 or more"),
        ({"batch": 0}, "--batch 0: expected 1 or more"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(config(tmp_path / "run", **changes), waves(), waves(), [], (cembeds(), cembeds()))
    assert not (tmp_path / "run").exists()
