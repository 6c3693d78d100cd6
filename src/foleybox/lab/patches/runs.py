"""Trained parts of our own system, read from their run folders."""

from pathlib import Path

from foleybox.errors import UserError
from foleybox.lab.core.compat import read_settings
from foleybox.lab.core.runs import fingerprint, load_part, read_run_config, read_trained
from foleybox.lab.patches.autoencoder import Autoencoder, AutoencoderConfig
from foleybox.lab.patches.transformer import Patches, PatchesConfig


def load_autoencoder(run: Path) -> tuple[Autoencoder, int]:
    """Return (the averaged autoencoder of a run in eval mode, without gradients; its step). Raises UserError for a bad run."""
    settings, state = read_trained(run, "autoencoder")
    config = read_settings(AutoencoderConfig, settings["model"], run)
    autoencoder = load_part(lambda: Autoencoder(config), "average", state, run / "state.pt")
    return autoencoder.eval().requires_grad_(False), int(state["step"])


def load_patches(run: Path) -> tuple[Patches, str, int]:
    """Return (the averaged model in eval mode, without gradients; the fingerprint of its autoencoder; its step).

    Raises UserError for a bad run or a partial checkpoint.
    """
    settings, state = read_trained(run, "patches")
    config = read_settings(PatchesConfig, settings["model"], run)
    model = load_part(lambda: Patches(config), "average", state, run / "state.pt")
    return model.eval().requires_grad_(False), settings["autoencoder"], int(state["step"])


def check_not_distilled(run: Path, use: str) -> None:
    """Raise UserError for a run of `train distilled`, whose head knows only whole flows of its number of steps."""
    if read_run_config(run).get("flow_steps") is not None:
        raise UserError(
            f"{run} is distilled, which cannot {use}: name the run of `train patches` that it was made from"
        )


def load_patches_and_autoencoder(run: Path, autoencoder_run: Path) -> tuple[Patches, Autoencoder, tuple[int, int]]:
    """Return (the averaged patches, the autoencoder of their latents, the step of each), both in eval mode.

    Raises UserError for a bad run or a partial checkpoint, and for patches trained on another autoencoder's latents.
    """
    model, wanted, step = load_patches(run)
    autoencoder, autoencoder_step = load_autoencoder(autoencoder_run)
    if fingerprint(autoencoder.components) != wanted:
        raise UserError(
            f"{run} draws latents of another autoencoder than {autoencoder_run}: name the one it was trained with"
        )
    return model, autoencoder, (step, autoencoder_step)
