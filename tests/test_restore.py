"""What an instrument knows comes back as runs that compute the same, and go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_lab import toy_folder
from torch import Tensor, nn

from foleybox.doors import UserError
from foleybox.instrument import read_instrument
from foleybox.lab import restore
from foleybox.lab.data import find_clips
from foleybox.lab.export import heard_by
from foleybox.lab.graphs import DecoderGraph, NextGraph, largest_difference
from foleybox.lab.models.patches import Patches, times
from foleybox.lab.restore import Restore
from foleybox.lab.runs import fingerprint, load_autoencoder, load_patches, load_vocoder, read_clips, read_run_config
from foleybox.lab.training import patches, vocoder
from foleybox.lab.training.patches import TrainPatches
from foleybox.lab.training.vocoder import TrainVocoder
from foleybox.studio.synth import SHIPPED

SMALL = SHIPPED / "foley-small"
PARTS = ("autoencoder", "patches", "vocoder")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restore") / "runs"
    assert restore.main(Restore(SMALL, out)) == 0
    return out


def asked(model: Patches) -> dict[str, Tensor]:
    """What the graph of the next latent is given in the middle of three rows, one of them guided."""
    torch.manual_seed(0)
    config = model.config
    shape = (3, config.heads, 87, config.width // config.heads)
    kept = {f"{kind}_{i}": 0.5 * torch.randn(shape) for i in range(config.layers) for kind in ("keys", "values")}
    mix = torch.tensor([[1.5, -0.5, 0.0], [1.5, -0.5, 0.0], [0.0, 0.0, 1.0]])
    latents = {"before": torch.randn(3, config.latent), "noise": torch.randn(3, config.latent)}
    told = {"label": torch.tensor([0, -1, 6]), "mix": mix, "place": torch.tensor(5)}
    return {"before": latents["before"], **told, "noise": latents["noise"], **kept}


def difference(name: str, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    return largest_difference((SMALL / f"{name}.onnx").read_bytes(), module, inputs)


def test_the_restored_patches_draw_what_the_instrument_draws(runs: Path) -> None:
    model = load_patches(runs / "patches")[0]
    steps = read_instrument(SMALL).made_with["flow_steps"]
    assert difference("next", NextGraph(model, steps), asked(model)) < 1e-3
    with torch.no_grad():
        model.layers[3].out.weight[:, :64].zero_()  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    assert difference("next", NextGraph(model, steps), asked(model)) > 1e-2  # a quarter of one matrix would be seen


def test_the_restored_autoencoder_and_vocoder_make_the_mels_and_waves_of_the_instrument(runs: Path) -> None:
    autoencoder, vocoder = load_autoencoder(runs / "autoencoder")[0], load_vocoder(runs / "vocoder")[0]
    torch.manual_seed(0)
    inputs = {"latents": torch.randn(2, 87, 64), "grain": torch.randn(2, 348, 8)}
    decoder = DecoderGraph(autoencoder, 0.0)
    assert difference("decoder", decoder, inputs) < 1e-3
    mel = decoder(**inputs).detach()
    assert difference("vocoder", vocoder, {"mel": mel}) < 1e-3
    assert float(vocoder(mel).detach().abs().max()) > 0.01


def test_between_the_steps_of_the_flow_the_head_says_a_smooth_curve(runs: Path) -> None:
    """A time in the middle of two steps says about the mean of what the two say, and no leap is larger than a line's."""
    head = load_patches(runs / "patches")[0].head
    steps = torch.tensor(times(10))
    with torch.no_grad():
        at, between = head.say_time(steps), head.say_time((steps[1:] + steps[:-1]) / 2)
        fine = head.say_time(torch.linspace(0, 1, 2001))
    lengths = at.diff(dim=0).abs().amax(1)
    assert bool(((between - (at[1:] + at[:-1]) / 2).abs().amax(1) < 0.7 * lengths).all())
    assert float(fine.diff(dim=0).abs().max()) < 0.02 * float(at.abs().max())


def test_what_was_heard_is_counted_again(runs: Path) -> None:
    """Part by part, and once where three parts are joined."""
    heard = read_instrument(SMALL).heard
    assert heard_by(read_clips(runs / "patches")) == heard
    assert heard_by(*(read_clips(runs / part) for part in PARTS)) == heard


def test_the_patches_know_whose_latents_they_draw(runs: Path) -> None:
    components = load_autoencoder(runs / "autoencoder")[0].components
    assert read_run_config(runs / "patches")["autoencoder"] == fingerprint(components)
    torch.testing.assert_close(components.axes.T @ components.axes, torch.eye(64), atol=0.02, rtol=0)  # but for 8 bits


def test_training_goes_on_from_what_was_restored(runs: Path, tmp_path: Path) -> None:
    sounds = toy_folder(tmp_path / "sounds", per_label=2)
    common: dict[str, Any] = {"steps": 1, "device": "cpu", "threads": 1, "tracker": "none", "log_every": 1}
    again = TrainPatches(
        out=tmp_path / "patches", autoencoder=runs / "autoencoder", start_from=runs / "patches", batch=7, lr=0.0,
        held_out=0.0, **common,
    )  # fmt: skip
    patches.train(again, find_clips(sounds))
    kept, given = (load_patches(each)[0].state_dict() for each in (again.out, runs / "patches"))
    assert all(torch.equal(kept[name], given[name]) for name in given)
    assert len(read_clips(again.out)) == 14 + len(read_clips(runs / "patches"))
    voice = TrainVocoder(
        (str(sounds),), tmp_path / "vocoder", mel="wide", start_from=runs / "vocoder", mels_from=runs / "autoencoder",
        held_out=0.3, batch=2, period_width=2, resolution_width=4, **common,
    )  # fmt: skip
    assert vocoder.main(voice) == 0


def test_a_gan_cannot_be_restored_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="discriminator of a GAN"):
        restore.main(Restore(SHIPPED / "sagan-small", tmp_path / "runs"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is there already"):
        restore.main(Restore(SMALL, tmp_path / "mine"))
    assert not list((tmp_path / "mine").iterdir())


def test_a_stop_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        restore.main(Restore(SMALL, tmp_path / "runs"))
    assert not list(tmp_path.iterdir())
