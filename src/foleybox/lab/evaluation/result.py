"""The result of `foleybox evaluate`: dataclasses, and the JSON file that `--json` writes.

The keys of the file are the fields of the classes below. A file of version 1 has no `version`, `command`, `commit`,
`run` and `signal`; it is read too. Every number is rounded to six decimals.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foleybox.errors import UserError
from foleybox.lab.evaluation.measures import Figure

VERSION = 2
Made = TypeVar("Made")


@dataclass(frozen=True)
class Protocol:
    """How a result was measured. Results are comparable where the fields in `SAME` agree."""

    mode: str
    distance: str
    "name of the Fréchet distance's column"
    embedding: str
    width: int
    "dimensions of the embedding"
    windows: str
    "rule of the embedding's windows, in words"
    weights: str
    seconds: float
    reference: str
    reference_clips: dict[str, int | None]
    "by slug of the label; None where the reference is a statistics file"
    reference_windows: dict[str, int]
    floor: str | None
    "the real clips that are measured like a system"
    k: int
    seed: int
    bootstrap: int
    confidence: float
    keep: int | None = None
    reference_sha256: str | None = None


SAME = (
    *("mode", "embedding", "windows", "weights", "seconds"),
    *("reference_clips", "reference_windows", "reference_sha256", "k", "confidence"),
)


@dataclass(frozen=True)
class Means:
    """Figures, by metric (`measures.METRICS`); `signal` holds measures that need no reference (`signal.SIGNAL`)."""

    figures: dict[str, Figure]
    signal: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part(Means):
    """The figures of the clips of one label, or of all of them together."""

    n: int = 0
    "clips"
    kept: int = 0
    "clips that everything but FD and accuracy was computed on"
    windows: int = 0
    floor_n: int | None = None
    "real clips in each draw behind the figures' `floor`"


@dataclass(frozen=True)
class Run:
    """What made the sounds of a system."""

    about: str = ""
    "what the system is, in one line"
    clips_seen: int | None = None
    "training clips, counted as often as they were in a batch, runs that it started from included"
    seed: int | None = None
    "of the training"
    tiers: tuple[str, ...] = ()
    "licence tiers of the training clips; none: all"
    sound_seeds: tuple[int, int] | None = None
    "first and last seed of the sounds"


@dataclass(frozen=True)
class System:
    """One folder of sounds, measured."""

    name: str
    source: str
    labels: dict[str, Part]
    "by slug of the label"
    mean: Means
    "plain mean over the labels"
    pooled: Part | None = None
    "all clips as one set"
    run: Run | None = None


@dataclass(frozen=True)
class Result:
    """The result of one evaluation."""

    foleybox: str
    protocol: Protocol
    systems: list[System]
    printed: list[dict[str, Any]]
    "rows that the two reports printed: system, where, labels, mean"
    notes: list[str]
    command: str = ""
    commit: str = ""
    version: int = VERSION


def write_result(result: Result) -> str:
    """Return the JSON text of a result."""
    return json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False) + "\n"


def read_result(path: Path) -> Result:
    """Read a JSON file of `foleybox evaluate`, of this version or an earlier one. Raises UserError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("version", 1)
        if version > VERSION:
            raise UserError(f"{path} is of version {version}, this foleybox reads up to {VERSION}: install a newer one")
        systems = [_system(each) for each in values["systems"]]
        more = {"protocol": _fill(Protocol, values["protocol"]), "systems": systems, "version": version}
        return _fill(Result, {"printed": [], "notes": [], **values, **more})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path} ({error!r}): expected a JSON file of `foleybox evaluate --json`") from None


def _fill(kind: type[Made], values: dict[str, Any]) -> Made:
    known = {each.name for each in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{key: value for key, value in values.items() if key in known})


def _system(values: dict[str, Any]) -> System:
    run = values.get("run")
    made = {
        "labels": {slug: _part(Part, part) for slug, part in values["labels"].items()},
        "mean": _part(Means, values["mean"]),
        "pooled": _part(Part, values["pooled"]) if values.get("pooled") else None,
        "run": _run(run) if run else None,
    }
    return _fill(System, {**values, **made})


def _part(kind: type[Made], values: dict[str, Any]) -> Made:
    return _fill(kind, {**values, "figures": {name: Figure(**each) for name, each in values["figures"].items()}})


def _run(values: dict[str, Any]) -> Run:
    seeds = values.get("sound_seeds")
    return _fill(
        Run, {**values, "tiers": tuple(values.get("tiers", ())), "sound_seeds": tuple(seeds) if seeds else None}
    )


def check_same(path: Path, theirs: Protocol, mine: Protocol) -> None:
    """Raise UserError unless two results were measured alike; a checksum that one of them lacks is not compared."""
    for key in SAME:
        here, there = getattr(mine, key), getattr(theirs, key)
        if here != there and not (key == "reference_sha256" and None in (here, there)):
            raise UserError(
                f"{path} was measured with {key} {there}, this result with {here}: such figures cannot be compared"
            )
