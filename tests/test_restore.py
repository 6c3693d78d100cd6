"""An instrument becomes run folders that compute the same, and training goes on from them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers_lab import configured, toy_folder
from torch import Tensor, nn

from foleybox.errors import UserError
from foleybox.instrument import DEFAULT, SHIPPED, read_instrument
from foleybox.lab.core.clips import find_clips
from foleybox.lab.core.runs import fingerprint, read_clips, read_run_config
from foleybox.lab.export import restore
from foleybox.lab.export.export import count_clips
from foleybox.lab.export.graphs import (
    DecoderGraph,
    GeneratorGraph,
    NextGraph,
    largest_difference,
    rename,
    stored_small,
    to_onnx,
)
from foleybox.lab.export.restore import Restore
from foleybox.lab.kt import train_sagan as sagan
from foleybox.lab.kt.runs import load_generator
from foleybox.lab.kt.train_sagan import TrainSagan
from foleybox.lab.patches import train_patches as patches
from foleybox.lab.patches.runs import load_autoencoder, load_patches
from foleybox.lab.patches.train_patches import TrainPatches
from foleybox.lab.patches.transformer import Patches, PatchesConfig, flow_times
from foleybox.lab.play.train_vocoder import main as train_vocoder
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.lab.vocoders.train_vocos import TrainVocoder
from foleybox.licences import TrainingClips, tier_of

SMALL = SHIPPED / DEFAULT
GAN = Path(__file__).parent / "instruments" / "sagan-small"  # it shipped with earlier versions
PARTS = ("autoencoder", "patches", "vocoder")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restore") / "runs"
    assert restore.main(Restore(SMALL, out)) == 0
    return out


def test_an_instrument_that_ships_is_restored_by_its_name(tmp_path: Path) -> None:
    assert restore.main(Restore(Path(DEFAULT), tmp_path / "runs")) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(PARTS)
    with pytest.raises(UserError, match=r"no instrument folex: .* one that ships \(foley, foley-small"):
        restore.main(Restore(Path("folex"), tmp_path / "other"))


def inputs_of_next(model: Patches) -> dict[str, Tensor]:
    """Inputs of the graph of the next latent, in the middle of a clip: three rows, two of them of one guided clip."""
    torch.manual_seed(0)
    config = model.config
    shape = (3, config.heads, 87, config.width // config.heads)
    cache = {f"{kind}_{i}": 0.5 * torch.randn(shape) for i in range(config.layers) for kind in ("keys", "values")}
    mix = torch.tensor([[1.5, -0.5, 0.0], [1.5, -0.5, 0.0], [0.0, 0.0, 1.0]])
    previous, noise = torch.randn(3, config.latent), torch.randn(3, config.latent)
    label, position = torch.tensor([0, -1, 6]), torch.tensor(5)
    return {"previous": previous, "label": label, "mix": mix, "position": position, "noise": noise, **cache}


def difference(name: str, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    return largest_difference((SMALL / f"{name}.onnx").read_bytes(), module, inputs)


def test_the_restored_patches_draw_what_the_instrument_draws(runs: Path) -> None:
    model = load_patches(runs / "patches")[0]
    made = read_instrument(SMALL).made_with
    graph = NextGraph(model, made["flow_steps"], made["guided_from"])
    assert difference("next", graph, inputs_of_next(model)) < 1e-3
    with torch.no_grad():
        model.layers[3].out.weight[:, :64].zero_()  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    assert difference("next", graph, inputs_of_next(model)) > 1e-2  # a quarter of one matrix would be seen


def test_the_restored_autoencoder_and_vocoder_make_the_mels_and_waves_of_the_instrument(runs: Path) -> None:
    autoencoder, vocoder = load_autoencoder(runs / "autoencoder")[0], load_vocoder(runs / "vocoder")[0]
    torch.manual_seed(0)
    inputs = {"latents": torch.randn(2, 87, 64), "noise": torch.randn(2, 348, 8)}
    decoder = DecoderGraph(autoencoder)
    assert difference("decoder", decoder, inputs) < 1e-3
    mel = decoder(**inputs).detach()
    loudest = float(vocoder(mel).detach().abs().max())
    assert loudest > 0.01
    assert difference("vocoder", vocoder, {"mel": mel}) < 2e-3 * loudest  # the graph has the inverse STFT in 16 bits


def test_the_time_embedding_between_the_steps_of_the_flow_is_a_smooth_curve(runs: Path) -> None:
    """Half-way between two steps it is about the mean of the two, and it has no jumps."""
    head = load_patches(runs / "patches")[0].head
    steps = torch.tensor(flow_times(10))
    with torch.no_grad():
        at, between = head.time_embedding(steps), head.time_embedding((steps[1:] + steps[:-1]) / 2)
        fine = head.time_embedding(torch.linspace(0, 1, 2001))
    lengths = at.diff(dim=0).abs().amax(1)
    assert bool(((between - (at[1:] + at[:-1]) / 2).abs().amax(1) < 0.7 * lengths).all())
    assert float(fine.diff(dim=0).abs().max()) < 0.02 * float(at.abs().max())


def test_the_training_clips_are_counted_again(runs: Path) -> None:
    """For each part, and once where three parts are joined; open clips are counted as free or copyleft."""
    wanted = Counter[TrainingClips]()
    for row in read_instrument(SMALL).training_clips:
        wanted[replace(row, tier=tier_of(row.tier, row.licence), clips=0)] += row.clips
    for parts in (["patches"], PARTS):
        counted = count_clips(*(read_clips(runs / part) for part in parts))
        assert {replace(row, clips=0): row.clips for row in counted} == wanted


def test_the_patches_know_whose_latents_they_draw(runs: Path) -> None:
    components = load_autoencoder(runs / "autoencoder")[0].components
    assert read_run_config(runs / "patches")["autoencoder"] == fingerprint(components)
    torch.testing.assert_close(components.axes.T @ components.axes, torch.eye(64), atol=0.02, rtol=0)  # but for 8 bits


def test_a_graph_without_the_names_of_weights_is_refused(tmp_path: Path) -> None:
    """Graphs of foleybox 0.1.0 had no names for the weights of linear layers."""
    config = PatchesConfig(labels=8)
    model = onnx.load(str(SMALL / "next.onnx"))
    lost = "model.layers.0.down.weight.transposed"
    rename(model.graph, {lost + kind: f"val_105{kind}" for kind in (".int8", ".scale", "")})
    onnx.save(model, str(tmp_path / "next.onnx"))
    with pytest.raises(UserError, match=r"the graph has no model\.layers\.0\.down\.weight, expected \[256, 704\]"):
        restore.restore_patches(tmp_path / "next.onnx", config, 10)


def test_every_weight_of_an_exported_module_has_its_torch_name(tmp_path: Path) -> None:
    """Linear layers that the exporter transposes, in 8 bits too; the order of the layers does not matter."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 48, bias=False))
    graph = to_onnx(net, {"x": torch.randn(2, 5, 48)}, ["y"], {})
    assert b"stack_trace" not in graph  # with paths of this machine
    for content, within in ((graph, 0.0), (stored_small(graph), 1e-3)):
        (tmp_path / "net.onnx").write_bytes(content)
        weights = restore.read_weights(tmp_path / "net.onnx")
        for name, value in net.state_dict().items():
            np.testing.assert_allclose(weights[name], value.numpy(), rtol=0, atol=within)


