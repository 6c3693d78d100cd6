"""Vocos: an inverse STFT that inverts, lengths and alignment that fit the mel, and a graph that exports."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foleybox.lab.core.mel import LogMel
from foleybox.lab.vocoders.vocos import (
    BASE,
    MEDIUM,
    SMALL,
    InverseSTFT,
    MultiResolutionDiscriminator,
    ResolutionConfig,
    Vocos,
    VocosConfig,
    overlap_add,
)

TINY = VocosConfig(width=16, inner=24, layers=2)


def framed_stft(wave: Tensor, n_fft: int = 1024, hop: int = 256) -> Tensor:
    """The complex STFT [B, T, K] with the framing of `LogMel`."""
    margin = (n_fft - hop) // 2
    padded = torch.nn.functional.pad(wave, (margin, margin), mode="reflect")
    spectrum = torch.stft(padded, n_fft, hop, window=torch.hann_window(n_fft), center=False, return_complex=True)
    return spectrum.transpose(1, 2)


def test_344_frames_are_88064_samples_and_any_length_and_batch_will_do() -> None:
    model = Vocos(TINY).eval()
    for batch, frames in ((1, 344), (3, 1), (2, 57)):
        assert model(torch.randn(batch, 80, frames)).shape == (batch, frames * 256)


@pytest.mark.parametrize(("config", "count"), [(SMALL, 1_650_882), (MEDIUM, 2_002_690), (BASE, 13_459_970)])
def test_sizes_have_the_stated_counts(config: VocosConfig, count: int) -> None:
    assert sum(p.numel() for p in Vocos(config).parameters()) == count


@pytest.mark.parametrize("training", [True, False])
def test_the_stft_of_a_wave_gives_the_wave_back(training: bool) -> None:
    wave = torch.randn(2, 40 * 256, generator=torch.Generator().manual_seed(0)) * 0.3
    spectrum = framed_stft(wave)
    back = InverseSTFT(1024, 256).train(training)(spectrum.real, spectrum.imag)
    assert back.shape == wave.shape
    torch.testing.assert_close(back, wave, atol=2e-6, rtol=0)


def test_matrix_products_and_fft_give_the_same_frames_for_any_spectrum() -> None:
    # Not only those of a wave: the imaginary parts of 0 Hz and Nyquist must count for nothing in both.
    generator = torch.Generator().manual_seed(1)
    real, imaginary = torch.randn(2, 3, 5, 513, generator=generator)
    inverse = InverseSTFT(1024, 256)
    torch.testing.assert_close(
        inverse.frames_by_products(real, imaginary), inverse.frames_by_fft(real, imaginary), atol=1e-6, rtol=0
    )


def test_overlap_add_puts_each_frame_at_its_hop() -> None:
    frames = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(2, 4 * 2 + 8)
    for t in range(5):
        expected[:, 2 * t : 2 * t + 8] += frames[:, t]
    torch.testing.assert_close(overlap_add(frames, 2), expected[:, 3:13])


def test_frame_t_is_centred_on_sample_t_hop_plus_half_a_hop() -> None:
    # A click in the middle of frame 7 alone: flat magnitude, phase of a delay by half a window.
    real, imaginary = torch.zeros(2, 1, 20, 513)
    k = torch.arange(513)
    real[0, 7], imaginary[0, 7] = torch.cos(math.pi * k), -torch.sin(math.pi * k)
    wave = InverseSTFT(1024, 256)(real, imaginary)
    assert int(wave[0].abs().argmax()) == 7 * 256 + 128
    assert int(LogMel()(wave)[0].mean(0).argmax()) == 7


def test_a_clip_alone_is_the_clip_in_a_batch() -> None:
    model = Vocos(TINY).eval()
    mel = torch.randn(4, 80, 30)
    with torch.no_grad():
        torch.testing.assert_close(model(mel)[2], model(mel[2:3])[0], atol=1e-6, rtol=0)


def test_a_wild_network_stays_finite() -> None:
    model = Vocos(TINY).eval()
    torch.nn.init.constant_(model.head.bias, 1000.0)
    wave = model(torch.randn(1, 80, 9))
    assert torch.isfinite(wave).all()


def test_under_autocast_the_wave_is_still_float32() -> None:
    model = Vocos(TINY)
    with torch.autocast("cpu", torch.bfloat16):
        wave = model(torch.randn(1, 80, 9))
    assert wave.dtype == torch.float32
    assert len(torch.unique(wave)) > 2000  # bfloat16 has 8 bits: a rounded wave would repeat itself


def test_the_exported_graph_is_the_model_at_another_length_and_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(3)
    model = Vocos(TINY).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    batch, frames = torch.export.Dim("batch", min=1, max=512), torch.export.Dim("frames", min=4, max=100_000)
    torch.onnx.export(
        model,
        (torch.randn(2, 80, 30),),
        tmp_path / "vocoder.onnx",
        input_names=["mel"],
        output_names=["wave"],
        dynamic_shapes=({0: batch, 2: frames},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "vocoder.onnx", providers=["CPUExecutionProvider"])
    mel = torch.randn(3, 80, 44)
    (wave,) = session.run(None, {"mel": mel.numpy()})
    with torch.no_grad():
        expected = model(mel).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(wave, expected, atol=1e-5)


def test_the_discriminator_depends_on_phase_and_returns_a_list_for_each_resolution() -> None:
    torch.manual_seed(4)
    critic = MultiResolutionDiscriminator(ResolutionConfig(width=4, windows=(512, 256)))
    wave = torch.randn(2, 2048, requires_grad=True)
    scores, seen = critic(wave)
    assert [len(layers) for layers in seen] == [5, 5]
    assert [score.shape[:2] for score in scores] == [(2, 1), (2, 1)]
    scores[0].sum().backward()
    assert wave.grad is not None
    assert wave.grad.abs().sum() > 0
    turned, _ = critic(-wave)  # every magnitude is that of `wave`
    assert not torch.allclose(turned[0], scores[0])


@torch.no_grad()
def test_a_discriminator_of_log_magnitudes_ignores_phase_and_weighs_soft_sounds_as_loud_ones() -> None:
    torch.manual_seed(6)
    parts, logs = (MultiResolutionDiscriminator(ResolutionConfig(width=4, input=each)) for each in ("complex", "log"))
    wave = 0.1 * torch.randn(1, 8192)
    for one, moves in ((parts, True), (logs, False)):
        (scores, _), (upside_down, _) = one(wave), one(-wave)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(scores, upside_down, strict=True)) != moves
    soft = wave + 0.001 * torch.sin(torch.arange(8192) * 2.0)  # a tone 40 dB below the noise, but not in its band
    quiet = torch.fft.irfft(torch.fft.rfft(wave) * (torch.arange(4097) < 1000), 8192)
    changes = []
    for one in (parts, logs):
        (_, without), (_, affected) = one(quiet), one(quiet + soft - wave)
        first = [(a[0] - b[0]).norm() / b[0].norm() for a, b in zip(affected, without, strict=True)]
        changes.append(float(torch.stack(first).mean()))
    assert changes[1] > 5 * changes[0]
