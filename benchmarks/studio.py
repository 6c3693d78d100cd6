"""What the studio costs: start, speed, memory, how far a clip in a batch is from itself alone, and what verify says.

python benchmarks/studio.py [--instrument FOLDER] [--jobs 1000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from foleybox.commands.verify import find_sounds, verify_files
from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth, cores

CLIPS = 64
RUNS = 5


def start_time(*arguments: str) -> float:
    """Return the median seconds of a new Python process, from the shell's view."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def jobs(source: list[str], clips: int) -> dict[str, float]:
    """Make a table of clips in a new process, all labels in turn, trimmed and loudness set; return speed and memory."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "jobs.csv"
        labels = Synth.load(source[-1] if source else None).labels
        table.write_text("label,count\n" + "".join(f"{label},{-(-clips // len(labels))}\n" for label in labels))
        command = [sys.executable, "-m", "foleybox", "jobs", str(table), "-o", folder, "--lufs", "-23", *source]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        made = len(find_sounds((Path(folder),)))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"clips": made, "seconds": seconds, "peak MB": peak / 1e6}


def verified(source: str | None, files: int) -> dict[str, int]:
    """Make files as other machines would, on other threads and in other batches, and count the verdicts of verify."""
    with tempfile.TemporaryDirectory() as folder:
        for threads, batch in ((1, 8), (2, 1), (2, 25), (4, 3)):
            synth = Synth.load(source, threads)
            pairs = [
                (synth.labels[seed % len(synth.labels)], 1000 * threads + 100 * batch + seed)
                for seed in range(files // 4)
            ]
            for clip in synth.render_many(pairs, batch):
                clip.save(Path(folder) / f"{clip.label}_s{clip.seed}.wav")
        counts: dict[str, int] = {}
        for found in verify_files(find_sounds((Path(folder),)), source):
            counts[found.verdict] = counts.get(found.verdict, 0) + 1
    return counts


def cold_start(source: list[str]) -> float:
    """Return the median seconds of `foleybox generate` of one sound, from the shell's view, in a new process."""
    times = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "foleybox", "generate", "dog_bark", "-o", folder, *source]
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def render(source: str | None, batch: int) -> dict[str, float]:
    """Render 64 clips in this process; run in a new one, so that the peak memory is theirs alone."""
    synth = Synth.load(source)
    synth.render(synth.labels[0], 0)  # the first run makes plans and buffers
    pairs = [(synth.labels[seed % len(synth.labels)], seed) for seed in range(CLIPS)]
    start = time.perf_counter()
    for _ in synth.render_many(pairs, batch=batch):
        pass
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"x real time": CLIPS * synth.instrument.seconds / seconds, "peak MB": peak / 1e6}


def graph_times(synth: Synth) -> dict[str, float]:
    """Return x real time of the vocoder and of all before it, alone, 8 clips at once, the median of five runs."""
    latent = np.stack([noise(seed, synth.instrument.latent) for seed in range(8)])
    labels = [synth.labels[0]] * 8
    mel = synth.mel(labels, latent)
    found = {}
    for name, work in {
        "generator": lambda: synth.mel(labels, latent),
        "vocoder": lambda: list(synth.vocode(mel)),
    }.items():
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        found[name] = 8 * synth.instrument.seconds / float(np.median(times))
    return found


def batch_steps(synth: Synth) -> float:
    """Return the largest difference between clips in a batch of 64 and alone, in 16-bit steps."""
    pairs = [(synth.labels[seed % len(synth.labels)], seed) for seed in range(CLIPS)]
    together = synth.render_many(pairs, batch=CLIPS)
    return max(float(np.abs(clip.wave - synth.render(*pair).wave).max()) for pair, clip in zip(pairs, together)) * 2**15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instrument", default=None)
    parser.add_argument("--batch", type=int, default=None, help="(used by the benchmark itself)")
    parser.add_argument("--jobs", type=int, default=1000, help="clips through `foleybox jobs`")
    parser.add_argument("--jobs-alone", type=int, default=None, help="(used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.batch:
        print(json.dumps(render(arguments.instrument, arguments.batch)))
        return
    if arguments.jobs_alone:
        print(
            json.dumps(
                jobs(["--instrument", arguments.instrument] if arguments.instrument else [], arguments.jobs_alone)
            )
        )
        return
    source = ["--instrument", arguments.instrument] if arguments.instrument else []
    synth = Synth.load(arguments.instrument)
    made, load = synth.instrument, os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{made.name} {made.version}, {sum(graph.bytes for graph in made.graphs.values()) / 1e6:.1f} MB")
    print(f"{cores()} cores, load before the run {load:.1f}")
    for what, command in (
        ("import foleybox", ["-c", "import foleybox"]),
        ("foleybox --help", ["-m", "foleybox", "--help"]),
    ):
        print(f"`{what}`, a new process                     {start_time(*command):8.2f} s      (target: under 0.3)")
    print(f"cold `foleybox generate dog_bark`, to its WAV       {cold_start(source):8.2f} s      (target: under 2)")
    for batch in (1, 8, CLIPS):
        command = [sys.executable, str(Path(__file__)), "--batch", str(batch), *source]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{CLIPS} clips, {batch:2} at once                               {found['x real time']:8.0f} x real time, "
            f"peak {found['peak MB']:.0f} MB   (target: 20 x, under 1,000 MB)"
        )
    for name, speed in graph_times(synth).items():
        target = "   (target: 100 x)" if name == "vocoder" else ""
        print(f"{name:10} alone, 8 at once                       {speed:8.0f} x real time{target}")
    print(
        f"a clip alone against itself in a batch of {CLIPS}        {batch_steps(synth):8.3f} 16-bit steps (target: 1)"
    )
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verified(arguments.instrument, 100).items())
    print(f"verify, 100 files of other threads and batches      {counts}   (target: within one step)")
    for clips in dict.fromkeys((min(100, arguments.jobs), arguments.jobs)):
        command = [sys.executable, str(Path(__file__)), "--jobs-alone", str(clips), *source]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        speed = found["clips"] * made.seconds / found["seconds"]
        print(
            f"{found['clips']:5} clips through `foleybox jobs`                 {speed:8.0f} x real time, "
            f"peak {found['peak MB']:.0f} MB   (target: 20 x, flat)"
        )


if __name__ == "__main__":
    main()
