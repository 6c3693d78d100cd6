"""Report pages: one self-contained HTML file with tables, plots (matplotlib), spectrograms and players."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure as Plot
from matplotlib.image import imsave
from numpy.typing import NDArray

from foleybox.audio import fit, read_wave
from foleybox.files import atomic_path, write_text
from foleybox.lab.core.clips import ClipFile
from foleybox.lab.core.mel import SILENCE, LogMel, MelConfig
from foleybox.lab.evaluation.measures import METRICS, Figure
from foleybox.lab.evaluation.result import Result, System
from foleybox.lab.evaluation.tables import (
    cell,
    count,
    metrics_of,
    number,
    printed_table,
    printed_title,
    protocol_entries,
    rows_of,
    title_of,
)
from foleybox.labels import LABELS

INLINE_LIMIT = 24_000_000  # bytes of sound in a page; further sounds are written to a folder next to it

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem; }
.dim, dt, figcaption, td small { color: #5c6670; font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #dde2e7; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; }
.wrap th, .wrap td { white-space: normal; vertical-align: top; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { width: 100%; height: 6.5rem; } figure audio { width: 100%; height: 2.2rem; }
figcaption { overflow-wrap: anywhere; }
img.plot { max-width: 100%; }
.note { border-left: 3px solid #b3471d; padding-left: .8rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr 19rem; gap: 1rem; margin: 1rem 0; align-items: start; }
"""


def escape(text: object) -> str:
    """Return text fit for HTML, attributes included."""
    return html.escape(str(text), quote=True)


def save(path: Path, title: str, body: str) -> None:
    """Write a page, whole or not at all. It loads nothing from other places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<head>{head}\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n",
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> str:
    """Return a table of cells that are HTML already; `wrap` lets them break into lines."""
    top = "".join(f'<th scope="col">{text}</th>' for text in head)
    body = "\n".join("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in rows)
    kind = ' class="wrap"' if wrap else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def definitions(entries: Sequence[tuple[str, object]]) -> str:
    """Return a list of (term, text)."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries) + "</dl>"


# --- sounds -------------------------------------------------------------------------------------------------------


