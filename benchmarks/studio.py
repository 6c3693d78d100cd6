"""Write results/studio.md: whether what the studio makes can be used, measured on an instrument.

python benchmarks/studio.py                       # all parts, 100 seeds a label: about an hour of one core
python benchmarks/studio.py --parts vary          # one part; the others are kept from results/studio.json

shots   one-shots: the attack, the loudest moment, the end; packs: candidates that are refused; loudness below -1 dBTP
levels  true peaks of written files of all kinds
vary    distance of a variation from its source, relative to that of two random sounds, in mn04's embedding
morph   loudness of the steps between labels, and silence that neither end has
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
import torch
import tyro

from foleybox.audio import Subtype, Wave, read_wave, true_peak_db
from foleybox.files import write_text
from foleybox.lab.evaluation import tables
from foleybox.lab.evaluation.embeddings import load_embedding
from foleybox.labels import find_label
from foleybox.studio.latents import morph, vary
from foleybox.studio.pack import Selection, default_kind, default_lufs, select_sounds
from foleybox.studio.shape import event_loudness, levels
from foleybox.studio.shots import one_shot
from foleybox.studio.spectra import band_levels, distance
from foleybox.studio.synth import Clip, Synth
from foleybox.version import commit

KINDS: tuple[tuple[str, Subtype, int], ...] = (
    ("x.wav", "PCM_16", 1),
    ("x.flac", "PCM_24", 10),
    ("x.ogg", "PCM_16", 10),
)
"names and subtypes of written files, and of which part of the clips: every, every tenth"
AMOUNTS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
Part = Literal["shots", "levels", "vary", "morph"]


@dataclass(frozen=True)
class Studio:
    """Measure and write."""

    instrument: str | None = None
    "a name or a folder; default: the default instrument"
    parts: tuple[Part, ...] = ("shots", "levels", "vary", "morph")
    "what to measure"
    seeds: int = 100
    "sounds of each label, from seed 0"
    sources: int = 100
    "of these, how many are varied at the amount 0.1; a fifth of them at the others"
    steps: int = 5
    "of a morph"
    weights: Path | None = None
    "of mn04; default: where `foleybox evaluate` looks for them"
    output: Path = Path("results/studio.md")
    "the page; its numbers are next to it as .json"


# --- one-shots and packs ------------------------------------------------------------------------------------------


def rise_db(wave: Wave, rate: int, start: int) -> float:
    """Return the highest rise within 10 ms after `start`: the level of 20 ms over that of the 20 ms before, in dB."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    size = round(0.02 * rate)

    def mean(first: int, stop: int) -> float:
        first, stop = max(0, first), min(stop, len(wave))
        return (energy[stop] - energy[first]) / max(1, stop - first) + 1e-12

    moments = range(start, start + round(0.01 * rate) + 1, max(1, rate // 1000))
    return max(10 * float(np.log10(mean(each, each + size) / mean(each - size, each))) for each in moments)


def measure_shots(synth: Synth, config: Studio) -> dict[str, Any]:
    found = {}
    for label in synth.labels:
        clips = list(synth.render_many((label, seed) for seed in range(config.seeds)))
        shots: dict[str, Any] = {"problems": {}, "made": 0, "good": 0, "attack": 0, "loudest": 0, "end": 0}
        highest = []
        for clip in clips:
            made, problem = one_shot(clip)
            if problem:
                shots["problems"][problem] = shots["problems"].get(problem, 0) + 1
                continue
            cut, frame = made.recipe.process[0], round(0.01 * clip.rate)
            power = np.convolve(np.square(clip.wave, dtype=np.float64), np.full(frame, 1 / frame), "same")
            attack = rise_db(clip.wave, clip.rate, cut["start"]) >= 6
            loudest = cut["start"] <= int(power.argmax()) < cut["start"] + cut["samples"]
            end = float(np.square(made.wave[-frame:], dtype=np.float64).mean()) <= power.max() * 1e-3
            for name, yes in (("attack", attack), ("loudest", loudest), ("end", end)):
                shots[name] += int(yes)
            shots["good"] += int(attack and loudest and end)
            shots["made"] += 1
            highest.append(event_loudness(made.wave, made.rate) - true_peak_db(made.wave) - 1)
        rejected: dict[str, int] = {}
        wanted = Selection(count=config.seeds)
        kept = 0
        for _ in select_sounds(Rendered.from_clips(synth, clips), label, default_kind(label), wanted, rejected):
            kept += 1
        found[label] = {
            **shots,
            "loudness": [round(float(each), 1) for each in np.percentile(highest, (2, 5, 50))] if highest else [],
            "kind": default_kind(label),
            "lufs": default_lufs(label),
            "kept": kept,
            "rejected": rejected,
        }
        print(label, found[label], file=sys.stderr)
    return found


class Rendered(Synth):
    """An instrument whose clips have been rendered before; others are not tried."""

    clips: dict[tuple[str, int], Clip]

    @classmethod
    def from_clips(cls, synth: Synth, clips: Iterable[Clip]) -> "Rendered":
        made = cls(synth.instrument, synth.folder, synth.threads)
        object.__setattr__(made, "clips", {(clip.label, clip.seed): clip for clip in clips})
        return made

    def render_many(
        self, pairs: Iterable[tuple[str | int, int]], batch: int = 8, temperature: float = 1.0
    ) -> Iterator[Clip]:
        for label, seed in pairs:
            if (self.resolve(label), seed) not in self.clips:
                return
            yield self.clips[self.resolve(label), seed]


# --- levels -------------------------------------------------------------------------------------------------------


def measure_levels(synth: Synth, config: Studio) -> dict[str, Any]:
    """Return the highest true peak of written files in dBTP, before and after, by format."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label in synth.labels:
            for clip in synth.render_many((label, seed) for seed in range(config.seeds)):
                for name, subtype, every in KINDS:
                    if clip.seed % every:
                        continue
                    clip.save(Path(folder) / name, subtype)
                    after = true_peak_db(read_wave(Path(folder) / name)[0])
                    row = found.setdefault(name[2:], {"files": 0, "above": 0, "before": -200.0, "after": -200.0})
                    before = true_peak_db(clip.wave)
                    row["files"] += 1
                    row["above"] += int(before > -1)
                    row["before"], row["after"] = max(row["before"], before), max(row["after"], after)
    return found


# --- variations ---------------------------------------------------------------------------------------------------


def embed(waves: list[Wave], rate: int, embedding: Any) -> np.ndarray:
    """Return the mean of mn04's embedding over time [N, 384]."""
    vectors = []
    for start in range(0, len(waves), 16):
        part = [soxr.resample(wave, rate, embedding.rate) for wave in waves[start : start + 16]]
        vectors.append(embedding.embed(torch.from_numpy(np.stack(part).astype(np.float32))).vectors.mean(1).numpy())
    return np.concatenate(vectors)


def measure_vary(synth: Synth, config: Studio) -> dict[str, Any]:
    embedding, found = load_embedding("mn04", config.weights), {}
    for label in synth.labels:
        clips = list(synth.render_many((label, seed) for seed in range(config.seeds)))
        rate = clips[0].rate
        known = embed([clip.wave for clip in clips], rate, embedding)
        apart = np.linalg.norm(known[:, None] - known[None], axis=-1)
        random = float(np.median(apart[np.triu_indices(len(clips), 1)]))
        pictures = [band_levels(clip.wave, rate) for clip in clips]
        shift = len(clips) // 2
        random_db = float(np.median([distance(pictures[i], pictures[i - shift]) for i in range(0, len(clips), 3)]))
        found[label] = {}
        for amount in AMOUNTS:
            count = config.sources if amount == 0.1 else max(1, config.sources // 5)
            sources = [clips[i * len(clips) // count] for i in range(count)]
            made = [next(vary(synth, clip.recipe.make, amount, 1000 + clip.seed, 1)) for clip in sources]
            vectors = embed([clip.wave for clip in made], rate, embedding)
            near = np.linalg.norm(vectors[:, None] - known[None], axis=-1)  # [variations, clips]
            own = np.array([clip.seed for clip in sources])
            loud = [event_loudness(a.wave, rate) - event_loudness(b.wave, rate) for a, b in zip(made, sources)]
            picture = [distance(band_levels(a.wave, rate), pictures[b.seed]) for a, b in zip(made, sources)]
            found[label][str(amount)] = {
                "n": count,
                "nearest": round(float(np.mean(near.argmin(1) == own)), 3),
                "distance": round(float(np.median(near[np.arange(count), own])) / random, 3),
                "distance_db": round(float(np.median(picture)) / random_db, 3),
                "louder": round(float(max(loud)), 1),
                "quieter": round(float(min(loud)), 1),
            }
        print(label, found[label], file=sys.stderr)
    return found


# --- morphs -------------------------------------------------------------------------------------------------------


def smooth_db(wave: Wave, rate: int) -> np.ndarray:
    """Return the level of every 10 ms in dB relative to the loudest, smoothed over 100 ms."""
    power = np.convolve(10 ** (levels(wave, rate) / 10), np.full(10, 0.1), "same")
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 1e-12))


def hole_seconds(clips: list[Clip]) -> float:
    """Return for how long any step is silent (under -50 dB of its loudest) where neither end is quiet (under -30 dB)."""
    onsets, hop = clips[0].recipe.make["onsets"], 256 / clips[0].rate
    rate, most = clips[0].rate, 0.0
    first, last = smooth_db(clips[0].wave, rate), smooth_db(clips[-1].wave, rate)
    for clip in clips[1:-1]:
        at = clip.recipe.make["at"]
        ends = [first, last]
        if onsets:
            middle = round((1 - at) * onsets[0] + at * onsets[1])
            ends = [np.roll(end, round((middle - onset) * hop / 0.01)) for end, onset in zip(ends, onsets)]
        silent = (smooth_db(clip.wave, rate) < -50) & (np.minimum(*ends) > -30)
        most = max(most, 0.01 * float(silent.sum()))
    return most


def measure_morph(synth: Synth, config: Studio) -> dict[str, Any]:
    """Measure a morph of every ordered pair of labels, each of other seeds, as its files are written."""
    found, number = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for one in synth.labels:
            for other in synth.labels:
                a, b = (synth.render(label, first + number).recipe.make for label, first in ((one, 20), (other, 70)))
                clips = list(morph(synth, a, b, config.steps))
                loud, peaks = [], []
                for clip in clips:
                    clip.save(Path(folder) / "x.wav")
                    wave, rate = read_wave(Path(folder) / "x.wav")
                    loud.append(event_loudness(wave, rate))
                    peaks.append(true_peak_db(wave))
                off = np.abs(np.array(loud) - np.linspace(loud[0], loud[-1], len(loud))).max()
                found[f"{one} {other}"] = {
                    "off": round(float(off), 2), "hole": round(hole_seconds(clips), 2), "peak": round(max(peaks), 2),
                    "loud": [round(each, 1) for each in loud],
                }  # fmt: skip
                number += 1
                print(one, other, found[f"{one} {other}"], file=sys.stderr)
    return found


# --- the page -----------------------------------------------------------------------------------------------------


def page(numbers: dict[str, Any]) -> str:
    """Return the page of the parts that were measured, each with its command."""
    parts = ["# What the studio makes, measured\n"]
    if part := numbers.get("shots"):
        rows, problems = [], []
        for label, row in part["found"].items():
            share = f"{row['good'] / row['made']:.3f}" if row["made"] else ""
            counts = [row[name] for name in ("made", "attack", "loudest", "end")]
            rows.append([label, *counts, share, ", ".join(f"{n} {why}" for why, n in row["problems"].items())])
            tried = row["kept"] + sum(row["rejected"].values())
            other = sum(n for why, n in row["rejected"].items() if why != "near-duplicates")
            loudness = " / ".join(f"{each:.1f}" for each in row["loudness"])
            why = ", ".join(f"{n} {reason}" for reason, n in row["rejected"].items())
            problems.append(
                [label, row["kind"], f"{row['lufs']:.0f}", loudness, tried, f"{1 - other / tried:.3f}", why]
            )
        made = [part["found"][label] for label in part["found"] if not _steady(label)]
        good = sum(row["good"] for row in made) / sum(row["made"] for row in made)
        parts += [
            "## One-shots\n", _source(part),
            "A one-shot is good if the level rises by 6 dB or more within 10 ms (20 ms against the 20 ms before), it "
            "contains the loudest 10 ms of its clip, and its last 10 ms are 30 dB or more below these. "
            f"Of the five labels with events, {good:.1%} are good. Of rain and motors, `pack` makes loops.\n",
            table(["label", "one-shots", "attack", "loudest", "end", "good", "no one-shot because"], rows), "",
            "## Packs\n", _source(part),
            "Loudness: what 98 %, 95 % and half of the one-shots can have below -1 dBTP. Kept: the share of candidates not "
            "refused, near-duplicates aside.\n",
            table(["label", "kind", "target LUFS", "LUFS below -1 dBTP", "candidates", "kept", "refused"], problems), "",
        ]  # fmt: skip
    if part := numbers.get("levels"):
        rows = [
            [kind, row["files"], row["above"], f"{row['before']:.2f}", f"{row['after']:.2f}"]
            for kind, row in part["found"].items()
        ]
        parts += ["## True peaks of written files\n", _source(part)]
        parts += [
            table(["format", "files", "above -1 dBTP as rendered", "highest as rendered", "highest as written"], rows),
            "",
        ]
    if part := numbers.get("vary"):
        rows = []
        for amount in AMOUNTS:
            each = [row[str(amount)] for row in part["found"].values()]
            n = sum(row["n"] for row in each)
            mean = {
                name: sum(row["n"] * row[name] for row in each) / n for name in ("nearest", "distance", "distance_db")
            }
            span = f"{min(row['quieter'] for row in each):.1f} to {max(row['louder'] for row in each):.1f}"
            rows.append(
                [amount, n, f"{mean['nearest']:.3f}", f"{mean['distance']:.2f}", f"{mean['distance_db']:.2f}", span]
            )
        twins = [
            [label, row["0.1"]["n"], row["0.1"]["nearest"], row["0.1"]["distance"]]
            for label, row in part["found"].items()
        ]
        parts += [
            "## Variations\n", _source(part),
            "Nearest: for how many variations the nearest of the label's random sounds, the source among them, is the source. "
            "Distances (median) are relative to the median of two random sounds of the label: mn04's embedding, and the "
            "log-spectra of `spectra.distance`. Level: of the event, against the source, in dB.\n",
            table(["amount", "n", "nearest", "mn04", "log-spectra", "level"], rows), "",
            "At the amount 0.1, by label:\n", table(["label", "n", "nearest", "mn04"], twins), "",
        ]  # fmt: skip
    if part := numbers.get("morph"):
        rows = [
            [pair, " ".join(f"{each:.1f}" for each in row["loud"]), row["off"], row["hole"], row["peak"]]
            for pair, row in part["found"].items()
        ]
        offs, holes = ([row[name] for row in part["found"].values()] for name in ("off", "hole"))
        parts += [
            "## Morphs\n", _source(part),
            "One morph of each ordered pair of labels (pair k: seeds 20 + k and 70 + k), as written. "
            f"Largest distance from the line: {max(offs):.2f} LU; longest silence (-50 dB) where neither end is below -30 dB: "
            f"{max(holes):.2f} s.\n",
            table(["from, to", "LUFS of the steps", "off the line, LU", "hole, s", "highest dBTP"], rows), "",
        ]  # fmt: skip
    return "\n".join(parts)


def table(head: list[str], rows: list[list[Any]]) -> str:
    return tables.table(head, [[str(cell) for cell in row] for row in rows])


def _steady(label: str) -> bool:
    known = find_label(label)
    return bool(known and known.steady)


def _source(part: dict[str, Any]) -> str:
    seeds = "" if "steps" in part else f" seeds 0 to {part['seeds'] - 1} of each label,"
    return f"`{part['command']}`, {part['instrument']},{seeds} commit {part['commit']}.\n"


def main(config: Studio) -> None:
    torch.set_num_threads(1)
    synth = Synth.load(config.instrument)
    record = config.output.with_suffix(".json")
    numbers = json.loads(record.read_text()) if record.exists() else {}
    measure = {"shots": measure_shots, "levels": measure_levels, "vary": measure_vary, "morph": measure_morph}
    for part in config.parts:
        made = synth.instrument
        numbers[part] = {
            "command": shlex.join(["python", "benchmarks/studio.py", *sys.argv[1:]]),
            "instrument": f"{made.name} {made.version}",
            **({"steps": config.steps} if part == "morph" else {"seeds": config.seeds}),
            "commit": commit(),
            "found": measure[part](synth, config),
        }
        if record.exists():  # another part may have been written meanwhile
            numbers = {**json.loads(record.read_text()), part: numbers[part]}
        write_text(record, json.dumps(numbers, indent=1) + "\n")
        write_text(config.output, page(numbers))


if __name__ == "__main__":
    main(tyro.cli(Studio))
