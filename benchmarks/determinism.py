"""Write results/determinism.md: what a sound depends on besides instrument, label and seed, and by how much.

python benchmarks/determinism.py                      # the onnxruntime of this environment, and the page
python benchmarks/determinism.py --versions 1.20.1 1.31.1 1.32.0
    # installs each into --work with `pip install --no-deps --target`, measures it there, then writes the page
python benchmarks/determinism.py --page               # the page alone, from its record

Canonical sounds are rendered one at a time on one thread. Those of onnxruntime REFERENCE are kept in --work; every other
version is compared with them, and every condition (batch, order, threads, processes) with the canonical sounds of its own
version. The record is determinism.json; a row of the same instrument, version and processor is replaced.
"""

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tyro
from numpy.typing import NDArray

from foleybox.errors import UserError
from foleybox.files import write_text
from foleybox.instrument import shipped
from foleybox.studio.synth import Synth
from foleybox.version import commit

REFERENCE = "1.31.1"
"the version that every other one is compared with: that of constraints.txt"
CONDITIONS: dict[str, tuple[int, int]] = {  # name: threads, batch; the order is shuffled in all of them
    "batch 2": (1, 2),
    "batch 3": (1, 3),
    "batch 16": (1, 16),
    "batch 64": (1, 64),
    "2 threads, batch 1": (2, 1),
    "2 threads, batch 8": (2, 8),
    "6 threads, batch 1": (6, 1),
    "6 threads, batch 16": (6, 16),
    "8 threads, batch 1": (8, 1),
    "8 threads, batch 64": (8, 64),
}
PROCESSES = "2 processes"
FEATURES = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
)
"processor features that onnxruntime chooses its kernels by"
Waves = NDArray[np.float32]  # [N, L]
Pair = tuple[str, int]  # label, seed
Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Measure an onnxruntime version on every instrument that ships, and write the page."""

    versions: tuple[str, ...] = ()
    "versions to install into --work and to measure; none: the one of this environment"
    instruments: tuple[str, ...] = ()
    "names; none: all that ship"
    seeds: int = 8
    "sounds of each label, seeds from 0"
    condition_seeds: int = 8
    """the same for batch, order, threads and processes; 0: do not measure them

    With `versions`, this is for REFERENCE; the oldest and the newest get 2, the others none, since it takes five times as
    long as the rest.
    """
    batch: int = 1
    "for an emulated processor, where one sound at a time takes too long"
    processor: str = ""
    "description of an emulated processor; by default that of this machine"
    work: Path = Path("runs/determinism")
    page: bool = False
    "write the page only"
    out: Path = Path("results/determinism.md")


# --- measuring ----------------------------------------------------------------------------------------------------


def processor() -> str:
    """Return the architecture and the features of this machine's processor."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    except OSError:
        flags = []
    return ", ".join([platform.machine(), *(each for each in FEATURES if each in flags)])


def rendered(name: str, pairs: list[Pair], threads: int = 1, batch: int = 1) -> Waves:
    """Return the sounds [N, L] of (label, seed) pairs."""
    return np.stack([clip.wave for clip in Synth.load(name, threads).render_many(pairs, batch)])


def shuffled(name: str, pairs: list[Pair], threads: int, batch: int) -> Waves:
    """Return the sounds [N, L] of pairs that are rendered in a random order."""
    order = random.Random(threads * 1000 + batch).sample(range(len(pairs)), len(pairs))
    waves = rendered(name, [pairs[place] for place in order], threads, batch)
    return waves[np.argsort(order)]


def in_processes(name: str, pairs: list[Pair]) -> Waves:
    """Return the sounds [N, L] of pairs that two new processes render, half each."""
    half = len(pairs) // 2
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(rendered, [name] * 2, [pairs[:half], pairs[half:]])))


def differences(waves: Waves, wanted: Waves) -> Row:
    """Return how far sounds [N, L] are from others: in 16-bit steps, and as energy relative to that of the sound in dB."""
    off = waves.astype(np.float64) - wanted
    steps = np.abs(off).max(1) * 2**15
    energy = np.square(off).sum(1) / np.square(wanted.astype(np.float64)).sum(1)
    found = {"n": len(waves), "identical": int((steps == 0).sum()), "steps": round(float(steps.max()), 4)}
    if steps.any():
        found |= {"median": round(float(np.median(steps)), 4), "over_one": int((steps > 1).sum())}
        found |= {"residual_db": round(10 * float(np.log10(energy.max())), 1)}
    return found


