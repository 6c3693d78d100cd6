"""Write results/learning_curve.md: the distance of our own system against the clips it has seen, and where that leads.

python benchmarks/learning_curve.py ../shared --runs runs/patches-at-* --autoencoder runs/autoencoder --vocoder runs/vocoder

A run folder is a copy of a run of `train patches` at some step (config.json, clips.jsonl, state.pt). Each is exported with
the same autoencoder and vocoder, rendered and measured alike.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from kt import ROOT, figure
from matplotlib.figure import Figure
from numpy.typing import NDArray
from systems import evaluate, foleybox

from foleybox.doors import UserError, write_text
from foleybox.lab.export import commit
from foleybox.lab.runs import read_run_config, read_state
from foleybox.labels import LABELS

HELD = "held_out_flow"  # what a run's log calls the error on held-out clips, at the steps that measure it


@dataclass(frozen=True)
class Benchmark:
    """Measure copies of runs at several steps and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    runs: tuple[Path, ...]
    "copies of runs of `train patches`; runs of other settings are lines of their own"
    autoencoder: Path
    vocoder: Path
    floor: float = 0.0
    "distance of real clips of the same tiers to the reference, to which the curve is taken to fall (results/systems.md)"
    work: Path = Path("runs/curve-work")
    clips: int = 50
    "sounds of each label"
    seed: int = 0
    out: Path = ROOT / "results" / "learning_curve.md"


def rendered(run: Path, config: Benchmark) -> Path:
    """Return the folder of a run's sounds."""
    step = read_state(run / "state.pt")["step"]
    place = config.work / f"{run.name}-{step}"
    if not place.is_dir():
        instrument = config.work / f"{run.name}-instrument"
        parts = ("--autoencoder", config.autoencoder, "--name", "curve", "--force")
        foleybox("export", run, config.vocoder, "-o", instrument, *parts)
        foleybox("generate", "all", "--instrument", instrument, "-n", config.clips, "--seed", config.seed, "-o", place)
    return place


def fit(clips: NDArray[np.float64], distance: NDArray[np.float64], floor: float) -> tuple[float, float]:
    """Return (a, b) of distance = floor + a clips ** -b, by least squares of the logarithms."""
    slope, height = np.polyfit(np.log(clips), np.log(distance - floor), 1)
    return float(np.exp(height)), float(-slope)


def main(config: Benchmark) -> None:
    config.work.mkdir(parents=True, exist_ok=True)
    folders = [rendered(run, config) for run in config.runs]
    records = evaluate(folders, config.shared, config.work)

    lines: dict[str, list[tuple[int, dict[str, Any], float | None]]] = {}
    for run, record in zip(config.runs, records, strict=True):
        settings = read_run_config(run)
        step = read_state(run / "state.pt")["step"]
        log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        held = next((entry[HELD] for entry in log if entry["step"] == step and HELD in entry), None)
        lines.setdefault(Path(settings["out"]).name, []).append((step * settings["batch"], record, held))

    rows, words, plot = [], [], Figure((7, 4))
    axes = plot.add_subplot()
    for name, points in lines.items():
        points.sort(key=lambda point: point[0])
        seen = np.array([point[0] for point in points], np.float64)
        distance = np.array([point[1]["mean"]["figures"]["frechet"]["value"] for point in points])
        axes.plot(seen, distance, "o-", label=name)
        for clips, record, held in points:
            each = " | ".join(f"{record['labels'][label.slug]['figures']['frechet']['value']:.1f}" for label in LABELS)
            error = "-" if held is None else f"{held:.4f}"
            rows.append(f"| {name} | {clips:,} | {figure(record['mean'], 'frechet', 2)} | {each} | {error} |")
        if len(points) > 2:
            scale, power = fit(seen, distance, config.floor)
            told = ", ".join(
                f"{times} times the clips: {config.floor + scale * (seen[-1] * times) ** -power:.2f}"
                for times in (2, 4, 10)
            )
            words.append(
                f"* `{name}`: {config.floor:g} + {scale:.3g} x clips^-{power:.2f}, by least squares of the logarithms "
                f"above the floor. It extrapolates to {told}."
            )
            more = np.geomspace(seen[0], 10 * seen[-1])
            axes.plot(more, config.floor + scale * more**-power, ":", color=axes.lines[-1].get_color())
    axes.set(xscale="log", xlabel="clips seen", ylabel="mean FD to dev")
    axes.legend()
    plot.tight_layout()
    plot.savefig(config.out.with_suffix(".png"), dpi=90)

    command = (
        f"python benchmarks/learning_curve.py ../shared --runs {' '.join(map(str, config.runs))} --autoencoder "
        f"{config.autoencoder} --vocoder {config.vocoder} --floor {config.floor:g}"
    )
    parts = [
        "# Distance against clips seen",
        f"Written by `{command}` at commit {commit() or 'unknown'}, torch {torch.__version__}, {os.cpu_count()} cores: "
        f"{config.clips} sounds a label, seeds {config.seed} to {config.seed + config.clips - 1}, reference `dev`, embedding "
        f"mn04, intervals of 95 % over the sounds. Real `train` clips at the same n: "
        f"{records[0]['mean']['figures']['frechet']['floor']:.2f}. The last column is the flow's error on clips held out of "
        "training. Clips seen count everything in a batch: with `--others` a part of it is other sounds.",
        "\n".join(
            [
                f"| run | clips seen | mean FD | {' | '.join(label.name for label in LABELS)} | held-out error |",
                "| --- | --- | --- |" + " --- |" * (len(LABELS) + 1),
                *rows,
            ]
        ),
        f"![mean FD against clips seen]({config.out.with_suffix('.png').name})",
        "\n".join(words) or "Too few points to extrapolate.",
    ]
    seen_file = config.out.with_name(f"{config.out.stem}_seen.md")
    if seen_file.is_file():
        parts.append(seen_file.read_text(encoding="utf-8").rstrip())
    write_text(config.out, "\n\n".join(parts) + "\n")
    print("\n\n".join(parts[2:]))


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except UserError as error:
        sys.exit(f"learning_curve: {error}")
