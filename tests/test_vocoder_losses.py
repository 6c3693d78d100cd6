"""The vocoder's losses by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from foleybox.lab.core.losses import (
    feature_matching,
    mel_distance,
    repetition,
    squares_discriminator,
    squares_generator,
)
from foleybox.lab.core.mel import LogMel, MelConfig
from foleybox.lab.vocoders.losses import (
    attack_distance,
    equalise_loudness,
    excess_repetition,
    mean_spectrum_distance,
    multi_resolution_stft,
    spectral_texture_distance,
    texture_distance,
)


def test_mel_distance_of_a_doubled_amplitude_is_ln_2() -> None:
    mel = torch.randn(2, 80, 10)
    torch.testing.assert_close(mel_distance(mel, mel + math.log(2)), torch.tensor(math.log(2)))


def test_stft_losses_of_a_wave_and_its_half_are_a_half_and_ln_2() -> None:
    # |X - X/2| / |X| = 1/2, and |ln X - ln X/2| = ln 2, at every resolution.
    wave = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    convergence, distance = multi_resolution_stft(wave, wave / 2, floor=1e-9)
    torch.testing.assert_close(convergence, torch.tensor(0.5))
    torch.testing.assert_close(distance, torch.tensor(math.log(2)))


def test_convergence_weighs_a_soft_item_as_much_as_a_loud_one() -> None:
    wave = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1))
    real = torch.cat([wave, wave / 100])
    fake = torch.cat([wave, wave / 200])  # only the soft one is wrong
    convergence, _ = multi_resolution_stft(real, fake, floor=1e-9)
    torch.testing.assert_close(convergence, torch.tensor(0.25))


def test_equal_waves_have_no_distance_and_silence_has_a_finite_gradient() -> None:
    wave = torch.randn(2, 4096)
    assert [float(term) for term in multi_resolution_stft(wave, wave)] == [0, 0]
    fake = torch.zeros(1, 4096, requires_grad=True)
    torch.stack(multi_resolution_stft(torch.zeros(1, 4096), fake)).sum().backward()
    assert fake.grad is not None
    assert torch.isfinite(fake.grad).all()


def test_differences_below_the_floor_do_not_count() -> None:
    faint = 1e-7 * torch.randn(1, 4096)
    assert [float(term) for term in multi_resolution_stft(torch.zeros(1, 4096), faint)] == [0, 0]


def test_eight_undecided_discriminators_have_a_loss_of_4_and_the_generator_one_of_2() -> None:
    half = [torch.full((2, 1, 5, 3), 0.5)] * 8  # (1 - 0.5)^2 + 0.5^2 = 0.5 each
    assert float(squares_discriminator(half, half)) == 4
    assert float(squares_generator(half)) == 2


def test_perfect_discriminators_have_no_loss_and_fooled_ones_2_each() -> None:
    ones, zeros = [torch.ones(4)] * 3, [torch.zeros(4)] * 3
    assert float(squares_discriminator(ones, zeros)) == 0
    assert float(squares_discriminator(zeros, ones)) == 6
    assert float(squares_generator(ones)) == 0


def test_feature_matching_sums_layer_means_without_a_gradient_for_the_real_side() -> None:
    real = [[torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 7)], [torch.zeros(2, 5)]]
    fake = [[torch.full((2, 3), 1.0, requires_grad=True), torch.full((2, 7), -2.0)], [torch.full((2, 5), 4.0)]]
    loss = feature_matching(real, fake)
    assert loss.item() == 7
    loss.backward()
    assert real[0][0].grad is None
    assert fake[0][0].grad is not None


def test_the_distance_of_textures_that_differ_in_level_alone_is_that_level() -> None:
    mel = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(texture_distance(mel, mel + 0.5), torch.tensor(0.5))
    assert texture_distance(mel, mel) == 0


def test_stripes_have_the_statistics_computed_by_hand() -> None:
    """-1, 1, -1 ... over time against silence of the same mean: deviation 1, change in time 2, in frequency 0."""
    stripes = torch.tensor([-1.0, 1.0]).repeat(32).expand(1, 10, 64)
    flat = torch.zeros(1, 10, 64)
    torch.testing.assert_close(texture_distance(stripes, flat), torch.tensor(1 - 1e-2 + 2.0))
    torch.testing.assert_close(
        texture_distance(stripes[:, :, :10].mT, flat[:, :, :10].mT, bands=4, frames=4), torch.tensor(2.99)
    )


def test_another_draw_of_a_noise_is_nearer_in_texture_than_the_noise_smoothed_and_further_in_its_mel() -> None:
    generator = torch.Generator().manual_seed(2)
    noise, another = 0.5 * torch.randn(2, 4, 40, 64, generator=generator)
    smoothed = noise.mean((1, 2), keepdim=True).expand_as(noise)
    assert texture_distance(noise, another) < 0.25 * texture_distance(noise, smoothed)
    assert mel_distance(noise, another) > 1.3 * mel_distance(noise, smoothed)


def test_repetition_is_high_for_noise_that_repeats_every_other_hop_and_low_for_other_noise() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 40 * 512, generator=generator)
    pattern = torch.randn(1, 512, generator=generator).repeat(1, 40)
    found = repetition(torch.cat([noise, pattern, pattern + noise, torch.zeros_like(noise)]))
    assert found[0] < 0.04
    assert found[1] > 0.9
    assert 0.3 < found[2] < 0.7
    assert found[3] == 0
    coloured = torch.fft.irfft(torch.fft.rfft(noise) / (1 + torch.arange(noise.shape[1] // 2 + 1) / 300))
    assert repetition(coloured)[0] < 0.06  # a coloured spectrum is no repetition


def test_the_spectral_texture_distance_shows_repetition_that_the_texture_of_mels_does_not() -> None:
    torch.manual_seed(4)
    noise, another = 0.1 * torch.randn(2, 4, 16_384)
    pattern = 0.1 * torch.randn(4, 512).repeat(1, 32)
    assert spectral_texture_distance(noise, pattern) > 10 * spectral_texture_distance(noise, another)
    assert spectral_texture_distance(noise, noise) == 0
    mel = LogMel(MelConfig(22_050, 256, 64, 40, 0, 11_025))
    assert texture_distance(mel(noise), mel(pattern)) < 3 * texture_distance(mel(noise), mel(another))


def test_only_repetition_in_excess_of_the_real_one_counts_and_the_gradient_reduces_it() -> None:
    torch.manual_seed(0)
    noise, another = torch.randn(2, 1, 16_384)
    buzz = (0.7 * torch.randn(1, 1, 256).expand(1, 64, 256).flatten(1) + 0.7 * another).requires_grad_()
    cost = excess_repetition(noise, buzz)
    assert float(excess_repetition(noise, another)) < 0.02 < 0.2 < float(cost.detach())
    assert excess_repetition(buzz.detach(), noise) == 0  # less than the real one's is no gain
    (slope,) = torch.autograd.grad(cost, buzz)
    better = buzz.detach() - 0.02 * slope * buzz.detach().norm() / slope.norm()
    assert float(excess_repetition(noise, better)) < float(cost.detach()) - 0.001


def test_a_buzz_with_a_period_of_more_than_a_tenth_of_a_second_counts_too() -> None:
    torch.manual_seed(0)
    noise, pattern = torch.randn(1, 16_384), torch.randn(1, 1, 4096)
    assert float(repetition(pattern.expand(1, 4, 4096).flatten(1))) < 0.1  # `repetition` itself ends before
    assert float(excess_repetition(noise, pattern.expand(1, 4, 4096).flatten(1))) > 0.5


@pytest.mark.parametrize("position", [slice(0, 1), slice(511, 513), slice(8000, 8001), slice(0, 250)])
def test_no_click_and_no_burst_hides_a_repetition(position: slice) -> None:
    """Vocoders that were rewarded for it began every sound with a click, then with half a frame of it (docs/experiments.md)."""
    torch.manual_seed(0)
    noise, another = torch.randn(2, 1, 16_384)
    buzz = 0.7 * torch.randn(1, 1, 256).expand(1, 64, 256).flatten(1) + 0.7 * another
    loud = buzz.clone()
    loud[:, position] = 300.0 if position.stop - position.start < 3 else 20 * loud[:, position]
    assert float(repetition(loud)) < 0.6 * float(repetition(buzz))
    assert float(excess_repetition(noise, loud)) > 0.9 * float(excess_repetition(noise, buzz))


def test_no_lag_is_longer_than_the_crop() -> None:
    """Behind them in an autocorrelation lie the lags below zero, the short ones of which are high in any soft noise."""
    torch.manual_seed(0)
    white = torch.randn(8, 12 * 256)
    soft = torch.nn.functional.avg_pool1d(torch.randn(8, 1, 12 * 256 + 1023), 1024, 1)[:, 0]
    of_white, of_soft = (repetition(equalise_loudness(wave), longest=12 * 256) for wave in (white, soft))
    assert float(excess_repetition(white, soft)) == float((of_soft - of_white).relu().mean())


@pytest.mark.parametrize(
    ("distance", "share"),
    [(spectral_texture_distance, 0.5), (mean_spectrum_distance, 0.5), (attack_distance, 1)],
)
def test_at_twice_the_rate_windows_have_the_same_seconds(distance: Callable[..., torch.Tensor], share: float) -> None:
    """Resampled waves have the same distance, halved where it is a mean over frequencies: the upper half is equal."""
    torch.manual_seed(0)
    waves = [0.1 * torch.randn(2, 64 * 256), 0.1 * torch.randn(2, 64 * 256)]
    waves[1][:, 4096:8192] *= 3
    waves[0][:, 8000], waves[1][:, 8100] = 3, 3

    above = torch.fft.rfft(0.1 * torch.randn(2, 128 * 256))
    above[:, : 32 * 256] = 0
    above = torch.fft.irfft(above)

    def doubled(wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.nn.functional.pad(2 * torch.fft.rfft(wave), (0, wave.shape[1] // 2))
        return torch.fft.irfft(spectrum, 2 * wave.shape[1]) + above

    once, twice = float(distance(*waves)), float(distance(*map(doubled, waves), factor=2))
    assert once > 0.003
    assert twice == pytest.approx(share * once, rel=0.2)


# --- attacks ------------------------------------------------------------------------------------------------------


def clicks(*positions: int) -> torch.Tensor:
    """A wave [1, 16,384] with a burst of 10 ms at each position, over a soft background."""
    generator = torch.Generator().manual_seed(9)
    wave, burst = 1e-3 * torch.randn(1, 16_384, generator=generator), torch.randn(220, generator=generator)
    for position in positions:
        wave[0, position : position + 220] += 0.3 * burst
    return wave


def test_the_earlier_a_click_begins_the_larger_its_distance_which_is_zero_at_the_right_time() -> None:
    real = clicks(4000, 9000)
    costs = [float(attack_distance(real, clicks(4000 - early, 9000 - early))) for early in (0, 64, 128, 256)]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[1] > 0.2
    smeared = real + torch.nn.functional.pad(0.5 * real[:, 300:], (0, 300))
    assert float(attack_distance(real, smeared)) > 1


def test_two_draws_of_steady_noise_have_hardly_any_attack_distance() -> None:
    torch.manual_seed(1)
    noise, another = torch.randn(2, 4, 16_384)
    assert float(attack_distance(noise, another)) < 0.1 * float(attack_distance(clicks(4000), 0.3 * another[:1]))


def test_the_gradient_of_the_attack_distance_is_near_the_attack() -> None:
    real = clicks(8000)
    fake = (real + 0.01 * torch.randn(1, 16_384, generator=torch.Generator().manual_seed(2))).requires_grad_()
    (slope,) = torch.autograd.grad(attack_distance(real, fake), fake)
    near = slope[0, 8000 - 35 * 22 - 200 : 8000 + 17 * 22 + 200]
    assert slope.norm() == pytest.approx(float(near.norm()))
    assert near.norm() > 0


# --- mean spectrum ------------------------------------------------------------------------------------------------


def rippled(wave: torch.Tensor, depth: float) -> torch.Tensor:
    spectrum = torch.fft.rfft(wave)
    return torch.fft.irfft(spectrum * torch.exp(depth * torch.cos(torch.arange(spectrum.shape[1]) / 40)))


def test_the_mean_spectrum_distance_of_a_common_ripple_is_its_mean_depth() -> None:
    """A cosine of depth 0.25 in the logarithm of the amplitude is one of 0.5 in that of the power: 0.5 x 2 / pi on average."""
    torch.manual_seed(2)
    noise, another = 0.1 * torch.randn(2, 16, 16_384)
    assert float(mean_spectrum_distance(noise, noise)) == 0
    assert float(mean_spectrum_distance(noise, rippled(noise, 0.25))) == pytest.approx(0.5 * 2 / math.pi, rel=0.05)
    assert float(mean_spectrum_distance(noise, another)) < 0.06


def test_a_ripple_of_one_sound_counts_by_its_share_of_the_batch() -> None:
    torch.manual_seed(3)
    noise = 0.1 * torch.randn(16, 16_384)
    one = torch.cat([rippled(noise[:1], 0.25), noise[1:]])
    assert float(mean_spectrum_distance(noise, one)) == pytest.approx(
        float(mean_spectrum_distance(noise[:1], one[:1])) / 16, rel=1e-3
    )
