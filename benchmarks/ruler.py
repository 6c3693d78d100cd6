"""The ruler's marks: what each metric says of real clips, and of real clips made worse in known ways.

Run from the repository root (about ten minutes on two cores):

    PYTHONPATH=src python benchmarks/ruler.py ../shared/data/foley --output results/measure.md

`--systems FOLDER ...` adds systems below the marks. Figures depend on the recordings; the seed fixes all else.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from kt import table
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from foleybox.audio import fit, read_wave, write_wave
from foleybox.files import write_text
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.evaluation.measures import METRICS, MeasureConfig
from foleybox.lab.evaluation.page import Point, dot_plot
from foleybox.lab.evaluation.report import Evaluate, run, write_page
from foleybox.lab.evaluation.tables import cell, number, protocol_entries, title_of
from foleybox.lab.export.command import commit
from foleybox.labels import LABELS

RATE, SAMPLES = 22_050, 88_200
Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Ruler:
    """Measure real train clips, as they are and made worse, against real dev clips."""

    data: tyro.conf.Positional[Path]
    "a folder with a manifest of splits `train` and `dev`"
    output: Path = Path("results/measure.md")
    clips: int = 100
    "train clips a label"
    seed: int = 0
    bootstrap: int = 200
    systems: tuple[str, ...] = ()
    "folders of generated clips to put below the marks"
    made: str = ""
    "the command that made them"
    html: Path | None = None
    "also write the page of `foleybox evaluate`"


def noisy(decibels: float) -> Callable[[Wave, np.random.Generator], Wave]:
    """Add white noise, `decibels` below the clip's own root mean square over its whole length."""

    def change(wave: Wave, generator: np.random.Generator) -> Wave:
        level = np.sqrt(np.mean(wave**2)) * 10 ** (-decibels / 20)
        return (wave + level * generator.standard_normal(len(wave))).astype(np.float32)

    return change


def dull(wave: Wave, _: np.random.Generator) -> Wave:
    """Low-pass at 2 kHz: Butterworth of order 8, forwards and backwards."""
    return sosfiltfilt(butter(8, 2_000, fs=RATE, output="sos"), wave).astype(np.float32)


MARKS: dict[str, Callable[[Wave, np.random.Generator], Wave]] = {
    "real train clips": lambda wave, _: wave,
    "+ white noise at 20 dB": noisy(20),
    "+ white noise at 10 dB": noisy(10),
    "+ white noise at 0 dB": noisy(0),
    "low-passed at 2 kHz": dull,
}


