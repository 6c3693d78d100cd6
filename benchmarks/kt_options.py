"""Write results/kt_options.md: the options of KT's system one after another, from one whole run, as many steps each.

python benchmarks/kt_options.py train ../shared --runs runs/k6
python benchmarks/kt_options.py measure ../shared --runs runs/k6 --vocoder runs/ship/vocoder

`train` brings a run without options to a step, its discriminator with it; there the run is copied for each option, and
every copy goes on as many steps. The same command resumes. Fading the label in is an option of the first steps: it is
tried from the start, with a run beside it that has it not. `measure` draws and measures every branch, and writes the
page. What needs no training is in kt_finish.py.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from kt import METRICS, ROOT, Bench, Benchmark, by_label, figure, table

from foleybox.files import write_text
from foleybox.lab.core.runs import read_run_config, read_state
from foleybox.lab.export.command import commit

RESULTS = ROOT / "results"


# --- training -------------------------------------------------------------------------------------------------------

Settings = dict[str, float | tuple[int, int]]
OPTIONS: dict[str, Settings] = {  # of each branch: the settings that differ, as in config.json
    "none": {},
    "none-again": {},  # what another seed changes: that of the trunk plus one
    "diffaug": {"augment.probability": 0.3},
    "lecam": {"steadiers.lecam": 0.1},
    "r1": {"steadiers.r1": 0.1},
}
YOUNG: Settings = {"average": 0.99}  # of the runs from the start, which are few steps long
FROM_START: dict[str, Settings] = {"start": YOUNG, "start-transition": YOUNG | {"steadiers.transition": (100, 250)}}


@dataclass(frozen=True)
class Train:
    """Bring a run to a step, and from there on once with each option. The same command resumes."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley"
    runs: Path = Path("runs/k6")
    options: tuple[str, ...] = tuple(OPTIONS)
    trunk: int = 4_500
    "the step at which the branches leave the run without options"
    steps: int = 5_000
    "the last step of every branch"
    from_start: int = 400
    "the last step of the runs from the start; 0: none of them"
    seed: int = 0
    compile: bool = False


def train_all(config: Train) -> None:
    trunk = config.runs / "trunk"
    seed: Settings = {"seed": config.seed}
    go_on(config, trunk, seed, config.trunk)
    for name in config.options:
        settings = OPTIONS[name] | ({"seed": config.seed + 1} if name == "none-again" else seed)
        if not (config.runs / name / "state.pt").is_file():
            branch(trunk, config.runs / name, settings)
        go_on(config, config.runs / name, settings, config.steps)
    for name, settings in FROM_START.items() if config.from_start else ():
        go_on(config, config.runs / name, settings | seed, config.from_start)


def go_on(config: Train, run: Path, settings: Settings, steps: int) -> None:
    """Train a run up to a step, as the command line would."""
    if (run / "state.pt").is_file() and read_state(run / "state.pt")["step"] >= steps:
        return
    flags = []
    for key, value in ({"average": 0.998} | settings).items():
        flags += [f"--{key.rpartition('.')[2].replace('_', '-')}", *map(str, listed(value))]
    flags += ["--compile"] if config.compile else []
    command = f"-m foleybox train sagan {config.shared}/data/foley:train --system kt-2c -o {run} --conditional-logit"
    command += f" --batch 16 --lr-generator 2e-4 --lr-discriminator 4e-4 --steps {steps} --threads 1 --device cpu"
    command += " --tracker none --log-every 50 --save-every 250 --sample-every 500"
    path = {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, *command.split(), *flags], check=True, env={**os.environ, **path})


def listed(value: Any) -> list[Any]:
    """Return the numbers of a setting, which is one or, as a tuple or read from JSON, several."""
    return list(value) if isinstance(value, tuple | list) else [value]


def branch(source: Path, out: Path, changes: Settings) -> None:
    """Copy a run folder and change settings in the copy, which `foleybox train` rightly refuses to do."""
    settings = read_run_config(source)
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        place = settings[group] if group else settings
        assert name in place, key
        place[name] = value
    (out / "samples").mkdir(parents=True)
    for name in ("clips.jsonl", "state.pt"):
        shutil.copy(source / name, out)
    write_text(out / "config.json", json.dumps(settings, indent=1) + "\n")


