"""`foleybox morph`: steps from one sound to another (see `studio/latents.py`)."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands.neighbours import find_source, write_neighbours
from foleybox.commands.output import Files, InstrumentName, SheetFile
from foleybox.errors import UserError
from foleybox.studio import latents
from foleybox.studio.shape import Shape


@dataclass(frozen=True)
class Morph:
    """Make even steps from one sound to another: OUT/<one>-<other>_m0.wav (the one), ..., <one>-<other>_m8.wav (the other).

    Each step is one sound between the two: its spectrum, the time and length of its loudest event, and its loudness are
    between theirs, in equal steps.

    Example: foleybox morph rain:2 motor:3 --steps 5 -o out
    """

    one: Annotated[Positional[str], arg(metavar="ONE")]
    "a sound file made by foleybox, a recipe, or LABEL:SEED"
    other: Annotated[Positional[str], arg(metavar="OTHER")]
    "the same, for the last sound"
    steps: Annotated[int, arg(aliases=["-n"], metavar="N")] = 9
    "number of sounds, the two included"
    instrument: InstrumentName = None
    "instrument to play"
    sheet: SheetFile = None
    "also draw the spectrograms of all, in pages of 600"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def morph(config: Morph) -> None:
    """Write the steps between two sounds. Raises UserError before the first render."""
    one = find_source(config.one, config.instrument)
    other = find_source(config.other, config.instrument)
    if not one.synth.instrument.matches(other.recipe.fingerprint):
        raise UserError(
            f"{config.one} is of {one.recipe.instrument}, {config.other} of another instrument: expected the same for both"
        )
    latents.check_steps(config.steps, latents.MOST_STEPS)
    clips = latents.morph(one.synth, one.make, other.make, config.steps)
    digits = len(str(config.steps - 1))
    names = [f"{one.name}-{other.name}_m{step:0{digits}}" for step in range(config.steps)]
    write_neighbours(config.files, config.shape, config.sheet, one, names, clips)
