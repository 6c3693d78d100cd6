"""Packs: sets of variations for a game. Which sounds are taken, how they are named, and the texts that come with them."""

import base64
import csv
import html
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import arg

from foleybox.audio import Subtype, Wave, true_peak_db
from foleybox.files import safe_name
from foleybox.instrument import Instrument
from foleybox.labels import Label, find_label
from foleybox.studio.engines import Engine, engine_files
from foleybox.studio.extend import is_steady
from foleybox.studio.loop import EDGE, FADE, longest, loop_source, looped, measure_seam, smpl_chunk
from foleybox.studio.recipe import Recipe
from foleybox.studio.shape import CEILING, FRAME, Shape, Step, event_loudness, levels
from foleybox.studio.sheet import png, spectrogram
from foleybox.studio.shots import AT_END, AT_START, ONE_SHOT, TOO_FEW, UNCLEAR, one_shot
from foleybox.studio.spectra import Levels, band_levels, distance
from foleybox.studio.synth import Clip, Synth
from foleybox.version import __version__

MIN_LOOP = 1.0  # seconds of a loop of a sound that is not steady as a whole
TRIED = 4  # clips rendered for each sound of a pack, at most
TOLERANCE = 0.4  # LU by which the true-peak ceiling may keep a sound below the others

Kind = Literal["one-shot", "loop"]


@dataclass(frozen=True)
class Selection:
    """Which sounds are taken."""

    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 12
    "sounds of each label"
    seconds: Annotated[float, arg(metavar="S")] = 3.0
    "length of loops"
    lufs: Annotated[float | None, arg(metavar="LUFS", help_behavior_hint="(default: by label, -24 to -28)")] = None
    "loudness of each sound"
    peak: Annotated[float, arg(metavar="DBTP")] = CEILING
    "true-peak ceiling; sounds that would exceed it are replaced by others"
    apart: Annotated[float, arg(metavar="DB")] = 2.5
    "two sounds whose spectra over time differ by less than this many dB are near-duplicates: one of them is replaced"
    event: Annotated[int, arg(metavar="N")] = 0
    "which event of each clip becomes the one-shot: 0 is the loudest, 1 the first"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first sound that is tried"
    temperature: Annotated[float, arg(metavar="T")] = 1.0
    "below 1: closer to the typical sound of the label; above 1: more unusual sounds"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: the instrument's)")] = None
    "sample rate"


@dataclass(frozen=True)
class Item:
    """One sound of a pack; the fields are the columns of the manifest."""

    file: str  # relative to the pack
    label: str
    kind: Kind
    seed: int
    seconds: float
    lufs: float  # of the event
    true_peak_db: float
    rate: int
    licence: str


# --- selection ----------------------------------------------------------------------------------------------------


def default_kind(label: str) -> Kind:
    """Return "loop" for the labels whose sounds are steady, "one-shot" for all others."""
    known = find_label(label)
    return "loop" if known and known.steady else "one-shot"


def default_lufs(label: str) -> float:
    """Return the loudness that nearly all sounds of a label can have below the true-peak ceiling."""
    known = find_label(label)
    return known.lufs if known else Label.lufs


def select_sounds(synth: Synth, label: str, kind: Kind, wanted: Selection, rejected: dict[str, int]) -> Iterator[Clip]:
    """Yield up to `wanted.count` sounds of a label that are whole, as loud as asked for, and no near-duplicates.

    The other candidates are counted in `rejected` by reason, a key of REASONS.
    """
    kept: list[Levels] = []
    lufs = default_lufs(label) if wanted.lufs is None else wanted.lufs
    pairs = ((label, wanted.seed + offset) for offset in range(TRIED * wanted.count))
    for clip in synth.render_many(pairs, temperature=wanted.temperature):
        made = _one_shot(clip, wanted.event) if kind == "one-shot" else _loop(synth, clip, wanted)
        if isinstance(made, str):
            rejected[made] = rejected.get(made, 0) + 1
            continue
        picture = band_levels(made.wave, made.rate)
        made = made.shaped(Shape(rate=wanted.rate if kind == "one-shot" else None, lufs=lufs, peak=wanted.peak))
        if not abs(event_loudness(made.wave, made.rate) - lufs) <= TOLERANCE:
            rejected["too peaky"] = rejected.get("too peaky", 0) + 1
        elif any(distance(picture, other) < wanted.apart for other in kept):
            rejected["near-duplicates"] = rejected.get("near-duplicates", 0) + 1
        else:
            kept.append(picture)
            yield made
            if len(kept) == wanted.count:
                return


