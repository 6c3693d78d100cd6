"""Write results/perform.md: time, memory and accuracy of scenes, packs and loops, with scene.png and loop.png.

python benchmarks/perform.py results

A scene of ten minutes with 2,000 events of three labels, without and with rain; times of onsets; a pack; two loops.
"""

import csv
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure as Plot

from foleybox.audio import read_wave
from foleybox.files import write_text
from foleybox.lab.evaluation.tables import table
from foleybox.studio.events import Event
from foleybox.studio.loop import FADE, loop_source, looped, measure_seam, steady_clip
from foleybox.studio.onsets import find_onsets
from foleybox.studio.scene import Style, perform
from foleybox.studio.seeds import noise
from foleybox.studio.spectra import band_levels, flux
from foleybox.studio.synth import Synth, cores
from foleybox.version import commit

LABELS = ("Footstep", "Keyboard", "GunShot")
APART = 3.5  # seconds


def onset_list(path: Path, minutes: float, events: int) -> None:
    """Write so many events at random times (seed 0), most of them footsteps, with random velocities."""
    draws = noise(0, (events, 3))
    # The logistic function maps normal numbers to about uniform ones between 0 and 1.
    place, kind, hit = (1 / (1 + np.exp(-1.7 * draws.astype(float)))).T
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "label", "velocity"])
        for at, which, velocity in zip(np.sort(place) * minutes * 60, kind, hit):
            writer.writerow([f"{at:.4f}", LABELS[int(which > 0.7) + int(which > 0.95)], f"{0.2 + 0.8 * velocity:.3f}"])


def apart_list(path: Path) -> None:
    """Write 64 events of each label, 3.5 s apart: each has decayed before the next, so that its onset can be measured."""
    rows = [f"{place * APART},{label},{0.3 + 0.1 * (place % 8):.1f}" for place in range(64) for label in LABELS]
    path.write_text("\n".join(["time,label,velocity", *rows]) + "\n", encoding="utf-8")


