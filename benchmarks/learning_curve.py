r"""Write results/learning_curve.md: how near our own system comes for the clips it has seen, and where that leads.

python benchmarks/learning_curve.py ../shared --line small --runs runs/patches-at-* --autoencoder runs/autoencoder \
    --vocoder runs/vocoder

A run folder is a copy of a run of `train patches` at some step (config.json, clips.jsonl, log.jsonl, state.pt). Each is
exported with the same autoencoder, vocoder and drawing, rendered and measured alike, and becomes a point of the line. All
lines are kept in learning_curve.json; without --runs the page is written of it again.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from kt import ROOT, figure, table
from matplotlib.figure import Figure
from systems import evaluate, floors, foleybox, kept, read_store, sounds_of

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.lab.core.runs import clips_seen, read_state
from foleybox.lab.export.command import commit
from foleybox.lab.patches.transformer import GUIDANCE, TEMPERATURE
from foleybox.labels import LABELS

HELD = "held_out_flow"  # what a run's log calls the error on held-out clips, at the steps that measure it
SHOWN = {"frechet": (2, -1, "FD"), "accuracy": (3, 1, "heard as its label"), "coverage": (3, 1, "coverage")}
"digits, whether more is better (1) or less (-1), and the name of each measure"
TIMES = (2, 4, 10)
Store = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Measure copies of a run at several steps, add them to a line, and write the page of all lines."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    line: str = ""
    "the line to which the points are added; those of the same clips seen take the place of what was there"
    runs: tuple[Path, ...] = ()
    "copies of a run of `train patches`"
    rows: tuple[str, ...] = ()
    "rows of results/systems.md that are later points of the same line: the same run, autoencoder, vocoder and drawing"
    autoencoder: Path | None = None
    vocoder: Path | None = None
    guidance: tuple[float, ...] = GUIDANCE
    temperature: tuple[float, ...] = TEMPERATURE
    real: str = "licensed-real-clips"
    "row of results/systems.md that real clips of the same tiers have, or train for all of it: what a line is taken to lead to"
    work: Path = Path("runs/curve-work")
    clips: int = 100
    "sounds of each label"
    seed: int = 0
    out: Path = ROOT / "results" / "learning_curve.md"


def rendered(run: Path, config: Benchmark) -> Path:
    """Return the folder of a run's sounds."""
    instrument = config.work / "instruments" / f"{run.name}-{clips_seen(run)}"
    drawing = ("--guidance", *config.guidance, "--temperature", *config.temperature)
    parts = ("--autoencoder", config.autoencoder, "--name", "curve", "--force", *drawing)
    foleybox("export", run, config.vocoder, "-o", instrument, *parts)
    return sounds_of(instrument, config.work, config.clips, config.seed)


