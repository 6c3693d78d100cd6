"""`foleybox report`: JSON files of `foleybox evaluate` -> a page that compares systems, one row each.

Systems of one name and different training seeds share a row: the mean over the seeds, and an interval from the lowest
to the highest end of theirs. Text from the heading `## Notes` on is written by hand and kept when a page is written anew.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from foleybox.errors import UserError
from foleybox.files import check_writable, write_text
from foleybox.lab.evaluation.measures import METRICS, Figure
from foleybox.lab.evaluation.result import Means, Part, Result, Run, System, check_same, read_result
from foleybox.lab.evaluation.signal import SIGNAL
from foleybox.lab.evaluation.tables import (
    PRINTED,
    PRINTED_NOTE,
    count,
    number,
    protocol_entries,
    signal_table,
    table,
    title_of,
)
from foleybox.labels import LABELS

MAIN = ("frechet", "accuracy", "precision", "recall", "coverage", "diversity")
BY_LABEL = ("frechet", "accuracy", "coverage", "diversity")
NOTES = "## Notes"


@dataclass(frozen=True)
class Report:
    """Write a page that compares systems: training budget, figures with intervals, scores of real clips, tables by label.

    Example: foleybox report results/systems -o results/systems.md
    """

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE...")]
    "JSON files of `foleybox evaluate --json`, or folders of them, measured with one protocol"
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="PAGE")] = Path("systems.md")
    "the Markdown page; its text from the heading `## Notes` on is kept"
    title: str = "Systems"
    "heading of the page"


class Measured(NamedTuple):
    """One system of one file."""

    path: Path
    result: Result
    system: System

    @property
    def run(self) -> Run:
        return self.system.run or Run()


def report(config: Report) -> int:
    """Read the files, write the page; 0. Raises UserError for files that cannot be compared."""
    check_writable(config.out)
    rows = read_rows(config.files)
    words = ["foleybox", "report", *map(str, config.files), "-o", str(config.out)]
    words += ["--title", config.title] if config.title != Report.title else []
    write_keeping_notes(config.out, page(rows, config.title, shlex.join(words)))
    print(f"wrote {config.out}: {len(rows)} systems")
    return 0


def read_rows(files: Sequence[Path]) -> dict[str, list[Measured]]:
    """Return the systems of all files by name, nearest first, each with one entry a training seed.

    Raises UserError for no file, files of different protocols, and a system that two files hold with the same seed.
    """
    paths = [each for path in files for each in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not paths:
        raise UserError(f"no JSON files in {', '.join(map(str, files)) or 'nothing'}: name files of foleybox evaluate")
    found: dict[str, list[Measured]] = {}
    first: Result | None = None
    for path in paths:
        result = read_result(path)
        first = first or result
        check_same(path, result.protocol, first.protocol)
        for system in result.systems:
            mine, same = Measured(path, result, system), found.setdefault(system.name, [])
            other = next((each for each in same if each.run.seed == mine.run.seed), None)
            if other:
                raise UserError(
                    f"{path} and {other.path} both hold {system.name} with training seed {mine.run.seed}: remove one, or "
                    "rename the system"
                )
            same.append(mine)
    return dict(sorted(found.items(), key=lambda item: joined(item[1]).mean.figures["frechet"].value))


def joined(same: Sequence[Measured]) -> System:
    """Return the mean over the training seeds of one system; the interval covers those of all seeds."""
    systems = [each.system for each in same]
    if len(systems) == 1:
        return systems[0]
    labels = {
        slug: replace(part, figures=_mean([each.labels[slug] for each in systems if slug in each.labels]))
        for slug, part in systems[0].labels.items()
    }
    return replace(systems[0], labels=labels, mean=replace(systems[0].mean, figures=_mean([s.mean for s in systems])))


def _mean(parts: Sequence[Means]) -> dict[str, Figure]:
    def one(figures: Sequence[Figure]) -> Figure:
        def of(values: Iterable[float | None], take: Callable[[list[float]], float]) -> float | None:
            known = [value for value in values if value is not None]
            return float(take(known)) if len(known) == len(figures) else None

        return Figure(
            float(np.mean([each.value for each in figures])),
            of((each.low for each in figures), min),
            of((each.high for each in figures), max),
            of((each.floor for each in figures), lambda known: float(np.mean(known))),
        )

    common = [name for name in parts[0].figures if all(name in part.figures for part in parts)]
    return {name: one([part.figures[name] for part in parts]) for name in common}


# --- the page -----------------------------------------------------------------------------------------------------


def interval(figure: Figure | None, most: int = 9) -> str:
    """Write a figure and its interval with at most `most` decimals.

    >>> interval(Figure(4.084, 3.861, 4.313, 2.5)), interval(Figure(7.8, 7.5, 8.2), 1)
    ('4.08 (3.86 to 4.31)', '7.8 (7.5 to 8.2)')
    """
    if figure is None:
        return "-"
    ends = "" if figure.low is None else f" ({number(figure.low, most)} to {number(figure.high, most)})"
    return number(figure.value, most) + ends


def decimals(system: System, metric: str) -> int:
    """Return the most decimals that a system's figures of a metric have: an old file may hold rounded ones."""
    parts: list[Means] = [system.mean, *system.labels.values()]
    figures = [part.figures[metric] for part in parts if metric in part.figures]
    values = [value for each in figures for value in (each.value, each.low, each.high) if value is not None]
    return max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values), default=0)


