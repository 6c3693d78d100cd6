"""`foleybox evaluate`: measure sounds against real recordings; the result as JSON, Markdown and an HTML page.

Results of the three protocols are never compared: `default` (any number of clips, stated), `official` (that of the
evaluation tool of DCASE 2023 Task 7), `cmu32` (32 clips a label, for use during training).
"""

import dataclasses
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import soundfile
import tyro

from foleybox.audio import libsndfile_path
from foleybox.errors import UserError
from foleybox.files import check_writable, sha256, write_text
from foleybox.instrument import MANIFEST, read_instrument
from foleybox.lab.core.clips import ClipFile, find_clips
from foleybox.lab.core.runs import clips_seen, read_run_config
from foleybox.lab.evaluation import page
from foleybox.lab.evaluation.embeddings import (
    SILENT,
    EmbeddedClips,
    Embedding,
    EmbeddingName,
    embed_stream,
    load_embedding,
    progress,
    weight_folders,
)
from foleybox.lab.evaluation.frechet import Statistics, read_statistics, write_statistics
from foleybox.lab.evaluation.measures import (
    ClipSet,
    Figure,
    MeasureConfig,
    Measured,
    Reference,
    figures,
    gather,
    mean_of,
    measure,
    real_scores,
    reference_of,
    stream_of,
)
from foleybox.lab.evaluation.result import (
    Means,
    Part,
    Protocol,
    Result,
    Run,
    System,
    check_same,
    read_result,
    write_result,
)
from foleybox.lab.evaluation.signal import signal_measures
from foleybox.lab.evaluation.tables import CHALLENGE_STATISTICS, PRINTED, markdown, printed_row
from foleybox.labels import LABELS, Label, find_label, parse_label
from foleybox.version import __version__, commit

Mode = Literal["default", "official", "cmu32"]
CLIPS = {"official": 100, "cmu32": 32}  # clips a label that a protocol demands
OFFICIAL_RATE, OFFICIAL_SAMPLES = 22_050, 88_200
CHALLENGE_SECONDS = 4.0


@dataclass(frozen=True)
class Evaluate:
    """Measure generated clips against real ones: Fréchet and kernel distance, precision, recall, density, coverage, tagger.

    Every figure is given with its number of clips, a bootstrap interval over clips, and the score of real clips.

    Example: foleybox evaluate out/ --reference ../shared/data/foley:dev --floor ../shared/data/foley:train
    """

    generated: tyro.conf.Positional[tuple[str, ...]]
    "folders of class folders (any DCASE spelling), or with a manifest; `folder:split` for one split; one a system"
    reference: str | None = None
    "real clips, found the same way, or a statistics file (.npz)"
    embedding: EmbeddingName | None = None
    "mn04 unless --mode official, which takes vggish-official"
    mode: Mode = "default"
    "official: the challenge's own score, 100 clips a label; cmu32: the first 32 clips a label, for use during training"
    floor: str | None = None
    "further real clips, measured like a system; without them the reference is split in halves by recording"
    labels: tuple[str, ...] = ()
    "measure these labels only; all seven otherwise"
    seconds: float = 4.0
    "clips are cut or zero-padded at the end to this length"
    keep_silent: bool = False
    "measure clips whose peak is under -60 dBFS too, which are refused otherwise"
    measure: Annotated[MeasureConfig, tyro.conf.arg(name="")] = MeasureConfig()  # noqa: RUF009 (frozen)
    signal: bool = False
    "also measure the sounds alone: roughness, repetition (a vocoder's buzz) and attacks"
    weights: Path | None = None
    "the embedding's weights (of `encoder`: its run); else FOLEYBOX_WEIGHTS, FOLEYBOX_SHARED/weights, the cache, the release"
    compare: tuple[Path, ...] = ()
    "JSON files of earlier results to show with this one, if they were measured in the same way"
    made_by: tuple[Path, ...] = ()
    "the training run or instrument that made each folder, in their order: its budget is recorded for `foleybox report`"
    about: tuple[str, ...] = ()
    "what each system is, in one line, in their order: recorded for `foleybox report`"
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "write all figures to this file"
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "write a page with tables, plots, spectrograms and players to this file"
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "write the tables to this file"
    players: int = 4
    "clips of each label and system that the page plays"
    statistics: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    "also write the reference's statistics (.npz), to measure against them without its clips"


