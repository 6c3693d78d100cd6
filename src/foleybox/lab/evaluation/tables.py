"""The result of `foleybox evaluate` as tables and as a page, beside what the two reports printed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foleybox.lab.core.clips import ClipFile
from foleybox.lab.evaluation import page
from foleybox.lab.evaluation.measures import METRICS
from foleybox.labels import LABELS

CHALLENGE_STATISTICS = "dcase2023_eval_vggish_stats.npz"

# --- the reports' printed figures ---------------------------------------------------------------------------------


class Printed(NamedTuple):
    """A row of a table that a report printed."""

    system: str
    where: str
    values: tuple[float, ...]  # seven labels in order
    mean: float
    stated: bool = True  # that it is the challenge's score: CMU states neither its reference nor its number of clips


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


def differences(row: Printed, protocol: Mapping[str, Any]) -> str:
    """Say in what a printed row was measured otherwise than ours; "" where it was measured alike."""
    other = ["embedding"] if protocol["embedding"] != "vggish-official" else []
    if not row.stated:
        return "; ".join([f"OTHER {each}" for each in other] + ["reference and n not stated"])
    if Path(protocol["reference"]).name != CHALLENGE_STATISTICS:
        other.append("reference")
    if protocol["mode"] != "official":
        other.append("protocol")
    return f"OTHER {', '.join(other)}" if other else ""


def printed_title(protocol: Mapping[str, Any]) -> str:
    """Say plainly how the printed figures relate to ours."""
    if not any(differences(row, protocol) for row in PRINTED if row.stated):
        return f"Printed in the reports, measured with the same protocol as ours: {PRINTED_NOTE}."
    return (
        f"Printed in the reports: {PRINTED_NOTE}. Ours: {protocol['embedding']}, reference {protocol['reference']}. "
        "Where a column says OTHER, compare orders, never values."
    )


def printed_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return our distances and the printed ones, a column a system, which says in what it was measured otherwise."""
    protocol = result["protocol"]
    labels = [label for label in LABELS if any(label.slug in record["labels"] for record in result["systems"])]
    columns = [["label", "measured", *(label.name for label in labels), f"mean of {len(labels)}"]]
    for record in result["systems"]:
        values = [_value(record["labels"].get(label.slug)) for label in labels] + [_value(record["mean"])]
        how = f"here: {protocol['embedding']}, n {_count(record)}"
        columns.append([record["name"], how, *map(number, values)])
    for row in PRINTED:
        values = [row.values[label.id] for label in labels]
        mean = f"{sum(values) / len(values):.3f}" if len(labels) < len(LABELS) else f"{row.mean:.3f}"
        how = differences(row, protocol) or "as ours"
        columns.append([f"{row.system} ({row.where})", how, *(f"{value:.3f}" for value in values), mean])
    return [list(line) for line in zip(*columns)]


def _value(part: Mapping[str, Any] | None) -> float | None:
    return part["figures"]["frechet"]["value"] if part else None


# --- tables -------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Write a figure with three digits that matter.

    >>> number(12.3456), number(0.04321), number(None)
    ('12.3', '0.043', '–')
    """
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def cell(figure: Mapping[str, float | None] | None) -> str:
    """Write a figure and its interval."""
    if figure is None:
        return "–"
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def title_of(metric: str, protocol: Mapping[str, Any]) -> str:
    """Return a metric's column title; the distance is named after its protocol."""
    named = (
        METRICS[metric].title.replace("FD", protocol["distance"])
        if metric.startswith("frechet")
        else METRICS[metric].title
    )
    return f"{named} {'↑' if METRICS[metric].better > 0 else '↓'}"


def metrics_of(result: Mapping[str, Any]) -> list[str]:
    """Return the metrics that any system of the result has."""
    return [name for name in METRICS if any(name in record["mean"]["figures"] for record in result["systems"])]


