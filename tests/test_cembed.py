"""A CEmbed is the encoder's rows over the mel's, frame by frame; it is computed once and records its encoder.

A1 and A2 are the acceptance facts of design/systems-baseline-cmu.md, section 5.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_lab import toy_folder
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.lab.cmu import cembed as module
from foleybox.lab.cmu.cembed import (
    FRAMES,
    KERNELS,
    PARTS,
    STRIDES,
    Cembed,
    CembedConfig,
    Mert,
    StandIn,
    frames_of,
    load_cembeds,
    load_encoder_of_waves,
    principal_rows,
    published_scale,
    row_scale,
)
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.mel import CEMBED, SILENCE, LogMel

STAND_IN = CembedConfig(encoder="stand-in")


class Fake(nn.Module):
    """An encoder without weights: `values` of the fields [B, T, 400] that its frames see, times 1 + the state."""

    def __init__(self, values: Callable[[Tensor], Tensor], states: int = 3) -> None:
        super().__init__()
        self.values, self.states, self.calls = values, states, 0

    def forward(self, wave: Tensor) -> Tensor:
        self.calls += 1
        rows = self.values(wave.unfold(1, 400, 320))  # [B, 1024, T]
        return torch.stack([rows * (1 + state) for state in range(self.states)], 1)


def numbered(fields: Tensor) -> Tensor:
    """Row r holds r."""
    return torch.arange(1024.0)[None, :, None].expand(len(fields), -1, fields.shape[1])


def middle(fields: Tensor) -> Tensor:
    """Every row holds the sample in the middle of each frame's field."""
    return fields[:, None, :, 200].expand(-1, 1024, -1)


# --- shapes and places --------------------------------------------------------------------------------------------


def test_a1_four_seconds_are_129_bands_of_300_frames_and_silence_is_the_floor() -> None:
    mel = LogMel(CEMBED)(torch.zeros(96_000))
    assert mel.shape == (129, 300)
    assert torch.allclose(mel, torch.tensor(SILENCE))
    assert pytest.approx(-11.5129, abs=1e-4) == SILENCE
    assert (CEMBED.rate, CEMBED.n_fft, CEMBED.hop, CEMBED.low, CEMBED.high) == (24_000, 1024, 320, 0, 10_000)


@pytest.mark.parametrize(
    ("samples", "frames"), [(96_000, 299), (96_079, 299), (96_080, 300), (96_288, 300), (96_399, 300), (96_400, 301)]
)
def test_a2_the_encoder_makes_299_frames_of_four_seconds_and_300_of_80_samples_more(samples: int, frames: int) -> None:
    assert frames_of(samples) == frames
    convs = nn.Sequential(*(nn.Conv1d(1, 1, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES)))
    assert convs(torch.zeros(1, 1, samples)).shape[2] == frames
    assert torch.tensor(STRIDES).prod() == 320


def test_a2_a_cembed_is_1023_rows_of_the_encoder_first_and_129_bands_last_300_frames_each() -> None:
    wave = 0.1 * torch.randn(2, 96_000, generator=torch.Generator().manual_seed(0))
    found = Cembed(Fake(numbered, states=1), CembedConfig())(wave)
    assert found.shape == (2, 1152, 300) == (2, sum(PARTS), FRAMES)
    assert found[0, :1023, 7].tolist() == [row for row in range(1024) if row != 951]
    assert torch.equal(found[:, 1023:], LogMel(CEMBED)(wave))
    assert Cembed(Fake(numbered, states=1), CembedConfig(drop=0))(wave)[0, :2, 0].tolist() == [1, 2]


def test_the_encoders_frames_lie_on_the_mels() -> None:
    """Frame k of the mel is centred on sample 320 k + 160: so is the field of the encoder's, at the ends too."""
    wave = torch.randn(1, 96_000, generator=torch.Generator().manual_seed(0))
    found = Cembed(Fake(middle, states=1), CembedConfig())(wave)
    assert torch.equal(found[0, 0], wave[0, 160::320])
    for k in (1, 150, 298):
        click = torch.zeros(1, 96_000)
        click[0, 320 * k + 160] = 1
        made = Cembed(Fake(middle, states=1), CembedConfig())(click)[0]
        assert int(made[0].argmax()) == int(made[1023:].mean(0).argmax()) == k