def test_training_goes_on_from_what_was_restored(runs: Path, tmp_path: Path) -> None:
    sounds = toy_folder(tmp_path / "sounds", per_label=2)
    common: dict[str, Any] = {"steps": 1, "device": "cpu", "threads": 1, "tracker": "none", "log_every": 1}
    again = configured(
        TrainPatches,
        out=tmp_path / "patches", autoencoder=runs / "autoencoder", start_from=runs / "patches", batch=7, lr=0.0,
        held_out=0.0, **common,
    )  # fmt: skip
    patches.train(again, find_clips(sounds))
    kept, given = (load_patches(each)[0].state_dict() for each in (again.out, runs / "patches"))
    seven, none = given.pop("label.weight")[:7], load_patches(runs / "patches")[0].label.weight[-1:]
    # Without the label of other sounds, if it had one.
    assert torch.equal(kept["label.weight"], torch.cat([seven, none]))
    assert all(torch.equal(kept[name], given[name]) for name in given)
    assert len(read_clips(again.out)) == 14 + len(read_clips(runs / "patches"))
    voice = configured(
        TrainVocoder,
        (str(sounds),), tmp_path / "vocoder", mel="wide", full_band=True, start_from=runs / "vocoder",
        mels_from=runs / "autoencoder", held_out=0.3, batch=2, preset="textures", **common,
    )  # fmt: skip
    assert train_vocoder(voice) == 0


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restore") / "gan"
    assert restore.main(Restore(GAN, out)) == 0
    return out


