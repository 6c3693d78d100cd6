"""The result of `foleybox evaluate` as Markdown tables, together with the figures that the two reports printed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foleybox.lab.evaluation.measures import METRICS, Figure
from foleybox.lab.evaluation.result import Means, Part, Protocol, Result, System
from foleybox.lab.evaluation.signal import SIGNAL
from foleybox.labels import LABELS, Label

CHALLENGE_STATISTICS = "dcase2023_eval_vggish_stats.npz"

# --- the reports' printed figures ---------------------------------------------------------------------------------


class Printed(NamedTuple):
    """A row of a table that a report printed."""

    system: str
    where: str
    values: tuple[float, ...]  # seven labels in order
    mean: float
    stated: bool = True  # False: the report states neither its reference nor its number of clips


PRINTED = (
    Printed("official baseline", "KT, Table 3", (13.411, 8.109, 7.951, 5.230, 16.108, 13.337, 3.770), 9.702),
    Printed(
        "CMU: baseline re-trained", "CMU, Table 2", (8.958, 4.189, 6.765, 3.086, 11.319, 9.321, 2.675), 6.616, False
    ),
    Printed("KT S0: 2C, τ_c 0.1", "KT, Table 2", (2.899, 4.149, 4.821, 3.411, 14.929, 3.848, 1.449), 5.072),
    Printed("KT S1: 2C, τ_c 1.0", "KT, Tables 2, 3", (2.829, 3.807, 3.634, 4.222, 15.673, 3.534, 1.717), 5.060),
    Printed("KT S2: C-SupCon, τ_c 0.1", "KT, Table 2", (2.559, 3.414, 5.985, 3.468, 12.591, 4.219, 2.390), 4.947),
    Printed("KT S3: C-SupCon, τ_c 1.0", "KT, Tables 2, 3", (2.749, 3.765, 4.913, 2.867, 14.364, 3.709, 1.466), 4.833),
)
PRINTED_NOTE = (
    "VGGish, 22,050 Hz unresampled, reference: the challenge's evaluation set, 100 clips a label "
    "(CMU's re-trained baseline: number of clips and reference not stated, perhaps 32)"
)


def printed_row(row: Printed) -> dict[str, Any]:
    values = {label.slug: value for label, value in zip(LABELS, row.values)}
    return {"system": row.system, "where": row.where, "labels": values, "mean": row.mean}


def differences(row: Printed, protocol: Protocol) -> str:
    """Return in what a printed row was measured differently from ours; "" where it was measured alike."""
    other = ["embedding"] if protocol.embedding != "vggish-official" else []
    if not row.stated:
        return "; ".join([f"OTHER {each}" for each in other] + ["reference and n not stated"])
    if Path(protocol.reference).name != CHALLENGE_STATISTICS:
        other.append("reference")
    if protocol.mode != "official":
        other.append("protocol")
    return f"OTHER {', '.join(other)}" if other else ""


def printed_title(protocol: Protocol) -> str:
    """Return a sentence on how the printed figures relate to ours."""
    if not any(differences(row, protocol) for row in PRINTED if row.stated):
        return f"Printed in the reports, measured with the same protocol as ours: {PRINTED_NOTE}."
    return (
        f"Printed in the reports: {PRINTED_NOTE}. Ours: {protocol.embedding}, reference {protocol.reference}. "
        "Where a column says OTHER, compare orders, never values."
    )


def printed_table(result: Result) -> list[list[str]]:
    """Return our distances and the printed ones, a column a system; each column says how it was measured."""
    protocol = result.protocol
    labels = [label for label in LABELS if any(label.slug in system.labels for system in result.systems)]
    columns = [["label", "measured", *(label.name for label in labels), f"mean of {len(labels)}"]]
    for system in result.systems:
        values = [_value(system.labels.get(label.slug)) for label in labels] + [_value(system.mean)]
        how = f"here: {protocol.embedding}, n {count(system)}"
        columns.append([system.name, how, *map(number, values)])
    for row in PRINTED:
        values = [row.values[label.id] for label in labels]
        mean = f"{sum(values) / len(values):.3f}" if len(labels) < len(LABELS) else f"{row.mean:.3f}"
        how = differences(row, protocol) or "as ours"
        columns.append([f"{row.system} ({row.where})", how, *(f"{value:.3f}" for value in values), mean])
    return [list(line) for line in zip(*columns)]


def _value(part: Means | None) -> float | None:
    return part.figures["frechet"].value if part else None


# --- tables -------------------------------------------------------------------------------------------------------


def number(value: float | None, most: int = 9) -> str:
    """Write a figure with three significant digits, at most `most` decimals.

    >>> number(12.3456), number(0.04321), number(None), number(7.8, 1)
    ('12.3', '0.043', '–', '7.8')
    """
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:.{min(most, 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3)}f}"


def cell(figure: Figure | None) -> str:
    """Write a figure and its interval."""
    if figure is None:
        return "–"
    interval = "" if figure.low is None else f" [{number(figure.low)}, {number(figure.high)}]"
    return number(figure.value) + interval


def title_of(metric: str, protocol: Protocol) -> str:
    """Return a metric's column title; the distance is named after its protocol."""
    title = METRICS[metric].title
    named = title.replace("FD", protocol.distance) if metric.startswith("frechet") else title
    return f"{named} {'↑' if METRICS[metric].better > 0 else '↓'}"


