"""Does the audit find copies, does it leave real clips of other recordings alone, and what does it say of a system?

Run from the repository root (about a minute of processor time a folder):

    foleybox restore foley-small -o runs/foley-small
    foleybox generate all --count 100 --seed 1000 -o out/foley-small
    python benchmarks/audit.py ../shared/data/foley --vocoded-by runs/foley-small --systems out/foley-small
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from kt import table
from numpy.typing import NDArray

from foleybox.audio import fit, read_wave, write_wave
from foleybox.files import write_text
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.core.mel import WIDE
from foleybox.lab.evaluation.originality import WAYS, Audit, ranked, run, write_html
from foleybox.lab.export.command import commit
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.play.sample import vocode
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS

RATE, SAMPLES = 22_050, 88_200
SHIFT, GAIN, NOISE = 0.037, -6, 30  # seconds later, dB, dB below the copy


@dataclass(frozen=True)
class AuditBenchmark:
    """Audit planted copies of train clips, the real dev clips, and systems, against the train clips."""

    data: tyro.conf.Positional[Path]
    "a folder with a manifest of splits `train` and `dev`"
    systems: tuple[Path, ...] = ()
    "folders of generated clips"
    vocoded_by: Path | None = None
    "what `foleybox restore` wrote: copies that went through its latents and vocoder are planted too"
    output: Path = Path("results/audit.md")
    html: Path | None = None
    "a folder for the page of each system"
    copies: int = 10
    "planted copies a label"
    pairs: int = 8
    "nearest pairs to list"
    seed: int = 0


def copied(_: ClipFile, wave: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return the copy [L] of a wave: later, quieter, with white noise."""
    late = np.concatenate([np.zeros(round(SHIFT * RATE)), wave])[: len(wave)] * 10 ** (GAIN / 20)
    noise = generator.standard_normal(len(wave)) * np.sqrt(np.mean(late**2)) * 10 ** (-NOISE / 20)
    return (late + noise).astype(np.float32)


def vocoder_of(folder: Path) -> Callable[[ClipFile, NDArray[np.float32], np.random.Generator], NDArray[np.float32]]:
    """Return what makes a clip again from its latents, with the decoder and the vocoder of a restored instrument."""
    autoencoder = load_autoencoder(folder / "autoencoder")[0]
    vocoder = load_vocoder(folder / "vocoder")[0].eval()

    @torch.no_grad()
    def made_again(clip: ClipFile, _: NDArray[np.float32], __: np.random.Generator) -> NDArray[np.float32]:
        return vocode(vocoder, autoencoder.reconstruct(load_mels([clip], WIDE)))[0].numpy()

    torch.manual_seed(0)  # of the decoder's grain
    return made_again


def plant(
    config: AuditBenchmark,
    folder: Path,
    change: Callable[[ClipFile, NDArray[np.float32], np.random.Generator], NDArray[np.float32]],
) -> Path:
    """Write changed copies of train clips as a folder of class folders."""
    clips = find_clips(config.data, "train")
    for label in LABELS:
        own = [clip for clip in clips if clip.label is label]
        generator = np.random.default_rng([config.seed, label.id])
        for index in generator.permutation(len(own))[: config.copies]:
            wave = fit(read_wave(own[index].path, RATE)[0], SAMPLES)
            path = folder / label.name / f"{index:04d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wave(path, change(own[index], wave, generator), RATE)
    return folder


def verdicts(name: str, result: Mapping[str, Any]) -> list[list[str]]:
    """Return a line for each label and one for all."""
    words = [record["verdict"] for record in result["clips"]]
    rows = [(slug, row["n"], row["copy"], row["close"]) for slug, row in result["labels"].items()]
    rows.append(("**all**", len(words), words.count("copy"), words.count("close")))
    return [
        [name, label, *map(str, (n, copy, close, n - copy - close)), f"{(copy + close) / n:.1%}"]
        for label, n, copy, close in rows
    ]