def write_marks(chosen: Sequence[ClipFile], config: Ruler, root: Path) -> list[str]:
    """Write each mark as a folder of class folders; return the folders."""
    folders = []
    waves = [fit(read_wave(clip.path, RATE)[0], SAMPLES) for clip in chosen]
    labels = [clip.label for clip in chosen]
    order = np.random.default_rng([config.seed, 1]).permutation(len(chosen)).tolist()
    few = [index - index % config.clips + index % config.clips // 10 for index in range(len(chosen))]
    sets: dict[str, tuple[Callable[[Wave, np.random.Generator], Wave], Sequence[int]]] = {
        name: (change, range(len(chosen))) for name, change in MARKS.items()
    }
    sets[f"{config.clips // 10} clips of each label, ten times over"] = (MARKS["real train clips"], few)
    sets["shuffled over the labels"] = (MARKS["real train clips"], order)
    for name, (change, source) in sets.items():
        generator = np.random.default_rng([config.seed, 2])
        for index, origin in enumerate(source):
            path = root / name / str(labels[index]) / f"{index:04d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wave(path, change(waves[origin], generator), RATE)
        folders.append(str(root / name))
    return folders


def choose(clips: Sequence[ClipFile], config: Ruler) -> list[ClipFile]:
    """Draw `clips` clips a label."""
    chosen = []
    for label in LABELS:
        own = [clip for clip in clips if clip.label is label]
        drawn = np.random.default_rng([config.seed, label.id]).permutation(len(own))[: config.clips]
        chosen += [own[i] for i in sorted(drawn)]
    return chosen


def text_of(result: Mapping[str, Any], config: Ruler) -> str:
    """Return the tables."""
    protocol = result["protocol"]
    metrics = [name for name in METRICS if name in result["systems"][0]["mean"]["figures"]]
    head = ["what", *(title_of(name, protocol) for name in metrics)]
    rows = []
    first = result["systems"][0]
    floors = [number(first["mean"]["figures"][name]["floor"]) for name in metrics]
    rows.append(["floor: five draws of train clips", *floors])
    rows += [[each["name"], *(cell(each["mean"]["figures"][name]) for name in metrics)] for each in result["systems"]]
    words = ["python", "benchmarks/ruler.py", str(config.data), "--output", str(config.output)]
    words += ["--systems", *config.systems] if config.systems else []
    words += ["--made", config.made] if config.made else []
    own = f"Systems, below the marks: {', '.join(f'`{each}`' for each in config.systems)}"
    own += f", made by `{config.made}`." if config.made else "."
    parts = [
        "# What a distance means",
        f"Made by `PYTHONPATH=src {shlex.join(words)}` at commit {commit() or 'unknown'}. Every row but a system's own is "
        f"made of {config.clips} real train clips a label, seed {config.seed}, measured against the real dev clips; no "
        "recording is in both.",
        own if config.systems else "",
        "\n".join(f"* {term}: {text}" for term, text in protocol_entries(protocol) if term != "floor"),
        "\n".join(f"> {note}" for note in result["notes"]),
        f"![distances by label]({config.output.with_suffix('.svg').name})",
        "## Mean of the seven labels",
        table(head, rows),
    ]
    labels = [label for label in LABELS if label.slug in first["labels"]]
    for name in metrics:
        lines = [["floor", *(number(first["labels"][label.slug]["figures"][name]["floor"]) for label in labels)]]
        lines += [
            [each["name"], *(cell(each["labels"][label.slug]["figures"].get(name)) for label in labels)]
            for each in result["systems"]
        ]
        parts += [f"## {title_of(name, protocol)}", METRICS[name].meaning, table(["what", *map(str, labels)], lines)]
    counts = ", ".join(f"{label} {protocol['reference_clips'][label.slug]}" for label in labels)
    parts.append(f"Reference clips: {counts}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def picture(result: Mapping[str, Any]) -> str:
    """Return the distances of every row, label by label, as an SVG."""
    labels = [label for label in LABELS if label.slug in result["systems"][0]["labels"]]
    series = []
    for each in result["systems"]:
        found = [each["labels"][label.slug]["figures"]["frechet"] for label in labels]
        series.append((each["name"], [Point(one["value"], one["low"], one["high"]) for one in found]))
    rows = [*map(str, labels)]
    marks = [result["systems"][0]["labels"][label.slug]["figures"]["frechet"]["floor"] for label in labels]
    return dot_plot(title_of("frechet", result["protocol"]), rows, series, marks, legend_rows=True) + "\n"


def main(config: Ruler) -> int:
    """Write the marks, measure them, write the tables."""
    chosen = choose(find_clips(config.data, "train"), config)
    with tempfile.TemporaryDirectory() as folder:
        marks = write_marks(chosen, config, Path(folder))
        question = Evaluate(
            generated=(*marks, *config.systems),
            reference=f"{config.data}:dev",
            floor=f"{config.data}:train",
            measure=MeasureConfig(seed=config.seed, bootstrap=config.bootstrap),
            html=config.html,
        )
        result = run(question)
        if config.html:
            write_page(question, result)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.output, text_of(result, config))
    write_text(config.output.with_suffix(".svg"), picture(result))
    print(text_of(result, config))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Ruler, description=__doc__)))
