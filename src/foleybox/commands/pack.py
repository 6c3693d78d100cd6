"""`foleybox pack`: a set of variations for a game: trimmed, as loud as one another, none twice, ready for an engine."""

import base64
import csv
import html
import io
import json as json_module
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from foleybox.audio import BITS, Subtype, true_peak_db
from foleybox.commands.output import Source, check_folder, check_room, check_seeds, progress
from foleybox.errors import UserError
from foleybox.files import safe_name, write_text
from foleybox.instrument import Instrument
from foleybox.labels import LABELS, find_label
from foleybox.licences import NOT_FOR_DISTRIBUTION
from foleybox.studio.engines import ENGINES, Engine, engine_files
from foleybox.studio.extend import steady
from foleybox.studio.loop import looped, material, measure_seam, smpl
from foleybox.studio.onsets import ONE_SHOT, one_shot
from foleybox.studio.recipe import is_ours, read_recipe
from foleybox.studio.shape import Shape, check_shape, event_loudness
from foleybox.studio.sheet import picture, png
from foleybox.studio.spectra import Levels, band_levels, distance
from foleybox.studio.synth import Clip, Synth, check_temperature
from foleybox.studio.table import read_table
from foleybox.version import __version__

STEADY = {label for label in LABELS if label.name in ("Rain", "MovingMotorVehicle")}  # loops, if --kind is auto
CLEAR = 10.0  # dB: an event that stands out less from its clip is not taken
TRIED = 4  # clips tried for each sound of a pack, at most
TOLERANCE = 0.4  # LU that the ceiling may keep a sound below the others; the set stays within 0.5

CATID = re.compile(r"[A-Z][A-Z0-9]{1,7}[A-Za-z0-9]{0,8}")  # of the Universal Category System

Kind = Literal["one-shot", "loop"]


@dataclass(frozen=True)
class Pack:
    """Make a set of variations for a game: OUT/<Label>/<UCS name>.wav, and what the engine needs to play them.

    One-shots are the clearest event of a clip each, cut with its tail; rain and motors become loops with loop points. All
    are equally loud (the event, not the silence round it), none above the true-peak ceiling, none nearly the same as
    another. Beside them: manifest.csv, LICENSE.txt, and index.html, a contact sheet with players.

    Example: foleybox pack footstep --count 12 --engine godot -o pack
    """

    labels: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL...", help_behavior_hint="(required)")]
    "what to make, in any spelling"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 12
    "sounds of each label"
    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("pack")
    "folder to write to"
    engine: Engine = "none"
    "write metadata for this engine too"
    kind: Literal["auto", "one-shot", "loop"] = "auto"
    "auto: loops for rain and motors, one-shots for the rest"
    seconds: Annotated[float, arg(metavar="S")] = 3.0
    "length of loops"
    lufs: float = -23.0
    "loudness of each"
    peak: float = -1.0
    "true-peak ceiling in dBTP; sounds whose peaks would pass it are replaced by others"
    apart: float = 2.5
    "sounds nearer to each other than this many dB, over bands and time, are near-duplicates"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "seed of the first clip that is tried"
    temperature: float = 1.0
    "below 1: nearer to the typical sound of the label; above 1: further out"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: the instrument's)")] = None
    "resample to this rate"
    subtype: Subtype = "PCM_16"
    "16 or 24 bits, or float"
    ucs: Annotated[str | None, arg(metavar="CATID", help_behavior_hint="(default: by label)")] = None
    "category of the Universal Category System, such as GUNPis"
    creator: str = "foleybox"
    "whose sounds they are, in their names"
    instrument: Source = None
    "instrument to play"
    force: bool = False
    "overwrite existing files; those of an earlier pack in the folder go"
    json: bool = False
    "print a line of JSON for each sound"


@dataclass(frozen=True)
class Item:
    """One sound of a pack, as its manifest states it."""

    file: str  # relative to the pack
    label: str
    kind: Kind
    seed: int
    seconds: float
    lufs: float  # of the event
    true_peak_db: float
    rate: int
    licence: str


