r"""Write results/learning_curve.md: figures of our own system against clips seen, with an extrapolation.

python benchmarks/learning_curve.py ../shared --line small --runs runs/patches-at-* --autoencoder runs/autoencoder \
    --vocoder runs/vocoder

A run folder is a copy of a run of `train patches` at some step (config.json, clips.jsonl, log.jsonl, state.pt). Each is
exported with the same autoencoder, vocoder and sampling settings, rendered, measured, and becomes a point of the line. All
lines are kept in learning_curve.json; without --runs the page is written from it.
"""

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure as Plot

from foleybox import cli
from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.lab.core.runs import clips_seen, read_state
from foleybox.lab.evaluation.evaluate import Evaluate, run
from foleybox.lab.evaluation.measures import Figure
from foleybox.lab.evaluation.report import interval, write_keeping_notes
from foleybox.lab.evaluation.result import System, read_result
from foleybox.lab.evaluation.tables import table
from foleybox.lab.patches.transformer import GUIDANCE, TEMPERATURE
from foleybox.labels import LABELS
from foleybox.version import commit

HELD = "held_out_flow"
"name of the error on held-out clips in a run's log"
SHOWN = {"frechet": (2, -1, "FD"), "accuracy": (3, 1, "accuracy (tagger)"), "coverage": (3, 1, "coverage")}
"digits, whether more is better (1) or less (-1), and the name of each measure"
TIMES = (2, 4, 10)
Store = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Measure copies of a run at several steps, add them to a line, and write the page of all lines."""

    shared: tyro.conf.Positional[Path] = Path("../shared")
    "folder with data/foley and weights"
    line: str = ""
    "the line to which the points are added; a point of the same clips seen is replaced"
    runs: tuple[Path, ...] = ()
    "copies of a run of `train patches`"
    rows: tuple[Path, ...] = ()
    "JSON files of `foleybox evaluate` that are later points of the same line: same run, autoencoder, vocoder, settings"
    autoencoder: Path | None = None
    vocoder: Path | None = None
    guidance: tuple[float, ...] = GUIDANCE
    temperature: tuple[float, ...] = TEMPERATURE
    real: Path | None = Path("results/systems/real-licensed.json")
    "JSON file of real clips of the same tiers: the value that a line is extrapolated to; None: all of `train`"
    work: Path = Path("runs/curve-work")
    clips: int = 100
    "sounds of each label"
    seed: int = 0
    out: Path = Path("results/learning_curve.md")


def rendered(path: Path, config: Benchmark) -> Path:
    """Return the folder of a run's sounds."""
    instrument = config.work / "instruments" / f"{path.name}-{clips_seen(path)}"
    settings = ("--guidance", *config.guidance, "--temperature", *config.temperature)
    parts = ("--autoencoder", config.autoencoder, "--name", "curve", "--force", *settings)
    foleybox("export", path, config.vocoder, "-o", instrument, *parts)
    sounds = config.work / instrument.name
    many = ("-n", config.clips, "--seed", config.seed)
    foleybox("generate", "all", "--instrument", instrument, *many, "-o", sounds, "--force")
    return sounds


def foleybox(*arguments: object) -> None:
    """Run a verb."""
    if code := cli.main([str(argument) for argument in arguments]):
        sys.exit(code)


