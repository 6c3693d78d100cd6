"""Write results/kt.md: KT's systems, trained alike on the same recordings, measured side by side.

python benchmarks/kt.py ../shared --runs runs/kt --vocoder runs/ship/vocoder

`--runs` holds run folders of `foleybox train sagan`; each becomes a row of its name, played through one vocoder. Sounds
are kept in `--work` and drawn anew only for a run that has gone on since.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from matplotlib.figure import Figure

from foleybox.files import atomic_path, sha256, write_text
from foleybox.lab.export.command import commit
from foleybox.lab.kt.systems import KT
from foleybox.labels import LABELS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
Weights = Literal["average", "last"]
PRINTED = {  # FAD of the report (official evaluation set, VGGish), Tables 1 and 2, in the order of the labels
    "kt-2c-t01": (2.899, 4.149, 4.821, 3.411, 14.929, 3.848, 1.449),
    "kt-2c": (2.829, 3.807, 3.634, 4.222, 15.673, 3.534, 1.717),
    "kt-csupcon-t01": (2.559, 3.414, 5.985, 3.468, 12.591, 4.219, 2.390),
    "kt-csupcon": (2.749, 3.765, 4.913, 2.867, 14.364, 3.709, 1.466),
}
PRINTED_MEAN = {"kt-2c": 5.060, "kt-csupcon": 4.833, "kt-2c-label": 12.667, "kt-csupcon-label": 12.552}


@dataclass(frozen=True)
class Benchmark:
    """Measure runs of KT's systems and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    runs: Path = Path("runs/kt")
    "folder of run folders; the four systems are found by name, the others are variants"
    vocoder: Path = Path("runs/vocoder")
    encoder: Path = Path("runs/kt/encoder")
    "of the candidate selection"
    work: Path = Path("runs/kt-work")
    "instruments and sounds are kept here"
    clips: int = 100
    "sounds of each label that are measured"
    candidates: int = 400
    "sounds of each label from which the selection keeps `clips`"
    seed: int = 0
    "seed of the first of them"
    draws: int = 50
    "batches of sounds from which an averaged generator's batch statistics are re-estimated"
    audit: bool = False
    "also look for copies of training clips among the sounds of the best row: some minutes more"


