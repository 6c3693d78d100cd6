"""Write results/temperature.md: distance to real recordings and diversity at several temperatures.

python benchmarks/temperature.py ../shared/data/foley:dev --floor ../shared/data/foley:train

Renders the same seeds at each temperature and measures them as `foleybox evaluate` does.
"""

import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure as Plot

from foleybox.files import write_text
from foleybox.instrument import Instrument
from foleybox.lab.evaluation.evaluate import Evaluate, run
from foleybox.lab.evaluation.measures import METRICS, MeasureConfig
from foleybox.lab.evaluation.result import Result
from foleybox.lab.evaluation.tables import cell, metrics_of, number, table
from foleybox.labels import LABELS
from foleybox.studio.synth import Synth
from foleybox.version import commit


@dataclass(frozen=True)
class Temperatures:
    """Render, measure, write."""

    reference: tyro.conf.Positional[str]
    "real clips: folder:split"
    floor: str
    "further real clips, for the scores of real clips"
    instrument: str | None = None
    "a folder; default: the default instrument"
    clips: int = 50
    "a label and temperature"
    seed: int = 0
    "of the first clip"
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2, 1.4)
    "to measure at"
    bootstrap: int = 100
    "replicates of the intervals"
    output: Path = Path("results/temperature.md")


def render(config: Temperatures, synth: Synth, folder: Path) -> list[str]:
    """Write the clips of every temperature to a folder of its own; return their names."""
    folders = []
    for temperature in config.temperatures:
        pairs = [(label, seed) for label in synth.labels for seed in range(config.seed, config.seed + config.clips)]
        for clip in synth.render_many(pairs, temperature=temperature):
            path = folder / f"{temperature:g}" / clip.label / f"{clip.label}_s{clip.seed}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            clip.save(path)
        folders.append(str(folder / f"{temperature:g}"))
    return folders


def report(config: Temperatures, made: Instrument, result: Result) -> str:
    """Return the page."""
    metrics, head = metrics_of(result.systems), [METRICS[name].title for name in metrics_of(result.systems)]
    mean = table(
        ["temperature", *head],
        [[each.name, *(cell(each.mean.figures[name]) for name in metrics)] for each in result.systems],
    )
    real = result.systems[0].mean.figures
    floors = ", ".join(f"{METRICS[name].title} {number(real[name].floor)}" for name in metrics)

    def by_label(metric: str) -> str:
        rows = [
            [label.name, *(cell(each.labels[label.slug].figures[metric]) for each in result.systems)]
            for label in LABELS
        ]
        return table(["label", *(f"T = {each.name}" for each in result.systems)], rows)

    command = shlex.join(["python", "benchmarks/temperature.py", *sys.argv[1:]])
    seeds = f"{config.seed} to {config.seed + config.clips - 1}"
    return f"""# What --temperature changes

`{made.name}` {made.version}, {config.clips} clips a label and temperature, seeds {seeds}, against the held-out split
`dev` (never used for training), embedding mn04, intervals of {config.bootstrap} bootstrap replicates over clips. Written by
`{command}`
at commit {commit() or "unknown"}. Columns: [docs/measure.md](../docs/measure.md).

The temperature scales the noise that a sound is generated from, in addition to the scale that an instrument has for each
label. Below 1 sounds are nearer to the typical sound of their label, above 1 they vary more.

![distance to real recordings and diversity against temperature](temperature.png)

## Mean of the seven labels

{mean}

Scores of real `train` clips at that n: {floors}.

## FD by label

{by_label("frechet")}

## Diversity by label

{by_label("diversity")}
"""


def draw(result: Result, path: Path) -> None:
    """Draw FD and diversity against temperature, mean of the labels, with intervals."""
    temperatures = [float(system.name) for system in result.systems]
    plot = Plot(figsize=(8, 3), layout="constrained")
    titles = ("FD to real recordings (lower: nearer)", "diversity (1: as real recordings)")
    for axes, metric, title in zip(plot.subplots(1, 2), ("frechet", "diversity"), titles):
        found = [system.mean.figures[metric] for system in result.systems]
        axes.plot(temperatures, [each.value for each in found], "o-")
        axes.fill_between(temperatures, [each.low for each in found], [each.high for each in found], alpha=0.2)
        if found[0].floor is not None:
            axes.axhline(found[0].floor, color="grey", linestyle=":", label="real clips")
        axes.set(title=title, xlabel="temperature")
        axes.legend()
    plot.savefig(path, dpi=100)


def main(config: Temperatures) -> int:
    """Run all of it."""
    synth = Synth.load(config.instrument)
    with tempfile.TemporaryDirectory() as folder:
        folders = render(config, synth, Path(folder))
        measure = MeasureConfig(seed=config.seed, bootstrap=config.bootstrap)
        result = run(Evaluate(tuple(folders), config.reference, floor=config.floor, measure=measure))
    text = report(config, synth.instrument, result)
    draw(result, config.output.with_suffix(".png"))
    write_text(config.output, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Temperatures)))
