"""Write results/systems.md: every system beside every other, by label, with what real clips score.

python benchmarks/systems.py ../shared --instruments foley-small sagan-small --sounds runs/b-work/baseline=runs/b/baseline-snail

An instrument is one that ships, by name, or a folder; it is rendered here and timed. Sounds of systems that are no
instruments are folders that `benchmarks/baseline_cmu_b.py` left, each with the run that drew them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from kt import METRICS, ROOT, by_label, figure, table
from numpy.typing import NDArray
from PIL import Image

from foleybox import cli
from foleybox.audio import fit, read_wave, write_wave
from foleybox.doors import UserError, write_text
from foleybox.instrument import read_instrument
from foleybox.lab.data import ClipFile, find_clips, load_mels, load_waves
from foleybox.lab.export import commit
from foleybox.lab.features import WIDE
from foleybox.lab.losses import repetition, roughness
from foleybox.lab.runs import load_autoencoder, load_vocoder, read_run_config, read_state
from foleybox.labels import LABELS
from foleybox.studio.sheet import picture
from foleybox.studio.synth import Synth, find_instrument

REAL = "licensed-real-clips"
SHOWN = 12  # sounds of a label on the contact sheet


@dataclass(frozen=True)
class Benchmark:
    """Measure systems side by side and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    instruments: tuple[str, ...] = ("foley-small", "sagan-small")
    "instruments that ship, or their folders; the first is drawn on the contact sheet"
    sounds: tuple[str, ...] = ()
    "FOLDER=RUN: sounds, and the run that drew them"
    autoencoder: Path | None = None
    "run folder: also measure the round trip of real clips through latents and vocoder"
    vocoder: Path | None = None
    "run folder of the wide-band vocoder: also measure the round trip of real clips"
    real_tiers: tuple[str, ...] = ("open", "open-clip", "nc")
    "also measure real `train` clips of these tiers, as if a system had made them: what shipped instruments could learn from"
    work: Path = Path("runs/systems-work")
    clips: int = 100
    "sounds of each label"
    seed: int = 0
    out: Path = ROOT / "results" / "systems.md"


def foleybox(*arguments: object, allowed: tuple[int, ...] = (0,)) -> str:
    """Run a verb and return what it printed."""
    printed = StringIO()
    with redirect_stdout(printed):
        code = cli.main([str(argument) for argument in arguments])
    if code not in allowed:
        sys.exit(f"foleybox {' '.join(map(str, arguments))}: exit code {code}\n{printed.getvalue()}")
    return printed.getvalue().rstrip()


def rendered(name: str, config: Benchmark) -> Path:
    """Return the folder of an instrument's sounds."""
    folder = find_instrument(name)
    place = config.work / folder.name
    note, made_of = place.with_suffix(".txt"), f"{read_instrument(folder).fingerprint} {config.clips} {config.seed}"
    if not note.is_file() or note.read_text(encoding="utf-8") != made_of:
        foleybox(
            "generate", "all", "--instrument", folder, "-n", config.clips, "--seed", config.seed, "-o", place, "--force"
        )
        write_text(note, made_of)
    return place


def real_clips(config: Benchmark, clips: list[ClipFile]) -> Path:
    """Return a folder with some real clips of `config.real_tiers`, as many a label as there are sounds, at most."""
    place = config.work / REAL
    shutil.rmtree(place, ignore_errors=True)
    order = np.random.default_rng(config.seed).permutation(len(clips))
    for label in LABELS:
        (place / label.name).mkdir(parents=True)
        mine = [clips[i] for i in order if clips[i].label == label and clips[i].tier in config.real_tiers]
        for clip in mine[: config.clips]:
            shutil.copy(clip.path, place / label.name)
    return place


@torch.no_grad()
def round_trip(config: Benchmark, clips: list[ClipFile], latents: bool) -> Path:
    """Return the folder of real clips that went through their mel, the latents (if so) and the vocoder."""
    assert config.vocoder is not None
    vocoder, mel, _ = load_vocoder(config.vocoder)
    assert mel == WIDE
    autoencoder = load_autoencoder(config.autoencoder)[0] if latents and config.autoencoder else None
    place = config.work / ("latents-and-vocoder" if latents else "vocoder")
    torch.manual_seed(0)
    for index, (clip, log_mel) in enumerate(zip(clips, load_mels(clips, WIDE), strict=True)):
        back = log_mel[None] if autoencoder is None else autoencoder.reconstruct(log_mel[None])
        assert clip.label is not None
        folder = place / clip.label.name
        folder.mkdir(parents=True, exist_ok=True)
        write_wave(folder / f"{index:05d}.wav", fit(vocoder(back)[0].numpy(), 88_200), mel.rate)
    return place


