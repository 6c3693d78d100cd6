"""Trained parts of KT's systems, read from their run folders."""

from pathlib import Path
from typing import Any

from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.core.compat import read_settings
from foleybox.lab.core.runs import load_part, read_run_config, read_state, read_trained
from foleybox.lab.kt.encoder import Encoder, EncoderConfig
from foleybox.lab.kt.sagan import Generator, SaganConfig


def load_generator(run: Path, weights: str = "average") -> tuple[Generator, int]:
    """Return (the generator of a run in eval mode, its step).

    `weights`: "average" (the moving average) or "last" of the latest checkpoint, or the name of a snapshot of the average,
    such as "snapshot_2000". Raises UserError for a folder that is no run of `train sagan`, and for weights that it lacks.
    """
    generator, state = _read_generator(run, weights)
    return generator, int(state["step"])


def load_gan(run: Path) -> tuple[Generator, dict[str, Tensor] | None]:
    """Return (the averaged generator of a run in eval mode, its discriminator's weights; None for a restored run)."""
    generator, state = _read_generator(run, "average")
    return generator, state.get("discriminator")


def _read_generator(run: Path, weights: str) -> tuple[Generator, dict[str, Any]]:
    if weights in ("average", "last"):
        settings, state = read_trained(run, "sagan")
        part, path = {"average": "average", "last": "generator"}[weights], run / "state.pt"
    else:
        settings, part, path = read_run_config(run), "average", run / f"{weights}.pt"
        snapshots = sorted((each.stem for each in run.glob("snapshot_*.pt")), key=lambda name: (len(name), name))
        if weights not in snapshots:
            raise UserError(f"{run} has no weights {weights!r}: expected {', '.join(['average', 'last', *snapshots])}")
        state = read_state(path, "name other weights with --weights", ours=True)
    generator = load_part(lambda: Generator(read_settings(SaganConfig, settings["model"], run)), part, state, path)
    return generator.eval(), state


def load_encoder(run: Path) -> tuple[Encoder, int]:
    """Return (the frozen encoder of a run in eval mode with its classifier, the step).

    Raises UserError for a folder that is no run of `train encoder`, and for one whose training has not finished.
    """
    settings, state = read_trained(run, "encoder")
    steps = settings["contrastive_steps"] + settings["classifier_steps"]
    if state["step"] < steps:
        raise UserError(
            f"{run} is at step {state['step']} of {steps}: expected a finished encoder; run the same `foleybox train "
            "encoder` command again to resume it"
        )
    config = read_settings(EncoderConfig, settings["model"], run)
    encoder = load_part(lambda: Encoder(config), "encoder", state, run / "state.pt")
    return encoder.eval().requires_grad_(False), int(state["step"])