def _one_shot(clip: Clip, event: int) -> Clip | str:
    """Return an event of a clip, or the reason for which it is rejected."""
    made, problem = one_shot(clip, event)
    return problem or made


def _loop(synth: Synth, clip: Clip, wanted: Selection) -> Clip | str:
    """Return a seamless loop of a clip, or the reason for which it is rejected.

    Of a sound that is not steady, such as a motor that passes by, its longest steady part is looped, if it has MIN_LOOP
    seconds or more: the loop may be shorter than `wanted.seconds`.
    """
    seconds = wanted.seconds
    if is_steady(clip.wave, clip.rate):
        source = loop_source(synth, clip, seconds)
    else:
        part, multiple = steady_part(clip.wave, clip.rate), clip.rate // math.gcd(clip.rate, wanted.rate or clip.rate)
        cut: tuple[Step, ...] = ({"do": "cut", "start": part.start, "samples": part.stop - part.start},)
        source = Clip(clip.wave[part], replace(clip.recipe, process=cut))
        seconds = min(seconds, longest(len(source.wave), clip.rate, round(FADE * clip.rate), multiple))
        if seconds < min(MIN_LOOP, wanted.seconds):
            return "not steady"
    made, wrap = looped(source, seconds, rate=wanted.rate)
    seam = measure_seam(made.wave, made.rate, wrap.fade * made.rate // clip.rate)
    return made if seam.inaudible else "with an audible seam"


def steady_part(wave: Wave, rate: int) -> slice:
    """Return the longest part of a wave [L] whose level over 0.1 s stays within 10 dB of its 90th percentile.

    The ends of the wave, where the level of rendered sounds changes, are left out.
    """
    frame = max(1, round(FRAME * rate))
    power = np.convolve(10 ** (levels(wave, rate) / 10), np.full(10, 0.1), "same")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], power > 0.1 * np.percentile(power, 90), [False]])))
    start, stop = max(zip(edges[::2], edges[1::2]), key=lambda part: part[1] - part[0], default=(0, 0))
    edge = round(EDGE * rate)
    return slice(max(edge, int(start) * frame), max(edge, min(len(wave) - edge, int(stop) * frame)))


REASONS = {
    "too peaky": "a lower --lufs",
    "near-duplicates": "a smaller --apart",
    "not steady": "--kind one-shot",
    UNCLEAR: "--kind loop",
    AT_START: "another --seed",
    AT_END: "another --seed",
    TOO_FEW: "a smaller --event",
    "with an audible seam": "fewer --seconds",
}
"reason for a rejection -> the option that helps"


# --- names --------------------------------------------------------------------------------------------------------


def ucs_name(label: str, number: int, count: int, creator: str, source: str, category: str | None = None) -> str:
    """Return the name CatID_FXName_CreatorID_SourceID of the Universal Category System, without extension.

    `category` None: that of the label, if it has one. `count` gives the digits of the number.

    >>> ucs_name("Sneeze_Cough", 3, 50, "foleybox", "foley")
    'HMNCough_Sneeze-Cough-03_foleybox_foley'
    """
    known = find_label(label)
    digits = max(2, len(str(count)))
    blocks = [category or (known.ucs if known else ""), f"{label}-{number:0{digits}}", creator, source]
    return "_".join(_block(block) for block in blocks if block)


def _block(text: str) -> str:
    """Return a text as one block of a name: `_` only separates blocks."""
    return re.sub(r"[_\s]+", "-", safe_name(text))


def describe(clip: Clip, kind: Kind, label: str, name: str) -> Item:
    """Return the manifest's line of a clip."""
    return Item(
        f"{safe_name(label)}/{name}.wav", label, kind, clip.seed, round(len(clip.wave) / clip.rate, 4),
        round(event_loudness(clip.wave, clip.rate), 2), round(true_peak_db(clip.wave), 2), clip.rate, clip.recipe.licence,
    )  # fmt: skip


def write_sound(
    out: Path, clip: Clip, kind: Kind, label: str, name: str, subtype: Subtype = "PCM_16"
) -> tuple[Item, str]:
    """Write a sound into the pack's folder `out`, a loop with its loop points; return its row and its card of the page."""
    item = describe(clip, kind, label, name)
    path = out / item.file
    clip.save(path, subtype, {b"smpl": smpl_chunk(len(clip.wave), clip.rate)} if kind == "loop" else {})
    return item, html_card(item, clip, path.read_bytes())


def is_of_pack(stem: str, recipe: Recipe) -> bool:
    """Return whether a file is a sound of a pack, judged by its name and its recipe."""
    made_so = recipe.asked.get("kind") == ONE_SHOT or recipe.make["do"] == "loop"
    return made_so and stem.endswith(f"_{_block(recipe.instrument)}")


