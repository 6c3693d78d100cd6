"""Trained parts of the baseline, read from their run folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from foleybox.errors import UserError
from foleybox.lab.baseline.pixelsnail import PixelSnail, PixelSnailConfig
from foleybox.lab.baseline.vqvae import Vqvae, VqvaeConfig
from foleybox.lab.core.compat import read_settings
from foleybox.lab.core.runs import fingerprint, load_part, read_state, read_trained

Build = Callable[[Any], PixelSnail]
Weights = Literal["best", "last"]
"best: those with the lowest score, where the run has one; last: those of the last checkpoint"


def read_weights(run: Path, part: str, weights: Weights) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return (the settings of a run of `part`, {part: its best or last weights, "step": theirs}, their file).

    Runs without a score have their last weights only; those of earlier versions have the best in `best.pt`.
    """
    settings, state = read_trained(run, part)
    best = state.get("best")
    if weights == "best" and isinstance(best, dict) and best.get("weights"):
        return settings, {part: best["weights"], "step": best["step"]}, run / "state.pt"
    if weights == "best" and (run / "best.pt").is_file():
        return settings, read_state(run / "best.pt", ours=True), run / "best.pt"
    return settings, state, run / "state.pt"


def load_vqvae(run: Path, weights: Weights = "best") -> tuple[Vqvae, int]:
    """Return (the frozen VQ-VAE of a run, the step). Raises UserError for a bad run or a partial checkpoint."""
    settings, state, path = read_weights(run, "vqvae", weights)
    config = read_settings(VqvaeConfig, settings["model"], run)
    vqvae = load_part(lambda: Vqvae(config, settings["head"]), "vqvae", state, path)
    return vqvae.eval().requires_grad_(False), state["step"]


def load_vqvae_of_codes(run: Path, expected: str) -> tuple[Vqvae, int]:
    """Return (the VQ-VAE of a run, the step): the best or the last weights, whichever has the `expected` fingerprint.

    The best where neither has. Raises UserError for a bad run or a partial checkpoint.
    """
    best = load_vqvae(run)
    if fingerprint(best[0]) != expected:
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
    settings, state, path = read_weights(run, "pixelsnail", weights)
    try:
        config = read_settings(kind, settings["model"], run)
    except ValueError as error:
        raise UserError(
            f"{run} has a size of an earlier version of foleybox ({error}): use the version that made it"
        ) from None
    model = load_part(lambda: build(config), "pixelsnail", state, path)
    return model.eval(), settings["vqvae"], state["step"]
