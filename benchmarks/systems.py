"""Write results/systems.md: every system beside every other, by label, with what real clips score.

python benchmarks/systems.py ../shared --instruments foley-small sagan-small --sounds runs/b-work/baseline=runs/b/baseline-snail

An instrument is one that ships, by name, or a folder; it is rendered here and timed. Sounds of systems that are no
instruments are folders that `benchmarks/baseline_cmu_b.py` left, each with the run that drew them. All that was measured is
kept in results/systems.json, of which the page is made: a command measures the systems that it names and no others.
Without any (`--instruments --sounds`) the page is written anew.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from kt import METRICS, ROOT, figure, table
from numpy.typing import NDArray
from PIL import Image

from foleybox import cli
from foleybox.audio import fit, read_wave, write_wave
from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.instrument import find_instrument, read_instrument
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips, load_waves
from foleybox.lab.core.losses import roughness
from foleybox.lab.core.mel import WIDE
from foleybox.lab.core.runs import read_run_config, read_state
from foleybox.lab.export.export import commit
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.vocoders.losses import repetition
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS
from foleybox.studio.sheet import spectrogram
from foleybox.studio.synth import Synth

REAL = "licensed-real-clips"
SHOWN = 12  # sounds of a label on the contact sheet


@dataclass(frozen=True)
class Benchmark:
    """Measure systems side by side and write the page."""

    shared: tyro.conf.Positional[Path]
    "folder with data/foley and weights"
    instruments: tuple[str, ...] = ("foley-small", "sagan-small")
    "instruments that ship, or their folders"
    shown: str = "foley-small"
    "the instrument that is drawn on the contact sheet, where it is among those"
    sounds: tuple[str, ...] = ()
    "FOLDER=RUN: sounds, and the run that drew them"
    autoencoder: Path | None = None
    "run folder: also measure the round trip of real clips through latents and vocoder"
    vocoder: Path | None = None
    "run folder of the wide-band vocoder: also measure the round trip of real clips"
    real_tiers: tuple[str, ...] = ("open", "open-clip", "nc")
    "also measure real `train` clips of these tiers, as if a system had made them: what shipped instruments could learn from"
    what: dict[str, str] = field(default_factory=dict)
    "NAME WORDS ...: what the page says a system is"
    audited: tuple[str, ...] = ()
    "instruments whose sounds are audited for copies; default: the first"
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


def sounds_of(name: str | Path, work: Path, clips: int, seed: int) -> Path:
    """Return the folder of an instrument's sounds, made anew unless they are whole and of this very instrument."""
    folder = find_instrument(name)
    place = work / folder.name
    note, made_of = place.with_suffix(".txt"), f"{read_instrument(folder).fingerprint} {clips} {seed}"
    if not note.is_file() or note.read_text(encoding="utf-8") != made_of:
        foleybox("generate", "all", "--instrument", folder, "-n", clips, "--seed", seed, "-o", place, "--force")
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


COLUMNS = {
    "size": "size",
    "fast": "64 clips, against real time",
    "alone": "one clip",
    "seen": "clips seen",
    "tiers": "tiers",
}


def about_instrument(name: str) -> dict[str, str]:
    """Return what the page says of an instrument beside what is measured, by column."""
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
    times = f"{fast:.0f} x", f"{alone:.2f} s ({first:.2f} s with loading)"
    return dict(zip(COLUMNS, (f"{size / 1e6:.1f} MB", *times, seen(run), tiers(run)), strict=True))


def seen(run: dict[str, Any]) -> str:
    """Return how many clips the generator has seen, those of the runs that it started from included."""
    return f"{run.get('seen_before', 0) + run['steps'] * run['batch']:,}"


def tiers(run: dict[str, Any]) -> str:
    return ", ".join(run.get("tiers", ())) or "all"


def about_run(run: Path) -> dict[str, str]:
    """Return the same of a run that is no instrument."""
    settings = read_run_config(run) | {"steps": read_state(run / "state.pt")["step"]}
    return dict.fromkeys(COLUMNS, "-") | {"seen": seen(settings), "tiers": tiers(settings)}