def page(rows: Mapping[str, Sequence[Measured]], title: str, command: str) -> str:
    """Return the page without its notes."""
    first = next(iter(rows.values()))[0].result
    systems = {name: joined(same) for name, same in rows.items()}
    parts = [
        f"# {title}",
        f"Written by `{command}` from JSON files of `foleybox evaluate`; the text under Notes is written by hand. A row is a "
        "system, ordered by distance. Brackets: intervals over clips. *Real*: the score of real clips at the same n. Mean of "
        "the labels, unless a table has a column for each label.",
        "\n".join(f"* {term}: {text}" for term, text in protocol_entries(first.protocol)),
        "\n".join(f"* {title_of(name, first.protocol)}: {METRICS[name].meaning}" for name in MAIN),
        table(
            ["system", *_heads(first), "clips seen", "training seeds", "n"],
            [
                [name, *_cells(systems[name]), _seen(same), _seeds(same), count(systems[name])]
                for name, same in rows.items()
            ],
        ),
        "## How the systems were made and measured",
        "*Clips seen*: training clips of the model that generates, counted as often as they were in a batch, including the "
        "runs that it was started from. *Tiers*: licence tiers of the training clips. *Commit* and *command*: of the "
        "measurement.",
        table(
            ["system", "what it is", "clips seen", "training seed", "tiers", "sound seeds", "n", "commit", "command"],
            [_made(name, each) for name, same in rows.items() for each in same],
        ),
    ]
    for metric in BY_LABEL:
        parts += [
            f"## {title_of(metric, first.protocol)}, by label",
            METRICS[metric].meaning,
            _by_label(systems, metric),
        ]
    seeded = {name: same for name, same in rows.items() if len(same) > 1}
    if seeded:
        lines = [
            [name, str(each.run.seed), *(interval(each.system.mean.figures.get(metric)) for metric in MAIN)]
            for name, same in seeded.items()
            for each in same
        ]
        head = ["system", "training seed", *(title_of(metric, first.protocol) for metric in MAIN)]
        parts += ["## Training seeds apart", table(head, lines)]
    if any(system.mean.signal for system in systems.values()):
        parts += ["## The sounds alone", "\n".join(f"* {name}: {meaning}" for name, meaning in SIGNAL.items())]
        parts.append(signal_table(list(systems.values())))
    printed = [
        [f"{row.system} ({row.where})", *(f"{value:.3f}" for value in row.values), f"{row.mean:.3f}"] for row in PRINTED
    ]
    parts += [
        "## Figures printed in the two reports",
        f"{PRINTED_NOTE}: other embedding and reference than above. Compare orders, not values.",
        table(["system", *(label.name for label in LABELS), "mean"], printed),
    ]
    return "\n\n".join(parts) + "\n"


def _heads(result: Result) -> list[str]:
    heads = [title_of(name, result.protocol) for name in MAIN]
    return [heads[0], "real", heads[1], "real", *heads[2:]]


def _cells(system: System) -> list[str]:
    figures = system.mean.figures
    most = {name: decimals(system, name) for name in MAIN}
    cells = [interval(figures.get(name), most[name]) for name in MAIN]
    real = [number(figures[name].floor, most[name]) if name in figures else "-" for name in MAIN[:2]]
    return [cells[0], real[0], cells[1], real[1], *cells[2:]]


def _seen(same: Sequence[Measured]) -> str:
    return " / ".join(
        dict.fromkeys("-" if each.run.clips_seen is None else f"{each.run.clips_seen:,}" for each in same)
    )


def _seeds(same: Sequence[Measured]) -> str:
    return ", ".join("-" if each.run.seed is None else str(each.run.seed) for each in same)


def _made(name: str, each: Measured) -> list[str]:
    run, seeds = each.run, each.run.sound_seeds
    return [
        name,
        run.about or "-",
        _seen([each]),
        _seeds([each]),
        ", ".join(run.tiers) or ("all" if run.clips_seen else "-"),
        f"{seeds[0]} to {seeds[1]}" if seeds else "-",
        count(each.system),
        each.result.commit or "-",
        f"`{each.result.command}`" if each.result.command else "not recorded",
    ]


def _by_label(systems: Mapping[str, System], metric: str) -> str:
    rows = []
    for name, system in systems.items():
        parts: list[Part | None] = [system.labels.get(label.slug) for label in LABELS]
        most = decimals(system, metric)
        cells = [interval(part.figures.get(metric) if part else None, most) for part in [*parts, system.mean]]
        rows.append([name, *cells])
    nearest = next(iter(systems.values()))
    real = [nearest.labels.get(label.slug) for label in LABELS]
    floors = [
        number(part.figures[metric].floor) if part and metric in part.figures else "-" for part in [*real, nearest.mean]
    ]
    rows.append([f"real clips, at the n of {nearest.name}", *floors])
    return table(["system", *(label.name for label in LABELS), "mean"], rows)


def write_keeping_notes(path: Path, text: str) -> None:
    """Write a page; what its file has from the heading `## Notes` on stays."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    start = 0 if before.startswith(f"{NOTES}\n") else before.find(f"\n{NOTES}\n") + 1
    notes = before[start:] if start or before.startswith(f"{NOTES}\n") else ""
    write_text(path, text.rstrip("\n") + "\n" + (f"\n{notes.rstrip()}\n" if notes else ""))
