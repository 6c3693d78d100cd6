"""Pieces of a report page: one self-contained HTML file with tables, plots, spectrograms and players."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from foleybox.audio import fit, read_wave
from foleybox.files import atomic_path, write_text
from foleybox.lab.core.mel import SILENCE, LogMel, MelConfig

INLINE_LIMIT = 24_000_000  # bytes of sound in a page; more goes into a folder beside it

STYLE = """
:root { color-scheme: light; --ink: #1d2329; --dim: #5c6670; --line: #dde2e7; --paper: #fff; --accent: #b3471d; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p, li { max-width: 60rem; }
.dim { color: var(--dim); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td small { display: block; color: var(--dim); }
.wrap th, .wrap td { white-space: normal; vertical-align: top; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .9rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { width: 100%; height: 6.5rem; display: block; border-radius: 3px; }
figure audio { width: 100%; height: 2.2rem; margin-top: .25rem; }
figcaption { font-size: .76rem; color: var(--dim); overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem .8rem; margin: .5rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr 19rem; gap: 1rem; margin: 1rem 0; align-items: start; }
@media (max-width: 46rem) { .pair { grid-template-columns: 1fr; } }
"""


def escape(text: object) -> str:
    """Return text fit for HTML, attributes included."""
    return html.escape(str(text), quote=True)


def document(title: str, body: str) -> str:
    """Return a whole page. It loads nothing from anywhere."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> str:
    """Return a table; cells are HTML already, and stay on one line unless they may `wrap`."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="wrap"' if wrap else ""
    return (
        f'<div class="scroll"><table{kind}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def definitions(entries: Sequence[tuple[str, object]]) -> str:
    """Return a list of terms and what they are."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries) + "</dl>"


# --- sounds -------------------------------------------------------------------------------------------------------


class Sounds:
    """The players of one page: within it while they are small together, else in a folder beside it."""

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
        with atomic_path(self.folder / name) as beside:
            beside.write_bytes(data)
        return escape(f"{self.folder.name}/{name}")


def spectrogram(wave: NDArray[np.float32], rate: int, seconds: float) -> bytes:
    """Return a log-mel of the first `seconds` as a PNG, loud is bright; digital silence is black."""
    from matplotlib.image import imsave

    high = min(11_025.0, rate / 2)
    log_mel = LogMel(MelConfig(rate=rate, bands=96, high=high))
    with torch.inference_mode():
        mel = log_mel(torch.from_numpy(fit(wave, round(seconds * rate))))[None, None]
        picture = torch.nn.functional.adaptive_avg_pool2d(mel, (96, 240))[0, 0].numpy()
    memory = io.BytesIO()
    imsave(memory, picture, cmap="magma", origin="lower", vmin=SILENCE, vmax=2.0, format="png")
    return memory.getvalue()


# --- plots --------------------------------------------------------------------------------------------------------

COLOURS = ("#b3471d", "#1f6f8b", "#6a8d2f", "#7b4a9e", "#b08a00", "#555f69", "#c2478b", "#2f8f7a")


class Point(NamedTuple):
    """A figure in a plot."""

    value: float
    low: float | None
    high: float | None


def dot_plot(
    title: str,
    rows: Sequence[str],
    series: Sequence[tuple[str, Sequence[Point | None]]],  # name, one point a row
    marks: Sequence[float | None],  # what real clips score, a row
    legend_rows: bool = False,  # a line of the legend for each system, where they do not fit into one
) -> str:
    """Return an SVG: a row a label, a dot and its interval a system, a grey bar where real clips are."""
    points = [point for _, line in series for point in line if point]
    ends = [edge for p in points for edge in (p.value, p.low, p.high) if edge is not None] + [
        m for m in marks if m is not None
    ]
    if not ends:
        return ""
    low, high = min(0.0, *ends), max(ends)
    high = high if high > low else low + 1
    left, right, line = 150, 20, 16 if len(series) < 5 else 8
    names = len(series) + 1 if legend_rows else 1
    top = 28 + 16 * names
    step = max(26, line * len(series) + 10)
    width, height = 620, top + step * len(rows) + 30

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = [f'<text x="0" y="16" font-weight="600">{escape(title)}</text>']
    for tick in ticks(low, high):
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 8}" y2="{height - 22}" stroke="#e6eaee"/>'
        )
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle" fill="#5c6670">{tick:g}</text>')
    for row, name in enumerate(rows):
        y = top + row * step
        parts.append(f'<text x="{left - 10}" y="{y + step / 2:.1f}" text-anchor="end">{escape(name)}</text>')
        mark = marks[row]
        if mark is not None:
            parts.append(f'<rect x="{x(mark) - 2:.1f}" y="{y}" width="4" height="{step - 8}" fill="#b9c1c9"/>')
        for index, (_, values) in enumerate(series):
            point, colour = values[row], COLOURS[index % len(COLOURS)]
            if point is None:
                continue
            at = y + (step - 8) * (index + 0.5) / len(series)
            if point.low is not None and point.high is not None:
                span = f'x1="{x(point.low):.1f}" x2="{x(point.high):.1f}"'
                parts.append(f'<line {span} y1="{at:.1f}" y2="{at:.1f}" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<circle cx="{x(point.value):.1f}" cy="{at:.1f}" r="4" fill="{colour}"/>')
    entries = [(COLOURS[index % len(COLOURS)], f"● {name}") for index, (name, _) in enumerate(series)]
    entries += [("#8a949e", "▮ real clips, same n")] if any(mark is not None for mark in marks) else []
    spans = [f'<tspan fill="{colour}">{escape(text)}</tspan>' for colour, text in entries]
    for row, text in enumerate(spans if legend_rows else ["<tspan>   </tspan>".join(spans)]):
        parts.append(f'<text x="{left}" y="{32 + 16 * row}" xml:space="preserve">{text}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" '
        f'style="max-width:100%;height:auto;display:block">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from low to high.

    >>> ticks(0, 4.4)
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    rough = (high - low) / 4
    power = 10 ** np.floor(np.log10(rough))
    step = float(next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * 0.8))
    first = np.ceil(low / step)
    return [round(float(first + i) * step, 10) + 0.0 for i in range(int((high - first * step) / step + 1e-9) + 1)]


def save(path: Path, title: str, body: str) -> None:
    """Write a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, document(title, body))