def evaluate(folders: list[Path], shared: Path, work: Path) -> list[dict[str, Any]]:
    """Return what `foleybox evaluate` says of folders of sounds against `dev`."""
    data, figures = f"{shared}/data/foley", work / "figures.json"
    foleybox(
        "evaluate", *folders, "--reference", f"{data}:dev", "--floor", f"{data}:train", "--keep-silent", "--json", figures
    )  # fmt: skip
    return json.loads(figures.read_text(encoding="utf-8"))["systems"]


# --- in words -----------------------------------------------------------------------------------------------------


def about_instrument(name: str) -> list[str]:
    """Return (size, how fast 64 clips are rendered, the first clip, clips seen, tiers)."""
    folder = find_instrument(name)
    instrument = read_instrument(folder)
    size = sum(graph.bytes for graph in instrument.graphs.values())
    synth = Synth.load(folder)
    start = time.perf_counter()
    synth.render("rain", 0)
    first = time.perf_counter() - start
    start = time.perf_counter()
    synth.render("rain", 1)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    for _ in synth.render_many(("rain", seed) for seed in range(64)):
        pass
    fast = 64 * instrument.seconds / (time.perf_counter() - start)
    run = instrument.made_with["generator"]
    return [
        f"{size / 1e6:.1f} MB", f"{fast:.0f} x", f"{alone:.2f} s ({first:.2f} s with loading)",
        f"{run['steps'] * run['batch']:,}", ", ".join(run["tiers"]) or "all",
    ]  # fmt: skip


def about_run(run: Path) -> list[str]:
    """Return the same of a run that is no instrument."""
    settings, state = read_run_config(run), run / "state.pt"
    step = read_state(state)["step"]
    return ["-", "-", "-", f"{step * settings['batch']:,}", ", ".join(settings.get("tiers", ())) or "all"]


def rough(clips: list[ClipFile]) -> dict[str, float]:
    """Return by label the roughness of the wide mel of sounds: mean |frame-to-frame difference|."""
    mels = load_mels(clips, WIDE)
    return {
        label.name: float(roughness(mels[[i for i, clip in enumerate(clips) if clip.label == label]]))
        for label in LABELS
    }


def repeated(clips: list[ClipFile]) -> dict[str, float]:
    """Return by label how far sounds repeat themselves (`losses.repetition`), the mean over clips."""
    waves = load_waves(clips, 22_050, 88_200)
    found = torch.cat([repetition(part.float() / 32768) for part in waves.split(16)])
    return {
        label.name: float(found[[i for i, clip in enumerate(clips) if clip.label == label]].mean()) for label in LABELS
    }


def sheet(path: Path, left: list[list[NDArray[np.float32]]], right: list[list[NDArray[np.float32]]]) -> None:
    """Draw a row a label: sounds to the left, real clips to the right."""
    rows = []
    for mine, theirs in zip(left, right, strict=True):
        parts = [np.concatenate([picture(wave, 22_050)[::2, ::2] for wave in side], 1) for side in (mine, theirs)]
        gap = np.full((len(parts[0]), 12, 3), 255, np.uint8)
        rows.append(np.concatenate([parts[0], gap, parts[1]], 1))
    Image.fromarray(np.concatenate(rows)).save(path)


