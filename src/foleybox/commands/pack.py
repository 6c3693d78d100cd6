"""`foleybox pack`: a set of variations for a game: trimmed, equally loud, without near-duplicates, ready for an engine."""

import json as json_module
import re
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from foleybox.audio import BITS, Subtype
from foleybox.commands import output
from foleybox.commands.output import InstrumentName
from foleybox.errors import UserError
from foleybox.files import locked_folder, safe_name, work_of, write_text
from foleybox.instrument import Instrument
from foleybox.studio import pack as packs
from foleybox.studio.engines import ENGINES, Engine, engine_files
from foleybox.studio.recipe import has_recipe, read_recipe
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.shots import MOST_EVENTS
from foleybox.studio.synth import Synth, check_temperature
from foleybox.studio.table import read_table

CATID = re.compile(r"[A-Z][A-Z0-9]{1,7}[A-Za-z0-9]{0,8}")  # of the Universal Category System


@dataclass(frozen=True)
class Pack:
    """Make a set of variations for a game: OUT/<Label>/<UCS name>.wav, and what the engine needs to import them.

    One-shots are the loudest event of a rendered sound, whole: from its attack until it has decayed. Rain and motors become
    loops with loop points. The sounds of a label are equally loud (the event, not the silence around it), their true peaks
    are -1 dBTP or less, and no two are nearly the same.
    The folder also gets manifest.csv, LICENSE.txt, and index.html, a contact sheet with players.

    Example: foleybox pack footstep --count 12 --engine godot -o pack
    """

    labels: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL...", help_behavior_hint="(required)")]
    "labels in any spelling, or `all`"
    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")] = Path("pack")
    "folder to write to"
    engine: Engine = "none"
    "also write the files with which this engine imports the pack"
    kind: Literal["auto", "one-shot", "loop"] = "auto"
    "auto: loops of rain and motors, one-shots of the rest"
    subtype: Subtype = "PCM_16"
    "16 bits, 24 bits, or floating point"
    ucs: Annotated[str | None, arg(metavar="CATID", help_behavior_hint="(default: by label)")] = None
    "category of the Universal Category System in the file names, such as GUNPis"
    creator: Annotated[str, arg(metavar="NAME")] = "foleybox"
    "creator in the file names"
    instrument: InstrumentName = None
    "instrument to play"
    force: bool = False
    "overwrite existing files, and remove those of an earlier pack in the folder"
    json: bool = False
    "print a line of JSON for each sound"
    selection: packs.Selection = field(default_factory=packs.Selection)


def pack(config: Pack) -> int:
    """Check everything, render, and write; return 1 if there are fewer sounds of a label than asked for.

    Raises UserError before the first render for labels, numbers, folders and existing files.
    """
    synth = Synth.load(config.instrument)
    output.check_folder(config.out)
    work = work_of(replace(config, force=False, json=False), synth.instrument.fingerprint)
    with locked_folder(config.out, work) as continued:
        return _pack(replace(config, force=config.force or continued), synth)


def _pack(config: Pack, synth: Synth) -> int:
    labels, wanted = _check(config, synth), config.selection
    items: list[packs.Item] = []
    cards: list[str] = []
    incomplete = False
    with output.progress(len(labels) * wanted.count) as advance:
        for label in labels:
            rejected: dict[str, int] = {}
            kind = packs.default_kind(label) if config.kind == "auto" else config.kind
            number = 0
            for number, clip in enumerate(packs.select_sounds(synth, label, kind, wanted, rejected), 1):
                name = packs.ucs_name(label, number, wanted.count, config.creator, clip.recipe.instrument, config.ucs)
                item, card = packs.write_sound(config.out, clip, kind, label, name, config.subtype)
                items.append(item)
                cards.append(card)
                if config.json:
                    print(json_module.dumps(asdict(item), ensure_ascii=False), flush=True)
                advance(label)
            incomplete |= number < wanted.count
            _report(config, label, number, rejected)
    _write_texts(config, synth.instrument, items, cards)
    output.print_terms(synth.instrument)
    return 1 if incomplete else 0