def test_the_restored_generator_draws_the_mels_of_the_instrument(gan: Path) -> None:
    """A log-mel is within 0.05 everywhere: 8 bits change a spectral norm by up to 0.1 %, and here it is 1 again."""
    generator, frames = load_generator(gan / "sagan")[0], 345
    torch.manual_seed(0)
    inputs = {"latent": torch.randn(7, 128), "label": torch.arange(7)}

    def furthest() -> float:
        graph = GeneratorGraph(generator, frames)
        return largest_difference((GAN / "generator.onnx").read_bytes(), graph, inputs)

    assert furthest() < 0.05
    with torch.no_grad():
        generator.block2.norm2.beta[3, 5] += 0.5  # one number of one label changes the mel
    assert furthest() > 0.1


def test_a_restored_gan_trains_on_its_discriminator_first(
    gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sagan, "sample_sheet", lambda *_: None)  # 42 sounds cost more than two steps
    sounds = toy_folder(tmp_path / "sounds", per_label=2)
    model = load_generator(gan / "sagan")[0].config
    config = configured(
        TrainSagan,
        out=tmp_path / "run", start_from=gan / "sagan", model=model, batch=7, steps=1,
        device="cpu", threads=1, precision="no", tracker="none", log_every=1,
    )  # fmt: skip
    sagan.train(config, find_clips(sounds))
    kept = dict(load_generator(config.out, "last")[0].named_parameters())
    given = dict(load_generator(gan / "sagan")[0].named_parameters())
    assert all(torch.equal(kept[name], given[name]) for name in given)
    assert len(read_clips(config.out)) == 14 + len(read_clips(gan / "sagan"))
    monkeypatch.setattr(sagan, "DISCRIMINATOR_FIRST", 0)
    sagan.train(replace(config, out=tmp_path / "at-once"), find_clips(sounds))
    moved = dict(load_generator(tmp_path / "at-once", "last")[0].named_parameters())
    assert not torch.equal(
        moved["seed.parametrizations.weight.original"], given["seed.parametrizations.weight.original"]
    )


def test_a_gan_of_another_size_is_refused_with_what_it_is(gan: Path, tmp_path: Path) -> None:
    sounds = toy_folder(tmp_path / "sounds", per_label=2)
    config = configured(
        TrainSagan, out=tmp_path / "run", start_from=gan / "sagan", logit="unconditional", batch=7, steps=1, device="cpu",
        tracker="none",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"conditional_logit=True.*expected .*conditional_logit=False"):
        sagan.train(config, find_clips(sounds))


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists already"):
        restore.main(Restore(SMALL, tmp_path / "mine"))
    assert not list((tmp_path / "mine").iterdir())


def test_a_stop_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        restore.main(Restore(SMALL, tmp_path / "runs"))
    assert not list(tmp_path.iterdir())