def main(config: Benchmark) -> None:
    config.work.mkdir(parents=True, exist_ok=True)
    folders = {find_instrument(name).name: rendered(name, config) for name in config.instruments}
    runs = {}
    for each in config.sounds:
        folder, _, run = each.partition("=")
        folders[Path(folder).name], runs[Path(folder).name] = Path(folder), Path(run)
    dev, train = (find_clips(f"{config.shared}/data/foley:{split}") for split in ("dev", "train"))
    if config.real_tiers:
        folders[REAL] = real_clips(config, train)
    trips = {}
    if config.vocoder is not None:
        trips["dev through the vocoder"] = round_trip(config, dev, latents=False)
        if config.autoencoder is not None:
            trips["dev through latents and vocoder"] = round_trip(config, dev, latents=True)
    found = evaluate([*folders.values(), *trips.values()], config.shared, config.work)
    records = dict(zip([*folders, *trips], found, strict=True))
    systems = {name: records[name] for name in folders}
    about = {find_instrument(name).name: about_instrument(name) for name in config.instruments}
    about |= {name: about_run(run) for name, run in runs.items()}
    about[REAL] = ["-", "-", "-", "-", ", ".join(config.real_tiers)]
    best = next(iter(folders))
    shown = [
        [[read_wave(path, 22_050)[0] for path in sorted((folders[best] / label.name).glob("*.wav"))[:SHOWN]] for label in LABELS],
        [[read_wave(clip.path, 22_050)[0] for clip in train if clip.label == label][:SHOWN] for label in LABELS],
    ]  # fmt: skip
    sheet(config.out.with_suffix(".png"), *shown)
    heard = {name: find_clips(folder) for name, folder in folders.items()} | {"real `dev`": dev}
    grain = {name: rough(clips) for name, clips in heard.items()}
    again = {name: repeated(clips) for name, clips in heard.items()}
    audit = foleybox(
        "audit", folders[best], "--against", f"{config.shared}/data/foley:train", allowed=(0, 1)
    )  # 1: a copy was found
    command = " ".join(["python benchmarks/systems.py ../shared", *_flags(config)])
    parts = [
        "# All systems side by side",
        f"Written by `{command}` at commit {commit() or 'unknown'}, torch {torch.__version__}, {os.cpu_count()} cores: "
        f"{config.clips} sounds a label, seeds {config.seed} to {config.seed + config.clips - 1}, reference `dev`, embedding "
        "mn04, intervals of 95 % over the sounds; real: `train` clips at the same n.",
        "KT's four systems at equal, smaller budgets are in [kt.md](kt.md); how baseline and cmu-b were trained in "
        "[baseline_cmu_b.md](baseline_cmu_b.md).",
        table(
            [
                "system",
                "size",
                "64 clips, against real time",
                "one clip",
                "clips seen",
                "tiers",
                *(m for m, _ in METRICS),
            ],
            [
                [name, *about[name], *(figure(record["mean"], *each) for each in METRICS)]
                for name, record in systems.items()
            ],
        ),
        "## FD by label",
        by_label(systems, "frechet", 1),
        "## Heard as its label by the tagger",
        by_label(systems, "accuracy", 2),
        "## Coverage",
        by_label(systems, "coverage", 2),
        "## Roughness: mean |frame-to-frame difference| of the log-mel",
        table(
            ["label", *grain],
            [[label.name, *(f"{each[label.name]:.3f}" for each in grain.values())] for label in LABELS],
        ),
        "## Repetition: largest autocorrelation at lags of 9 to 91 ms, the spectrum made even",
        "Noise has next to none; noise that a vocoder makes of one pattern buzzes, and no distance of mels hears it.",
        table(
            ["label", *again],
            [[label.name, *(f"{each[label.name]:.3f}" for each in again.values())] for label in LABELS],
        ),
        "## What mel, latents and vocoder cost",
        by_label({name: records[name] for name in trips}, "frechet", 1) if trips else "Not measured.",
        f"## `{best}` to the left, real `train` clips to the right",
        f"![{SHOWN} sounds a label, and {SHOWN} real clips]({config.out.with_suffix('.png').name})",
        f"## Audit of `{best}` against all `train` clips",
        f"```\n{audit}\n```",
    ]
    seen = config.out.with_name(f"{config.out.stem}_seen.md")
    if seen.is_file():
        parts.append(seen.read_text(encoding="utf-8").rstrip())
    write_text(config.out, "\n\n".join(parts) + "\n")
    print(parts[3])


def _flags(config: Benchmark) -> list[str]:
    flags = ["--instruments", *(find_instrument(name).name for name in config.instruments)]
    if config.sounds:
        flags += ["--sounds", *config.sounds]
    for name in ("autoencoder", "vocoder"):
        if getattr(config, name) is not None:
            flags += [f"--{name}", str(getattr(config, name))]
    return flags


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except (UserError, subprocess.CalledProcessError) as error:
        sys.exit(f"systems: {error}")