OUTPUTS = ("json", "html", "markdown", "players", "statistics", "compare", "made_by", "about")
"flags that do not change a figure, left out of the command that a result records"


def evaluate(config: Evaluate) -> int:
    """Measure, print the tables, write what was asked for; 0. Raises UserError where a figure would mean nothing."""
    check_writable(config.json, config.markdown, config.html)
    result = run(config)
    text = markdown(result)
    print(text)
    if config.json:
        write_text(config.json, write_result(result))
    if config.markdown:
        write_text(config.markdown, text + "\n")
    if config.html:
        write_page(config, result)
    return 0


def write_page(config: Evaluate, result: Result) -> None:
    """Write the HTML page of a result that `run` returned for `config`."""
    assert config.html is not None
    names = _names(list(config.generated))
    shown = [(name, find_clips(source)) for source, name in names.items()]
    if not result.protocol.reference.endswith(".npz"):
        shown.insert(0, ("real: the reference", find_clips(result.protocol.reference)))
    labels = _labels(config)
    shown = [(name, [clip for clip in clips if clip.label in labels]) for name, clips in shown]
    body = page.result_body(result, shown, page.Sounds(config.html), config.players)
    page.save(config.html, f"foleybox evaluate: {', '.join(names.values())}", body)


# --- what is measured against what --------------------------------------------------------------------------------


class Source(NamedTuple):
    """The clips of one folder, embedded: of each label, and under None all of them."""

    clips: list[ClipFile]
    sets: dict[Label | None, ClipSet]
    rate: int
    silent: int


def run(config: Evaluate) -> Result:
    """Measure every system and return the result."""
    if not config.generated:
        raise UserError("nothing to evaluate: name at least one folder of generated clips")
    for flag, given in (("--made-by", config.made_by), ("--about", config.about)):
        if given and len(given) != len(config.generated):
            raise UserError(f"{flag} has {len(given)} values for {len(config.generated)} folders: give one a folder")
    labels = _labels(config)
    source = _reference_source(config)
    name = _embedding_name(config)
    found = {text: _find(text, labels, config.mode) for text in config.generated}
    real = None if source.endswith(".npz") else _find(source, labels, "default")
    further = None if config.floor is None else _find(config.floor, labels, "default")
    runs = _runs(config, found)

    embedding = load_embedding(name, config.weights)
    statistics = _statistics(source, labels, embedding, name) if real is None else None
    known = None if real is None else _embed(source, real, embedding, config)
    sources = {text: _embed(text, clips, embedding, config) for text, clips in found.items()}
    others = None if further is None or config.floor is None else _embed(config.floor, further, embedding, config)

    references = _references(known, statistics, labels)
    if config.statistics and known is not None:
        kept = {label: reference.statistics for label, reference in references.items() if label is not None}
        write_statistics(config.statistics, Statistics(kept, _identity(embedding)))
    protocol = _protocol(config, source, _checksum(source, real), embedding, references, known)

    @cache  # systems of one size share the scores of real clips
    def floor_at(label: Label | None, n: int) -> tuple[dict[str, float], int]:
        return _floor(label, n, references[label], known, others, config)

    names = _names(list(sources))
    systems = [
        replace(_system(names[text], text, each, references, floor_at, config), run=runs[text])
        for text, each in sources.items()
    ]
    notes = _notes(config, dict(zip(names.values(), sources.values())), systems, known, others, protocol)
    for path in config.compare:
        earlier = read_result(path)
        check_same(path, earlier.protocol, protocol)
        systems += earlier.systems
    printed = [printed_row(row) for row in PRINTED]
    return Result(__version__, protocol, systems, printed, notes, _command(config), commit())


