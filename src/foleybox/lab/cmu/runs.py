"""Trained parts of CMU's systems, read from their run folders."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foleybox.errors import UserError
from foleybox.lab.baseline import runs as baseline
from foleybox.lab.baseline.pixelsnail import PixelSnail
from foleybox.lab.baseline.runs import Weights, load_vqvae
from foleybox.lab.baseline.vqvae import Vqvae
from foleybox.lab.cmu.cembed import CembedConfig
from foleybox.lab.cmu.mhifigan import CEMBED_VERSIONS, Mhifigan
from foleybox.lab.cmu.mvqvae import Mvqvae, MvqvaeConfig
from foleybox.lab.cmu.zen import ZenConfig, ZenPixelSnail
from foleybox.lab.core.compat import read_settings
from foleybox.lab.core.runs import load_part, read_choice, read_run_config, read_trained
from foleybox.lab.vocoders.hifigan import HifiganConfig


def load_pixelsnail(run: Path, weights: Weights = "best") -> tuple[PixelSnail, str, int]:
    """Return (the PixelSNAIL or Zen PixelSNAIL of a run in eval mode, the fingerprint of its VQ-VAE or MVQVAE, the step).

    Raises UserError for a bad run or a partial checkpoint.
    """
    model = read_run_config(run).get("model")
    if isinstance(model, dict) and model.get("zen"):
        return baseline.load_pixelsnail(run, weights, ZenConfig, ZenPixelSnail)
    return baseline.load_pixelsnail(run, weights)


def load_mhifigan(run: Path) -> tuple[Mhifigan, CembedConfig, int]:
    """Return (the MHiFiGAN of a run in eval mode, its weight norms folded in, the settings of its CEmbeds, the step).

    Raises UserError for a bad run or a partial checkpoint.
    """
    settings, state = read_trained(run, "mhifigan")
    version, path = read_choice(settings, "vocoder", CEMBED_VERSIONS, run), run / "state.pt"
    model = load_part(lambda: Mhifigan(mhifigan_config(version, settings["width"])), "generator", state, path)
    model.hifigan.remove_weight_norm()
    return model.eval().requires_grad_(False), read_cembed_config(settings, run), state["step"]


def load_mvqvae(run: Path) -> tuple[Mvqvae, CembedConfig, int]:
    """Return (the frozen MVQVAE of a run, the settings of its CEmbeds, the step).

    Raises UserError for a bad run or a partial checkpoint.
    """
    settings, state = read_trained(run, "mvqvae")
    config = read_settings(MvqvaeConfig, settings["model"], run)
    mvqvae = load_part(lambda: Mvqvae(config, settings["head"]), "mvqvae", state, run / "state.pt")
    return mvqvae.eval().requires_grad_(False), read_cembed_config(settings, run), state["step"]


def read_cembed_config(settings: Mapping[str, Any], run: Path) -> CembedConfig:
    """Return the settings of the CEmbeds of a run with these settings. Raises UserError for others than ours."""
    config = read_settings(CembedConfig, settings["features"], run)
    weights = config.layer_weights
    if not isinstance(weights, list | tuple) or not all(type(each) in (int, float) for each in weights):
        raise UserError(f"{run} states layer_weights = {weights!r:.60}: expected numbers; restore its config.json")
    return dataclasses.replace(config, layer_weights=tuple(weights))


def load_quantiser(run: Path, weights: Weights = "best") -> tuple[Vqvae | Mvqvae, CembedConfig | None, int]:
    """Return (the frozen VQ-VAE or MVQVAE of a run, the settings of its CEmbeds or None for mels, the step).

    An MVQVAE has its last weights only. Raises UserError for a bad run or a partial checkpoint.
    """
    if read_run_config(run).get("part") == "mvqvae":
        return load_mvqvae(run)
    vqvae, step = load_vqvae(run, weights)
    return vqvae, None, step


def mhifigan_config(version: str, width: int | None = None) -> HifiganConfig:
    """Return the settings of an MHiFiGAN. Raises UserError for a width that its upsampling layers cannot halve."""
    config = CEMBED_VERSIONS[version]
    halved = 2 ** len(config.rates)
    if width is not None and (width < halved or width % halved):
        raise UserError(f"--width {width} of {version}: expected a multiple of {halved}, such as {config.width}")
    return config if width is None else dataclasses.replace(config, width=width)
