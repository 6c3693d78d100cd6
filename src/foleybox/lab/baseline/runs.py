"""Trained parts of the baseline and of CMU's track B, read from their run folders."""

from pathlib import Path
from typing import Literal

from foleybox.lab.baseline.pixelsnail import PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.core.runs import fill_part, read_trained


def load_vqvae(run: Path) -> tuple[Vqvae, int]:
    """Return (the frozen VQ-VAE of a run, the step): the one with the lowest score where the run has a score, else the last.

    Raises UserError for a bad run or a partial checkpoint.
    """
    name = "best.pt" if (run / "best.pt").is_file() else "state.pt"
    settings, state = read_trained(run, "vqvae", name)
    vqvae = Vqvae(VqvaeConfig(**settings["model"]), settings["head"])
    fill_part(vqvae, "vqvae", state, run / name)
    return vqvae.eval().requires_grad_(False), int(state["step"])


def load_pixelsnail(run: Path, weights: Literal["best", "last"] = "best") -> tuple[PixelSnail, str, int]:
    """Return (the model of a run in eval mode, the fingerprint of the VQ-VAE whose codes it draws, the step).

    "best" is the one with the lowest score on held-out clips, where the run held any out; else the last.
    Raises UserError for a bad run or a partial checkpoint.
    """
    name = "best.pt" if weights == "best" and (run / "best.pt").is_file() else "state.pt"
    settings, state = read_trained(run, "pixelsnail", name)
    model = PixelSnail(PixelSnailConfig(**settings["model"]))
    fill_part(model, "pixelsnail", state, run / name)
    return model.eval(), settings["vqvae"], int(state["step"])
