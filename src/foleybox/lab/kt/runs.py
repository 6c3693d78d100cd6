"""Trained parts of KT's systems, read from their run folders."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from foleybox.errors import UserError
from foleybox.lab.core.runs import fill_part, read_trained
from foleybox.lab.kt.encoder import Encoder, EncoderConfig
from foleybox.lab.kt.sagan import Generator, SaganConfig

# --- trained parts ------------------------------------------------------------------------------------------------


def load_generator(run: Path, weights: Literal["average", "last"] = "average") -> tuple[Generator, int]:
    """Return (the generator of a run in eval mode, the step). Raises UserError for a bad run."""
    generator, state = read_generator(run, weights)
    return generator, int(state["step"])


def load_gan(run: Path) -> tuple[Generator, dict[str, Tensor] | None]:
    """Return (the averaged generator of a run in eval mode, its discriminator's weights; None of a restored run)."""
    generator, state = read_generator(run, "average")
    return generator, state.get("discriminator")


def read_generator(run: Path, weights: Literal["average", "last"]) -> tuple[Generator, dict[str, Any]]:
    settings, state = read_trained(run, "sagan")
    generator = Generator(SaganConfig(**settings["model"]))
    fill_part(generator, "average" if weights == "average" else "generator", state, run / "state.pt")
    return generator.eval(), state


def load_encoder(run: Path) -> tuple[Encoder, int]:
    """Return (the frozen encoder of a run in eval mode, its classifier within, the step).

    Raises UserError for a bad run, and for one whose training has not come to its end: its classifier would be guessing.
    """
    settings, state = read_trained(run, "encoder")
    steps = settings["contrastive_steps"] + settings["classifier_steps"]
    if state["step"] < steps:
        raise UserError(
            f"{run} stands at step {state['step']} of {steps}: expected a finished encoder; the same `foleybox train "
            "encoder` command goes on"
        )
    encoder = Encoder(EncoderConfig(**settings["model"]))
    encoder.load_state_dict(state["encoder"])
    return encoder.eval().requires_grad_(False), int(state["step"])