def run(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Return the seconds of a foleybox command, those of its processor time, and the peak MB of all commands so far."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "foleybox", *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def misses(stem: Path) -> list[float]:
    """Return the distance in ms of each time of `apart_list` to the nearest onset."""
    wave, rate = read_wave(stem)
    found = []
    for place in range(64):
        first = max(0, round((place * APART - 0.1) * rate))
        onsets = [first + each.sample for each in find_onsets(wave[first : first + round(APART * rate)], rate)]
        found.append(min((abs(onset / rate - place * APART) for onset in onsets), default=np.inf) * 1000)
    return found


def draw(out: Path, synth: Synth) -> None:
    """Draw a scene with its onsets over the waveform (scene.png), and a loop's seam (loop.png)."""
    steps = [0.4, 0.95, 1.5, 2.02, 2.55, 3.1, 3.6]
    events = [Event(at, "footstep", 0.5 + 0.08 * place) for place, at in enumerate(steps)]
    events += [Event(1.2, "dog_bark"), Event(1.55, "dog_bark", 0.6), Event(2.9, "gunshot")]
    scene = perform(synth, events, surfaces={"rain": [(0, 0.05), (4.5, 0.6)]}, seed=1, style=Style(amount=0.4))
    names = ("mix", *scene.stems)
    figure = Plot(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True)
    for axis, name in zip(axes, names):
        clip = scene.mix() if name == "mix" else scene.stem(name)
        axis.plot(np.arange(len(clip.wave)) / clip.rate, clip.wave, lw=0.4, color="#2b6cb0")
        for event in scene.markers(None if name == "mix" else name):
            axis.axvline(event.time, color="#c53030", lw=0.8)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("seconds (red: the requested times)")
    figure.savefig(out / "scene.png", dpi=80)

    figure = Plot(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, label in enumerate(("Rain", "MovingMotorVehicle")):
        loop, wrap = looped(loop_source(synth, steady_clip(synth, label, 0), 2.0), 2.0)
        seam = measure_seam(loop.wave, loop.rate, wrap.fade)
        twice = np.tile(loop.wave, 2)
        seconds = (np.arange(len(twice)) - len(loop.wave)) / loop.rate
        axes[0, column].plot(seconds, twice, lw=0.3, color="#2b6cb0")
        axes[0, column].set_title(f"{label}: flux {seam.wrap:.2f} dB at the wrap, {seam.inside:.2f} dB inside")
        rises = flux(band_levels(twice, loop.rate))
        axes[1, column].plot(np.arange(len(rises)) * 0.01 - len(loop.wave) / loop.rate, rises, lw=0.8, color="#2b6cb0")
        axes[1, column].axhline(seam.inside, color="#718096", lw=0.8, ls="--")
        axes[1, column].set_xlabel("seconds from the wrap (red: the crossfade)")
        for axis in axes[:, column]:
            axis.axvspan(0, FADE, color="#c53030", alpha=0.15, lw=0)
            axis.set_xlim(-1, 1)
        axes[1, column].set_ylim(0, 1.5 * seam.inside)
    axes[1, 0].set_ylabel("flux, dB")
    figure.savefig(out / "loop.png", dpi=80)


@dataclass(frozen=True)
class Scenes:
    """Measure scenes, a pack and loops, write the page."""

    out: tyro.conf.Positional[Path] = Path("results")
    "the folder of the page and its pictures"
    instrument: str | None = None
    "a folder; default: the default instrument"
    minutes: float = 10
    "of the scene"
    events: int = 2000
    "in the scene"


def figures(config: Scenes) -> list[list[str]]:
    """Return rows of what was measured: what, the figure, the target."""
    source = ["--instrument", str(Path(config.instrument).resolve())] if config.instrument else []
    rows, peaks = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onset_list(folder / "onsets.csv", config.minutes, config.events)
        alone = f"scene of {config.minutes:g} minutes, {config.events:,} events of three labels"
        for what, flags in ((alone, []), ("the same and a surface of rain", ["--surface", "rain=0.5"])):
            seconds, busy, peak = run(["perform", "onsets.csv", "-o", f"scene{len(flags)}", *flags, *source], folder)
            rows.append([what, f"{seconds:.1f} s ({busy:.1f} s of processor time)", "60 s"])
            peaks.append(f"{peak:.0f}")
        rows.append(["peak memory, events alone / with rain", f"{' / '.join(peaks)} MB", "1,000 MB"])
        apart_list(folder / "apart.csv")
        run(["perform", "apart.csv", "-o", "apart", *source], folder)
        for label in LABELS:
            found = misses(folder / "apart" / "stems" / f"{label}.wav")
            what = f"onsets of {len(found)} {label} events, {APART:g} s apart: largest error of their times"
            rows.append([what, f"{max(found):.2f} ms", "5 ms"])
        run(["pack", "footstep", "--count", "50", "-o", "pack", *source], folder)
        with (folder / "pack" / "manifest.csv").open(encoding="utf-8") as file:
            pack = list(csv.DictReader(file))
        lufs, tops = ([float(row[column]) for row in pack] for column in ("lufs", "true_peak_db"))
        loudness = f"{min(lufs):.2f} to {max(lufs):.2f} LUFS"
        rows.append([f"pack of {len(pack)} footsteps: loudness of the events", loudness, "-23 +-0.5"])
        rows.append(["the same: highest true peak", f"{max(tops):.2f} dBTP", "-1"])
    return rows


def main(config: Scenes) -> int:
    """Write the page and its pictures."""
    load, synth = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"), Synth.load(config.instrument)
    made, rows = synth.instrument, figures(config)
    draw(config.out, synth)
    command = shlex.join(["python", "benchmarks/perform.py", *sys.argv[1:]])
    page = f"""# Scenes, loops and packs: time, memory, accuracy

Written by `{command}` at commit {commit() or "unknown"}: instrument `{made.name}` {made.version}, seed 0 (of the
scene and of the event list), Python {platform.python_version()}, onnxruntime {version("onnxruntime")}, {cores()} cores (load
before: {load:.1f}).

{table(["what", "measured", "target"], rows)}

An onset is found in the finished stem by the detector that also takes onsets from recordings (`studio/onsets.py`);
`tests/test_onsets.py` checks that it finds known clicks within 5 ms, `tests/test_scene.py` that every event of a random list
lies within 5 ms of its time, on an instrument whose onsets are known.

![a scene: the requested times over the waveforms of the mix and its stems](scene.png)

![two loops: a second on either side of the wrap, and the flux there](loop.png)
"""
    write_text(config.out / "perform.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Scenes)))
