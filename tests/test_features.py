"""The log-mel equals librosa's, with the frames and the floor of the official baseline."""

import math

import numpy as np
import pytest
import torch

from foleybox.errors import UserError
from foleybox.lab.core.mel import CEMBED, DCASE, MELS, LogMel, MelConfig, slaney_filters


@pytest.mark.parametrize("name", MELS)
def test_filters_equal_librosas_slaney_filters(name: str) -> None:
    librosa = pytest.importorskip("librosa")
    config = MELS[name]
    theirs = librosa.filters.mel(
        sr=config.rate, n_fft=config.n_fft, n_mels=config.bands, fmin=config.low, fmax=config.high
    )
    np.testing.assert_allclose(slaney_filters(config).numpy(), theirs, atol=1e-7)


def test_log_mel_of_noise_equals_librosas_to_1e_5() -> None:
    librosa = pytest.importorskip("librosa")
    wave = 0.1 * np.random.default_rng(0).standard_normal(88_200).astype(np.float32)
    padded = np.pad(wave, 384, mode="reflect")
    spectrum = librosa.stft(padded, n_fft=1024, hop_length=256, window="hann", center=False)
    magnitude = np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    theirs = np.log(np.maximum(librosa.filters.mel(sr=22_050, n_fft=1024, n_mels=80, fmax=8_000) @ magnitude, 1e-5))
    ours = LogMel(DCASE)(torch.from_numpy(wave)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("config", "seconds", "shape"), [(DCASE, 4, (80, 344)), (CEMBED, 4, (129, 300))])
def test_four_seconds_have_the_reports_shape(config: MelConfig, seconds: int, shape: tuple[int, int]) -> None:
    samples = seconds * config.rate
    assert LogMel(config)(torch.zeros(samples)).shape == shape
    assert config.frames(samples) == shape[1]


def test_silence_is_ln_1e_5_everywhere() -> None:
    mel = LogMel(DCASE)(torch.zeros(2, 88_200))
    assert torch.allclose(mel, torch.full_like(mel, math.log(1e-5)))


@pytest.mark.parametrize("hz", [200.0, 1_000.0, 3_000.0, 7_000.0])
def test_a_tone_is_loudest_in_its_band(hz: float) -> None:
    tone = 0.5 * torch.sin(2 * math.pi * hz * torch.arange(88_200) / 22_050)
    loudest = LogMel(DCASE)(tone)[:, 172].argmax()
    response = slaney_filters(DCASE)[:, round(hz / 22_050 * 1024)]
    assert response[loudest] > 0.3 * response.max()


def test_bands_above_half_the_rate_are_refused() -> None:
    with pytest.raises(UserError, match="expected 0 <= low < high <= 11025"):
        MelConfig(high=12_000)