class Row(NamedTuple):
    """A line of a system's table."""

    name: str
    n: str
    floor_n: str
    figures: Mapping[str, Mapping[str, float | None]]


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """Return the lines of a system: its labels, their mean, all clips pooled."""
    rows = []
    for label in LABELS:
        part = record["labels"].get(label.slug)
        if part:
            rows.append(Row(label.name, _n(part), str(part["floor_n"] or "–"), part["figures"]))
    rows.append(Row(f"mean of {len(rows)}", "", "", record["mean"]["figures"]))
    if record["pooled"]:
        pooled = record["pooled"]
        rows.append(Row("pooled", _n(pooled), str(pooled["floor_n"] or "–"), pooled["figures"]))
    return rows


def _n(part: Mapping[str, Any]) -> str:
    return f"{part['n']}" if part["kept"] == part["n"] else f"{part['n']} ({part['kept']} drawn)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def protocol_entries(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what was measured how, line by line."""
    clips = [count for count in protocol["reference_clips"].values() if count]
    windows = protocol["reference_windows"].values()
    return [
        ("protocol", protocol["mode"]),
        ("embedding", f"{protocol['embedding']}, {protocol['width']} numbers ({protocol['weights']})"),
        ("windows", f"{protocol['windows']}; clips cut or zero-padded at the end to {protocol['seconds']:g} s"),
        (
            "reference",
            f"{protocol['reference']}: "
            + (f"{min(clips)} to {max(clips)} clips, " if clips else "")
            + f"{min(windows)} to {max(windows)} windows a label",
        ),
        ("floor", protocol["floor"] or "none: name further real clips with --floor"),
        (
            "interval",
            f"{protocol['confidence']:.0%}, {protocol['bootstrap']} replicates over generated clips (a bootstrap; precision to "
            f"coverage: halves drawn without replacement), seed {protocol['seed']}, centred on the figure",
        ),
        ("k", f"{protocol['k']} nearest neighbours, of clips (means of their windows)"),
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    protocol, metrics = result["protocol"], metrics_of(result)
    parts = ["# foleybox evaluate", "\n".join(f"* {term}: {text}" for term, text in protocol_entries(protocol))]
    parts += [f"> {note}" for note in result["notes"]]
    head = ["system", "n", *(title_of(name, protocol) for name in metrics)]
    if len(result["systems"]) > 1:
        lines = [
            [record["name"], _count(record), *(cell(record["mean"]["figures"].get(name)) for name in metrics)]
            for record in result["systems"]
        ]
        parts += ["## Systems, mean over labels", _table(head, lines)]
    for record in result["systems"]:
        lines = []
        for row in rows_of(record):
            lines.append([row.name, row.n, *(cell(row.figures.get(name)) for name in metrics)])
            floors = [number((row.figures.get(name) or {}).get("floor")) for name in metrics]
            if set(floors) != {"–"}:
                lines.append([f"&nbsp; real, floor of {row.name}", row.floor_n if row.n else "", *floors])
        parts += [f"## {record['name']}", _table(["label", "n", *head[2:]], lines)]
    printed = printed_table(result)
    parts += ["## Printed figures", printed_title(protocol), _table(printed[0], printed[1:])]
    parts += ["## Columns", "\n".join(f"* {title_of(name, protocol)}: {METRICS[name].meaning}" for name in metrics)]
    return "\n\n".join(parts)


def _count(record: Mapping[str, Any]) -> str:
    parts = sorted(record["labels"].values(), key=lambda part: part["n"])
    counts = list(dict.fromkeys(_n(part) for part in parts))
    return counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


# --- the page -----------------------------------------------------------------------------------------------------


def html(
    result: Mapping[str, Any],
    shown: Sequence[tuple[str, Sequence[ClipFile]]],  # what to listen to: name, clips
    sounds: page.Sounds,
    players: int,
) -> str:
    """Return the body of the page: tables, plots, printed figures, and the first `players` clips a label to play."""
    protocol, metrics = result["protocol"], metrics_of(result)
    names = ", ".join(record["name"] for record in result["systems"])
    parts = [f"<h1>{page.escape(names)}</h1>", f'<p class="dim">foleybox evaluate {result["foleybox"]}</p>']
    parts.append(page.definitions(protocol_entries(protocol)))
    parts += [f'<p class="note">{page.escape(note)}</p>' for note in result["notes"]]
    titles = [page.escape(title_of(name, protocol)) for name in metrics]

    if len(result["systems"]) > 1:
        rows = [
            [
                page.escape(record["name"]),
                _count(record),
                *(_html_cell(record["mean"]["figures"].get(m)) for m in metrics),
            ]
            for record in result["systems"]
        ]
        parts += ["<h2>Systems, mean over labels</h2>", page.table(["system", "n", *titles], rows)]
    parts.append("<h2>Plots</h2>")
    parts.append('<div class="clips" style="grid-template-columns:repeat(auto-fill,minmax(26rem,1fr))">')
    parts += [_plot(result, name) for name in metrics]
    parts.append("</div>")
    for record in result["systems"]:
        rows = [
            [row.name, row.n + (f"<small>real {row.floor_n}</small>" if row.n and row.floor_n != "–" else "")]
            + [_html_cell(row.figures.get(name)) for name in metrics]
            for row in rows_of(record)
        ]
        parts += [f"<h2>{page.escape(record['name'])}</h2>", page.table(["label", "n", *titles], rows)]
    parts.append('<p class="dim">Below a figure and its interval: what real clips score at the same n.</p>')
    printed = [[page.escape(cell) for cell in line] for line in printed_table(result)]
    parts += ["<h2>Printed figures</h2>", f"<p>{page.escape(printed_title(protocol))}</p>"]
    parts.append(page.table(printed[0], printed[1:], wrap=True))
    parts.append("<h2>Columns</h2>")
    parts.append(page.definitions([(title_of(name, protocol), METRICS[name].meaning) for name in metrics]))
    if players > 0:
        parts += _listen(shown, sounds, players, result["protocol"]["seconds"])
    return "\n".join(parts)


def _html_cell(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "–"
    low = "" if figure["low"] is None else f" [{number(figure['low'])}, {number(figure['high'])}]"
    real = "" if figure["floor"] is None else f"<small>real {number(figure['floor'])}</small>"
    return f"{number(figure['value'])}<small>{low}</small>{real}"


def _plot(result: Mapping[str, Any], metric: str) -> str:
    tables = [{row.name: row.figures.get(metric) for row in rows_of(record)} for record in result["systems"]]
    rows = list(dict.fromkeys(name for each in tables for name in each))
    series = []
    for record, each in zip(result["systems"], tables):
        series.append((record["name"], [_point(each.get(name)) for name in rows]))
    marks = [next((f["floor"] for each in tables if (f := each.get(name))), None) for name in rows]
    return page.dot_plot(title_of(metric, result["protocol"]), rows, series, marks)


def _point(figure: Mapping[str, float | None] | None) -> page.Point | None:
    if figure is None or figure["value"] is None:
        return None
    return page.Point(figure["value"], figure["low"], figure["high"])


def _listen(
    shown: Sequence[tuple[str, Sequence[ClipFile]]], sounds: page.Sounds, players: int, seconds: float
) -> list[str]:
    parts = [f"<h2>Listen</h2><p class='dim'>The first {players} clips of each label by file name, not chosen.</p>"]
    for label in LABELS:
        rows = []
        for name, clips in shown:
            some = [clip for clip in clips if clip.label is label][:players]
            cards = "".join(sounds.figure(clip.path, clip.path.name, seconds) for clip in some)
            if cards:
                rows.append(f'<p class="dim">{page.escape(name)}</p><div class="clips">{cards}</div>')
        parts += [f"<h3>{label.name}</h3>", *rows] if rows else []
    return parts
