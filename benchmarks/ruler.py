"""Write results/measure.md: every metric of real clips, and of real clips that were degraded in known ways.

python benchmarks/ruler.py ../shared/data/foley

About ten minutes on two cores. `--systems FOLDER ...` adds systems. Figures depend on the recordings and the seed only.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from foleybox.audio import fit, read_wave, write_wave
from foleybox.files import write_text
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.evaluation import page
from foleybox.lab.evaluation.evaluate import Evaluate, run, write_page
from foleybox.lab.evaluation.measures import METRICS, MeasureConfig
from foleybox.lab.evaluation.result import Result
from foleybox.lab.evaluation.tables import cell, metrics_of, number, protocol_entries, table, title_of
from foleybox.labels import LABELS
from foleybox.version import commit

RATE, SAMPLES = 22_050, 88_200
Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Ruler:
    """Measure real train clips, unchanged and degraded, against real dev clips."""

    data: tyro.conf.Positional[Path]
    "a folder with a manifest of splits `train` and `dev`"
    output: Path = Path("results/measure.md")
    clips: int = 100
    "train clips a label"
    seed: int = 0
    bootstrap: int = 200
    systems: tuple[str, ...] = ()
    "folders of generated clips to measure too"
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


def low_passed(wave: Wave, _: np.random.Generator) -> Wave:
    """Low-pass at 2 kHz: Butterworth of order 8, forwards and backwards."""
    return sosfiltfilt(butter(8, 2_000, fs=RATE, output="sos"), wave).astype(np.float32)


DEGRADED: dict[str, Callable[[Wave, np.random.Generator], Wave]] = {
    "real train clips": lambda wave, _: wave,
    "+ white noise at 20 dB": noisy(20),
    "+ white noise at 10 dB": noisy(10),
    "+ white noise at 0 dB": noisy(0),
    "low-passed at 2 kHz": low_passed,
}


def write_sets(chosen: Sequence[ClipFile], config: Ruler, root: Path) -> list[str]:
    """Write each set of clips as a folder of class folders; return the folders."""
    folders = []
    waves = [fit(read_wave(clip.path, RATE)[0], SAMPLES) for clip in chosen]
    labels = [clip.label for clip in chosen]
    order = np.random.default_rng([config.seed, 1]).permutation(len(chosen)).tolist()
    few = [index - index % config.clips + index % config.clips // 10 for index in range(len(chosen))]
    sets: dict[str, tuple[Callable[[Wave, np.random.Generator], Wave], Sequence[int]]] = {
        name: (change, range(len(chosen))) for name, change in DEGRADED.items()
    }
    sets[f"{config.clips // 10} clips of each label, ten times over"] = (DEGRADED["real train clips"], few)
    sets["shuffled over the labels"] = (DEGRADED["real train clips"], order)
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


def text_of(result: Result, config: Ruler) -> str:
    """Return the page."""
    protocol, first = result.protocol, result.systems[0]
    metrics = metrics_of(result.systems)
    head = ["sounds", *(title_of(name, protocol) for name in metrics)]
    real = "real train clips, mean of 20 draws"
    rows = [[real, *(number(first.mean.figures[name].floor) for name in metrics)]]
    rows += [[each.name, *(cell(each.mean.figures[name]) for name in metrics)] for each in result.systems]
    made = f" Systems, in the last rows: {', '.join(f'`{each}`' for each in config.systems)}" if config.systems else ""
    made += f", made by `{config.made}`." if config.made else "." if made else ""
    parts = [
        "# What a distance means",
        f"Written by `{shlex.join(['python', 'benchmarks/ruler.py', *sys.argv[1:]])}` at commit {commit() or 'unknown'}. Every "
        f"row but those of systems is made from {config.clips} real `train` clips a label, seed {config.seed}, measured against "
        f"the real `dev` clips; no recording is in both.{made}",
        "\n".join(f"* {term}: {text}" for term, text in protocol_entries(protocol)),
        "\n".join(f"> {note}" for note in result.notes),
        f"![FD by label]({config.output.with_suffix('.png').name})",
        "## Mean of the seven labels",
        table(head, rows),
    ]
    labels = [label for label in LABELS if label.slug in first.labels]
    for name in metrics:
        lines = [[real, *(number(first.labels[label.slug].figures[name].floor) for label in labels)]]
        lines += [
            [each.name, *(cell(each.labels[label.slug].figures.get(name)) for label in labels)]
            for each in result.systems
        ]
        parts += [f"## {title_of(name, protocol)}", METRICS[name].meaning, table(["sounds", *map(str, labels)], lines)]
    counts = ", ".join(f"{label} {protocol.reference_clips[label.slug]}" for label in labels)
    parts.append(f"Reference clips: {counts}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def main(config: Ruler) -> int:
    """Write the sets, measure them, write the page."""
    chosen = choose(find_clips(config.data, "train"), config)
    with tempfile.TemporaryDirectory() as folder:
        sets = write_sets(chosen, config, Path(folder))
        question = Evaluate(
            generated=(*sets, *config.systems),
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
    config.output.with_suffix(".png").write_bytes(page.png(page.plot(result, ["frechet"]), dpi=80))
    print(text_of(result, config))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Ruler)))