def metrics_of(systems: Sequence[System]) -> list[str]:
    """Return the metrics that any of the systems has."""
    return [name for name in METRICS if any(name in system.mean.figures for system in systems)]


class Row(NamedTuple):
    """A line of a system's table."""

    name: str
    n: str
    floor_n: str
    figures: Mapping[str, Figure]


def rows_of(system: System) -> list[Row]:
    """Return the lines of a system: its labels, their mean, all clips pooled."""
    parts = [(label.name, system.labels[label.slug]) for label in LABELS if label.slug in system.labels]
    rows = [Row(name, _n(part), str(part.floor_n or "–"), part.figures) for name, part in parts]
    rows.append(Row(f"mean of {len(rows)}", "", "", system.mean.figures))
    if system.pooled:
        rows.append(Row("pooled", _n(system.pooled), str(system.pooled.floor_n or "–"), system.pooled.figures))
    return rows


def _n(part: Part) -> str:
    return f"{part.n}" if part.kept == part.n else f"{part.n} ({part.kept} drawn)"


def count(system: System) -> str:
    """Write how many clips a label were measured."""
    counts = list(dict.fromkeys(_n(part) for part in sorted(system.labels.values(), key=lambda part: part.n)))
    return counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def protocol_entries(protocol: Protocol) -> list[tuple[str, str]]:
    """Return the protocol as (term, text)."""
    clips = [each for each in protocol.reference_clips.values() if each]
    windows = protocol.reference_windows.values()
    return [
        ("protocol", protocol.mode),
        ("embedding", f"{protocol.embedding}, {protocol.width} numbers ({protocol.weights})"),
        ("windows", f"{protocol.windows}; clips cut or zero-padded at the end to {protocol.seconds:g} s"),
        (
            "reference",
            f"{protocol.reference}: "
            + (f"{min(clips)} to {max(clips)} clips, " if clips else "")
            + f"{min(windows)} to {max(windows)} windows a label",
        ),
        ("real clips", protocol.floor or "none: name further real clips with --floor"),
        (
            "interval",
            f"{protocol.confidence:.0%}, {protocol.bootstrap} replicates over generated clips (bootstrap; precision to "
            f"coverage: halves drawn without replacement), seed {protocol.seed}, centred on the figure",
        ),
        ("k", f"{protocol.k} nearest neighbours, of clips (means of their windows)"),
    ]


def signal_table(systems: Sequence[System], label: Label | None = None) -> str:
    """Return the measures without a reference: a row a system, of one label or the mean of all."""
    parts = [(system.name, system.labels.get(label.slug) if label else system.mean) for system in systems]
    return table(
        ["system", *SIGNAL],
        [[name, *(number(part.signal.get(each)) for each in SIGNAL)] for name, part in parts if part and part.signal],
    )


def markdown(result: Result) -> str:
    """Return the tables as Markdown."""
    protocol, metrics = result.protocol, metrics_of(result.systems)
    parts = ["# foleybox evaluate", "\n".join(f"* {term}: {text}" for term, text in protocol_entries(protocol))]
    parts += [f"> {note}" for note in result.notes]
    head = ["system", "n", *(title_of(name, protocol) for name in metrics)]
    if len(result.systems) > 1:
        lines = [
            [system.name, count(system), *(cell(system.mean.figures.get(name)) for name in metrics)]
            for system in result.systems
        ]
        parts += ["## Systems, mean over labels", table(head, lines)]
    for system in result.systems:
        lines = []
        for row in rows_of(system):
            lines.append([row.name, row.n, *(cell(row.figures.get(name)) for name in metrics)])
            real = [number(row.figures[name].floor) if name in row.figures else "–" for name in metrics]
            if set(real) != {"–"}:
                lines.append([f"&nbsp; real clips, {row.name}", row.floor_n if row.n else "", *real])
        parts += [f"## {system.name}", table(["label", "n", *head[2:]], lines)]
    if any(system.mean.signal for system in result.systems):
        parts += ["## The sounds alone, mean over labels", signal_table(result.systems)]
    printed = printed_table(result)
    parts += ["## Printed figures", printed_title(protocol), table(printed[0], printed[1:])]
    meanings = [f"{title_of(name, protocol)}: {METRICS[name].meaning}" for name in metrics]
    if any(system.mean.signal for system in result.systems):
        meanings += [f"{name}: {meaning}" for name, meaning in SIGNAL.items()]
    return "\n\n".join([*parts, "## Columns", "\n".join(f"* {each}" for each in meanings)])
