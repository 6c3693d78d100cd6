"""`foleybox vary`: variations of a sound (see `studio/latents.py`)."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.commands.neighbours import check_count, find_source, write_neighbours
from foleybox.commands.output import Files, InstrumentName, SheetFile, check_seeds
from foleybox.studio import latents
from foleybox.studio.shape import Shape
from foleybox.studio.synth import BATCH


@dataclass(frozen=True)
class Vary:
    """Make variations of a sound: OUT/<name>_v<seed>.wav for the seeds S, S+1, ..., S+N-1.

    They are processed as the sound was, which its recipe states: trimmed, cut, equally loud. The flags below change that.

    Example: foleybox vary rain:7 --amount 0.2 --count 8 -o out
    """

    source: Annotated[Positional[str], arg(metavar="FILE|RECIPE|LABEL:SEED")]
    "a sound file made by foleybox, a recipe (`foleybox info FILE --recipe > x.json`), or a label and a seed"
    amount: Annotated[float, arg(aliases=["-a"], metavar="A")] = 0.2
    "distance relative to that of two random sounds of the label: 0 is the same sound, 0.1 a twin, 0.2 similar, 1 any sound"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 8
    "number of variations"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first variation"
    instrument: InstrumentName = None
    "instrument to play"
    sheet: SheetFile = None
    "also draw the spectrograms of all, in pages of 600"
    files: Files = field(default_factory=Files)
    shape: Shape = field(default_factory=Shape)


def vary(config: Vary) -> None:
    """Write variations of a sound. Raises UserError before the first render."""
    check_seeds(config.seed, config.count)
    check_count("--count", config.count)
    latents.check_amount(config.amount)
    source = find_source(config.source, config.instrument)
    clips = latents.vary(source.synth, source.make, config.amount, config.seed, min(config.count, BATCH))
    names = [f"{source.name}_v{seed}" for seed in range(config.seed, config.seed + config.count)]
    write_neighbours(config.files, config.shape, config.sheet, source, names, clips)