# --- the page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure(Benchmark):
    """Draw and measure every branch, and write the page."""

    runs: Path = Path("runs/k6")
    work: Path = Path("runs/k6-work")
    rows: tuple[str, ...] = (*OPTIONS, *FROM_START)
    "runs, in the page's order"
    last: tuple[str, ...] = ("none",)
    "runs that are measured with their last weights too"
    select: tuple[str, ...] = ()
    "runs among whose sounds the encoder chooses"
    sounds: tuple[str, ...] = ()
    "folders of sounds that are there already: `row=folder=what it is`"


WHAT = (
    ("augment.probability", "DiffAug"),
    ("steadiers.lecam", "LeCam"),
    ("steadiers.r1", "lazy R1"),
    ("steadiers.transition", "label faded in from"),
)


def measure(config: Measure) -> None:
    bench = Bench(config)
    runs = {name: config.runs / name for name in config.rows}
    what = {name: said(run) for name, run in runs.items()}
    folders: dict[str, Path] = {}
    for row in config.sounds:
        name, folder, what[name] = row.split("=")
        folders[name] = Path(folder)
    folders |= {name: bench.sounds(name) for name in runs}
    folders |= {f"{name}, last weights": bench.sounds(name, "last") for name in config.last}
    folders |= {f"{name}, selected": bench.select(name) for name in config.select}
    to_dev = dict(zip(folders, bench.evaluate(list(folders.values())).values(), strict=True))
    to_train = dict(zip(folders, distances_to_train(bench, list(folders.values())), strict=True))
    rows = [
        [name, *(figure(record["mean"], metric, digits) for metric, digits in METRICS), f"{to_train[name]:.1f}",
         what.get(name) or what[name.partition(",")[0]]]
        for name, record in to_dev.items()
    ]  # fmt: skip
    floor = next(iter(to_dev.values()))["mean"]["figures"]["frechet"]["floor"]
    parts = [
        "# The options of KT's system, one after another",
        f"Written by `python benchmarks/kt_options.py {shlex.join(sys.argv[1:])}` at commit "
        f"{commit()}: {config.clips} sounds a label (seeds {config.seed} to {config.seed + config.clips - 1}), "
        "reference `dev`, embedding mn04, intervals of 95 % over the generated clips. Real `train` clips at the same n "
        f"score {floor:.1f}. The distance to `train`, beside it, is what anything may be chosen by.",
        table(["row", *(NAMES[metric] for metric, _ in METRICS), "FD to `train`", "what it is"], rows),
        "## FD to `dev` by label",
        by_label(to_dev, "frechet", 1),
        "## Heard as its label by the tagger",
        by_label(to_dev, "accuracy", 2),
    ]
    seen = RESULTS / "kt_options_seen.md"
    if seen.is_file():
        parts.append(seen.read_text(encoding="utf-8").rstrip())
    write_text(RESULTS / "kt_options.md", "\n\n".join(parts) + "\n")
    print(parts[2])


NAMES = {"frechet": "FD", **{metric: metric for metric, _ in METRICS if metric != "frechet"}}


def distances_to_train(bench: Bench, folders: list[Path]) -> list[float]:
    """Return the mean distance of folders of sounds to the training clips."""
    figures = bench.config.work / "to-train.json"
    bench.foleybox(
        "evaluate", *folders, "--reference", bench.train, "--floor", bench.dev, "--bootstrap", "0", "--json", figures
    )
    systems: list[dict[str, Any]] = json.loads(figures.read_text())["systems"]
    return [system["mean"]["figures"]["frechet"]["value"] for system in systems]


def said(run: Path) -> str:
    """Say in what a branch differs from the others."""
    settings = read_run_config(run)
    options = []
    for key, what in WHAT:
        group, _, last = key.partition(".")
        values = listed(settings[group][last])
        if any(values):
            options.append(f"{what} {' to '.join(f'{each:g}' for each in values)}")
    rates = f"Adam {settings['lr_generator']:g}/{settings['lr_discriminator']:g}, average {settings['average']:g}"
    step = read_state(run / "state.pt")["step"]
    return f"to step {step:,}, {rates}, seed {settings['seed']}, {', '.join(options) or 'no option'}"


COMMANDS = {
    "train": (Train, train_all),
    "measure": (Measure, measure),
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        sys.exit(__doc__)
    kind, function = COMMANDS[name]
    function(tyro.cli(kind, args=sys.argv[2:]))
