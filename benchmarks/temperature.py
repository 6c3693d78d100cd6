"""What --temperature costs and gives: nearness to real recordings against diversity within a label, as a curve.

    PYTHONPATH=src python benchmarks/temperature.py ../shared/data/foley:dev --floor ../shared/data/foley:train

renders n clips a label at each temperature, the same seeds, measures them as `foleybox evaluate` does, and writes
results/temperature.md and results/temperature.png.
"""

import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from kt import RESULTS, table

from foleybox.instrument import Instrument
from foleybox.lab.evaluation.measures import METRICS, MeasureConfig
from foleybox.lab.evaluation.report import Evaluate, run
from foleybox.lab.export.command import commit
from foleybox.labels import LABELS
from foleybox.studio.synth import Synth

COLUMNS = ("frechet", "kad", "precision", "recall", "density", "coverage", "diversity", "accuracy")


@dataclass(frozen=True)
class Temperatures:
    """Render, measure, write."""

    reference: tyro.conf.Positional[str]
    "real clips: folder:split"
    floor: str
    "further real clips, for what real clips score"
    instrument: str | None = None
    "a folder; default: the one that plays when none is named"
    clips: int = 50
    "a label and temperature"
    seed: int = 0
    "of the first clip"
    temperatures: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2, 1.4)
    "to measure at"
    bootstrap: int = 100
    "replicates of the intervals"


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


def cell(figure: dict[str, float | None] | None) -> str:
    """Write a figure with its interval."""
    if not figure or figure["value"] is None:
        return "–"
    interval = "" if figure["low"] is None else f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    return f"{figure['value']:.2f}{interval}"


def report(config: Temperatures, made: Instrument, result: dict[str, Any]) -> str:
    """Return the page."""
    systems = {system["name"]: system for system in result["systems"]}
    means = {name: system["mean"]["figures"] for name, system in systems.items()}
    columns = [column for column in COLUMNS if column in next(iter(means.values()))]
    mean = table(
        ["temperature", *(METRICS[each].title for each in columns)],
        [[name, *(cell(figures[each]) for each in columns)] for name, figures in means.items()],
    )
    real = next(iter(means.values()))
    floors = ", ".join(
        f"{METRICS[each].title} {real[each]['floor']:.2f}" for each in columns if real[each]["floor"] is not None
    )

    def by_label(metric: str) -> str:
        rows = [
            [label.name, *(cell(system["labels"][label.slug]["figures"][metric]) for system in systems.values())]
            for label in LABELS
        ]
        return table(["label", *(f"T = {name}" for name in systems)], rows)

    command = shlex.join(["python", "benchmarks/temperature.py", *sys.argv[1:]])
    return f"""# What --temperature costs and gives

`{made.name}` {made.version}, {config.clips} clips a label and temperature, seeds {config.seed} to
{config.seed + config.clips - 1}, against the held-out split `dev` (never used for training), embedding mn04, intervals of
{config.bootstrap} bootstrap replicates over clips. Written by `{command}`
at commit {commit() or "unknown"}.
The columns are those of [docs/measure.md](../docs/measure.md).

The temperature scales the noise that a sound is drawn from (by how much an instrument scales it for a label itself
comes on top): below 1 the sounds of a label come nearer to its typical sound, above 1 they reach further out.

![distance to real recordings and diversity against temperature](temperature.png)

## Mean of the seven labels

{mean}

What real `train` clips score at that n: {floors or "not measured"}.

## FD by label

{by_label("frechet")}

## Diversity by label

{by_label("diversity" if "diversity" in columns else "recall")}
"""


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw FD and diversity against temperature, mean of the labels, with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [float(system["name"]) for system in result["systems"]]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, metric, title in zip(
        axes, ("frechet", "diversity"), ("FD to real recordings (less is nearer)", "diversity (1: as real)")
    ):
        found = [system["mean"]["figures"][metric] for system in result["systems"]]
        axis.plot(names, [each["value"] for each in found], "o-", color="#721f81")
        axis.fill_between(
            names, [each["low"] for each in found], [each["high"] for each in found], alpha=0.2, color="#721f81"
        )
        if found[0]["floor"] is not None:
            axis.axhline(found[0]["floor"], color="grey", linestyle=":")
            axis.text(names[0], found[0]["floor"], " real clips", va="bottom", color="grey")
        axis.set(title=title, xlabel="temperature")
    figure.savefig(path, dpi=100)


def main(config: Temperatures) -> int:
    """Run all of it."""
    synth = Synth.load(config.instrument)
    with tempfile.TemporaryDirectory() as folder:
        folders = render(config, synth, Path(folder))
        measure = MeasureConfig(seed=config.seed, bootstrap=config.bootstrap)
        result = run(Evaluate(tuple(folders), config.reference, floor=config.floor, measure=measure))
    text = report(config, synth.instrument, result)
    draw(result, RESULTS / "temperature.png")
    (RESULTS / "temperature.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Temperatures, description=__doc__)))
