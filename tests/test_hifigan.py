"""HiFi-GAN is the published one: its counts, its lengths, its discriminator's folding."""

import pytest
import torch
import torch.nn.functional as F

from foleybox.lab.models.hifigan import (
    V1,
    V2,
    Hifigan,
    HifiganConfig,
    MultiPeriodDiscriminator,
    PeriodConfig,
    PeriodDiscriminator,
)

TINY = HifiganConfig(width=16)
CMU = HifiganConfig(bands=1152, rates=(10, 8, 2, 2))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_v1_has_the_published_counts_with_and_without_weight_norm() -> None:
    model = Hifigan(V1)
    assert count(model) == 13_936_130
    model.remove_weight_norm()
    assert count(model) == 13_926_017


def test_cmu_mhifigan_is_the_same_code_with_other_numbers() -> None:
    # Reported without naming the kernels: 16, 16, 4, 4 gives their 17,778,178.
    assert (CMU.hop, V1.hop, V2.hop) == (320, 256, 256)
    assert count(Hifigan(CMU)) == 17_778_178


@pytest.mark.parametrize(("config", "frames"), [(TINY, 344), (HifiganConfig(width=16, rates=(10, 8, 2, 2)), 300)])
def test_344_frames_are_88064_samples_and_300_of_hop_320_are_96000(config: HifiganConfig, frames: int) -> None:
    with torch.no_grad():
        wave = Hifigan(config)(torch.randn(1, 80, frames))
    assert wave.shape == (1, {344: 88_064, 300: 96_000}[frames])
    assert wave.abs().max() <= 1


def test_each_layer_is_where_the_paper_has_it_slopes_included() -> None:
    torch.manual_seed(2)
    model = Hifigan(HifiganConfig(bands=3, width=4, rates=(2,), kernels=(4,), residual_kernels=(3,), dilations=(2,)))
    model.remove_weight_norm()
    p = {name: 4 * torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(p)
    mel = torch.randn(1, 3, 7)
    x = F.conv1d(mel, p["first.weight"], p["first.bias"], padding=3)
    x = F.conv_transpose1d(F.leaky_relu(x, 0.1), p["rises.0.weight"], p["rises.0.bias"], 2, padding=1)
    stack = "stacks.0.0."
    y = F.conv1d(
        F.leaky_relu(x, 0.1), p[stack + "dilated.0.weight"], p[stack + "dilated.0.bias"], padding=2, dilation=2
    )
    x = x + F.conv1d(F.leaky_relu(y, 0.1), p[stack + "plain.0.weight"], p[stack + "plain.0.bias"], padding=1)
    # The last slope is torch's default in the official code. Compared before tanh, which would hide it.
    x = F.conv1d(F.leaky_relu(x, 0.01), p["last.weight"], p["last.bias"], padding=3)
    p["last.weight"], p["last.bias"] = p["last.weight"] * 1e-4, p["last.bias"] * 1e-4
    model.load_state_dict(p)
    torch.testing.assert_close(model(mel), torch.tanh(x[:, 0] * 1e-4), rtol=1e-3, atol=1e-5)


def test_folding_the_weight_norm_in_changes_no_sample() -> None:
    torch.manual_seed(0)
    model = Hifigan(TINY)
    mel = torch.randn(2, 80, 6)
    with torch.no_grad():
        before = model(mel)
        model.remove_weight_norm()
        torch.testing.assert_close(model(mel), before, atol=1e-6, rtol=1e-5)


def test_full_width_period_discriminators_have_the_published_size() -> None:
    # By hand: 192 + 20,608 + 328,192 + 2,622,464 + 5,243,904 + 3,073, and 2,721 norms, for each of five periods.
    with torch.device("meta"):
        critic = MultiPeriodDiscriminator(PeriodConfig())
    assert count(critic) == 5 * (8_218_433 + 2_721)


def test_a_period_sees_columns_of_its_own_samples_only() -> None:
    torch.manual_seed(1)
    critic = PeriodDiscriminator(period=5, width=2)
    wave = torch.randn(1, 400)
    changed = wave.clone()
    changed[0, 3::5] += 1
    difference = (critic(wave)[0] - critic(changed)[0]).abs().sum((0, 1, 2))  # [P]
    assert difference[3] > 0
    assert difference[[0, 1, 2, 4]].max() == 0


def test_any_length_is_judged_and_the_gradient_reaches_the_wave() -> None:
    critic = MultiPeriodDiscriminator(PeriodConfig(width=2))
    wave = torch.randn(2, 1003, requires_grad=True)
    scores, seen = critic(wave)
    assert len(scores) == len(seen) == 5
    assert [len(layers) for layers in seen] == [5] * 5
    torch.stack([score.sum() for score in scores]).sum().backward()
    assert wave.grad is not None
    assert (wave.grad != 0).float().mean() > 0.9