def pack(config: Pack) -> int:
    """Check everything, render, and write; return 1 if some label gave fewer sounds than asked for.

    Raises UserError before the first render for labels, numbers, folders and existing files.
    """
    synth = Synth.load(config.instrument)
    labels = _check(config, synth)
    items: list[Item] = []
    cards: list[str] = []
    short = 0
    with progress(len(labels) * config.count) as bar:
        for label in labels:
            skipped: dict[str, int] = {}
            kind = _kind(config, label)
            for number, clip in enumerate(_sounds(synth, label, kind, config, skipped), 1):
                item = _item(config, clip, kind, label, number)
                chunks = {b"smpl": smpl(len(clip.wave), clip.rate)} if kind == "loop" else {}
                clip.save(config.out / item.file, config.subtype, chunks)
                items.append(item)
                cards.append(_card(item, clip, (config.out / item.file).read_bytes()))
                if config.json:
                    print(json_module.dumps(asdict(item), ensure_ascii=False), flush=True)
                bar(label)
            made = sum(item.label == label for item in items)
            short += made < config.count
            _tell(config, label, made, skipped)
    _write(config, synth.instrument, items, cards)
    if synth.instrument.licence.terms == NOT_FOR_DISTRIBUTION:
        print(f"foleybox: {synth.instrument.name} is {NOT_FOR_DISTRIBUTION}: do not ship this pack", file=sys.stderr)
    return 1 if short else 0


# --- checking -----------------------------------------------------------------------------------------------------


def _check(config: Pack, synth: Synth) -> list[str]:
    """Check flags, labels and files, make the folders; return the instrument's names of the labels, each once."""
    if not config.labels:
        raise UserError(f"no label: expected one or more of {', '.join(synth.labels)}, or `all`")
    names = synth.labels if "all" in config.labels else [synth.resolve(label) for label in config.labels]
    labels = list(dict.fromkeys(names))
    check_folder(config.out)
    check_seeds(config.seed, config.count * TRIED)
    check_temperature(config.temperature, "--")
    check_shape(Shape(seconds=config.seconds, lufs=config.lufs, peak=config.peak, rate=config.rate), "--")
    if not 0 <= config.apart < 100:
        raise UserError(f"--apart {config.apart}: expected 0 to 100 dB")
    for flag, word in (("ucs", config.ucs), ("creator", config.creator)):
        if word is not None and not re.fullmatch(r"[\w-]+", word.replace("_", "")):
            raise UserError(f"--{flag} {word!r}: expected letters, digits and hyphens, as in a file name")
    if config.ucs is not None and not CATID.fullmatch(config.ucs):
        raise UserError(f"--ucs {config.ucs}: expected a CatID such as GUNPis or RAIN, a category in capitals first")
    if config.ucs is not None and labels[1:]:
        raise UserError(f"--ucs {config.ucs} with {', '.join(labels)}: a category is of one label; make a pack of each")
    folders = [config.out / safe_name(label) for label in labels]
    there = list(
        dict.fromkeys([*(path for folder in folders for path in sorted(folder.glob("*.wav"))), *_packed(config.out)])
    )
    beside = ["manifest.csv", "index.html", "LICENSE.txt"]
    beside += engine_files(config.engine, {folder.name: [] for folder in folders}, frozenset())
    existing = [*there, *(path for name in beside if (path := config.out / name).exists())]
    if existing and not config.force:
        others = f" and {len(existing) - 1:,} more exist" if existing[1:] else " exists"
        raise UserError(f"{existing[0]}{others} already: add --force to overwrite, or use another -o")
    seconds = len(labels) * config.count * config.seconds
    check_room(config.out, folders, seconds * (config.rate or synth.instrument.rate) * BITS[config.subtype] / 8)
    return labels


def _kind(config: Pack, label: str) -> Kind:
    if config.kind == "auto":
        return "loop" if find_label(label) in STEADY else "one-shot"
    return config.kind


# --- choosing -----------------------------------------------------------------------------------------------------


def _sounds(synth: Synth, label: str, kind: Kind, config: Pack, skipped: dict[str, int]) -> Iterator[Clip]:
    """Yield up to `count` sounds that are clear, apart from one another and as loud as asked.

    Those that are not are counted in `skipped`, by what is wrong with them.
    """
    kept: list[Levels] = []
    pairs = ((label, config.seed + place) for place in range(TRIED * config.count))
    for clip in synth.render_many(pairs, temperature=config.temperature):
        made = _one_shot(clip) if kind == "one-shot" else _loop(synth, clip, config)
        if isinstance(made, str):
            skipped[made] = skipped.get(made, 0) + 1
            continue
        levels = band_levels(made.wave, made.rate)
        made = made.shaped(Shape(rate=config.rate if kind == "one-shot" else None, lufs=config.lufs, peak=config.peak))
        if not abs(event_loudness(made.wave, made.rate) - config.lufs) <= TOLERANCE:
            skipped["too peaky"] = skipped.get("too peaky", 0) + 1
        elif any(distance(levels, other) < config.apart for other in kept):
            skipped["nearly the same"] = skipped.get("nearly the same", 0) + 1
        else:
            kept.append(levels)
            yield made
            if len(kept) == config.count:
                return


