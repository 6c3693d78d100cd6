"""Write results/kt_options.md: the options of KT's system one after another, from one whole run, as many steps each.

python benchmarks/kt_options.py train ../shared --runs runs/k6
python benchmarks/kt_options.py measure ../shared --runs runs/k6 --vocoder runs/ship/vocoder
python benchmarks/kt_options.py shipped ../shared

`train` brings a run without options to a step, its discriminator with it; there the run is copied for each option, and
every copy goes on as many steps. The same command resumes. Fading the label in is an option of the first steps: it is
tried from the start, with a run beside it that has it not. `measure` draws and measures every branch, and writes the
page. `shipped` tries what needs no training (sharpening, temperature) on the GAN that ships, by the distance to `train`;
`draw` draws its sounds with mels finished so; `herd` chooses among many.
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from kt import METRICS, ROOT, Bench, Benchmark, by_label, figure, table
from numpy.typing import NDArray

from foleybox.audio import write_wave
from foleybox.doors import write_text
from foleybox.lab.data import find_clips, load_mels
from foleybox.lab.evaluation.embeddings import load_embedding
from foleybox.lab.export import commit
from foleybox.lab.features import DCASE, SILENCE
from foleybox.lab.runs import read_run_config, read_state
from foleybox.lab.scored import Ruler
from foleybox.lab.selection import choose, plain_numbers, standardised
from foleybox.labels import LABELS
from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth, is_silent

RESULTS = ROOT / "results"
ByLabel = tuple[float, float, float, float, float, float, float]  # so that another count is refused at the door
UNCHANGED: ByLabel = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


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


# --- without training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shipped:
    """Measure a GAN instrument with its mels sharpened, and with scaled noise, by the distance to `train`."""

    shared: tyro.conf.Positional[Path]
    instrument: str = "sagan-small"
    settings: tuple[str, ...] = ("0,1", "0.3,1", "0.6,1", "0.9,1", "0,0.8", "0,0.9", "0,1.1", "0,1.25")
    "sharpening, temperature"
    clips: int = 60
    "sounds a label, seeds 0 and up"


def sharpened(mel: NDArray[np.float32], amount: float) -> NDArray[np.float32]:
    """Return mels [N, M, T] whose frames are `amount` of the distance further from the mean of three; below 0 nearer."""
    wide = np.pad(mel, ((0, 0), (0, 0), (1, 1)), mode="edge")
    around = (wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]) / 3
    return np.maximum(mel + np.float32(amount) * (mel - around), np.float32(SILENCE))


def shipped(config: Shipped) -> None:
    synth = Synth.load(config.instrument, threads=1)
    ruler = Ruler(find_clips(f"{config.shared}/data/foley:train"), load_embedding("mn04"))
    seeds = range(config.clips)
    names = [label.name for label in LABELS for _ in seeds]
    ids = np.array([label.id for label in LABELS for _ in seeds])
    latent = np.stack([noise(seed, synth.instrument.latent, 0) for _ in LABELS for seed in seeds])
    rows = []
    for setting in config.settings:
        amount, temperature = map(float, setting.split(","))
        scaled, waves = latent * np.float32(temperature), []
        for start in range(0, len(names), 8):
            mel = synth.mel(names[start : start + 8], scaled[start : start + 8])
            waves += list(synth.vocode(sharpened(mel, amount)))
        distances = list(ruler.by_label(torch.from_numpy(np.stack(waves)), ids.tolist()).values())
        rows.append([f"{amount:g}", f"{temperature:g}", f"{np.mean(distances):.2f}", *(f"{d:.1f}" for d in distances)])
        print(*rows[-1], flush=True)
    print(table(["sharpen", "temperature", "mean of 7", *(label.name for label in LABELS)], rows))


@dataclass(frozen=True, eq=False)
class Finished(Synth):
    """A GAN instrument whose mels are finished before its vocoder, label by label."""

    sharpen: tuple[float, ...] = (0.0,) * len(LABELS)
    levels: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] | None = None
    "of a label: what levels its mels have, and what levels they should have, both [bands, quantiles]"

    def mel(self, labels: list[str], latent: NDArray[np.float32]) -> NDArray[np.float32]:
        mels = super().mel(labels, latent)
        for name, mel in zip(labels, mels, strict=True):
            if self.levels and name in self.levels:
                theirs, real = self.levels[name]
                for band, row in enumerate(mel):
                    row[:] = np.interp(row, theirs[band], real[band])
            mel[:] = sharpened(mel[None], self.sharpen[self.labels.index(name)])[0]
        return mels


@dataclass(frozen=True)
class Herd:
    """Keep those of many drawn mels that are spread like the training clips' mels; only they are made into sounds.

    The rule is that of `foleybox select` (kernel herding), on plain numbers of the mels in place of an encoder's features.
    """

    shared: tyro.conf.Positional[Path]
    out: Path
    instrument: str = "sagan-small"
    sharpen: ByLabel = UNCHANGED
    "of each label; below 0 the mels are smoothed"
    candidates: int = 200
    "of each label, seeds 0 and up"
    clips: int = 100
    temperature: ByLabel = (1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1)
    "of each label: `shipped` tries some by the distance to `train`"
    labels: tuple[str, ...] = tuple(label.name for label in LABELS)


def herd(config: Herd) -> None:
    synth = Finished.load(config.instrument, threads=1)
    clips = find_clips(f"{config.shared}/data/foley:train")
    mels, ids = load_mels(clips, DCASE), np.array([clip.label.id for clip in clips if clip.label])
    for label in (label for label in LABELS if label.name in config.labels):
        real = plain_numbers(mels[ids == label.id])
        seeds = np.arange(config.candidates)
        latent = np.stack([noise(int(seed), synth.instrument.latent, 0) for seed in seeds])
        latent *= np.float32(config.temperature[label.id])
        drawn = np.concatenate(
            [synth.mel([label.name] * len(part), part) for part in np.array_split(latent, max(1, len(latent) // 50))]
        )
        reference, features = standardised(real, plain_numbers(torch.from_numpy(drawn)))
        # A tenth more than asked: a mel may turn out to be silence, which the synth would draw anew.
        kept = choose(features, torch.ones(len(seeds)), reference, config.clips * 11 // 10, near=2.0).kept
        finished = sharpened(drawn[kept], config.sharpen[label.id])
        waves = (wave for part in np.array_split(finished, 10) for wave in synth.vocode(part))
        audible = (pair for pair in zip(seeds[kept], waves, strict=True) if not is_silent(pair[1]))
        found = list(itertools.islice(audible, config.clips))
        for seed, wave in found:
            path = config.out / label.name / f"{label.name}_s{seed}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wave(path, wave, synth.instrument.rate)
        print(label.name, len(found), flush=True)


@dataclass(frozen=True)
class Draw:
    """Draw sounds of a GAN instrument with finished mels into class folders."""

    shared: tyro.conf.Positional[Path]
    out: Path
    instrument: str = "sagan-small"
    sharpen: ByLabel = UNCHANGED
    "of each label"
    match: tuple[str, ...] = ()
    "labels whose mels get, band by band, the levels (quantiles) of the training clips' mels"
    clips: int = 100
    temperature: float = 1.0


QUANTILES = np.linspace(0, 1, 257)


def draw(config: Draw) -> None:
    synth = Finished.load(config.instrument, threads=1)
    clips = find_clips(f"{config.shared}/data/foley:train")
    levels = {}
    for name in config.match:
        latent = np.stack([noise(seed, synth.instrument.latent, 0) for seed in range(1_000, 1_060)])
        theirs = np.concatenate([synth.mel([name] * 10, part) for part in np.split(latent, 6)])
        real = load_mels([clip for clip in clips if clip.label and clip.label.name == name], DCASE).numpy()
        levels[name] = tuple(np.quantile(mels, QUANTILES, (0, 2)).T.astype(np.float32) for mels in (theirs, real))
    synth = replace(synth, sharpen=config.sharpen, levels=levels)
    pairs = [(label.name, seed) for label in LABELS for seed in range(config.clips)]
    for (name, seed), clip in zip(pairs, synth.render_many(pairs, temperature=config.temperature), strict=True):
        path = config.out / name / f"{name}-{seed:04}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        clip.save(path)


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
    "shipped": (Shipped, shipped),
    "draw": (Draw, draw),
    "herd": (Herd, herd),
    "train": (Train, train_all),
    "measure": (Measure, measure),
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        sys.exit(__doc__)
    kind, function = COMMANDS[name]
    function(tyro.cli(kind, args=sys.argv[2:]))