def measure(config: Benchmark, store: Store) -> None:
    """Put the points of `config.runs` and `config.rows` into their line."""
    data, sounds = f"{config.shared}/data/foley", [str(rendered(path, config)) for path in config.runs]
    systems = run(Evaluate(tuple(sounds), f"{data}:dev", floor=f"{data}:train", keep_silent=True)).systems
    figures = systems[0].mean.figures
    real = {name: figures[name].floor for name in SHOWN}
    if config.real is not None:
        real = {name: read_result(config.real).systems[0].mean.figures[name].value for name in SHOWN}
    line = store["lines"].setdefault(config.line, {"points": []})
    line |= {
        "command": f"`python benchmarks/learning_curve.py {shlex.join(sys.argv[1:])}`",
        "clips": config.clips,
        "real": real,
    }
    points = []
    for path, system in zip(config.runs, systems, strict=True):
        step = read_state(path / "state.pt")["step"]
        log = [json.loads(row) for row in (path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        held = next((entry[HELD] for entry in log if entry["step"] == step and HELD in entry), None)
        points.append({"seen": clips_seen(path), "commit": commit(), "held": held, "record": record(system)})
    for file in config.rows:
        result = read_result(file)
        made = result.systems[0].run
        assert made
        points.append(
            {"seen": made.clips_seen, "commit": result.commit, "held": None, "record": record(result.systems[0])}
        )
    new = {point["seen"] for point in points}
    kept = [point for point in line["points"] if point["seen"] not in new]
    line["points"] = sorted(kept + points, key=lambda point: point["seen"])


def record(system: System) -> Store:
    """Return the figures of a system, as the JSON file has them."""
    return {
        "mean": dataclasses.asdict(system.mean),
        "labels": {slug: dataclasses.asdict(part) for slug, part in system.labels.items()},
    }


# --- extrapolation ------------------------------------------------------------------------------------------------


def values_of(line: Store, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (clips seen, values of the metric) of those points of a line that have it."""
    points = [
        (point["seen"], point["record"]["mean"]["figures"][metric]["value"])
        for point in line["points"]
        if metric in point["record"]["mean"]["figures"]
    ]
    seen, values = np.array(points, np.float64).reshape(-1, 2).T
    return seen, values


def fit(seen: np.ndarray, short: np.ndarray) -> tuple[float, float] | None:
    """Return (a, b) of short = a seen ** -b by least squares of the logarithms; None for what does not fall.

    `short` is the difference to the score of real clips of the same tiers. Fewer than three points are not fitted, nor
    points that real clips do not exceed.
    """
    if len(seen) < 3 or short.min() <= 0:
        return None
    slope, height = np.polyfit(np.log(seen), np.log(short), 1)
    return (float(np.exp(height)), float(-slope)) if slope < 0 else None


def extrapolation(name: str, line: Store, metric: str) -> str:
    """Return the fit of a metric of a line and its values at more clips, in one line."""
    digits, better, words = SHOWN[metric]
    seen, values = values_of(line, metric)
    if len(seen) < 3:
        return ""
    real = line["real"][metric]
    found = fit(seen, better * (real - values))
    if found is None:
        return f"* `{name}`, {words}: no fall towards the {real:.{digits}f} of real clips that could be extrapolated."
    scale, power = found
    later = ", ".join(
        f"{real - better * scale * (seen[-1] * times) ** -power:.{digits}f} at {times}" for times in TIMES
    )
    sign = "-" if better > 0 else "+"
    return f"* `{name}`, {words}: {real:.{digits}f} {sign} {scale:.3g} x clips^-{power:.2f}; {later} times the clips."


def draw(store: Store, path: Path) -> None:
    """Draw each metric: points with intervals, the fit dotted, the score of real clips dashed."""
    plot = Plot((12, 4), layout="constrained")
    for axes, (metric, (_, better, words)) in zip(
        plot.subplots(1, len(SHOWN), sharex=True), SHOWN.items(), strict=True
    ):
        for number, (name, line) in enumerate(store["lines"].items()):
            seen, values = values_of(line, metric)
            if not len(seen):
                continue
            colour, real = f"C{number}", line["real"][metric]
            figures = [each["record"]["mean"]["figures"][metric] for each in line["points"]]
            low, high = ([each[side] for each in figures] for side in ("low", "high"))
            axes.plot(seen, values, "o-", color=colour, label=f"{name} ({line['clips']} a label)")
            axes.vlines(seen, low, high, color=colour, alpha=0.4)
            axes.axhline(real, color=colour, linestyle="--", linewidth=0.8)
            if (found := fit(seen, better * (real - values))) is not None:
                more = np.geomspace(seen[0], max(TIMES) * seen[-1])
                axes.plot(more, real - better * found[0] * more ** -found[1], ":", color=colour)
        axes.set(xscale="log", xlabel="clips seen", title=words)
    plot.axes[0].legend(fontsize=8)
    plot.savefig(path, dpi=90)


# --- the page -----------------------------------------------------------------------------------------------------


def page(store: Store, picture_name: str) -> str:
    """Return the page of all lines, without its notes."""

    def cell(figures: Store, metric: str) -> str:
        return interval(Figure(**figures[metric]) if metric in figures else None)

    rows, by_label = [], []
    for name, line in store["lines"].items():
        for point in line["points"]:
            mean, seen = point["record"]["mean"]["figures"], f"{point['seen']:,}"
            held = "-" if point["held"] is None else f"{point['held']:.4f}"
            cells = [cell(mean, metric) for metric in SHOWN]
            rows.append([name, seen, *cells, held, str(line["clips"]), point["commit"]])
            labels = point["record"]["labels"]
            by_label.append([name, seen, *(cell(labels[label.slug]["figures"], "frechet") for label in LABELS)])
        real = [
            f"{line['real'][metric]:.{digits}f}" if metric in line["real"] else "-"
            for metric, (digits, *_) in SHOWN.items()
        ]
        rows.append([f"real clips for `{name}`", "-", *real, "-", str(line["clips"]), "-"])
    found = [extrapolation(name, line, metric) for name, line in store["lines"].items() for metric in SHOWN]
    parts = [
        "# Distance against clips seen",
        "Written by `python benchmarks/learning_curve.py` from [learning_curve.json](learning_curve.json). "
        "Reference `dev`, embedding mn04, seeds from 0, intervals of 95 % over the sounds; the column `sounds` is their "
        "number a label. Real clips: `train` clips of the licence tiers that a line was trained on. Held-out error: of the "
        "flow. Clips seen: clips in all batches, including the runs that a run was started from; with `--others` a part of "
        "them is other sounds.",
        table(
            ["line", "clips seen", *(words for *_, words in SHOWN.values()), "held-out error", "sounds", "commit"], rows
        ),
        f"![each measure against clips seen]({picture_name})",
        "## Extrapolation",
        "Least squares of the logarithm of the difference to real clips; a fit of few points is uncertain.",
        "\n".join(line for line in found if line),
        "## FD by label",
        table(["line", "clips seen", *(label.name for label in LABELS)], by_label),
        "## Commands",
        "\n".join(f"* `{name}`: {line['command']}" for name, line in store["lines"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def main(config: Benchmark) -> None:
    path = config.out.with_suffix(".json")
    store = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"lines": {}}
    if config.runs:
        if not (config.line and config.autoencoder and config.vocoder):
            raise UserError("--runs without --line, --autoencoder and --vocoder: give all of them")
        config.work.mkdir(parents=True, exist_ok=True)
        measure(config, store)
        write_text(path, json.dumps(store, indent=1) + "\n")
    draw(store, config.out.with_suffix(".png"))
    write_keeping_notes(config.out, page(store, config.out.with_suffix(".png").name))


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except UserError as error:
        sys.exit(f"learning_curve: {error}")