def measure(config: Benchmark, name: str) -> Row:
    """Return the row of an instrument for the onnxruntime of this environment.

    Raises UserError if the sounds of REFERENCE are absent and this is not that version.
    """
    synth = Synth.load(name, threads=1)
    labels, version = synth.labels, onnxruntime.__version__
    pairs = [(label, seed) for label in labels for seed in range(config.seeds)]
    waves = rendered(name, pairs, batch=config.batch)
    kept = config.work / f"{name}-{synth.instrument.fingerprint[:12]}.npy"  # [labels, seeds, L]
    if version == REFERENCE and not config.processor:
        config.work.mkdir(parents=True, exist_ok=True)
        np.save(kept, waves.reshape(len(labels), config.seeds, -1))
    if not kept.exists():
        raise UserError(f"no {kept}: measure onnxruntime {REFERENCE} first")
    reference = np.load(kept)
    if reference.shape[1] < config.seeds:
        raise UserError(f"{kept} has {reference.shape[1]} seeds, not {config.seeds}: measure {REFERENCE} again")
    row: Row = {
        "instrument": name,
        "version": synth.instrument.version,
        "fingerprint": synth.instrument.fingerprint,
        "onnxruntime": version,
        "processor": config.processor or processor(),
        "emulated": bool(config.processor),
        "commit": commit(),
        "seeds": config.seeds,
        "sha256": hashlib.sha256(waves.tobytes()).hexdigest(),
        **differences(waves, reference[:, : config.seeds].reshape(len(pairs), -1)),
    }
    if config.condition_seeds:
        some = [place for place, (_, seed) in enumerate(pairs) if seed < config.condition_seeds]
        pairs, waves = [pairs[place] for place in some], waves[some]
        made = {about: shuffled(name, pairs, *setting) for about, setting in CONDITIONS.items()}
        made[PROCESSES] = in_processes(name, pairs)
        row["conditions"] = {about: differences(each, waves) for about, each in made.items()}
    return row


def measured_in(config: Benchmark, version: str) -> None:
    """Measure a version that is installed into a folder of its own, in a process that finds it there."""
    folder = config.work / f"onnxruntime-{version}"
    if not folder.exists():
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), f"onnxruntime=={version}"]
        subprocess.run([sys.executable, *install], check=True)
    command = [sys.executable, __file__, "--work", config.work, "--out", config.out, "--seeds", config.seeds]
    extremes = (min(config.versions, key=numbers), max(config.versions, key=numbers))
    some = config.condition_seeds if version == REFERENCE else min(2, config.condition_seeds) * (version in extremes)
    command += ["--condition-seeds", some]
    command += ["--instruments", *config.instruments] if config.instruments else []
    paths = os.pathsep.join(filter(None, [str(folder.resolve()), os.environ.get("PYTHONPATH")]))
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, "PYTHONPATH": paths})


# --- the page -----------------------------------------------------------------------------------------------------


def read_store(path: Path) -> list[Row]:
    """Return the rows of a record, none where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def numbers(version: str) -> list[int]:
    """Return the numbers of a version, for sorting."""
    return [int(part) for part in version.split(".")]


def key(row: Row) -> tuple[str, bool, str, list[int]]:
    """Return what a row is of."""
    return row["instrument"], row["emulated"], row["processor"], numbers(row["onnxruntime"])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def step_text(found: Row) -> str:
    """Return the largest difference in steps: "0" only for identical sounds."""
    return f"{found['steps']:.3g}" if found["steps"] else "0" if found["identical"] == found["n"] else "under 0.0001"


def version_rows(rows: list[Row]) -> list[list[str]]:
    """Return a table row for each run of versions that give the same sounds."""
    runs: list[list[Row]] = []
    for row in rows:
        if runs and all(runs[-1][0][each] == row[each] for each in ("instrument", "sha256", "processor", "seeds")):
            runs[-1].append(row)
        else:
            runs.append([row])
    found = []
    for run in runs:
        first, last = run[0], run[-1]
        names = [row["onnxruntime"] for row in run]
        versions = names[0] if len(run) == 1 else " and ".join(names) if len(run) == 2 else f"{names[0]} to {names[-1]}"
        cells = [first["instrument"], versions, f"{first['identical']} of {first['n']}", step_text(last)]
        if first["steps"]:
            found.append([*cells, f"{first['median']:.2g}", str(first["over_one"]), f"{first['residual_db']:.1f}"])
        else:
            found.append([*cells, "0", "0", ""])
    return found


def page(rows: list[Row]) -> str:
    """Return the page of a record."""
    rows = sorted(rows, key=key)
    native, emulated = ([row for row in rows if row["emulated"] == which] for which in (False, True))
    conditions = [row for row in native if "conditions" in row]
    names = sorted({row["instrument"] for row in rows})
    versions = sorted({row["onnxruntime"] for row in native}, key=numbers)
    worst = {name: max([row["steps"] for row in native if row["instrument"] == name], default=0) for name in names}
    largest = ", ".join(f"{steps:.3g} steps ({name})" for name, steps in worst.items())
    exact = all(found["identical"] == found["n"] for row in conditions for found in row["conditions"].values())
    broken = max((found["steps"] for row in conditions for found in row["conditions"].values()), default=0.0)
    same = "bit for bit the same" if exact else f"the same within {broken:.3g} 16-bit steps"
    head = [
        "instrument",
        "onnxruntime",
        "identical",
        "largest difference (16-bit steps)",
        "median",
        "over one step",
        "dB",
    ]
    about = ", ".join(f"{row['instrument']} {row['version']}" for row in native if row["onnxruntime"] == REFERENCE)
    processors, commits = (dict.fromkeys(row[each] for row in native) for each in ("processor", "commit"))
    same_versions = [
        version for version in versions if not any(row["steps"] for row in native if row["onnxruntime"] == version)
    ]
    text = f"""# Reproducibility

