"""Speed and memory of evaluation: embedding, distances, intervals, the audit's correlations.

Run from the repository root:

    PYTHONPATH=src python benchmarks/evaluation.py ../shared/data/foley:train --clips 700
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import tyro

from foleybox.lab.data import find_clips, load_waves
from foleybox.lab.evaluation.embeddings import embed_clips, find_weights, load_embedding
from foleybox.lab.evaluation.measures import MeasureConfig, measure, reference_of
from foleybox.lab.evaluation.originality import MEL, Sounds, compare


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


@contextmanager
def timed(what: str, units: int, unit: str) -> Iterator[None]:
    """Print wall and processor time of a block, and the highest memory so far."""
    wall, used = time.perf_counter(), time.process_time()
    yield
    wall, used = time.perf_counter() - wall, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = f"{1000 * wall / units:8.2f} ms a {unit}"
    print(f"{what:58} {wall:7.2f} s wall {used:7.2f} s processor {each:22} {memory:6.0f} MB at most")


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
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Benchmark, description=__doc__)))
