"""HiFi-GAN is the published one: its counts, its lengths, its discriminators, its checkpoints."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foleybox.audio import fit, resample
from foleybox.errors import UserError
from foleybox.lab.core.losses import squares_discriminator
from foleybox.lab.vocoders.hifigan import (
    V1,
    V2,
    V3,
    VERSIONS,
    Hifigan,
    HifiganConfig,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    PeriodConfig,
    PeriodDiscriminator,
    ScaleConfig,
)
from foleybox.lab.vocoders.runs import read_official_hifigan

TINY = HifiganConfig(width=16)
CMU = HifiganConfig(bands=1152, rates=(10, 8, 2, 2))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_v1_has_the_published_counts_with_and_without_weight_norm() -> None:
    model = Hifigan(V1)
    assert count(model) == 13_936_130
    model.remove_weight_norm()
    assert count(model) == 13_926_017


def plain_count(config: HifiganConfig) -> int:
    """Weights of a generator without weight norm: kernel x in x out, and out biases, layer by layer."""
    total = 7 * config.bands * config.width + config.width
    C = config.width
    for kernel in config.kernels:
        total += kernel * C * (C // 2) + C // 2
        C //= 2
        for k, dilations in zip(config.residual_kernels, config.dilations):
            total += (2 if config.plain else 1) * len(dilations) * (k * C * C + C)
    return total + 7 * C + 1


@pytest.mark.parametrize(("version", "printed"), [("hifigan-v1", 13.92), ("hifigan-v2", 0.92), ("hifigan-v3", 1.46)])
def test_every_version_has_the_papers_millions_of_weights(version: str, printed: float) -> None:
    # Table 1 of the paper, which cuts and does not round: 13.926, 0.926 and 1.462.
    model = Hifigan(VERSIONS[version])
    model.remove_weight_norm()
    assert count(model) == plain_count(VERSIONS[version])
    assert count(model) // 10_000 / 100 == printed


def test_cmu_mhifigan_is_the_same_code_with_other_numbers() -> None:
    # Reported without naming the kernels: 16, 16, 4, 4 gives their 17,778,178.
    assert (CMU.hop, V1.hop, V2.hop, V3.hop) == (320, 256, 256, 256)
    assert count(Hifigan(CMU)) == 17_778_178


@pytest.mark.parametrize(("config", "frames"), [(TINY, 344), (HifiganConfig(width=16, rates=(10, 8, 2, 2)), 300)])
def test_344_frames_are_88064_samples_and_300_of_hop_320_are_96000(config: HifiganConfig, frames: int) -> None:
    with torch.no_grad():
        wave = Hifigan(config)(torch.randn(1, 80, frames))
    assert wave.shape == (1, {344: 88_064, 300: 96_000}[frames])
    assert wave.abs().max() <= 1


@pytest.mark.parametrize("config", [V1, V2, V3, CMU])
def test_no_upsampler_adds_a_sample(config: HifiganConfig) -> None:
    assert all((kernel - rate) % 2 == 0 for kernel, rate in zip(config.kernels, config.rates))


@pytest.mark.parametrize(
    ("bands", "rates", "frames", "rate"), [(80, V1.rates, 344, 22_050), (1152, CMU.rates, 300, 24_000)]
)
def test_a_rendered_clip_is_88200_samples(bands: int, rates: tuple[int, ...], frames: int, rate: int) -> None:
    # 344 frames are 136 samples short of four seconds, which the official measuring tool refuses: silence fills them.
    with torch.no_grad():
        wave = Hifigan(HifiganConfig(bands=bands, width=16, rates=rates))(torch.randn(1, bands, frames))[0].numpy()
    whole = fit(resample(wave, rate, 22_050), 88_200)
    assert len(whole) == 88_200
    assert (abs(whole[88_064:]).max() == 0) == (rate == 22_050)


@pytest.mark.parametrize("version", ["hifigan-v1", "hifigan-v3"])
def test_layers_start_at_torchs_default(version: str) -> None:
    # Uniform within 1 / sqrt(inputs): a deviation of 1 / sqrt(3 inputs), for a kernel of 3 here.
    torch.manual_seed(0)
    model = Hifigan(VERSIONS[version])
    weight = model.get_submodule("stacks.0.0.dilated.0").weight
    assert isinstance(weight, Tensor)
    assert weight.std().item() == pytest.approx((9 * weight.shape[1]) ** -0.5, rel=0.02)


def test_layers_and_slopes_are_those_of_the_paper() -> None:
    torch.manual_seed(2)
    model = Hifigan(HifiganConfig(bands=3, width=4, rates=(2,), kernels=(4,), residual_kernels=(3,), dilations=((2,),)))
    model.remove_weight_norm()
    p = {name: 4 * torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(p)
    mel = torch.randn(1, 3, 7)
    x = F.conv1d(mel, p["first.weight"], p["first.bias"], padding=3)
    x = F.conv_transpose1d(F.leaky_relu(x, 0.1), p["upsamplers.0.weight"], p["upsamplers.0.bias"], 2, padding=1)
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


def test_any_length_is_discriminated_and_the_gradient_reaches_the_wave() -> None:
    critic = MultiPeriodDiscriminator(PeriodConfig(width=2))
    wave = torch.randn(2, 1003, requires_grad=True)
    scores, seen = critic(wave)
    assert len(scores) == len(seen) == 5
    assert [len(layers) for layers in seen] == [5] * 5
    torch.stack([score.sum() for score in scores]).sum().backward()
    assert wave.grad is not None
    assert (wave.grad != 0).float().mean() > 0.9


# --- the multi-scale discriminator --------------------------------------------------------------------------------


def test_full_width_scale_discriminators_have_the_published_size() -> None:
    # By hand, weights and biases of the eight layers; spectral norm has no weights of its own, weight norm one a channel.
    layers = [2_048, 168_064, 84_224, 336_384, 1_344_512, 2_688_000, 5_243_904, 3_073]
    norms = 128 + 128 + 256 + 512 + 3 * 1024 + 1
    with torch.device("meta"):
        critic = MultiScaleDiscriminator(ScaleConfig())
    assert [count(part) for part in critic.parts] == [sum(layers), sum(layers) + norms, sum(layers) + norms]


def test_the_first_scale_alone_has_spectral_norm() -> None:
    critic = MultiScaleDiscriminator(ScaleConfig(width=4))
    for place, part in enumerate(critic.parts):
        kinds = {type(module).__name__ for module in part.modules() if "Norm" in type(module).__name__}
        assert kinds == {"_SpectralNorm" if place == 0 else "_WeightNorm"}


def test_each_scale_gets_means_of_four_samples_at_half_the_rate_of_the_one_before() -> None:
    torch.manual_seed(3)
    critic = MultiScaleDiscriminator(ScaleConfig(width=2)).eval()
    wave = torch.randn(1, 1024)
    scores, seen = critic(wave)
    assert [len(layers) for layers in seen] == [7, 7, 7]
    padded = F.pad(wave, (2, 2))
    half = torch.stack([padded[0, i : i + 4].mean() for i in range(0, 1025, 2)])[None]
    padded = F.pad(half, (2, 2))
    quarter = torch.stack([padded[0, i : i + 4].mean() for i in range(0, 514, 2)])[None]
    for part, affected, score in zip(critic.parts, (wave, half, quarter), scores):
        torch.testing.assert_close(part(affected)[0], score)


def test_eight_undecided_discriminators_cost_4() -> None:
    scores = []
    for critic in (MultiPeriodDiscriminator(PeriodConfig(width=2)), MultiScaleDiscriminator(ScaleConfig(width=2))):
        scores += [torch.full_like(score, 0.5) for score in critic(torch.randn(1, 1000))[0]]
    assert len(scores) == 8
    assert squares_discriminator(scores, scores).item() == pytest.approx(4.0)


# --- official checkpoints -----------------------------------------------------------------------------------------

RESBLOCK_1 = HifiganConfig(
    bands=5, width=8, rates=(4, 2), kernels=(8, 4), residual_kernels=(3, 5), dilations=((1, 3), (1, 2))
)
RESBLOCK_2 = dataclasses.replace(RESBLOCK_1, plain=False)


def official(config: HifiganConfig) -> dict[str, Tensor]:
    """Return random weights as the official code names and shapes them."""
    torch.manual_seed(4)
    state: dict[str, Tensor] = {}

    def add(name: str, before: int, after: int, kernel: int, first: int) -> None:
        state[f"{name}.weight_v"] = torch.randn(before, after, kernel)
        state[f"{name}.weight_g"] = torch.rand(before, 1, 1) + 0.5
        state[f"{name}.bias"] = torch.randn(first)

    C = config.width
    add("conv_pre", C, config.bands, 7, C)
    for i, kernel in enumerate(config.kernels):
        add(f"ups.{i}", C, C // 2, kernel, C // 2)  # a transposed convolution has its inputs first
        C //= 2
        for j, (k, dilations) in enumerate(zip(config.residual_kernels, config.dilations)):
            for n in range(len(dilations)):
                for kind in ("convs1", "convs2") if config.plain else ("convs",):
                    add(f"resblocks.{i * len(config.dilations) + j}.{kind}.{n}", C, C, k, C)
    add("conv_post", 1, C, 7, 1)
    return state


def official_forward(state: dict[str, Tensor], config: HifiganConfig, mel: Tensor) -> Tensor:
    """Render as the official code does, layer by layer, before the tanh."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        v = state[f"{name}.weight_v"]
        return state[f"{name}.weight_g"] * v / v.flatten(1).norm(dim=1)[:, None, None], state[f"{name}.bias"]

    def conv(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        w, b = weights(name)
        return F.conv1d(x, w, b, padding=dilation * (w.shape[-1] - 1) // 2, dilation=dilation)

    x = conv(mel, "conv_pre")
    for i, (rate, kernel) in enumerate(zip(config.rates, config.kernels)):
        x = F.conv_transpose1d(F.leaky_relu(x, 0.1), *weights(f"ups.{i}"), rate, (kernel - rate) // 2)
        outs = []
        for j, dilations in enumerate(config.dilations):
            y, block = x, f"resblocks.{i * len(config.dilations) + j}"
            for n, dilation in enumerate(dilations):
                if config.plain:
                    z = conv(F.leaky_relu(y, 0.1), f"{block}.convs1.{n}", dilation)
                    y = y + conv(F.leaky_relu(z, 0.1), f"{block}.convs2.{n}")
                else:
                    y = y + conv(F.leaky_relu(y, 0.1), f"{block}.convs.{n}", dilation)
            outs.append(y)
        x = sum(outs[1:], outs[0]) / len(outs)
    return conv(F.leaky_relu(x, 0.01), "conv_post")[:, 0]


@pytest.mark.parametrize("config", [RESBLOCK_1, RESBLOCK_2], ids=["resblock 1", "resblock 2"])
def test_an_official_checkpoint_renders_what_the_official_code_renders(config: HifiganConfig, tmp_path: Path) -> None:
    state = official(config)
    mel = torch.randn(2, 5, 6)
    state["conv_post.weight_g"] *= 0.1 / official_forward(state, config, mel).std()  # where tanh is not flat
    torch.save({"generator": state}, tmp_path / "g_00000001")
    model = Hifigan(config).eval()
    read_official_hifigan(tmp_path / "g_00000001", model)
    with torch.no_grad():
        made = model(mel)
    assert 0.01 < made.std() < 0.9
    torch.testing.assert_close(made, torch.tanh(official_forward(state, config, mel)), atol=1e-5, rtol=1e-4)


def test_a_checkpoint_that_lacks_a_weight_has_one_more_or_another_shape_is_refused(tmp_path: Path) -> None:
    def fails(state: dict[str, object], message: str, config: HifiganConfig = RESBLOCK_1) -> None:
        torch.save(state, tmp_path / "g")
        with pytest.raises(UserError, match=message):
            read_official_hifigan(tmp_path / "g", Hifigan(config))

    state = official(RESBLOCK_1)
    fails({"generator": {**state, "extra.bias": torch.zeros(1)}}, r"it has extra\.bias \(1 in all\)")
    fails({"generator": {k: v for k, v in state.items() if k != "ups.1.bias"}}, r"it lacks ups\.1\.bias \(1 in all\)")
    fails({"generator": state}, r"lacks resblocks\.0\.convs\.0\.bias \(24 in all\) and has", RESBLOCK_2)
    fails({"generator": state}, "does not fit the model", dataclasses.replace(RESBLOCK_1, width=16))
    fails({"mpd": {}, "msd": {}}, "holds no 'generator'")