Made by `python benchmarks/determinism.py --versions {" ".join(versions)}`
({about}; commit {", ".join(commits)}; record: determinism.json).
One 16-bit step is 1/32768 of full scale. All comparisons are of float32 waves, before they are rounded to the bits of a file.

What is promised:

* On one machine with one version of onnxruntime, a sound is {same}, whatever the batch, the order, the number
  of threads and the process that renders it.
* Between versions of onnxruntime, {versions[0]} to {versions[-1]}, sounds are nearly the same. The largest differences measured,
  of {max(row["n"] for row in native)} sounds of each instrument, are {largest};
  a rare sound may differ more. On the processor named below, {", ".join(same_versions)} give identical
  sounds. foleybox allows the versions that were measured.
* `foleybox verify` calls a file `identical` where every sample is the same, `within one step` up to one 16-bit step, and
  `within rounding` where the energy of the difference is at least 50 dB below that of the sound.

## Batch, order, threads, processes

Canonical sounds (alone, one thread) against the same sounds rendered in another way, in shuffled order. Each cell: identical
sounds of all sounds, and the largest difference in 16-bit steps where they are not identical.

{conditions_table(conditions)}

## Versions of onnxruntime

Canonical sounds against those of onnxruntime {REFERENCE}, seeds 0 to {max(row["seeds"] for row in native) - 1} of each label.
Median: of the largest difference of each sound, in steps. dB: the largest energy of the difference, relative to the sound's.
Processor: {"; ".join(processors)}.

{table(head, version_rows(native))}

"""
    if emulated:
        lines = [[row["processor"], *version_rows([row])[0]] for row in emulated]
        text += f"""## Processors

Emulated with QEMU 7.2 (user mode), one seed of each label, against the sounds of onnxruntime {REFERENCE} on the processor above:
`qemu-x86_64 -cpu Haswell python benchmarks/determinism.py --seeds 1 --batch 7 --condition-seeds 0 --processor TEXT`.

{table(["processor", *head], lines)}

"""
    return text + CAUSES


def conditions_table(rows: list[Row]) -> str:
    """Return the table of instrument and version against condition."""
    names = [*CONDITIONS, PROCESSES]
    lines = []
    for row in rows:
        found = [row["conditions"][name] for name in names]
        cells = [f"{each['identical']}/{each['n']}" for each in found]
        cells = [cell if not each["steps"] else f"{cell}, {step_text(each)}" for cell, each in zip(cells, found)]
        lines.append([row["instrument"], row["onnxruntime"], *cells])
    return table(["instrument", "onnxruntime", *names], lines)


CAUSES = """## Causes

The measurements behind this section are in the [record of experiments](experiments.jsonl), topic "Studio, export and speed".

* **Threads.** onnxruntime splits a convolution for its threads, and the size of a part decides the order in which products are
  added. With 4 and more threads this changed two layers: the last convolution of the decoder and the first of the vocoder. The
  difference was largest in sounds above full scale: a file of integers turns these down, a float WAV does not. Decoders and
  vocoders now run one clip a call on one thread, and clips are distributed over threads.
* **Batch.** onnxruntime computes exp, sin and cos of the last numbers of an array by another routine than the rest, so the last
  numbers of a batch could differ from those of a clip alone. The product that mixes the two rows of a guided clip was split in
  batches above 128 clips. A call of the sampling graph now has 64 clips at most.
* **Versions.** Each operator of the graphs was run alone on the inputs that it has in a sound, on 1.20.1, 1.26.0, 1.27.0, 1.29.0,
  1.31.1 and 1.32.0. Only two do not give the same bits: LayerNormalization, which onnxruntime rewrote in 1.27 and in 1.30, and
  BatchNormalization in 1.20. `foley-small` and `foley-open` generate a clip in 87 steps, each from the ones before, so that a
  difference in the last bit can grow; few sounds are sensitive. None of the session options tried reduces it.
  LayerNormalization in float64 gives the same bits on all these versions, but would change the sounds of the instruments that
  ship and take more time.
* **Processors.** onnxruntime chooses its kernels by the features of the processor, so that another processor may differ as
  another version does.
"""


def main(config: Benchmark) -> None:
    """Measure what `config` asks for, update the record, write the page."""
    record = config.out.with_suffix(".json")
    if config.versions:
        for version in sorted(config.versions, key=lambda each: each != REFERENCE):
            measured_in(config, version)
    elif not config.page:
        for name in config.instruments or [folder.name for folder in shipped()]:
            row = measure(config, name)
            rows = [each for each in read_store(record) if key(each) != key(row)]
            write_text(
                record, json.dumps({"reference": REFERENCE, "rows": sorted([*rows, row], key=key)}, indent=1) + "\n"
            )
            print(
                f"{name}, onnxruntime {onnxruntime.__version__}: {row['identical']} of {row['n']} identical,", end=" "
            )
            print(f"largest difference {step_text(row)} steps", flush=True)
    rows = read_store(record)
    if not all(row["emulated"] for row in rows):
        write_text(config.out, page(rows))


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