def by_label(
    clips: list[ClipFile], found: torch.Tensor, number: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, float]:
    """Return a number of what was found of the clips [N, ...] of each label."""
    return {
        label.name: float(number(found[[i for i, clip in enumerate(clips) if clip.label == label]])) for label in LABELS
    }


def without_reference(clips: list[ClipFile]) -> dict[str, dict[str, float]]:
    """Return by label what is measured of sounds alone.

    The roughness of their wide mels, mean |frame-to-frame difference|; the mean over clips of how far they repeat themselves
    (`losses.repetition`); the median over clips of `attacks`.
    """
    waves = load_waves(clips, 22_050, 88_200)
    repeated = torch.cat([repetition(part.float() / 32768) for part in waves.split(16)])
    return {
        "roughness": by_label(clips, load_mels(clips, WIDE), roughness),
        "repetition": by_label(clips, repeated, torch.mean),
        "attacks": by_label(clips, attacks(waves), torch.median),
    }


def attacks(waves: torch.Tensor, ms: int = 22) -> torch.Tensor:
    """Return how far the level of each wave, int16 [N, L], rises at its sharpest attack, in dB [N].

    Of the differenced wave (so that a rumble does not count), the mean power of 5 ms over that of the 25 ms before, where the
    5 ms are within 13 dB of the loudest one. `ms`: samples in one.
    """
    steps = waves.float().diff(dim=1) / 32768
    power = steps[:, : steps.shape[1] // ms * ms].unflatten(1, (-1, ms)).square().mean(2).double() + 1e-10
    sums = torch.nn.functional.pad(power.cumsum(1), (1, 0))
    place = torch.arange(25, power.shape[1] - 5)
    after, before = (sums[:, place + 5] - sums[:, place]) / 5, (sums[:, place] - sums[:, place - 25]) / 25
    rise = 10 * torch.log10(after / before).where(after > 0.05 * power.amax(1, keepdim=True), -torch.inf)
    return rise.amax(1)


def sheet(path: Path, left: list[list[NDArray[np.float32]]], right: list[list[NDArray[np.float32]]]) -> None:
    """Draw a row a label: sounds to the left, real clips to the right."""
    rows = []
    for mine, theirs in zip(left, right, strict=True):
        parts = [np.concatenate([spectrogram(wave, 22_050)[::2, ::2] for wave in side], 1) for side in (mine, theirs)]
        gap = np.full((len(parts[0]), 12, 3), 255, np.uint8)
        rows.append(np.concatenate([parts[0], gap, parts[1]], 1))
    Image.fromarray(np.concatenate(rows)).save(path)


# --- what was measured, kept ----------------------------------------------------------------------------------------

Store = dict[str, Any]


def read_store(path: Path) -> Store:
    """Return what earlier commands measured: the page is made of it, and a system whose run is gone keeps its row."""
    if not path.is_file():
        return {"systems": {}, "trips": {}, "real": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def kept(record: dict[str, Any]) -> dict[str, Any]:
    """Return those figures of a record that the page shows, to four digits."""

    def short(part: dict[str, Any]) -> dict[str, Any]:
        figures = {name: part["figures"][name] for name, _ in METRICS}
        return {
            "figures": {
                name: {key: None if value is None else float(f"{value:.4g}") for key, value in each.items()}
                for name, each in figures.items()
            }
        }

    return {"mean": short(record["mean"]), "labels": {slug: short(part) for slug, part in record["labels"].items()}}


def floors(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return what real clips score at the n of a record: by label, and in the mean, each metric."""
    parts = {**record["labels"], "mean": record["mean"]}
    return {
        name: {metric: float(f"{part['figures'][metric]['floor']:.4g}") for metric, _ in METRICS}
        for name, part in parts.items()
    }


def measure(config: Benchmark, store: Store) -> None:
    """Render, evaluate and audit what the command names, and put it into the store, in place of what was there."""
    config.work.mkdir(parents=True, exist_ok=True)
    folders = {
        find_instrument(name).name: sounds_of(name, config.work, config.clips, config.seed)
        for name in config.instruments
    }
    about = {find_instrument(name).name: about_instrument(name) for name in config.instruments}
    for each in config.sounds:
        folder, _, run = each.partition("=")
        folders[Path(folder).name], about[Path(folder).name] = Path(folder), about_run(Path(run))
    dev, train = (find_clips(f"{config.shared}/data/foley:{split}") for split in ("dev", "train"))
    if config.real_tiers:
        folders[REAL] = real_clips(config, train)
        about[REAL] = dict.fromkeys(COLUMNS, "-") | {"tiers": ", ".join(config.real_tiers)}
    trips = {}
    if config.vocoder is not None:
        trips["dev through the vocoder"] = round_trip(config, dev, latents=False)
        if config.autoencoder is not None:
            trips["dev through latents and vocoder"] = round_trip(config, dev, latents=True)
    records = evaluate([*folders.values(), *trips.values()], config.shared, config.work)
    command = " ".join(["python benchmarks/systems.py ../shared", *_flags(config)])
    made = {"commit": commit() or "unknown", "clips": config.clips, "seed": config.seed, "command": command}
    store["floor"] = floors(records[0])
    for (name, folder), record in zip(folders.items(), records):
        numbers = {"record": kept(record), **without_reference(find_clips(folder))}
        what = store["systems"].get(name, {}).get("what", "-")
        store["systems"][name] = {**made, "about": about[name], "what": what, **numbers}
    for name, record in zip(trips, records[len(folders) :], strict=True):
        store["trips"][name] = made | {"record": kept(record)}
    store["real"] = without_reference(dev)
    store["command"] = command
    if config.shown in folders:
        store["shown"] = config.shown
        drawn = {label: sorted((folders[config.shown] / label.name).glob("*.wav")) for label in LABELS}
        real = {label: [clip.path for clip in train if clip.label == label] for label in LABELS}
        shown = [
            [[read_wave(path, 22_050)[0] for path in paths[:SHOWN]] for paths in side.values()]
            for side in (drawn, real)
        ]
        sheet(config.out.with_suffix(".png"), *shown)
    for name in (Path(each).name for each in config.audited or config.instruments[:1]):
        printed = foleybox("audit", folders[name], "--against", f"{config.shared}/data/foley:train", allowed=(0, 1))
        store["systems"][name]["audit"] = printed  # exit code 1: a copy was found


# --- the page -------------------------------------------------------------------------------------------------------


def across(systems: dict[str, dict[str, Any]], floor: dict[str, dict[str, float]], metric: str, digits: int) -> str:
    """Lay a metric out: a row a system, a column a label, the last row what 100 real `train` clips score."""
    rows = []
    for name, system in systems.items():
        parts = [system["record"]["labels"].get(label.slug, {"figures": {}}) for label in LABELS]
        if any(metric in part["figures"] for part in parts):
            rows.append([name, *(figure(part, metric, digits) for part in [*parts, system["record"]["mean"]])])
    real = [
        "real `train`",
        *(f"{floor[name][metric]:.{digits}f}" for name in [*(label.slug for label in LABELS), "mean"]),
    ]
    return table(["system", *(label.name for label in LABELS), "mean of 7"], [*rows, real])


def plainly(systems: dict[str, dict[str, Any]], real: dict[str, Any], number: str, digits: int = 3) -> str:
    """Lay out a number that has no interval."""
    rows = [
        [name, *(f"{each[number][label.name]:.{digits}f}" for label in LABELS)]
        for name, each in [*systems.items(), ("real `dev`", real)]
        if number in each
    ]
    return table(["system", *(label.name for label in LABELS)], rows)


def page(store: Store, picture_name: str) -> str:
    """Return the page of what was measured, systems from near to far; nothing is worked out anew."""
    systems = dict(
        sorted(store["systems"].items(), key=lambda item: item[1]["record"]["mean"]["figures"]["frechet"]["value"])
    )
    first = store["shown"]
    audits = {name: system["audit"] for name, system in systems.items() if "audit" in system}
    parts = [
        "# All systems side by side",
        f"Written from [systems.json](systems.json), to which `{store['command']}` was the last to add. 100 sounds a label, "
        "seeds 0 to 99, reference `dev`, embedding mn04, intervals of 95 % over the sounds; real: 100 `train` clips a label, the "
        "mean of 20 draws. "
        "The commit is the one at which the row was measured; a system whose run is gone keeps its row, with the digits that "
        "its page had. Intervals of precision, recall and coverage in rows of 259ac6d and before are a bootstrap's, half to two "
        "thirds as wide as other sets would scatter; later ones are right ([measure.md](../docs/measure.md)). Clips seen: by the "
        "generator, as often as they were in a batch, those of the runs that it started from included.",
        table(
            ["system", *COLUMNS.values(), *(metric for metric, _ in METRICS), "commit", "what it is"],
            [
                [
                    name,
                    *(system["about"][column] for column in COLUMNS),
                    *(figure(system["record"]["mean"], *each) for each in METRICS),
                    system["commit"],
                    system["what"],
                ]
                for name, system in systems.items()
            ],
        ),
        "## FD by label",
        across(systems, store["floor"], "frechet", 1),
        "## TrainingClips as its label by the tagger",
        across(systems, store["floor"], "accuracy", 2),
        "## Coverage",
        across(systems, store["floor"], "coverage", 2),
        "## Roughness: mean |frame-to-frame difference| of the log-mel",
        plainly(systems, store["real"], "roughness"),
        "## Repetition: largest autocorrelation at lags of 9 to 91 ms, the spectrum made even",
        "Noise has next to none; noise that a vocoder makes of one pattern buzzes, and no distance of mels hears it.",
        plainly(systems, store["real"], "repetition"),
        "## Attacks: by how many dB the level rises where it rises most, 5 ms against the 25 ms before",
        "A vocoder that begins a click before it sounds has less; no distance of mels minds. The median of the clips.",
        plainly(systems, store["real"], "attacks", 1),
        "## What mel, latents and vocoder cost",
        across(store["trips"], store["floor"], "frechet", 1),
        "The same, heard as their label by the tagger:",
        across(store["trips"], store["floor"], "accuracy", 2),
        f"## `{first}` to the left, real `train` clips to the right",
        f"![{SHOWN} sounds a label, and {SHOWN} real clips]({picture_name})",
        "## Commands",
        "Of rows that are not here the page that they name has it; before 2026-11-29 only the last command was kept.",
        "\n".join(f"* `{name}`: `{system['command']}`" for name, system in systems.items() if "command" in system),
        *(f"## Audit of `{name}` against all `train` clips\n\n```\n{audit}\n```" for name, audit in audits.items()),
    ]
    return "\n\n".join(parts) + "\n"


def main(config: Benchmark) -> None:
    store = read_store(path := config.out.with_suffix(".json"))
    if config.instruments or config.sounds:
        measure(config, store)
    for name, words in config.what.items():
        store["systems"][name]["what"] = words
    if config.instruments or config.sounds or config.what:
        write_text(path, json.dumps(store, indent=1) + "\n")
    seen = config.out.with_name(f"{config.out.stem}_seen.md")
    words = "\n" + seen.read_text(encoding="utf-8").rstrip() + "\n" if seen.is_file() else ""
    write_text(config.out, page(store, config.out.with_suffix(".png").name) + words)


def _flags(config: Benchmark) -> list[str]:
    flags = ["--instruments", *(find_instrument(name).name for name in config.instruments)]
    for name in ("shown", "sounds", "autoencoder", "vocoder", "real_tiers", "audited"):
        value = getattr(config, name)
        if value != getattr(Benchmark, name):
            flags += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (str(value),))]
    return flags


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except (UserError, subprocess.CalledProcessError) as error:
        sys.exit(f"systems: {error}")