def _one_shot(clip: Clip) -> Clip | str:
    """Return the clearest event of a clip, or why it is not taken."""
    made, clarity = one_shot(clip)
    return made if clarity >= CLEAR else "without a clear event"


def _loop(synth: Synth, clip: Clip, config: Pack) -> Clip | str:
    """Return a seamless loop of a clip, or why it is not taken."""
    if not steady(clip.wave, clip.rate):
        return "not steady"
    made, wrap = looped(material(synth, clip, config.seconds), config.seconds, rate=config.rate)
    seam = measure_seam(made.wave, made.rate, wrap.fade * made.rate // clip.rate)
    return made if seam.inaudible else "with a seam"


# --- naming and writing -------------------------------------------------------------------------------------------


def ucs_name(label: str, number: int, of: int, creator: str, source: str, category: str | None = None) -> str:
    """Return CatID_FXName_CreatorID_SourceID of the Universal Category System, without the category if there is none.

    >>> ucs_name("Sneeze_Cough", 3, 50, "foleybox", "sagan-small")
    'HMNCough_Sneeze-Cough-03_foleybox_sagan-small'
    """
    known = find_label(label)
    blocks = [category or (known.ucs if known else ""), f"{label}-{number:0{max(2, len(str(of)))}d}", creator, source]
    return "_".join(_block(block) for block in blocks if block)


def _block(text: str) -> str:
    """Return a text as one block of a name: `_` is between blocks only."""
    return re.sub(r"[_\s]+", "-", safe_name(text))


def _item(config: Pack, clip: Clip, kind: Kind, label: str, number: int) -> Item:
    name = ucs_name(label, number, config.count, config.creator, clip.recipe.instrument, config.ucs)
    return Item(
        f"{safe_name(label)}/{name}.wav", label, kind, clip.seed, round(len(clip.wave) / clip.rate, 4),
        round(event_loudness(clip.wave, clip.rate), 2), round(true_peak_db(clip.wave), 2), clip.rate, clip.recipe.licence,
    )  # fmt: skip


def _write(config: Pack, instrument: Instrument, items: list[Item], cards: list[str]) -> None:
    """Write all that is beside the sounds."""
    sets: dict[str, list[str]] = {}
    loops = set()
    for item in items:
        folder, name = item.file.split("/")
        sets.setdefault(folder, []).append(name)
        loops |= {folder} if item.kind == "loop" else set()
    texts = engine_files(config.engine, sets, frozenset(loops))
    _remove_earlier(config.out, {item.file for item in items} | set(texts))
    for name, text in texts.items():
        write_text(config.out / name, text)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(Item.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(item) for item in items)
    write_text(config.out / "manifest.csv", table.getvalue())
    write_text(config.out / "LICENSE.txt", licence_text(instrument))
    write_text(config.out / "index.html", _page(config, instrument, items, cards))


def _remove_earlier(out: Path, kept: set[str]) -> None:
    """Remove what an earlier pack left in the folder, so that it is what its manifest says.

    Only what foleybox wrote: sounds that the manifest lists and that carry a recipe, those of a pack that was stopped before
    its manifest, and an engine's files as it wrote them. What was edited since, or put there by others, stays.
    """
    try:
        rows = read_table(out / "manifest.csv").rows
    except UserError:
        rows = []
    sets: dict[str, list[str]] = {}
    loops = set()
    for row in rows:
        if re.fullmatch(r"(?!\.)[^/\\]+/(?!\.)[^/\\]+\.wav", row["file"]):
            folder, name = row["file"].split("/")
            sets.setdefault(folder, []).append(name)
            loops |= {folder} if row["kind"] == "loop" else set()
    stale = [out / folder / name for folder, names in sets.items() for name in names if f"{folder}/{name}" not in kept]
    stale = [path for path in stale if path.is_file() and is_ours(path)]
    unlisted = [path for path in _packed(out) if path.relative_to(out).as_posix() not in kept]
    stale += [path for path in unlisted if path not in stale]
    for engine in ENGINES:
        texts = engine_files(engine, sets, frozenset(loops)).items()
        stale += [out / name for name, text in texts if name not in kept and _holds(out / name, text)]
    for path in stale:
        path.unlink(missing_ok=True)
    for folder in {*sets, *(path.parent.name for path in unlisted)}:
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()


def _packed(out: Path) -> list[Path]:
    """Return the sounds in the folders of `out` that a pack wrote by their name and recipe, whether it listed them or not.

    A pack that is stopped has no manifest yet; what it wrote must not be taken for a part of the next one.
    """
    found = []
    for path in sorted(out.glob("*/*.wav")):
        try:
            recipe = read_recipe(path)
        except UserError:
            continue
        if recipe is None:
            continue
        packed = recipe.asked.get("kind") == ONE_SHOT or recipe.make["do"] == "loop"
        if packed and path.stem.endswith(f"_{_block(recipe.instrument)}"):
            found.append(path)
    return found


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def licence_text(instrument: Instrument) -> str:
    """Return what may be done with the sounds of an instrument, why, and whom to credit, as text for people."""
    sources: dict[tuple[str, str], int] = {}
    for row in instrument.heard:
        key = (row.source or "(not stated)", row.licence)
        sources[key] = sources.get(key, 0) + row.clips
    why = "\n".join(f"  * {reason}" for reason in instrument.licence.why).replace("CARD.md", "the list below")
    heard = "\n".join(f"  {clips:6,}  {source}: {licence}" for (source, licence), clips in sorted(sources.items()))
    return f"""These sounds were made by a neural network: foleybox {__version__}, instrument {instrument.name}
{instrument.version} (fingerprint {instrument.fingerprint}).

Terms of the instrument: {instrument.licence.terms}, which follows from the recordings that it learned from:

{why}

This is a rule applied to a list, not legal advice. Whom to credit for what the instrument learned from (clips, source,
licence as the source states it):

{heard}

If a shop asks about AI: the sounds were generated before release, by a model trained on the recordings above only.
"""


ADVICE = {
    "too peaky": "a lower --lufs",
    "nearly the same": "a smaller --apart",
    "not steady": "--kind one-shot",
    "without a clear event": "--kind loop",
    "with a seam": "fewer --seconds",
}
"what may help, by what is wrong with the clips that were passed over"


def _tell(config: Pack, label: str, made: int, skipped: dict[str, int]) -> None:
    """Say what came of a label."""
    passed = ", ".join(f"{count:,} {why}" for why, count in skipped.items())
    if made < config.count:
        tries = " or ".join([*(ADVICE[why] for why in skipped), "another --seed"])
        print(
            f"foleybox: {made:,} of {config.count:,} sounds of {label}: the other clips were {passed}; try {tries}",
            file=sys.stderr,
        )
    if not config.json:
        print(
            f"{label}: {made:,} sounds in {config.out / safe_name(label)}"
            + (f" (passed over: {passed})" if passed else "")
        )


# --- the contact sheet --------------------------------------------------------------------------------------------


def _card(item: Item, clip: Clip, content: bytes) -> str:
    """Return a sound as HTML: its picture, its file in a player, and its numbers, all in the page itself."""
    sound = base64.b64encode(content).decode()
    drawn = base64.b64encode(png(picture(clip.wave, clip.rate))).decode()
    name = html.escape(Path(item.file).stem)
    loop = " loop" if item.kind == "loop" else ""
    return (
        f'<figure><img src="data:image/png;base64,{drawn}" alt="spectrogram of {name}">'
        f'<audio controls preload="none"{loop} src="data:audio/wav;base64,{sound}"></audio>'
        f"<figcaption>{name}<br>seed {item.seed} · {item.seconds:.2f} s · {item.lufs:.1f} LUFS · {item.true_peak_db:.1f} dBTP"
        "</figcaption></figure>"
    )


def _page(config: Pack, instrument: Instrument, items: list[Item], cards: list[str]) -> str:
    """Return the contact sheet: one page that needs nothing beside it."""
    sections = []
    for label in dict.fromkeys(item.label for item in items):
        own = [card for item, card in zip(items, cards) if item.label == label]
        sections.append(
            f"<h2>{html.escape(label)} <small>{len(own)}</small></h2>\n<div>\n" + "\n".join(own) + "\n</div>"
        )
    title = f"{len(items)} sounds"
    facts = (
        f"{instrument.name} {instrument.version}, foleybox {__version__}, terms {instrument.licence.terms}; "
        f"each {config.lufs:g} LUFS, under {config.peak:g} dBTP"
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
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
<h1>{html.escape(title)}</h1>
<p>{html.escape(facts)}</p>
{chr(10).join(sections)}
"""
