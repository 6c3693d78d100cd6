"""`foleybox info`: what an instrument or a sound file is."""

import json as json_module
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import soundfile
from tyro.conf import Positional, arg

from foleybox.audio import libsndfile_path, loudness, peak_db, read_wave, rms_db, true_peak_db
from foleybox.errors import UserError
from foleybox.instrument import Instrument, find_instrument, read_instrument, shipped
from foleybox.studio.recipe import read_recipe, why_no_recipe
from foleybox.studio.shape import event_loudness


@dataclass(frozen=True)
class Info:
    """Describe an instrument (licence, size, measurements) or a sound file and its recipe; by default, list the instruments.

    Example: foleybox info out/DogBark/DogBark_s0.wav
    """

    path: Annotated[
        Positional[str | None], arg(metavar="[FILE|NAME|FOLDER]", help_behavior_hint="(default: list the instruments)")
    ] = None
    "a sound file, the name of an instrument, or its folder"
    all: bool = False
    "with an instrument: also the training clips by label, all measurements, and how it was made"
    json: bool = False
    "print JSON"
    recipe: bool = False
    "print only the recipe of a sound file, one line of JSON, which `generate` and `vary` read"


def info(config: Info) -> None:
    """Print the description. Raises UserError for a path that cannot be read."""
    if config.recipe:
        print(_recipe_line(config.path))
        return
    if config.path is None:
        facts = [describe_instrument(read_instrument(folder), folder) for folder in _listed()]
        lines = _list(facts)
    elif Path(config.path).is_file():
        facts = describe_sound(Path(config.path))
        lines = _lines(facts)
    else:
        if Path(config.path).suffix and not Path(config.path).exists():
            raise UserError(f"no file {config.path}: expected a sound file, or an instrument's name or folder")
        folder = find_instrument(config.path)
        facts = describe_instrument(read_instrument(folder), folder)
        lines = _lines(_in_short(facts))
        if (card := folder / "CARD.md").is_file():
            lines.append(f"(description and credits: {card})")
        lines += _lines(facts) if config.all else ["(--all shows the training clips by label, and all measurements)"]
    print(json_module.dumps(facts, indent=1, ensure_ascii=False) if config.json else "\n".join(lines))


def _listed() -> list[Path]:
    """Return the folders of the instruments that ship, the default one first."""
    default = find_instrument()
    return [default, *(folder for folder in shipped() if folder != default)]


def _list(instruments: list[dict[str, Any]]) -> list[str]:
    """Return a line for each instrument: name, version, licence, size."""
    rows = [(each["instrument"], each["version"], each["licence"]["terms"], _size(each)) for each in instruments]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        f"{name:{widths[0]}}  version {version:{widths[1]}}  {terms:{widths[2]}}  {size:>{widths[3]}}"
        for name, version, terms, size in rows
    ]
    lines[0] += "  (default)"
    return [*lines, "`foleybox info NAME` describes one; --instrument NAME or FOLEYBOX_INSTRUMENT=NAME plays it"]


def _size(facts: dict[str, Any]) -> str:
    return f"{sum(facts['bytes'].values()) / 1e6:.1f} MB"


def _in_short(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the main facts of an instrument."""
    mean = facts["measured"].get("mean")
    measured = {
        name: f"{each['value']} (real recordings {each['floor']})"
        for name, each in (mean.items() if isinstance(mean, dict) else ())
        if isinstance(each, dict) and {"value", "floor"} <= set(each)
    }
    return {
        "instrument": f"{facts['instrument']} {facts['version']}",
        "licence": facts["licence"]["terms"],
        "size": _size(facts),
        "sound": f"{facts['seconds']:g} s at {facts['rate']:,} Hz",
        "labels": facts["labels"],
        "why this licence": facts["licence"]["reasons"],
        **({"measured": measured} if measured else {}),
    }


def _recipe_line(path: str | None) -> str:
    if path is None or not Path(path).is_file():
        raise UserError(f"no file {path or ''}: --recipe expects a sound file")
    recipe = read_recipe(path)
    if recipe is None:
        raise UserError(f"{path}: {why_no_recipe(Path(path))}")
    return recipe.to_json()


def describe_instrument(instrument: Instrument, folder: Path) -> dict[str, Any]:
    """Return the facts of an instrument as JSON values; training clips are summed by label and tier."""
    clips: dict[str, dict[str, int]] = {}
    for row in instrument.training_clips:
        tiers = clips.setdefault(row.label, {})
        tiers[row.tier] = tiers.get(row.tier, 0) + row.clips
    return {
        "instrument": instrument.name,
        "version": instrument.version,
        "folder": str(folder),
        "kind": instrument.kind,
        "labels": list(instrument.labels),
        "rate": instrument.rate,
        "seconds": round(instrument.seconds, 4),
        "latent": list(instrument.latent),
        "bytes": {name: graph.bytes for name, graph in instrument.graphs.items()},
        "fingerprint": instrument.fingerprint,
        "licence": asdict(instrument.licence),
        "training_clips": clips,
        "measured": instrument.measured,
        "made_with": instrument.made_with,
    }


def describe_sound(path: Path) -> dict[str, Any]:
    """Return the facts of a sound file as JSON values; the level of silence is None."""
    wave, rate = read_wave(path)
    recipe = read_recipe(path)
    about = soundfile.info(libsndfile_path(path))

    def level(value: float) -> float | None:
        return round(value, 2) if math.isfinite(value) else None

    return {
        "sound": str(path),
        "format": f"{about.format} {about.subtype}",
        "rate": rate,
        "channels": about.channels,
        "seconds": round(len(wave) / rate, 4),
        "peak_db": level(peak_db(wave)),
        "true_peak_db": level(true_peak_db(wave)),
        "rms_db": level(rms_db(wave)),
        "loudness_lufs": level(loudness(wave, rate)),
        "event_lufs": level(event_loudness(wave, rate)),
        "recipe": {"label": recipe.label, "seed": recipe.seed, **asdict(recipe)} if recipe else why_no_recipe(path),
    }


MAX_LINES = 12  # lines of a list: a scene has thousands of events


def _short(value: object) -> str:
    text = ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) < 200 else f"{text[:196]} ..."


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Return facts as lines `name   value`, nested ones indented."""
    lines = []
    for name, value in facts.items():
        title = f"{indent}{name}"
        if isinstance(value, dict) and value:
            lines += [title, *_lines(value, indent + "  ")]
        elif isinstance(value, list | tuple):
            flat = all(isinstance(each, str | int | float) and len(str(each)) < 40 for each in value)
            texts = [", ".join(map(str, value))] if flat else [_short(each) for each in value[:MAX_LINES]] or ["-"]
            texts += (
                [f"... and {len(value) - MAX_LINES:,} more (--json shows them)"]
                if len(value) > MAX_LINES and not flat
                else []
            )
            lines += [f"{title:20} {text}" if not place else f"{'':20} {text}" for place, text in enumerate(texts)]
        else:
            lines.append(f"{title:20} {'-' if value is None or value == {} else value}")
    return lines
