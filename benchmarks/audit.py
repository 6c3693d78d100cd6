"""Write results/audit.md: does `foleybox audit` find copies, and how does it judge real clips and systems?

    foleybox restore foley -o runs/foley
    foleybox generate all --count 100 --seed 1000 -o out/foley
    python benchmarks/audit.py ../shared/data/foley --vocoded-by runs/foley --systems out/foley

About a minute of processor time a folder.
"""

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from foleybox.audio import fit, read_wave, write_wave
from foleybox.files import write_text
from foleybox.lab.core.cache import load_mels
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.core.mel import WIDE
from foleybox.lab.evaluation.originality import WAYS, Audit, AuditResult, nearest_way, ranked, run, write_html
from foleybox.lab.evaluation.tables import table
from foleybox.lab.patches.runs import load_autoencoder
from foleybox.lab.play.sample import vocode
from foleybox.lab.vocoders.runs import load_vocoder
from foleybox.labels import LABELS
from foleybox.version import commit

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
    "folder of `foleybox restore`: copies through its latents and vocoder are planted too"
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
    """Return a function that reconstructs a clip from its latents with the decoder and vocoder of a restored instrument."""
    autoencoder = load_autoencoder(folder / "autoencoder")[0]
    vocoder = load_vocoder(folder / "vocoder")[0].eval()

    @torch.no_grad()
    def reconstructed(clip: ClipFile, _: NDArray[np.float32], __: np.random.Generator) -> NDArray[np.float32]:
        return vocode(vocoder, autoencoder.reconstruct(load_mels([clip], WIDE)))[0].numpy()

    torch.manual_seed(0)  # of the decoder's noise
    return reconstructed


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


def verdicts(name: str, result: AuditResult) -> list[list[str]]:
    """Return a line for each label and one for all."""
    rows = [*result.labels.items(), ("**all**", result.counts())]
    return [
        [
            name,
            label,
            *(str(row[key]) for key in ("n", "copy", "close", "own")),
            f"{(row['copy'] + row['close']) / row['n']:.1%}",
        ]
        for label, row in rows
    ]


def nearest(result: AuditResult, config: AuditBenchmark) -> list[list[str]]:
    """Return the pairs that are nearest to their limits."""
    rows = []
    for clip in ranked(result)[: config.pairs]:
        way = nearest_way(result, clip)
        similarities = [f"{clip.nearest[each].similarity:.3f}" for each in result.ways]
        known = Path(clip.nearest[way].nearest).relative_to(config.data)
        rows.append([Path(clip.file).name, clip.verdict, *similarities, f"{known} (by {way})"])
    return rows


def similarities(results: Mapping[str, AuditResult]) -> str:
    """Return the similarities of each folder's clips, each way, and the limits from real clips."""
    rows, first = [], next(iter(results.values()))
    for name, way in first.ways.items():
        real = [f"{way.real_quantiles[i]:.3f}" for i in (2, 4)]
        rows.append([name, "real clips, other recordings", *real, f"{way.limit:.3f}"])
        for folder, result in results.items():
            rows.append([name, folder, *(f"{result.ways[name].generated_quantiles[i]:.3f}" for i in (2, 4)), ""])
    return table(["way", "clips", "median similarity", "highest", "limit"], rows)


def main(config: AuditBenchmark) -> int:
    """Audit all, write the tables."""
    against = f"{config.data}:train"
    results: dict[str, AuditResult] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = {"planted copies": str(plant(config, Path(folder) / "copies", copied))}
        if config.vocoded_by is not None:
            change = vocoder_of(config.vocoded_by)
            sources["vocoded copies"] = str(plant(config, Path(folder) / "vocoded", change))
        sources["real dev clips"] = f"{config.data}:dev"
        for name, source in [*sources.items(), *((path.name, str(path)) for path in config.systems)]:
            html = config.html / f"{name}.html" if config.html and name not in sources else None
            question = Audit(source, against, html=html)
            results[name] = run(question)
            if html:
                html.parent.mkdir(parents=True, exist_ok=True)
                write_html(question, results[name])
    first = next(iter(results.values()))
    parts = [
        "# What the audit finds",
        f"Written by `{shlex.join(['python', 'benchmarks/audit.py', *sys.argv[1:]])}` at commit {commit() or 'unknown'} (seed "
        f"{config.seed}): `foleybox audit` of each folder against the {first.against_clips:,} train clips, embedding "
        f"{first.embedding}, calibrated on {first.real_clips} of them against other recordings ({first.real_flagged} flagged).",
        f"*Planted copies*: {config.copies} train clips of each label, {1000 * SHIFT:.0f} ms later, at {GAIN} dB, with white "
        f"noise {NOISE} dB below; each should be `copy` or `close`. *Vocoded copies*: the same clips reconstructed from their "
        "latents by the decoder and the vocoder of an instrument, as a memorised clip would be; the waveforms differ, so each "
        "should be `close`. *Real dev clips*: other recordings than the train clips; under 2 % should be flagged.",
        "## Verdicts",
        table(
            ["clips", "label", "n", "copy", "close", "own", "flagged"],
            [row for name, result in results.items() for row in verdicts(name, result)],
        ),
        "## Similarities",
        "\n".join(f"* {way}: {what}" for way, what in WAYS.items()),
        similarities(results),
    ]
    for path in config.systems:
        head = ["clip", "verdict", *first.ways, "its nearest train clip"]
        parts += [f"## {path.name}: the {config.pairs} nearest pairs", table(head, nearest(results[path.name], config))]
    text = "\n\n".join(parts) + "\n"
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.output, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(AuditBenchmark)))
