"""An exported patches instrument renders what torch renders (tests/test_synth.py has the same of a toy, without torch)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from foleybox.errors import UserError  # noqa: E402
from foleybox.instrument import Instrument, write_instrument  # noqa: E402
from foleybox.lab.core.mel import DCASE, WIDE  # noqa: E402
from foleybox.lab.export.graphs import Sampling, build_patches, stored_small  # noqa: E402
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig  # noqa: E402
from foleybox.lab.patches.transformer import Patches, PatchesConfig  # noqa: E402
from foleybox.lab.patches.transformer import draw as draw_in_torch  # noqa: E402
from foleybox.lab.vocoders.vocos import Vocos, VocosConfig  # noqa: E402
from foleybox.labels import LABELS  # noqa: E402
from foleybox.licences import TrainingClips  # noqa: E402
from foleybox.studio.stream import draw  # noqa: E402
from foleybox.studio.synth import Synth  # noqa: E402

SMALL = PatchesConfig(latent=6, width=24, heads=3, layers=2, head_width=16, head_layers=2)
SAMPLING = Sampling(4, (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0), 0.3, (1.0, 1.0, 1.3, 1.0, 1.0, 1.0, 1.0))
FORM = AutoencoderConfig(latent=6, width=16, fine=16, coarse_layers=1, fine_layers=1, noise=2)


@pytest.fixture(scope="module")
def parts() -> tuple[Patches, Autoencoder, Vocos]:
    torch.manual_seed(0)
    model, autoencoder = Patches(SMALL).eval(), Autoencoder(FORM).eval()
    vocoder = Vocos(VocosConfig(bands=100, width=16, inner=16, layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        autoencoder.components.fit(torch.randn(20, 100, 40) * 2 - 5)
    return model, autoencoder, vocoder


@pytest.fixture(scope="module")
def synth(parts: tuple[Patches, Autoencoder, Vocos], tmp_path_factory: pytest.TempPathFactory) -> Synth:
    graphs = build_patches(*parts, WIDE, 87, SAMPLING)
    instrument = Instrument(
        name="toy",
        version="1",
        labels=tuple(label.name for label in LABELS),
        rate=22_050,
        samples=88_200,
        latent=(87, 6 + 4 * 2),
        mel=vars(WIDE),
        training_clips=(TrainingClips("Rain", "open", "CC0", 1),),
        kind="patches",
    )
    folder = tmp_path_factory.mktemp("instrument") / "toy"
    write_instrument(folder, instrument, graphs, "# toy\n")
    return Synth.load(folder, threads=1)


def test_the_graph_gives_the_latents_of_torch_except_for_rounded_weights(
    parts: tuple[Patches, Autoencoder, Vocos], synth: Synth
) -> None:
    noise = torch.randn(2, 20, 6)
    label = torch.tensor([3, 5])
    with torch.no_grad():
        plain = draw_in_torch(parts[0], label[:1], noise[:1], steps=4).numpy()
        late, whole = (
            draw_in_torch(parts[0], label[1:], noise[1:], steps=4, guidance=2.0, guided_from=since).numpy()
            for since in (SAMPLING.guided_from, 0.0)
        )
    expected = np.concatenate([plain, late])
    drawn = draw(synth.sessions["next"], label.numpy(), noise.numpy())
    assert np.abs(drawn - expected).max() < 0.1
    assert np.corrcoef(drawn.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.abs(drawn[1:] - late).mean() < np.abs(whole - late).mean() / 2


def test_positions_before_the_window_are_overwritten_in_the_cache(
    parts: tuple[Patches, Autoencoder, Vocos], synth: Synth
) -> None:
    """100 positions with a window of 87: the ring buffer drops what torch drops."""
    noise, label = torch.randn(1, 100, 6), torch.tensor([1])
    with torch.no_grad():
        expected = draw_in_torch(parts[0], label, noise, steps=4, window=87).numpy()
        endless = draw_in_torch(parts[0], label, noise, steps=4, window=1000).numpy()
    drawn = draw(synth.sessions["next"], label.numpy(), noise.numpy())
    off, beyond = np.abs(drawn - expected)[:, 87:].mean(), np.abs(endless - expected)[:, 87:].mean()
    assert off < beyond / 2


def test_a_patches_instrument_plays_the_same_alone_and_in_a_batch(synth: Synth) -> None:
    clips = list(synth.render_many([("dog_bark", 3), ("rain", 4), ("rain", 5)], batch=3))
    alone = synth.render("rain", 4)
    assert clips[1].wave.shape == (88_200,)
    np.testing.assert_allclose(clips[1].wave, alone.wave, rtol=0, atol=1.5 / 32768)
    assert np.abs(clips[1].wave - clips[2].wave).max() > 1e-3


def test_temperature_leaves_the_fine_structure_at_its_level(synth: Synth) -> None:
    latent = np.random.default_rng(0).standard_normal((1, 87, 14)).astype(np.float32)
    still = latent.copy()
    still[:, :, :6] = 0
    half = still / np.float32(2)
    np.testing.assert_allclose(synth.mel(["Rain"], still), synth.mel(["Rain"], half), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(guidance=(1.0, 2.0)), "2 numbers of --guidance"),
        (Sampling(temperature=(1.0, 2.0)), "2 numbers of --temperature"),
        (Sampling(temperature=(1.0,) * 6 + (0.0,)), "all above 0"),
        (Sampling(guidance=(1.0,) * 6 + (0.0,)), "all above 0"),
        (Sampling(guided_from=1.5), "--guided-from 1.5"),
        (Sampling(flow_steps=0), "--flow-steps 0"),
    ],
)
def test_sampling_settings_out_of_range_are_refused(
    parts: tuple[Patches, Autoencoder, Vocos], sampling: Sampling, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        build_patches(*parts, WIDE, 87, sampling)


def test_the_noise_of_each_label_is_scaled_by_its_own_temperature(
    parts: tuple[Patches, Autoencoder, Vocos], synth: Synth
) -> None:
    noise, label = torch.randn(2, 20, 6), torch.tensor([3, 2])
    with torch.no_grad():
        expected = draw_in_torch(parts[0], label, noise * torch.tensor([1.0, 1.3])[:, None, None], steps=4).numpy()
    drawn = draw(synth.sessions["next"], label.numpy(), noise.numpy())
    assert np.abs(drawn - expected).max() < 0.1


def test_weights_stored_small_keep_what_they_compute_within_a_percent() -> None:
    import onnxruntime

    from foleybox.lab.export.graphs import to_onnx

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
    graph = to_onnx(net, {"x": torch.randn(2, 64)}, ["y"], {})
    small, x = stored_small(graph), torch.randn(2, 64)
    assert len(small) < len(graph) / 3
    y = onnxruntime.InferenceSession(small).run(None, {"x": x.numpy()})[0]
    expected = net(x).detach().numpy()
    assert np.abs(y - expected).max() < 0.02 * np.abs(expected).max()


def test_a_vocoder_of_another_mel_is_refused(parts: tuple[Patches, Autoencoder, Vocos]) -> None:
    with pytest.raises(UserError, match="train one with --mel wide"):
        build_patches(*parts, DCASE, 87, SAMPLING)
