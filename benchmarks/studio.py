"""What the studio costs: cold start, speed, memory, and how far a clip in a batch is from itself alone.

python benchmarks/studio.py [--instrument FOLDER]
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

from foleybox.studio.seeds import noise
from foleybox.studio.synth import Synth, cores

CLIPS = 64
RUNS = 5


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
    """Return x real time of each graph alone, 8 clips at once, the median of five runs."""
    latent = np.stack([noise(seed, synth.instrument.latent) for seed in range(8)])
    inputs = {"generator": {"latent": latent, "label": np.zeros(8, np.int64)}}
    inputs["vocoder"] = {"mel": synth._run("generator", inputs["generator"])}
    found = {}
    for name, feed in inputs.items():
        times = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            synth._run(name, feed)
            times.append(time.perf_counter() - start)
        found[name] = 8 * synth.instrument.seconds / float(np.median(times[1:]))
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
    arguments = parser.parse_args()
    if arguments.batch:
        print(json.dumps(render(arguments.instrument, arguments.batch)))
        return
    source = ["--instrument", arguments.instrument] if arguments.instrument else []
    synth = Synth.load(arguments.instrument)
    made, load = synth.instrument, os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{made.name} {made.version}, {sum(graph.bytes for graph in made.graphs.values()) / 1e6:.1f} MB")
    print(f"{cores()} cores, load before the run {load:.1f}")
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


if __name__ == "__main__":
    main()
