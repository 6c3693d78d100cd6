"""`foleybox walk`: a chain of sounds, each a variation of the one before (see `studio/latents.py`)."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands.neighbours import check_count, find_source, write_neighbours
from foleybox.commands.output import Files, InstrumentName, SheetFile
from foleybox.studio import latents
from foleybox.studio.recipe import MOST_STEPS
from foleybox.studio.seeds import check_seed
from foleybox.studio.shape import Shape


@dataclass(frozen=True)
class Walk:
    """Make a chain of sounds, each a variation of the one before: OUT/<name>_w0.wav (the sound itself), _w1.wav, ...

    Example: foleybox walk rain:7 --amount 0.1 --steps 20 -o out
    """

    source: Annotated[Positional[str], arg(metavar="FILE|RECIPE|LABEL:SEED")]
    "a sound file made by foleybox, a recipe, or a label and a seed"
    amount: Annotated[float, arg(aliases=["-a"], metavar="A")] = 0.1
    "length of a step: 0 is the same sound, 1 is any sound of the label"
    steps: Annotated[int, arg(aliases=["-n"], metavar="N")] = 9
    "number of sounds, the first included"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "determines the direction of the steps"
    instrument: InstrumentName = None
    "instrument to play"
    sheet: SheetFile = None
    "also draw the spectrograms of all, in pages of 600"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def walk(config: Walk) -> None:
    """Write the sounds of a walk. Raises UserError before the first render."""
    latents.check_amount(config.amount)
    latents.check_steps(config.steps)
    check_count("--steps", config.steps, MOST_STEPS)
    source = find_source(config.source, config.instrument)
    clips = latents.walk(source.synth, source.make, config.amount, check_seed(config.seed))
    digits = len(str(config.steps - 1))
    names = [f"{source.name}_w{step:0{digits}}" for step in range(config.steps)]
    write_neighbours(config.files, config.shape, config.sheet, source, names, clips)
