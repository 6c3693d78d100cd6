"""Trained parts of the baseline, read from their run folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from foleybox.errors import UserError
from foleybox.lab.baseline.pixelsnail import PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.core.compat import read_settings
from foleybox.lab.core.runs import fill_part, fingerprint, read_trained

Build = Callable[[Any], PixelSnail]
Weights = Literal["best", "last"]
"best: those with the lowest score, where the run has one; last: those of the last checkpoint"


def weights_file(run: Path, weights: Weights) -> str:
    """Return the name of the checkpoint that holds a run's best or last weights."""
    return "best.pt" if weights == "best" and (run / "best.pt").is_file() else "state.pt"


def load_vqvae(run: Path, weights: Weights = "best") -> tuple[Vqvae, int]:
    """Return (the frozen VQ-VAE of a run, the step). Raises UserError for a bad run or a partial checkpoint."""
    name = weights_file(run, weights)
    settings, state = read_trained(run, "vqvae", name)
    vqvae = Vqvae(read_settings(VqvaeConfig, settings["model"], run), settings["head"])
    fill_part(vqvae, "vqvae", state, run / name)
    return vqvae.eval().requires_grad_(False), int(state["step"])


def load_vqvae_of_codes(run: Path, expected: str) -> tuple[Vqvae, int]:
    """Return (the VQ-VAE of a run, the step): the best or the last weights, whichever has the `expected` fingerprint.

    The best where neither has. Raises UserError for a bad run or a partial checkpoint.
    """
    best = load_vqvae(run)
    if fingerprint(best[0]) != expected and (run / "best.pt").is_file() and (run / "state.pt").is_file():
        last = load_vqvae(run, "last")
        if fingerprint(last[0]) == expected:
            return last
    return best


def load_pixelsnail(
    run: Path, weights: Weights = "best", kind: type[PixelSnailConfig] = PixelSnailConfig, build: Build = PixelSnail
) -> tuple[PixelSnail, str, int]:
    """Return (the model of a run in eval mode, the fingerprint of the VQ-VAE whose codes it draws, the step).

    `build` makes the model of its stored size, a `kind`: by default the baseline's. `cmu.runs.load_pixelsnail` also
    loads Zen PixelSNAILs. Raises UserError for a bad run or a partial checkpoint.
    """
    name = weights_file(run, weights)
    settings, state = read_trained(run, "pixelsnail", name)
    try:
        model = build(read_settings(kind, settings["model"], run))
    except ValueError as error:
        raise UserError(
            f"{run} has a size of an earlier version of foleybox ({error}): use the version that made it"
        ) from None
    fill_part(model, "pixelsnail", state, run / name)
    return model.eval(), settings["vqvae"], int(state["step"])