def measure(config: Benchmark, store: Store) -> None:
    """Put the points of `config.runs` into their line."""
    config.work.mkdir(parents=True, exist_ok=True)
    records = evaluate([rendered(run, config) for run in config.runs], config.shared, config.work)
    table_of_all = read_store(ROOT / "results" / "systems.json")
    real = floors(records[0])["mean"]
    if config.real != "train":
        figures = table_of_all["systems"][config.real]["record"]["mean"]["figures"]
        real = {name: figures[name]["value"] for name in SHOWN}
    line = store["lines"].setdefault(config.line, {"points": []})
    line |= {
        "command": f"`python benchmarks/learning_curve.py ../shared {shlex.join(_flags(config))}`",
        "clips": config.clips,
        "real": {name: real[name] for name in SHOWN},
    }
    for run, record in zip(config.runs, records, strict=True):
        step = read_state(run / "state.pt")["step"]
        log = [json.loads(row) for row in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        held = next((entry[HELD] for entry in log if entry["step"] == step and HELD in entry), None)
        point = {"seen": clips_seen(run), "commit": commit() or "unknown", "held": held, "record": kept(record)}
        line["points"] = [*(each for each in line["points"] if each["seen"] != point["seen"]), point]
    for name in config.rows:
        row = table_of_all["systems"][name]
        point = {"seen": int(row["about"]["seen"].replace(",", "")), "commit": row["commit"], "held": None}
        point |= {"record": row["record"]}
        line["points"] = [*(each for each in line["points"] if each["seen"] != point["seen"]), point]
    line["points"].sort(key=lambda point: point["seen"])


def _flags(config: Benchmark) -> list[str]:
    named = {"line": config.line, "runs": config.runs, "rows": config.rows}
    named |= {"autoencoder": config.autoencoder, "vocoder": config.vocoder}
    named |= {"guidance": config.guidance, "temperature": config.temperature, "real": config.real}
    lists = {name: value if isinstance(value, tuple) else (value,) for name, value in named.items()}
    return [word for name, value in lists.items() if value for word in (f"--{name}", *map(str, value))]


# --- where it leads -----------------------------------------------------------------------------------------------


def of(line: Store, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (clips seen, the metric) of those points of a line that have it."""
    points = [
        (point["seen"], point["record"]["mean"]["figures"][metric]["value"])
        for point in line["points"]
        if metric in point["record"]["mean"]["figures"]
    ]
    seen, values = np.array(points, np.float64).reshape(-1, 2).T
    return seen, values


def fit(seen: np.ndarray, short: np.ndarray) -> tuple[float, float] | None:
    """Return (a, b) of short = a seen ** -b by least squares of the logarithms; None for what does not fall.

    `short` is how far a line is from what real clips of the same tiers score. Under three points say nothing, and a point
    that real clips do not surpass leaves nothing to fall.
    """
    if len(seen) < 3 or short.min() <= 0:
        return None
    slope, height = np.polyfit(np.log(seen), np.log(short), 1)
    return (float(np.exp(height)), float(-slope)) if slope < 0 else None


def leads_to(name: str, line: Store, metric: str) -> str:
    """Say in one line where a metric of a line leads."""
    digits, better, words = SHOWN[metric]
    seen, values = of(line, metric)
    if len(seen) < 3:
        return ""
    real = line["real"][metric]
    found = fit(seen, better * (real - values))
    if found is None:
        return f"* `{name}`, {words}: no fall towards the {real:.{digits}f} of real clips that could be extrapolated."
    scale, power = found
    told = ", ".join(f"{real - better * scale * (seen[-1] * times) ** -power:.{digits}f} at {times}" for times in TIMES)
    sign = "-" if better > 0 else "+"
    return f"* `{name}`, {words}: {real:.{digits}f} {sign} {scale:.3g} x clips^-{power:.2f}; {told} times the clips."


def draw(store: Store, path: Path) -> None:
    """Draw each metric: points with their intervals, and where they lead, dotted; real clips dashed."""
    plot = Figure((12, 4))
    for axes, (metric, (_, better, words)) in zip(
        plot.subplots(1, len(SHOWN), sharex=True), SHOWN.items(), strict=True
    ):
        for number, (name, line) in enumerate(store["lines"].items()):
            seen, values = of(line, metric)
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
    plot.tight_layout()
    plot.savefig(path, dpi=90)


# --- the page -----------------------------------------------------------------------------------------------------


def page(store: Store, picture_name: str) -> str:
    """Return the page of what was measured; nothing is worked out anew but where it leads."""
    rows, by_label = [], []
    for name, line in store["lines"].items():
        for point in line["points"]:
            mean, seen = point["record"]["mean"], f"{point['seen']:,}"
            measured = [figure(mean, metric, digits) for metric, (digits, *_) in SHOWN.items()]
            held = "-" if point["held"] is None else f"{point['held']:.4f}"
            rows.append([name, seen, *measured, held, str(line["clips"]), point["commit"]])
            each = [figure(point["record"]["labels"][label.slug], "frechet", 1) for label in LABELS]
            by_label.append([name, seen, *each])
        real = [
            f"{line['real'][metric]:.{digits}f}" if metric in line["real"] else "-"
            for metric, (digits, *_) in SHOWN.items()
        ]
        rows.append([f"real clips for `{name}`", "-", *real, "-", str(line["clips"]), "-"])
    commands = "\n".join(f"* `{name}`: {line['command']}" for name, line in store["lines"].items())
    leads = [leads_to(name, line, metric) for name, line in store["lines"].items() for metric in SHOWN]
    parts = [
        "# Distance against clips seen",
        "Written from [learning_curve.json](learning_curve.json). Reference `dev`, embedding mn04, seeds from 0, intervals of "
        "95 % over the sounds, so many of each label as the column says. Real clips are `train` clips of the tiers that a line "
        "heard, as [systems.md](systems.md) has them. The error on held-out clips is the flow's. Clips seen count everything "
        "in a batch, and what the runs that it started from had seen: with `--others` a part of it is other sounds.",
        table(
            ["line", "clips seen", *(words for *_, words in SHOWN.values()), "held-out error", "sounds", "commit"], rows
        ),
        f"![each measure against clips seen]({picture_name})",
        "## Where it leads",
        "Least squares of the logarithm of what is missing to real clips; a fit of few points is a guess.",
        "\n".join(line for line in leads if line),
        "## FD by label",
        table(["line", "clips seen", *(label.name for label in LABELS)], by_label),
        "## Commands",
        commands,
    ]
    return "\n\n".join(parts) + "\n"


def main(config: Benchmark) -> None:
    path = config.out.with_suffix(".json")
    store = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"lines": {}}
    if config.runs:
        if not (config.line and config.autoencoder and config.vocoder):
            raise UserError("--runs without --line, --autoencoder and --vocoder: give all of them")
        measure(config, store)
        write_text(path, json.dumps(store, indent=1) + "\n")
    picture = config.out.with_suffix(".png")
    draw(store, picture)
    seen = config.out.with_name(f"{config.out.stem}_seen.md")
    words = "\n" + seen.read_text(encoding="utf-8").rstrip() + "\n" if seen.is_file() else ""
    write_text(config.out, page(store, picture.name) + words)


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except UserError as error:
        sys.exit(f"learning_curve: {error}")