def _command(config: Evaluate) -> str:
    """Return the command that measures this, without flags that only say what else to write."""
    words, values = ["foleybox", "evaluate", *config.generated], dict(_flags(config) + _flags(config.measure))
    for name, value in values.items():
        if name not in OUTPUTS:
            words += [f"--{name.replace('_', '-')}"]
            words += [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def _flags(config: Evaluate | MeasureConfig) -> list[tuple[str, object]]:
    """Return the fields that differ from their defaults."""
    fields = [(each.name, getattr(config, each.name), each.default) for each in dataclasses.fields(config)]
    return [(name, value) for name, value, usual in fields if value != usual and name not in ("generated", "measure")]


def _runs(config: Evaluate, found: Mapping[str, Sequence[ClipFile]]) -> dict[str, Run]:
    """Return what made the sounds of each folder, as far as it is known."""
    runs = {}
    made_by, about = dict(zip(config.generated, config.made_by)), dict(zip(config.generated, config.about))
    for text, clips in found.items():
        run = budget(made_by[text]) if made_by else Run()
        seeds = [int(match[1]) for clip in clips if (match := re.search(r"_s(\d+)$", clip.path.stem))]
        if len(seeds) == len(clips):
            run = replace(run, sound_seeds=(min(seeds), max(seeds)))
        runs[text] = replace(run, about=about.get(text, ""))
    return runs


def budget(made_by: Path) -> Run:
    """Return the training budget of a run folder or an instrument. Raises UserError if it is neither."""
    if (made_by / MANIFEST).is_file():
        made = read_instrument(made_by).made_with.get("generator", {})
        seen = (made.get("seen_before") or 0) + made["steps"] * made.get("batch", 0) if "steps" in made else None
    else:
        made, seen = read_run_config(made_by), clips_seen(made_by)
    return Run(clips_seen=seen, seed=made.get("seed"), tiers=tuple(made.get("tiers", ())))


def _labels(config: Evaluate) -> list[Label]:
    chosen = [parse_label(text) for text in config.labels] or list(LABELS)
    if config.mode == "official" and len(chosen) < len(LABELS):
        raise UserError("--mode official measures all seven labels: drop --labels, or drop --mode official")
    if config.mode == "official" and config.seconds != CHALLENGE_SECONDS:
        raise UserError(f"--mode official measures {CHALLENGE_SECONDS:g} s: drop --seconds, or drop --mode official")
    return sorted(set(chosen), key=LABELS.index)


def _embedding_name(config: Evaluate) -> EmbeddingName:
    if config.mode != "official":
        return config.embedding or "mn04"
    if config.embedding not in (None, "vggish-official"):
        raise UserError(f"--mode official is defined on vggish-official, not on {config.embedding}: drop --embedding")
    return "vggish-official"


def _reference_source(config: Evaluate) -> str:
    if config.reference is not None:
        if config.mode == "official" and not config.reference.endswith(".npz"):
            raise UserError(
                f"--mode official compares with a statistics file ({CHALLENGE_STATISTICS}), not with {config.reference}"
            )
        return config.reference
    if config.mode != "official":
        raise UserError("no reference: name real clips or a statistics file with --reference")
    for folder in weight_folders():
        if (folder / CHALLENGE_STATISTICS).is_file():
            return str(folder / CHALLENGE_STATISTICS)
    raise UserError(f"no {CHALLENGE_STATISTICS} in {', '.join(map(str, weight_folders()))}: name it with --reference")


def _find(source: str, labels: Sequence[Label], mode: Mode) -> list[ClipFile]:
    """Find the clips of a source and check them against the protocol."""
    found = find_clips(source)
    counts = Counter(clip.label for clip in found)
    for label in labels:
        if counts[label] == 0:
            raise UserError(_missing(source, label))
        if counts[label] == 1:
            raise UserError(f"{source} has 1 clip of {label}: a distance needs at least 2")
        wanted = CLIPS.get(mode, 0)
        if mode == "official" and counts[label] != wanted:
            raise UserError(
                f"{source} has {counts[label]} clips of {label}: --mode official takes exactly {wanted} a label"
            )
        if mode == "cmu32" and counts[label] < wanted:
            raise UserError(f"{source} has {counts[label]} clips of {label}: --mode cmu32 needs {wanted} a label")
    chosen: list[ClipFile] = []
    for label in labels:
        chosen += [clip for clip in found if clip.label is label][: CLIPS[mode] if mode == "cmu32" else None]
    if mode == "official":
        for clip in chosen:
            _check_official(clip.path)
    return chosen


def _missing(source: str, label: Label) -> str:
    folder = Path(source)
    here = (
        [each for each in folder.iterdir() if each.is_dir() and find_label(each.name) is label]
        if folder.is_dir()
        else []
    )
    what = f"{here[0]} is empty" if here else f"{source} has no clips of {label}"
    return f"{what}: every label needs clips (to measure fewer labels, name them with --labels)"


def _check_official(path: Path) -> None:
    """Refuse what the challenge's tool refuses: another format, rate, length, depth or number of channels."""
    try:
        info = soundfile.info(libsndfile_path(path))
    except soundfile.SoundFileError as error:
        raise UserError(f"{path} cannot be read ({error}): --mode official takes 16-bit WAV files") from None
    found = (info.format.removesuffix("EX"), info.samplerate, info.channels, info.frames, info.subtype)
    if found != ("WAV", OFFICIAL_RATE, 1, OFFICIAL_SAMPLES, "PCM_16"):
        raise UserError(
            f"{path} is {info.format} of {info.samplerate} Hz, {info.channels} channel(s), {info.frames} samples, "
            f"{info.subtype}: --mode official takes WAV of {OFFICIAL_RATE} Hz, mono, {OFFICIAL_SAMPLES} samples, PCM_16"
        )


def _statistics(source: str, labels: Sequence[Label], embedding: Embedding, name: EmbeddingName) -> Statistics:
    if not Path(source).is_file():
        raise UserError(f"no statistics file {source}")
    statistics = read_statistics(Path(source))
    if not statistics.embedding and name != "vggish-official":
        raise UserError(
            f"{source} does not say of which embedding it is, as the challenge's own file does not: it is accepted "
            f"with --embedding vggish-official (or --mode official) only, not with {name}"
        )
    if statistics.embedding and statistics.embedding != _identity(embedding):
        raise UserError(
            f"{source} holds statistics of {statistics.embedding}, not of {_identity(embedding)}: distances between two "
            "embeddings mean nothing; name the same one with --embedding and --weights"
        )
    for label in labels:
        if label not in statistics.labels:
            raise UserError(f"{source} holds no statistics of {label}")
        width = len(statistics.labels[label].mean)
        if width != embedding.width:
            raise UserError(
                f"{source} holds statistics of {width} numbers, {embedding.name} gives {embedding.width}: it is the "
                "reference of another embedding"
            )
    return statistics


def _identity(embedding: Embedding) -> str:
    """Return what statistics say they are of: there are many encoders, and one of each of the others."""
    return f"{embedding.name}, {embedding.weights}" if embedding.name == "encoder" else embedding.name


def _embed(source: str, clips: Sequence[ClipFile], embedding: Embedding, config: Evaluate) -> Source:
    rates: Counter[int] = Counter()
    silent: list[Path] = []

    def pieces() -> Iterator[EmbeddedClips]:
        for piece in embed_stream(clips, embedding, config.seconds):
            rates.update(piece.rates.tolist())
            silent.extend(piece.clips[i].path for i in np.flatnonzero(piece.peaks < SILENT))
            yield piece
            del piece  # or it would be in memory together with the next one

    sets = gather(clips, pieces(), config.measure)
    if len(rates) > 1:
        listed = ", ".join(f"{rate} Hz ({count})" for rate, count in sorted(rates.items()))
        raise UserError(f"{source} mixes rates, {listed}: band limits would be measured with the sounds; use one rate")
    if silent and not config.keep_silent:
        raise UserError(
            f"{source} has {len(silent)} silent clip(s), the first {silent[0]} (peak under -60 dBFS): generate or "
            "remove them, or measure them as they are with --keep-silent"
        )
    return Source(list(clips), sets, next(iter(rates)), len(silent))


def _references(
    known: Source | None, statistics: Statistics | None, labels: Sequence[Label]
) -> dict[Label | None, Reference]:
    """Return the reference of each label, and under None that of all of them where its clips are known."""
    if known is None:
        assert statistics is not None
        return {label: Reference(statistics.labels[label]) for label in labels}
    return {label: reference_of(each.kept, each.whole) for label, each in known.sets.items()}


def _system(
    name: str,
    source: str,
    measured: Source,
    references: Mapping[Label | None, Reference],
    floor_at: Callable[[Label | None, int], tuple[dict[str, float], int]],
    config: Evaluate,
) -> System:
    sets, found = measured.sets, {}
    parts, floors = [], []
    asked = [label for label in sets if label in references and (label is not None or len(sets) > 2)]
    signal: dict[Label | None, dict[str, float]] = {}
    if config.signal:
        signal |= signal_measures(measured.clips, config.seconds)
    for label in progress(asked, len(asked), f"measuring {name}"):
        part = measure(sets[label].kept, references[label], config.measure, stream_of(label), sets[label].whole)
        real, floor_n = floor_at(label, sets[label].whole.clips)
        clips, numbers = sets[label], _rounded(figures(part, real, config.measure))
        found[label] = Part(
            numbers,
            signal.get(label, {}),
            clips.whole.clips,
            len(clips.kept.clips),
            clips.whole.moments.n,
            floor_n or None,
        )
        if label is not None:
            parts.append(part)
            floors.append(real)
    mean_floor = mean_of([Measured(each, {}) for each in floors]).values if all(floors) else {}
    mean = Means(_rounded(figures(mean_of(parts), mean_floor, config.measure)), _mean_signal(signal))
    pooled = found.pop(None, None)
    return System(name, source, {label.slug: part for label, part in found.items()}, mean, pooled)


def _mean_signal(signal: Mapping[Label | None, Mapping[str, float]]) -> dict[str, float]:
    names = next(iter(signal.values()), {})
    return {name: round(sum(each[name] for each in signal.values()) / len(signal), 6) for name in names}


def _floor(
    label: Label | None,
    n: int,
    reference: Reference,
    known: Source | None,
    others: Source | None,
    config: Evaluate,
) -> tuple[dict[str, float], int]:
    """Return the scores of real clips and their number: of `--floor`, or of one half of the reference against the other."""
    stream = stream_of(label)
    if others is not None:
        return real_scores(others.sets[label].kept, reference, n, config.measure, stream)
    if known is None:
        return {}, 0
    real = known.sets[label].kept
    recordings = sorted({clip.recording for clip in real.clips})
    order = np.random.default_rng([config.measure.seed, stream, 3]).permutation(len(recordings))
    half = {recordings[i] for i in order[: len(recordings) // 2]}
    inside = np.array([clip.recording in half for clip in real.clips])
    if min(inside.sum(), (~inside).sum()) < 2:
        return {}, 0
    return real_scores(
        real.of(np.flatnonzero(inside)), reference_of(real.of(np.flatnonzero(~inside))), n, config.measure, stream
    )


def _rounded(measured: Mapping[str, Figure]) -> dict[str, Figure]:
    def short(number: float | None) -> float | None:
        return None if number is None else round(number, 6) + 0.0  # no negative zero

    return {
        name: Figure(round(each.value, 6) + 0.0, short(each.low), short(each.high), short(each.floor))
        for name, each in measured.items()
    }


def _names(sources: Sequence[str]) -> dict[str, str]:
    """Name systems by their folder, or by the whole path where two folders share a name."""
    short = {text: Path(text).name or text for text in sources}
    twice = {name for name, count in Counter(short.values()).items() if count > 1}
    return {text: text if name in twice else name for text, name in short.items()}


def _protocol(
    config: Evaluate,
    source: str,
    checksum: str,
    embedding: Embedding,
    references: Mapping[Label | None, Reference],
    known: Source | None,
) -> Protocol:
    labels = [label for label in references if label is not None]
    return Protocol(
        mode=config.mode,
        distance=DISTANCES[config.mode],
        embedding=embedding.name,
        width=embedding.width,
        windows=embedding.rule,
        weights=embedding.weights,
        seconds=config.seconds,
        reference=source,
        reference_sha256=checksum,
        reference_clips={label.slug: known.sets[label].whole.clips if known else None for label in labels},
        reference_windows={label.slug: references[label].statistics.n for label in labels},
        floor=config.floor or ("the reference, halved by recording" if None in references else None),
        k=config.measure.k,
        seed=config.measure.seed,
        bootstrap=config.measure.bootstrap,
        confidence=config.measure.confidence,
        keep=config.measure.keep,
    )


def _checksum(source: str, clips: Sequence[ClipFile] | None) -> str:
    """Return a checksum of a reference: its file, or which clips it has wherever they lie (labels, names, sizes)."""
    if clips is None:
        return sha256(Path(source))[:16]
    lines = sorted(f"{clip.label} {clip.path.name} {clip.path.stat().st_size}" for clip in clips)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


DISTANCES = {"default": "FD", "official": "FAD (challenge protocol)", "cmu32": "FD at 32 clips"}


def _notes(
    config: Evaluate,
    sources: Mapping[str, Source],
    systems: Sequence[System],
    known: Source | None,
    others: Source | None,
    protocol: Protocol,
) -> list[str]:
    """Return what a reader of the figures must know, in words."""
    notes = []
    if config.mode == "cmu32":
        notes.append("32 clips a label: biased upward, for use during training; not comparable with 100 clips.")
    if known is None:
        notes.append("The reference is a statistics file: only distances that need no reference clips are given.")
    elif others is None:
        notes.append("Real clips: one half of the reference against the other; n and reference are smaller than above.")
    for what, source in {"the reference": known, "the real clips of --floor": others}.items():
        if source and any(_exceeds(each) for each in source.sets.values()):
            notes.append(
                f"Of {what}, KAD to coverage and the scores of real clips use {config.measure.keep:,} clips of a set, drawn by "
                "the seed."
            )
    for name, source in sources.items():
        if any(_exceeds(each) for each in source.sets.values()):
            notes.append(
                f"{name}: where n says `drawn`, FD and accuracy are of all n clips and FD∞ ends at that FD; everything "
                "else is of clips drawn by the seed, and so are the intervals, which are wider than those of all would be."
            )
    for system in systems:
        short = [slug for slug, part in system.labels.items() if part.floor_n and part.floor_n < part.n]
        if short:
            notes.append(f"{system.name}: fewer real clips than generated ones for {', '.join(short)}.")
        few = [slug for slug, part in system.labels.items() if known is not None and "recall" not in part.figures]
        if few:
            notes.append(
                f"{system.name}: precision to coverage need more than {config.measure.k} clips on both sides: "
                f"{', '.join(few)}."
            )
        notes += _thin(system.name, {slug: part.windows for slug, part in system.labels.items()}, protocol)
    notes += _thin("The reference", protocol.reference_windows, protocol)
    for name, source in sources.items():
        if source.silent:
            notes.append(f"{name}: {source.silent} clips are silent, and measured as they are.")
        if known is not None and source.rate != known.rate:
            notes.append(f"{name} is at {source.rate} Hz, the reference at {known.rate} Hz: band limits differ.")
    if protocol.embedding not in ("mn04", "encoder"):
        notes.append(f"{protocol.embedding} has no tagger: no accuracy.")
    return notes


def _thin(name: str, windows: Mapping[str, int], protocol: Protocol) -> list[str]:
    thin = [slug for slug, count in windows.items() if count <= protocol.width]
    if not thin:
        return []
    return [
        f"{name}: no more windows than dimensions ({protocol.width}) for {', '.join(thin)}: FD is exact for these clips, "
        "and far above what more of them would give."
    ]


def _exceeds(clips: ClipSet) -> bool:
    return len(clips.kept.clips) < clips.whole.clips
