"""Print the last measured losses of training runs, a row a run: CMU's Tables 3 to 5, PixelSNAIL's cross-entropy.

python benchmarks/losses.py runs/cmu-b-vqvae runs/cmu-b-vqvae-none

A run measures training and held-out clips while it trains (log.jsonl). Runs that differ in one setting show it in the
columns of settings.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from foleybox.errors import UserError
from foleybox.lab.core.runs import clips_seen, read_run_config
from foleybox.lab.evaluation.tables import number, table

ALWAYS = ("part", "system", "seed", "batch", "lr", "precision")
NEVER = ("clips", "out", "data", "threads", "device", "tracker", "steps")


@dataclass(frozen=True)
class Losses:
    """Print the losses of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]


def measured(run: Path) -> dict[str, Any]:
    """Return the last line of a run's log that measured held-out or training clips."""
    log = run / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    found = [line for line in lines if any(name.startswith(("train_", "held_out_")) for name in line)]
    if not found:
        raise UserError(f"{run} has measured no clips yet: let it reach its next measurement, or its last step")
    return found[-1]


def main(config: Losses) -> None:
    lines, settings = [measured(run) for run in config.runs], [read_run_config(run) for run in config.runs]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key not in NEVER]
    shown = [key for key in keys if key in ALWAYS or len({json.dumps(each.get(key)) for each in settings}) > 1]
    names = [
        name
        for name in dict.fromkeys(name for line in lines for name in line)
        if name.startswith(("train_", "held_out_"))
    ]
    rows = [
        [run.name, f"{line['step']:,}", f"{clips_seen(run):,}", *(str(each.get(key, "-")) for key in shown)]
        + [number(line.get(name), 5) if line.get(name) is not None else "-" for name in names]
        for run, line, each in zip(config.runs, lines, settings, strict=True)
    ]
    print(table(["run", "step", "clips seen", *shown, *(name.replace("_", " ") for name in names)], rows))


if __name__ == "__main__":
    try:
        main(tyro.cli(Losses))
    except UserError as error:
        sys.exit(f"losses: {error}")
