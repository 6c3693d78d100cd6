"""Speed and memory of evaluation: embedding, distances, intervals, the audit's correlations, sets of any size.

Run from the repository root:

    PYTHONPATH=src python benchmarks/evaluation.py ../shared/data/foley:train --clips 700
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from foleybox.audio import write_wave
from foleybox.lab.core.clips import find_clips, load_waves
from foleybox.lab.evaluation import embeddings, report
from foleybox.lab.evaluation.embeddings import Embedded, embed_clips, find_weights, load_embedding
from foleybox.lab.evaluation.measures import MeasureConfig, measure, reference_of
from foleybox.lab.evaluation.originality import MEL, Sounds, compare
from foleybox.labels import LABELS


@dataclass(frozen=True)
class Benchmark:
    """Time the parts of `foleybox evaluate` and `foleybox audit` on real clips."""

    data: tyro.conf.Positional[str]
    "real clips"
    clips: int = 700
    "to embed"
    queries: int = 32
    "to compare with all of the clips, as the audit does"
    threads: int = 2
    many: tuple[int, ...] = (10_000, 60_000)
    "clips of 0.1 s made by code, to see that the memory of `evaluate` does not grow with them"


@contextmanager
def timed(what: str, units: int, unit: str) -> Iterator[None]:
    """Print wall and processor time of a block, and the highest memory so far."""
    wall, used = time.perf_counter(), time.process_time()
    yield
    wall, used = time.perf_counter() - wall, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = f"{1000 * wall / units:8.2f} ms a {unit}"
    print(f"{what:58} {wall:7.2f} s wall {used:7.2f} s processor {each:22} {memory:6.0f} MB at most")


class Cheap:
    """As wide as mn04, with as many windows, and no work: what grows with the clips is the report's own."""

    name, rate, width, rule, weights = "cheap", 8_000, 384, "seven projections of 0.1 s", "none"

    def __init__(self):
        self.matrix = torch.randn(800, 7 * self.width, generator=torch.Generator().manual_seed(0))

    def windows(self, samples: int) -> int:
        return 7

    def embed(self, waves: Tensor) -> Embedded:
        return Embedded((waves @ self.matrix).unflatten(1, (7, self.width)), waves[:, : len(LABELS)])


def make_clips(folder: Path, count: int) -> None:
    """Write 50 clips of 0.1 s a label, and names for them until there are `count` together."""
    for label in LABELS:
        (folder / label.name).mkdir(parents=True)
        for index in range(count // len(LABELS)):
            path = folder / label.name / f"{index:06d}.wav"
            if index < 50:
                write_wave(path, np.random.default_rng([label.id, index]).normal(0, 0.1, 800).astype(np.float32), 8_000)
            else:
                path.hardlink_to(folder / label.name / f"{index % 50:06d}.wav")


def evaluate_many(folder: str, reference: str) -> float:
    """Evaluate, a thousand clips at a time and 200 kept of a set; return the highest memory in MB."""
    torch.set_num_threads(1)
    embeddings.PIECE = 1_000
    report.load_embedding = lambda *_: Cheap()
    config = MeasureConfig(bootstrap=5, keep=200)
    report.run(report.Evaluate((folder,), reference=reference, seconds=0.1, measure=config))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024  # not ru_maxrss, which begins at that of the parent


def main(config: Benchmark) -> int:
    """Run every part once."""
    torch.set_num_threads(config.threads)
    print(
        f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {config.threads} threads, torch {torch.__version__}"
    )
    found = find_clips(config.data)
    clips = [found[i * len(found) // config.clips] for i in range(config.clips)]
    n = len(clips)
    with tempfile.TemporaryDirectory() as folder:
        weights = find_weights("mn04")
        os.environ["FOLEYBOX_CACHE"] = folder
        embedding = load_embedding("mn04", weights)
        with timed(f"read, resample, embed {n} clips (mn04)", n, "clip"):
            embedded = embed_clips(clips, embedding, 4.0)
        with timed(f"the same again, from the cache ({n} clips)", n, "clip"):
            embed_clips(clips, embedding, 4.0)
    half = n // 2
    with timed(f"reference of {half} clips: statistics, root, kernel", half, "clip"):
        reference = reference_of(embedded.of(range(half)))
    others = embedded.of(range(half, n))
    with timed(f"every metric of {n - half} clips, no interval", n - half, "clip"):
        measure(others, reference, MeasureConfig(bootstrap=0))
    with timed("an interval of 50 replicates", 50, "replicate"):
        measure(others, reference, MeasureConfig(bootstrap=50))
    waves = load_waves(clips, MEL.rate, 4 * MEL.rate)
    vectors = torch.from_numpy(embedded.vectors.mean(1))
    known = Sounds(waves, vectors, tuple(clip.recording for clip in clips))
    some = Sounds(waves[: config.queries], vectors[: config.queries], known.recordings[: config.queries])
    with timed(f"audit {config.queries} clips against {n}, 16 candidates each", config.queries, "clip"):
        compare(some, known, 16, apart=True)
    for count in config.many:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FOLEYBOX_CACHE"] = f"{folder}/cache"
            make_clips(Path(folder) / "real", 700)
            make_clips(Path(folder) / "many", count)
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own: its memory at most
                most = pool.apply(evaluate_many, (f"{folder}/many", f"{folder}/real"))
            size = count * 7 * Cheap.width * 4 / 2**20
            print(f"{f'evaluate {count} clips, whose embeddings are {size:.0f} MB':58} {most:58.0f} MB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Benchmark, description=__doc__)))