class Sounds:
    """The players of one page: the sounds lie in the page up to `limit` bytes together, further ones in a folder."""

    def __init__(self, page: Path, limit: int = INLINE_LIMIT):
        self.folder, self.limit, self.used = page.with_name(f"{page.stem}-clips"), limit, 0

    def figure(self, path: Path, caption: str, seconds: float = 4.0) -> str:
        """Return one clip as spectrogram, player and caption."""
        wave, rate = read_wave(path)
        image = base64.b64encode(spectrogram(wave, rate, seconds)).decode()
        text = escape(caption)
        return (
            f'<figure><img src="data:image/png;base64,{image}" alt="spectrogram of {text}">'
            f'<audio controls preload="none" src="{self._source(wave, rate, path)}"></audio>'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def _source(self, wave: NDArray[np.float32], rate: int, path: Path) -> str:
        memory = io.BytesIO()
        soundfile.write(memory, np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")
        data = memory.getvalue()
        self.used += len(data)
        if self.used <= self.limit:
            return f"data:audio/flac;base64,{base64.b64encode(data).decode()}"
        name = f"{self.used:012d}-{path.stem}.flac"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / name) as partial:
            partial.write_bytes(data)
        return escape(f"{self.folder.name}/{name}")


def spectrogram(wave: NDArray[np.float32], rate: int, seconds: float) -> bytes:
    """Return a log-mel spectrogram of the first `seconds` as a PNG; digital silence is black."""
    log_mel = LogMel(MelConfig(rate=rate, bands=96, high=min(11_025.0, rate / 2)))
    with torch.inference_mode():
        mel = log_mel(torch.from_numpy(fit(wave, round(seconds * rate))))[None, None]
        picture = torch.nn.functional.adaptive_avg_pool2d(mel, (96, 240))[0, 0].numpy()
    memory = io.BytesIO()
    imsave(memory, picture, cmap="magma", origin="lower", vmin=SILENCE, vmax=2.0, format="png")
    return memory.getvalue()


# --- plots --------------------------------------------------------------------------------------------------------


def plot(result: Result, metrics: Sequence[str]) -> Plot:
    """Draw each metric by label: a dot with its interval a system, a grey mark at the score of real clips."""
    found = [{row.name: row.figures for row in rows_of(system)} for system in result.systems]
    names = list(dict.fromkeys(name for each in found for name in each))
    across = min(3, len(metrics))
    down = -(-len(metrics) // across)
    height = 1.0 + len(names) * max(0.25, 0.09 * (len(found) + 1))
    width = max(7.0, 4.6 * across)
    drawn = Plot(figsize=(width, height * down + 0.4), layout="constrained")
    for index, metric in enumerate(metrics):
        axes = drawn.add_subplot(down, across, index + 1)
        for place, (system, each) in enumerate(zip(result.systems, found)):
            points = [each[name].get(metric) if name in each else None for name in names]
            at = np.arange(len(names)) + 0.7 * ((place + 0.5) / len(found) - 0.5)
            values = np.array([np.nan if point is None else point.value for point in points])
            error = np.array([_reach(point) for point in points]).T
            axes.errorbar(
                values, at, xerr=error, fmt="o", markersize=3, linewidth=1, label=system.name.replace("$", r"\$")
            )
        real = [
            next((each[name][metric].floor for each in found if metric in each.get(name, {})), None) for name in names
        ]
        marks = [np.nan if value is None else value for value in real]
        axes.plot(marks, range(len(names)), "|", color="grey", markersize=12, label="real clips, same n")
        axes.set_title(title_of(metric, result.protocol), fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()
    if drawn.axes:
        handles, labels = drawn.axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=int(width / 2.3), fontsize=7)
    return drawn


def _reach(point: Figure | None) -> tuple[float, float]:
    """Return how far the interval reaches below and above a figure."""
    if point is None or point.low is None or point.high is None:
        return 0.0, 0.0
    return max(0.0, point.value - point.low), max(0.0, point.high - point.value)


def png(drawn: Plot, dpi: int = 90) -> bytes:
    """Return a plot as a PNG."""
    memory = io.BytesIO()
    with matplotlib.rc_context({"text.usetex": False}):
        drawn.savefig(memory, format="png", dpi=dpi)
    return memory.getvalue()


# --- the page of a result -----------------------------------------------------------------------------------------


def result_body(result: Result, shown: Sequence[tuple[str, Sequence[ClipFile]]], sounds: Sounds, players: int) -> str:
    """Return the body of the page: tables, plots, printed figures, and players of the first clips of each label.

    `shown` are (name, clips) to play, `players` of each label.
    """
    protocol, metrics = result.protocol, metrics_of(result.systems)
    names = ", ".join(system.name for system in result.systems)
    parts = [f"<h1>{escape(names)}</h1>", f'<p class="dim">foleybox evaluate {result.foleybox}</p>']
    parts.append(definitions(protocol_entries(protocol)))
    parts += [f'<p class="note">{escape(note)}</p>' for note in result.notes]
    titles = [escape(title_of(name, protocol)) for name in metrics]
    if len(result.systems) > 1:
        rows = [
            [escape(system.name), count(system), *(_cell(system.mean.figures.get(metric)) for metric in metrics)]
            for system in result.systems
        ]
        parts += ["<h2>Systems, mean over labels</h2>", table(["system", "n", *titles], rows)]
    image = base64.b64encode(png(plot(result, metrics))).decode()
    parts += ["<h2>Plots</h2>", f'<img class="plot" src="data:image/png;base64,{image}" alt="every metric by label">']
    parts += [_system(system, titles, metrics) for system in result.systems]
    parts.append('<p class="dim">Below a figure and its interval: the score of real clips at the same n.</p>')
    printed = [[escape(text) for text in line] for line in printed_table(result)]
    parts += ["<h2>Printed figures</h2>", f"<p>{escape(printed_title(protocol))}</p>"]
    parts.append(table(printed[0], printed[1:], wrap=True))
    parts.append("<h2>Columns</h2>")
    parts.append(definitions([(title_of(name, protocol), METRICS[name].meaning) for name in metrics]))
    if players > 0:
        parts.append(f"<h2>Listen</h2><p class='dim'>The first {players} clips of each label by file name.</p>")
        parts += _players(shown, sounds, players, protocol.seconds)
    return "\n".join(parts)


def _system(system: System, titles: Sequence[str], metrics: Sequence[str]) -> str:
    rows = [
        [row.name, row.n + (f"<small>real {row.floor_n}</small>" if row.n and row.floor_n != "–" else "")]
        + [_cell(row.figures.get(name)) for name in metrics]
        for row in rows_of(system)
    ]
    return f"<h2>{escape(system.name)}</h2>" + table(["label", "n", *titles], rows)


def _cell(figure: Figure | None) -> str:
    real = "" if figure is None or figure.floor is None else f"<small>real {number(figure.floor)}</small>"
    return cell(figure) + real


def _players(
    shown: Sequence[tuple[str, Sequence[ClipFile]]], sounds: Sounds, players: int, seconds: float
) -> list[str]:
    parts = []
    for label in LABELS:
        rows = []
        for name, clips in shown:
            some = [clip for clip in clips if clip.label is label][:players]
            cards = "".join(sounds.figure(clip.path, clip.path.name, seconds) for clip in some)
            if cards:
                rows.append(f'<p class="dim">{escape(name)}</p><div class="clips">{cards}</div>')
        parts += [f"<h3>{label.name}</h3>", *rows] if rows else []
    return parts