def _check(config: Pack, synth: Synth) -> list[str]:
    """Check flags, labels and files, and create the folders; return the instrument's names of the labels."""
    labels, wanted = output.resolve_labels(synth, config.labels), config.selection
    output.check_seeds(wanted.seed, wanted.count * packs.TRIED)
    check_temperature(wanted.temperature, "--")
    check_shape(Shape(seconds=wanted.seconds, lufs=wanted.lufs, peak=wanted.peak, rate=wanted.rate), "--")
    if not 0 <= wanted.event <= MOST_EVENTS:
        raise UserError(f"--event {wanted.event}: expected 0, the loudest event, or its number, 1 to {MOST_EVENTS}")
    if not 0 <= wanted.apart < 100:
        raise UserError(f"--apart {wanted.apart}: expected 0 to 100 dB")
    for flag, word in (("ucs", config.ucs), ("creator", config.creator)):
        if word is not None and not re.fullmatch(r"[\w-]+", word.replace("_", "")):
            raise UserError(f"--{flag} {word!r}: expected letters, digits and hyphens, for a file name")
    if config.ucs is not None and not CATID.fullmatch(config.ucs):
        raise UserError(
            f"--ucs {config.ucs}: expected a CatID such as GUNPis or RAIN, with the category in capitals first"
        )
    if config.ucs is not None and labels[1:]:
        raise UserError(f"--ucs {config.ucs} with {', '.join(labels)}: a category is of one label; make a pack of each")
    folders = [config.out / safe_name(label) for label in labels]
    sounds = [path for folder in folders for path in sorted(folder.glob("*.wav"))]
    texts = engine_files(config.engine, {folder.name: [] for folder in folders}, frozenset())
    texts = [config.out / name for name in ("manifest.csv", "index.html", "LICENSE.txt", *texts)]
    existing = [*dict.fromkeys([*sounds, *_packed(config.out)]), *(path for path in texts if path.exists())]
    output.check_overwrite(existing, config.force)
    seconds = len(labels) * wanted.count * wanted.seconds
    output.check_space(config.out, folders, seconds * (wanted.rate or synth.instrument.rate) * BITS[config.subtype] / 8)
    return labels


def _report(config: Pack, label: str, made: int, rejected: dict[str, int]) -> None:
    """Print how many sounds of a label there are, and why others were rejected."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
    candidates = f"{made + sum(rejected.values()):,} candidates"
    if made < config.selection.count:
        advice = " or ".join(dict.fromkeys([*(packs.REASONS[reason] for reason in rejected), "another --seed"]))
        print(
            f"foleybox: {made:,} of {config.selection.count:,} sounds of {label} (of {candidates}: {reasons}); try {advice}",
            file=sys.stderr,
        )
    if not config.json:
        folder = config.out / safe_name(label)
        print(f"{label}: {made:,} sounds in {folder}" + (f" (of {candidates}: {reasons})" if reasons else ""))


# --- files --------------------------------------------------------------------------------------------------------


def _write_texts(config: Pack, instrument: Instrument, items: list[packs.Item], cards: list[str]) -> None:
    """Write everything except the sounds."""
    texts = packs.texts(instrument, config.engine, config.selection, items, cards)
    _remove_earlier(config.out, {item.file for item in items} | set(texts))
    for name, text in texts.items():
        write_text(config.out / name, text)


def _remove_earlier(out: Path, kept: set[str]) -> None:
    """Remove the files of an earlier pack from the folder, so that it contains what its manifest lists.

    Removed are files that foleybox wrote and nobody edited since: sounds with a recipe that the manifest lists, sounds of a
    pack that was stopped before its manifest was written, and the engine's files.
    """
    try:
        rows = read_table(out / "manifest.csv").rows
    except UserError:
        rows = []
    # Only names in a folder of the pack: a manifest cannot name files elsewhere.
    rows = [row for row in rows if re.fullmatch(r"(?!\.)[^/\\]+/(?!\.)[^/\\]+\.wav", row["file"])]
    folders, loops = packs.folders_of((row["file"], row["kind"]) for row in rows)
    listed = [path for row in rows if (path := out / row["file"]).is_file() and has_recipe(path)]
    stale = {path for path in [*listed, *_packed(out)] if path.relative_to(out).as_posix() not in kept}
    for engine in ENGINES:
        for name, text in engine_files(engine, folders, loops).items():
            path = out / name
            if name not in kept and path.is_file() and path.read_bytes() == text.encode():
                stale.add(path)
    for path in stale:
        path.unlink(missing_ok=True)
    for folder in {*folders, *(path.parent.name for path in stale if path.parent != out)}:
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()


def _packed(out: Path) -> list[Path]:
    """Return the sounds of packs in the folders of `out`, also those of a pack that was stopped and has no manifest."""
    found = []
    for path in sorted(out.glob("*/*.wav")):
        try:
            recipe = read_recipe(path)
        except UserError:
            continue
        if recipe is not None and packs.is_of_pack(path.stem, recipe):
            found.append(path)
    return found