def folders_of(files: Iterable[tuple[str, str]]) -> tuple[dict[str, list[str]], frozenset[str]]:
    """Return the file names by folder, and the folders of loops, of (<folder>/<name>, kind)."""
    folders: dict[str, list[str]] = {}
    loops = set()
    for file, kind in files:
        folder, name = file.split("/")
        folders.setdefault(folder, []).append(name)
        loops |= {folder} if kind == "loop" else set()
    return folders, frozenset(loops)


# --- texts --------------------------------------------------------------------------------------------------------


def texts(
    instrument: Instrument, engine: Engine, wanted: Selection, items: Sequence[Item], cards: Sequence[str]
) -> dict[str, str]:
    """Return everything of a pack except the sounds: the engine's files, the manifest, the licence and the page, by name."""
    return engine_files(engine, *folders_of((item.file, item.kind) for item in items)) | {
        "manifest.csv": manifest(items),
        "LICENSE.txt": licence_text(instrument),
        "index.html": html_page(instrument, wanted, items, cards),
    }


def manifest(items: Iterable[Item]) -> str:
    """Return the list of sounds as CSV."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(Item.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(item) for item in items)
    return table.getvalue()


def licence_text(instrument: Instrument) -> str:
    """Return the terms of an instrument's sounds, the reasons for them, and whom to credit."""
    sources: dict[tuple[str, str], int] = {}
    for row in instrument.training_clips:
        key = (row.source or "(not stated)", row.licence)
        sources[key] = sources.get(key, 0) + row.clips
    reasons = "\n".join(f"  * {each}" for each in instrument.licence.reasons).replace("CARD.md", "the list below")
    credits = "\n".join(f"  {clips:6,}  {source}: {licence}" for (source, licence), clips in sorted(sources.items()))
    return f"""These sounds were made by a neural network: foleybox {__version__}, instrument {instrument.name}
{instrument.version} (fingerprint {instrument.fingerprint}).

Terms of the instrument: {instrument.licence.terms}, which follows from the recordings it was trained on:

{reasons}

This is a rule applied to a list, not legal advice. Whom to credit for the recordings (clips, source, licence as the source
states it):

{credits}

If a shop asks about AI: the sounds were generated before release, by a model trained only on the recordings above.
"""


def html_card(item: Item, clip: Clip, content: bytes) -> str:
    """Return a sound as HTML: spectrogram, player and numbers. `content` is that of its file, embedded in the page."""
    sound = base64.b64encode(content).decode()
    image = base64.b64encode(png(spectrogram(clip.wave, clip.rate))).decode()
    name = html.escape(Path(item.file).stem)
    loop = " loop" if item.kind == "loop" else ""
    return (
        f'<figure><img src="data:image/png;base64,{image}" alt="spectrogram of {name}">'
        f'<audio controls preload="none"{loop} src="data:audio/wav;base64,{sound}"></audio>'
        f"<figcaption>{name}<br>seed {item.seed} · {item.seconds:.2f} s · {item.lufs:.1f} LUFS · {item.true_peak_db:.1f} dBTP"
        "</figcaption></figure>"
    )


def html_page(instrument: Instrument, wanted: Selection, items: Sequence[Item], cards: Sequence[str]) -> str:
    """Return the contact sheet: one page that contains all cards and refers to no other file."""
    sections = []
    for label in dict.fromkeys(item.label for item in items):
        own = [card for item, card in zip(items, cards) if item.label == label]
        title = f"<h2>{html.escape(label)} <small>{len(own)}</small></h2>"
        sections.append("\n".join([title, "<div>", *own, "</div>"]))
    title = f"{len(items)} sounds"
    facts = (
        f"{instrument.name} {instrument.version}, foleybox {__version__}, terms {instrument.licence.terms}; "
        f"each label at one loudness, true peaks {wanted.peak:g} dBTP or less"
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: dark }}
body {{ font: 13px/1.4 system-ui, sans-serif; margin: 2rem; background: #16151a; color: #ddd }}
h1, h2 {{ font-weight: 500 }} small {{ color: #999 }}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem }}
figure {{ margin: 0; background: #232128; border-radius: 6px; overflow: hidden }}
img {{ width: 100%; height: 96px; display: block; image-rendering: pixelated }}
audio {{ width: 100%; height: 36px; display: block }}
figcaption {{ padding: .4rem .6rem; color: #aaa; overflow-wrap: anywhere }}
</style>
<h1>{title}</h1>
<p>{html.escape(facts)}</p>
{chr(10).join(sections)}
"""
