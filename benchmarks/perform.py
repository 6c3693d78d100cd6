"""What a scene costs: ten minutes with 2,000 events of three labels and rain under them; where its rises lie; a pack.

python benchmarks/perform.py [--instrument FOLDER] [--minutes 10] [--events 2000]
python benchmarks/perform.py --pictures results
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from foleybox.audio import read_wave
from foleybox.studio.onsets import find_onsets
from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth, cores

LABELS = ("Footstep", "Keyboard", "GunShot")
APART = 3.5  # seconds


def onset_list(path: Path, minutes: float, events: int) -> None:
    """Write so many events at random times (seed 0), most of them footsteps, with random velocities."""
    draws = noise(0, (events, 3))
    # A normal number as a place between 0 and 1: its logistic function, which is near enough.
    place, kind, hit = (1 / (1 + np.exp(-1.7 * draws.astype(float)))).T
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "label", "velocity"])
        for at, which, velocity in zip(np.sort(place) * minutes * 60, kind, hit):
            writer.writerow([f"{at:.4f}", LABELS[int(which > 0.7) + int(which > 0.95)], f"{0.2 + 0.8 * velocity:.3f}"])


def apart_list(path: Path) -> None:
    """Write 64 events of each label, 3.5 s apart: each has died away before the next, so that its rise can be measured."""
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
    """Return how far the rise nearest to each time of `apart_list` is from it, in ms."""
    wave, rate = read_wave(stem)
    found = []
    for place in range(64):
        first = max(0, round((place * APART - 0.1) * rate))
        rises = [first + each.sample for each in find_onsets(wave[first : first + round(APART * rate)], rate)]
        found.append(min((abs(rise / rate - place * APART) for rise in rises), default=np.inf) * 1000)
    return found


def draw(out: Path) -> None:
    """Draw a scene with its onsets over the waveform (scene.png), and a loop's seam (loop.png)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from foleybox.studio.events import Event
    from foleybox.studio.loop import FADE, looped, material, measure_seam, steady_clip
    from foleybox.studio.scene import Style, perform
    from foleybox.studio.spectra import band_levels, flux

    synth = Synth.load()
    steps = [0.4, 0.95, 1.5, 2.02, 2.55, 3.1, 3.6]
    events = [Event(at, "footstep", 0.5 + 0.08 * place) for place, at in enumerate(steps)]
    events += [Event(1.2, "dog_bark"), Event(1.55, "dog_bark", 0.6), Event(2.9, "gunshot")]
    scene = perform(synth, events, surfaces={"rain": [(0, 0.05), (4.5, 0.6)]}, seed=1, style=Style(amount=0.4))
    names = ("mix", *scene.stems)
    figure, axes = plt.subplots(len(names), 1, figsize=(11, 7), sharex=True, constrained_layout=True)
    for axis, name in zip(axes, names):
        clip = scene.mix() if name == "mix" else scene.stem(name)
        axis.plot(np.arange(len(clip.wave)) / clip.rate, clip.wave, lw=0.4, color="#2b6cb0")
        for event in scene.markers(None if name == "mix" else name):
            axis.axvline(event.time, color="#c53030", lw=0.8)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("seconds (red: the times that were asked for)")
    figure.savefig(out / "scene.png", dpi=80)

    figure, axes = plt.subplots(2, 2, figsize=(11, 5), constrained_layout=True)
    for column, label in enumerate(("Rain", "MovingMotorVehicle")):
        loop, wrap = looped(material(synth, steady_clip(synth, label, 0), 2.0), 2.0)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, default=None, help="draw into this folder, and no more")
    parser.add_argument("--instrument", default=None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--events", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.pictures:
        draw(arguments.pictures)
        return
    source = ["--instrument", str(Path(arguments.instrument).resolve())] if arguments.instrument else []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{cores()} cores, load before the run {load:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onset_list(folder / "onsets.csv", arguments.minutes, arguments.events)
        for what, flags in (("events alone", []), ("and a surface of rain", ["--surface", "rain=0.5"])):
            seconds, busy, peak = run(["perform", "onsets.csv", "-o", f"scene{len(flags)}", *flags, *source], folder)
            print(
                f"{arguments.minutes:g} min, {arguments.events:,} events, {what:21} {seconds:5.1f} s ({busy:.1f} s of processor "
                f"time), peak {peak:.0f} MB   (target: 60 s, 1,000 MB)"
            )
        apart_list(folder / "apart.csv")
        run(["perform", "apart.csv", "-o", "apart", *source], folder)
        for label in LABELS:
            found = misses(folder / "apart" / "stems" / f"{label}.wav")
            print(f"{label:10} rises of {len(found)} events within {max(found):.2f} ms of their times (target: 5)")
        seconds, _, _ = run(["pack", "footstep", "--count", "50", "-o", "pack", *source], folder)
        with (folder / "pack" / "manifest.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lufs, peaks = ([float(row[column]) for row in rows] for column in ("lufs", "true_peak_db"))
        print(
            f"pack of {len(rows)} footsteps in {seconds:.1f} s: {min(lufs):.2f} to {max(lufs):.2f} LUFS (target: -23 +-0.5), "
            f"true peak {max(peaks):.2f} dBTP at most (ceiling: -1)"
        )


if __name__ == "__main__":
    main()