def test_a_wave_that_is_no_multiple_of_the_hop_has_as_many_frames_of_both() -> None:
    for samples, frames in ((96_319, 300), (96_320, 301), (24_000, 75)):
        assert Cembed(Fake(middle), CembedConfig())(torch.zeros(1, samples)).shape == (1, 1152, frames)


def test_states_are_averaged_unless_weighted() -> None:
    wave = torch.zeros(1, 3200)
    for weights, factor in (((), 2.0), ((0.0, 0.0, 1.0), 3.0), ((3.0, 1.0, 0.0), 1.25), ((0.0, 5.0, 5.0), 2.5)):
        found = Cembed(Fake(numbered), CembedConfig(layer_weights=weights))(wave)
        torch.testing.assert_close(found[0, :2, 0], torch.tensor([0.0, 1.0]) * factor)
        torch.testing.assert_close(found[0, 1022, 0], torch.tensor(1023.0) * factor)


def test_settings_that_no_encoder_has_are_refused() -> None:
    with pytest.raises(UserError, match="drop 1024: expected a row of the encoder, 0 to 1023"):
        Cembed(Fake(numbered), CembedConfig(drop=1024))
    for weights, complaint in (((1.0, 1.0), "has 2 numbers of sum 2: expected 3"), ((0.0,) * 3, "of sum 0")):
        with pytest.raises(UserError, match=complaint):
            Cembed(Fake(numbered), CembedConfig(layer_weights=weights))(torch.zeros(1, 3200))
    with pytest.raises(UserError, match=r"the encoder made \[1024, 9\]: expected \[1024, 10\]"):
        Cembed(Fake(lambda fields: numbered(fields[:, 1:])), CembedConfig())(torch.zeros(1, 3200))


# --- the stand-in -------------------------------------------------------------------------------------------------