def nearest(result: Mapping[str, Any], config: AuditBenchmark) -> list[list[str]]:
    """Return the pairs that are nearest to their limits."""
    rows = []
    for record in ranked(dict(result))[: config.pairs]:
        way = max(record["nearest"], key=lambda w: record["nearest"][w]["likeness"] - result["ways"][w]["limit"])
        likeness = [f"{record['nearest'][each]['likeness']:.3f}" for each in result["ways"]]
        known = Path(record["nearest"][way]["nearest"]).relative_to(config.data)
        rows.append([Path(record["file"]).name, record["verdict"], *likeness, f"{known} (by {way})"])
    return rows


def ways(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how near each folder's clips are, each way, beside the limit that real clips set."""
    rows = []
    for way in next(iter(results.values()))["ways"]:
        first = next(iter(results.values()))["ways"][way]
        rows.append([way, "real clips, other recordings", *(f"{first['real_quantiles'][i]:.3f}" for i in (2, 4))])
        rows[-1].append(f"{first['limit']:.3f}")
        for name, result in results.items():
            quantiles = result["ways"][way]["generated_quantiles"]
            rows.append([way, name, *(f"{quantiles[i]:.3f}" for i in (2, 4)), ""])
    return table(["way", "clips", "median likeness", "highest", "limit"], rows)


def main(config: AuditBenchmark) -> int:
    """Audit all, write the tables."""
    against = f"{config.data}:train"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {"planted copies": str(plant(config, Path(folder) / "copies", copied))}
        if config.vocoded_by is not None:
            change = vocoder_of(config.vocoded_by)
            sources["vocoded copies"] = str(plant(config, Path(folder) / "vocoded", change))
        sources["real dev clips"] = f"{config.data}:dev"
        for name, source in [*sources.items(), *((path.name, str(path)) for path in config.systems)]:
            html = config.html / f"{name}.html" if config.html and name not in sources else None
            question = Audit(source, against, html=html)
            results[name], clips, known = run(question)
            if html:
                html.parent.mkdir(parents=True, exist_ok=True)
                write_html(question, results[name], clips, known)
    first = next(iter(results.values()))
    command = shlex.join(
        ["python", "benchmarks/audit.py", str(config.data)]
        + (["--vocoded-by", str(config.vocoded_by)] if config.vocoded_by else [])
        + (["--systems"] if config.systems else [])
        + [str(path) for path in config.systems]
    )
    parts = [
        "# Whether the audit finds copies, and what it says of what we make",
        f"Made by `{command}` at commit {commit() or 'unknown'} (seed {config.seed}): `foleybox audit` of each "
        f"folder against the {first['against_clips']:,} train clips, embedding {first['embedding']}, calibrated on "
        f"{first['real_clips']} of them against other recordings ({first['real_flagged']} flagged).",
        f"*Planted copies* are {config.copies} train clips of each label, {1000 * SHIFT:.0f} ms later, at {GAIN} dB, with "
        f"white noise {NOISE} dB below: each should be called `copy` or `close`. *Vocoded copies* are the same clips made again "
        "from their latents by the decoder and the vocoder of an instrument, as one that knew them by heart would: no waveform "
        "is the same, so each should be called `close`. *Real dev clips* are other recordings than the train clips: under 2 % "
        "should be called so.",
        "## Verdicts",
        table(
            ["clips", "label", "n", "copy", "close", "own", "flagged"],
            [row for name, result in results.items() for row in verdicts(name, result)],
        ),
        "## How near",
        "\n".join(f"* {way}: {what}" for way, what in WAYS.items()),
        ways(results),
    ]
    for path in config.systems:
        head = ["clip", "verdict", *first["ways"], "its nearest train clip"]
        parts += [f"## {path.name}: the {config.pairs} nearest pairs", table(head, nearest(results[path.name], config))]
    text = "\n\n".join(parts) + "\n"
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.output, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(AuditBenchmark, description=__doc__)))