class Bench:
    """What the commands of this page share: folders, count and seed."""

    def __init__(self, config: Benchmark) -> None:
        self.config = config
        self.dev, self.train = (f"{config.shared}/data/foley:{split}" for split in ("dev", "train"))

    def foleybox(self, *arguments: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
        """Run a verb and return what it printed."""
        surroundings = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "FOLEYBOX_SHARED": str(self.config.shared.resolve()),
        }
        command = [sys.executable, "-m", "foleybox", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
        if done.returncode not in allowed:
            sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return done.stdout.rstrip()

    def sounds(self, name: str, weights: Weights = "average", count: int = 0) -> Path:
        """Return the folder of a run's sounds, drawn if they are not there."""
        run, count = self.config.runs / name, count or self.config.clips
        place = self.config.work / f"{name}-{weights}-{count}"
        made, state = place.with_suffix(".txt"), f"{sha256(run / 'state.pt')} {self.config.seed}"
        if made.is_file() and made.read_text() == state:
            return place
        instrument = self.config.work / f"{name}-{weights}-instrument"
        # The last weights are the report's: with the batch statistics of the training, as they are.
        draws = str(self.config.draws if weights == "average" else 0)
        flags = ("--weights", weights, "--draws", draws, "--force")
        self.foleybox("export", run, self.config.vocoder, "-o", instrument, *flags)
        self.foleybox(
            "generate", "all", "--instrument", instrument, "-n", str(count), "--seed", str(self.config.seed), "-o", place,
            "--force", "--sheet", place.with_suffix(".png"),
        )  # fmt: skip
        write_text(made, state)
        return place

    def evaluate(self, systems: list[Path]) -> dict[str, dict[str, Any]]:
        """Return what `foleybox evaluate` says of folders of sounds, by folder name."""
        figures = self.config.work / "figures.json"
        self.foleybox("evaluate", *systems, "--reference", self.dev, "--floor", self.train, "--json", figures)
        found = json.loads(figures.read_text())["systems"]
        return {system.name: record for system, record in zip(systems, found, strict=True)}

    def select(self, name: str) -> Path:
        """Return the folder of sounds that the encoder chose among candidates of a run."""
        out = self.config.work / f"{name}-selected"
        many = self.sounds(name, count=self.config.candidates)
        self.foleybox(
            "select", many, "--encoder", self.config.encoder, "--reference", self.train, "--keep", str(self.config.clips),
            "-o", out, "--force",
        )  # fmt: skip
        return out

    def audit(self, sounds: Path) -> str:
        """Return the summary of `foleybox audit` against the training clips."""
        return self.foleybox("audit", sounds, "--against", self.train, allowed=(0, 1))  # 1: a copy was found


def settings(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def figure(record: dict[str, Any], metric: str, digits: int = 1) -> str:
    """Write a figure with its interval."""
    found = record["figures"].get(metric)
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
    return f"{found['value']:.{digits}f}{interval}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def losses(runs: dict[str, Path], path: Path) -> None:
    """Draw the discriminator's curves: the collapse that the report describes, or its absence."""
    drawn = Figure(figsize=(13, 3.4), layout="constrained")
    axes = drawn.subplots(1, 3)
    titles = (
        "discriminator's hinge",
        "contrastive loss on reals (discriminator)",
        "contrastive loss on fakes (generator)",
    )
    for name, run in runs.items():
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        lines = [line for line in lines if line["step"] <= settings(run)["steps"]]
        for axis, keys in zip(axes, (("d_hinge",), ("d_contrast", "d_2c"), ("g_contrast", "g_2c"))):
            values = [next(line[key] for key in keys if key in line) for line in lines]
            axis.plot([line["step"] for line in lines], values, label=name, linewidth=1)
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    with atomic_path(path) as beside:
        drawn.savefig(beside, dpi=110)


def by_label(found: dict[str, dict[str, Any]], metric: str, digits: int) -> str:
    """Lay a metric out by label, a column a system, with what real `train` clips score at the same n."""
    rows = []
    for label in LABELS:
        cells = [figure(record["labels"][label.slug], metric, digits) for record in found.values()]
        real = next(iter(found.values()))["labels"][label.slug]["figures"][metric]["floor"]
        rows.append([label.name, *cells, f"{real:.{digits}f}"])
    real = next(iter(found.values()))["mean"]["figures"][metric]["floor"]
    cells = [figure(record["mean"], metric, digits) for record in found.values()]
    rows.append(["mean of 7", *cells, f"{real:.{digits}f}"])
    return table(["label", *found, "real `train`"], rows)


def main(config: Benchmark) -> None:
    bench = Bench(config)
    runs = {path.parent.name: path.parent for path in sorted(config.runs.glob("*/state.pt"))}
    runs = {name: run for name, run in runs.items() if settings(run)["part"] == "sagan"}
    four = [name for name in PRINTED_MEAN if name in runs]
    others = [name for name in runs if name not in four]
    averaged = {name: bench.sounds(name) for name in runs}
    last = {f"{name}, last weights": bench.sounds(name, "last") for name in ("kt-2c", "kt-csupcon") if name in runs}
    measured = bench.evaluate([*averaged.values(), *last.values()])
    records = dict(zip([*averaged, *last], measured.values(), strict=True))
    best = min(averaged, key=lambda name: records[name]["mean"]["figures"]["frechet"]["value"])
    chosen = bench.select(best)
    records[f"{best}, selected"] = next(iter(bench.evaluate([chosen]).values()))
    losses({name: runs[name] for name in four}, RESULTS / "kt_losses.png")

    def mean(name: str, metric: str, digits: int = 1) -> str:
        return figure(records[name]["mean"], metric, digits) if name in records else "-"

    table1 = table(
        ["loss", "with label", "without label", "printed, with label", "printed, without"],
        [
            [
                loss,
                mean(labelled, "frechet"),
                mean(name, "frechet"),
                str(PRINTED_MEAN[labelled]),
                str(PRINTED_MEAN[name]),
            ]
            for loss, labelled, name in (
                ("2C", "kt-2c-label", "kt-2c"),
                ("C-SupCon", "kt-csupcon-label", "kt-csupcon"),
            )
        ],
    )
    overall = table(
        ["row", "FD", "accuracy", "precision", "recall", "coverage", "diversity", "what it is"],
        [
            [name, *(mean(name, metric, digits) for metric, digits in METRICS), describe(name, runs, config)]
            for name in records
        ],
    )
    printed = table(
        ["label", *(f"{name} (printed FAD)" for name in PRINTED)],
        [[label.name, *(f"{row[label.id]:.3f}" for row in PRINTED.values())] for label in LABELS],
    )
    parts = [
        "# KT's systems, trained alike and measured side by side",
        f"Written by `python benchmarks/kt.py ../shared --runs {config.runs} --vocoder {config.vocoder}` at commit {commit()}: "
        f"{config.clips} sounds a label (seeds {config.seed} to {config.seed + config.clips - 1}), reference `dev`, "
        "embedding mn04, intervals of 95 % over the generated clips, floor: real `train` clips at the same n.",
        "Distances here are of another embedding and another reference than the report's: compare rows and columns, not "
        "numbers, with its tables.",
        "## All rows, mean of the seven labels",
        overall,
        "## Table 1 of the report: with label against without (FD, mean of 7)",
        table1,
        "## Tables 2 and 3 of the report: FD by label",
        by_label({name: records[name] for name in four}, "frechet", 1),
        "The report's own figures (FAD with VGGish on the challenge's evaluation set, not comparable in size):",
        printed,
        "## How varied each label is",
        "Mean distance between two generated clips over that between two real clips of `dev`: what the report argues about "
        "and gives no number for.",
        by_label({name: records[name] for name in four}, "diversity", 2),
        "## TrainingClips as its label by the tagger",
        by_label({name: records[name] for name in four}, "accuracy", 2),
        "## Variants",
        by_label({name: records[name] for name in [best, *others, f"{best}, selected"]}, "frechet", 1),
        "## Losses",
        "![the discriminator's hinge, and the contrastive losses of reals and fakes](kt_losses.png)",
    ]
    if config.audit:
        parts.append(f"## Audit of `{best}` against `train`\n\n```\n{bench.audit(averaged[best])}\n```")
    seen = RESULTS / "kt_seen.md"
    if seen.is_file():
        parts.append(seen.read_text(encoding="utf-8").rstrip())
    write_text(RESULTS / "kt.md", "\n\n".join(parts) + "\n")
    print(overall)


METRICS = (("frechet", 1), ("accuracy", 2), ("precision", 2), ("recall", 2), ("coverage", 2), ("diversity", 2))


def describe(name: str, runs: dict[str, Path], config: Benchmark) -> str:
    """Say what a row is: the settings in which its run differs from the report's."""
    base, _, extra = name.partition(", ")
    run = settings(runs[base])
    model, regularisers = run["model"], run["regularisers"]
    said = [run["system"], f"plan {model['plan']} width {model['width']}", f"{run['steps']:,} steps of {run['batch']}"]
    said += [f"Adam {run['lr_generator']:g}/{run['lr_discriminator']:g}", f"seed {run['seed']}"]
    said.append("projection logit" if model["conditional_logit"] else "unconditional logit")
    if run["augment"]["probability"]:
        said.append(f"DiffAug {run['augment']['probability']:g}")
    said += [f"{key} {regularisers[key]:g}" for key in ("lecam", "r1") if regularisers[key]]
    if any(regularisers["transition"]):
        said.append("label faded in over steps {} to {}".format(*regularisers["transition"]))
    if KT[run["system"]].source:
        said.append(f"source {run['source']}")
    said.append("last weights" if extra == "last weights" else f"average {run['average']:g}")
    if extra == "selected":
        said.append(f"the encoder's {config.clips} of {config.candidates} candidates a label")
    return ", ".join(said)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