def test_the_stand_in_has_mert_s_shape_and_is_the_same_for_a_seed() -> None:
    wave = 0.1 * torch.randn(1, 3280, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    states = StandIn(5)(wave)
    assert torch.equal(torch.rand(3), drawn)  # it draws from a generator of its own
    assert states.shape == (1, 25, 1024, frames_of(3280))
    assert torch.equal(states, StandIn(5)(wave))
    assert not torch.allclose(states, StandIn(6)(wave))
    assert not any(parameter.requires_grad for parameter in StandIn().parameters())


def test_later_states_of_the_stand_in_have_larger_receptive_fields() -> None:
    wave = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    changed = wave.clone()
    changed[0, 8000:8100] += 0.5
    encoder = StandIn()
    moved = (encoder(wave) - encoder(changed))[0].abs().amax(1) > 1e-6  # [S, T]
    reached = moved.sum(1)
    assert 1 <= reached[0] <= 2
    assert reached[0] < reached[5] < reached[10]


# --- MERT ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of MERT-v1-330M on the hub with two thin layers: its names, config and old weight norm.

    As there: group norm in the first convolution, convolutions without bias, layer norm before each block's parts.
    """
    transformers = pytest.importorskip("transformers", reason="needs the mert extra")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=1024,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=False,
        do_stable_layer_norm=True,
        feat_extract_norm="group",
        num_conv_pos_embeddings=16,
    )
    model = transformers.HubertModel(config)
    settings = {**config.to_dict(), "model_type": "mert_model", "architectures": ["MERTModel"], "attention_relax": 32.0}
    settings |= {"auto_map": {"AutoModel": "modeling_MERT.MERTModel"}, "feature_extractor_cqt": False}
    folder = tmp_path_factory.mktemp("mert")
    (folder / "config.json").write_text(json.dumps(settings))
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, value in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        weights[name] = value
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_mert_s_weights_run_in_the_stock_class_and_none_of_its_own_code(mert_folder: Path) -> None:
    wave = torch.randn(1, 3280)
    states = Mert(str(mert_folder), "")(wave)
    assert states.shape == (1, 3, 1024, 10)
    assert not torch.allclose(states[:, 0], states[:, 2])
    assert torch.equal(states, Mert(str(mert_folder), "")(wave))  # nothing is drawn
    assert "modeling_MERT" not in "".join(sys.modules)
    made = Cembed(Mert(str(mert_folder), ""), CembedConfig())(0.1 * torch.randn(1, 96_000))
    assert made.shape == (1, 1152, 300)


def test_the_last_state_is_layer_normalised_whatever_the_version_of_transformers(mert_folder: Path) -> None:
    """Since transformers 5 the last of `hidden_states` is the one before the final layer norm."""
    mert, wave = Mert(str(mert_folder), ""), torch.randn(1, 3280)
    last = mert(wave)[0, -1]  # [1024, T]
    norm = mert.model.encoder.layer_norm
    normalised = F.layer_norm(last.T, (1024,)) * norm.weight + norm.bias
    torch.testing.assert_close(last.T, normalised, atol=1e-4, rtol=1e-4)  # a second time changes nothing
    made = mert.model(wave, output_hidden_states=True)
    assert torch.equal(last.T, made.last_hidden_state[0])
    assert torch.equal(mert(wave)[0, 0].T, made.hidden_states[0][0])


def test_a_checkpoint_in_half_precision_is_read_in_float32(mert_folder: Path, tmp_path: Path) -> None:
    half = copy_of(mert_folder, tmp_path / "half", half=True, torch_dtype="float16", dtype="float16")
    states = Mert(half, "")(torch.randn(1, 3280))
    assert states.dtype == torch.float32
    assert torch.isfinite(states).all()


def copy_of(folder: Path, target: Path, drop: str = "", half: bool = False, **changes: Any) -> str:
    target.mkdir()
    settings = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(settings))
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = {name: value.half() if half else value for name, value in weights.items()}
    torch.save({name: value for name, value in weights.items() if name != drop}, target / "pytorch_model.bin")
    return str(target)


def test_an_encoder_with_a_weight_missing_or_of_another_shape_is_refused(mert_folder: Path, tmp_path: Path) -> None:
    name = "encoder.layers.1.attention.q_proj.weight"
    with pytest.raises(UserError, match=rf"lacks 1 weights of the encoder, \['{name}'\] among them"):
        Mert(copy_of(mert_folder, tmp_path / "a", drop=name), "")
    slow = copy_of(mert_folder, tmp_path / "b", conv_stride=[5, 2, 2, 2, 2, 2, 1])
    with pytest.raises(UserError, match=r"makes 1024 rows by kernels .*expected 1024 by"):
        Mert(slow, "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no encoder in .*empty .*expected m-a-p/MERT-v1-330M.*--encoder stand-in"):
        Mert(str(tmp_path / "empty"), "")


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '.\[mert\]', or give --encoder stand-in"):
        load_encoder_of_waves(CembedConfig())


def test_the_revision_is_pinned_and_reaches_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the mert extra")
    asked = []

    def from_pretrained(source: str, **rest: Any) -> Any:
        asked.append((source, rest))
        raise OSError("no connection")

    monkeypatch.setattr(transformers.HubertConfig, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match=r"no encoder in m-a-p/MERT-v1-330M \(OSError: no connection\)"):
        load_encoder_of_waves(CembedConfig())
    assert asked == [("m-a-p/MERT-v1-330M", {"revision": CembedConfig().revision})]
    assert len(CembedConfig().revision) == 40


# --- the cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLEYBOX_CACHE", str(tmp_path / "cache"))
    return toy_folder(tmp_path / "sounds", per_label=1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    encoder = Fake(middle, states=2)
    monkeypatch.setattr(module, "load_encoder_of_waves", lambda _: encoder)
    return encoder


def test_cembeds_are_made_once_a_clip_and_read_as_they_were_made(folder: Path, fake: Fake, tmp_path: Path) -> None:
    clips = find_clips(folder)
    some = load_cembeds(clips[:3], STAND_IN, batch=2)
    assert (len(some), fake.calls) == (3, 2)
    found = load_cembeds(clips, STAND_IN, batch=2)
    assert (len(found), fake.calls) == (7, 4)  # four more clips, two calls more
    again = load_cembeds(list(reversed(clips)), STAND_IN)
    assert fake.calls == 4
    which = torch.tensor([4, 0])
    assert found[which].shape == (2, 1152, 300)
    assert torch.equal(found[which], again[6 - which])
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {path.parent.name for path in files} == {"cembeds-stand-in"}


def test_another_setting_or_file_is_another_entry_of_the_cache(folder: Path, fake: Fake, tmp_path: Path) -> None:
    clips = find_clips(folder)[:1]
    configs = [
        STAND_IN,
        replace(STAND_IN, encoder_seed=1),
        replace(STAND_IN, drop=3),
        replace(STAND_IN, layer_weights=(1.0, 0.0)),
        CembedConfig(),
        CembedConfig(revision="main"),
    ]
    for count, config in enumerate(configs, start=1):
        load_cembeds(clips, config)
        assert fake.calls == count
    clips[0].path.touch()
    load_cembeds(clips, STAND_IN)
    assert fake.calls == len(configs) + 1
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"cembeds", "cembeds-stand-in"}


def test_another_version_of_transformers_is_another_entry_and_the_stand_in_needs_none(
    folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = find_clips(folder)[:1]
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    for calls, number in ((1, "5.0"), (2, "5.1"), (2, "5.0")):
        monkeypatch.setattr(module, "version", lambda _, number=number: number)
        load_cembeds(clips, CembedConfig())
        assert fake.calls == calls
    for number in ("5.0", "5.1"):
        monkeypatch.setattr(module, "version", lambda _, number=number: number)
        load_cembeds(clips, STAND_IN)
    assert fake.calls == 3


def test_a_folder_of_weights_that_changed_is_another_encoder(folder: Path, fake: Fake, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    config = CembedConfig(encoder=str(weights))
    for content in ("one", "another"):
        (weights / "model.safetensors").write_text(content)
        load_cembeds(find_clips(folder)[:1], config)
        load_cembeds(find_clips(folder)[:1], config)
    assert fake.calls == 2


def test_an_encoder_that_fails_leaves_no_half_of_a_file(folder: Path, fake: Fake, tmp_path: Path) -> None:
    def values(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    fake.values = values
    with pytest.raises(KeyboardInterrupt):
        load_cembeds(find_clips(folder), STAND_IN)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert load_cembeds([], STAND_IN)[torch.arange(0)].shape == (0, 1152, 300)


# --- the scale ----------------------------------------------------------------------------------------------------


def test_the_scale_is_the_rows_mean_and_deviation_over_clips_and_frames() -> None:
    features = torch.randn(5, 1152, 7, generator=torch.Generator().manual_seed(0))
    features = features * torch.arange(1.0, 1153)[:, None] + 3
    features[:, 9] = -4
    for batch in (2, 16):
        mean, deviation = row_scale(features, batch)
        flat = features.transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean, flat.mean(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(deviation[10:], flat[10:].std(1, correction=0), rtol=1e-4, atol=1e-4)
        assert deviation[9] == 1  # a row that never changes is not divided by nothing
        assert mean[9] == -4


def test_the_published_scale_is_one_pair_for_the_encoder_and_none_for_the_mel() -> None:
    mean, scale = published_scale()
    assert mean[:1023].unique().tolist() == pytest.approx([1.9993998])
    assert scale[:1023].unique().tolist() == pytest.approx([5.2803254])
    assert mean[1023:].tolist() == [0] * 129
    assert scale[1023:].tolist() == [1] * 129


def test_principal_rows_are_the_directions_of_most_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(1023, 3, generator=generator))[0].T
    drawn = torch.randn(4, 3, 50, generator=generator) * torch.tensor([9.0, 5.0, 2.0])[:, None]
    features = torch.cat([truth.T @ drawn, torch.randn(4, 129, 50, generator=generator)], 1)
    basis = principal_rows(features, torch.zeros(1152), torch.ones(1152), 3, batch=3)
    lengths = basis.square().sum(1)
    torch.testing.assert_close(lengths, lengths[:1].expand(3), rtol=1e-4, atol=0)
    found = basis @ features[:, :1023]
    assert float(found.square().mean()) == pytest.approx(1, rel=1e-3)
    variance = found.square().mean((0, 2))
    assert variance.tolist() == sorted(variance.tolist(), reverse=True)
    torch.testing.assert_close((basis / lengths[:, None]).T @ found, features[:, :1023], atol=1e-3, rtol=1e-3)
