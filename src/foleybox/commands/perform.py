"""`foleybox perform`: a list of times becomes a scene: a mix, stems and markers."""

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from foleybox.audio import SUFFIXES
from foleybox.commands import output
from foleybox.commands.output import Files, InstrumentName
from foleybox.errors import UserError
from foleybox.files import locked_folder, safe_name, work_of
from foleybox.labels import find_label
from foleybox.studio.events import (
    RECORDINGS,
    Event,
    Reading,
    mapped,
    note_labels,
    pattern_events,
    read_events,
    recorded_events,
)  # fmt: skip
from foleybox.studio.guide import guided, read_guide
from foleybox.studio.recipe import find_recipe, has_recipe
from foleybox.studio.scene import Curve, Scene, Style, arrange, channels_asked, stem_names
from foleybox.studio.scene import perform as play
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.synth import Synth
from foleybox.studio.table import parse_number, read_table
from foleybox.studio.timecode import frame_rate


@dataclass(frozen=True)
class Perform:
    """Play sounds at given times: OUT/mix.wav, OUT/stems/<Label>.wav, and markers as CSV, Audacity labels and WAV cues.

    ONSETS is a CSV (time[, label, velocity, seed, pan]), an Audacity label track (.txt), a JSON list, a MIDI file, or a
    recording or click track, whose onsets are detected. The onset of each sound is placed at its time, exact to the sample.
    A --guide (a voice, fingers on a table) plays --label by its onsets, or by its level if that is rain or a motor.
    The same command gives the same files.

    Example: foleybox perform --bpm 100 --pattern "x...x..." --repeat 2 --label footstep -o scene
    """

    onsets: Annotated[
        Positional[Path | None], arg(metavar="[ONSETS]", help_behavior_hint="(or --bpm, or --surface)")
    ] = None
    "the list of times"
    label: Annotated[str | None, arg(metavar="LABEL", help_behavior_hint="(needed where ONSETS names none)")] = None
    "label of the events that have none"
    notes: Annotated[
        tuple[str, ...], arg(metavar="NOTE=LABEL...", help_behavior_hint="(default: --label for all)")
    ] = ()
    "labels of MIDI notes, such as 36=footstep C#2=gunshot (middle C is C4)"
    track: Annotated[str, arg(metavar="N|NAME", help_behavior_hint="(default: all)")] = ""
    "MIDI track whose notes are played"
    map: Annotated[tuple[str, ...], arg(metavar="TEXT=LABEL...", help_behavior_hint="(default: none)")] = ()
    'labels for the texts in ONSETS, such as "left foot=footstep" "shot=gunshot"'
    fps: Annotated[float | None, arg(metavar="FPS", help_behavior_hint="(default: no frames)")] = None
    "frames a second of times such as 01:00:02:12 (drop-frame 01:00:02;12) or 120f, and of a column frame"
    start: Annotated[str, arg(metavar="TIME", help_behavior_hint="(default: 0)")] = ""
    "time in ONSETS at which the scene begins, such as 01:00:00:00"
    guide: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    "recording whose onsets and level drive --label, each --surface without a curve, and the velocities of ONSETS"
    bpm: Annotated[float | None, arg(metavar="BPM", help_behavior_hint="(default: no pattern)")] = None
    "tempo of --pattern in beats per minute"
    pattern: Annotated[str, arg(metavar="STEPS")] = "x..."
    "sixteenth notes: x a hit, X a hard one, o a soft one, . a rest"
    repeat: Annotated[int, arg(metavar="N")] = 1
    "repetitions of the pattern"
    surface: Annotated[tuple[str, ...], arg(metavar="LABEL=CURVE...", help_behavior_hint="(default: none)")] = ()
    """steady sounds in the background: a constant intensity from 0 to 1 (rain=0.5), a CSV with time and intensity, or a
    recording, whose level is the intensity; without = that of the --guide"""
    seconds: Annotated[
        float | None, arg(metavar="S", help_behavior_hint="(default: until the last sound has decayed)")
    ] = None
    "length of the scene"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "determines the choice of the sounds"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: the instrument's)")] = None
    "sample rate"
    instrument: InstrumentName = None
    "instrument to play"
    style: Style = field(default_factory=Style)
    files: Files = field(default_factory=lambda: Files(out=Path("scene")))


def perform(config: Perform) -> None:
    """Check everything, then render and write. Raises UserError before the first render for what cannot be performed."""
    synth = Synth.load(config.instrument)
    guide = read_guide(config.guide) if config.guide else None
    curves = [_surface(text, guide) for text in config.surface]
    known = find_label(config.label) if config.guide and config.label else None
    if guide and known and known.steady and config.onsets is None and config.bpm is None:
        curves.append((config.label or "", guide))
        events = []
    else:
        events = _events(config, guide)
    surfaces = dict(curves)
    if len(surfaces) < len(curves):
        raise UserError(f"--surface {' '.join(config.surface)}: expected each label once")
    if not events and not surfaces:
        raise UserError(
            "nothing to play: expected ONSETS, or --bpm and --pattern, or --surface, or --guide and --label"
        )
    # Arranged before a folder is created: raises for what cannot be performed.
    try:
        by_label, curves_by_label = arrange(
            synth, events, config.label, surfaces, config.seconds, config.seed, config.style
        )
    except UserError as error:
        hint = '; --map "TEXT=LABEL" replaces a text' if config.onsets and "unknown label" in str(error) else ""
        raise UserError(f"{error}{hint}") from None
    stems = [*by_label, *(f"{name}_surface" for name in curves_by_label)]
    out, format = config.files.out, config.files.kind
    names = [f"mix.{format}", "markers.csv", "markers.txt", *(f"stems/{safe_name(stem)}.{format}" for stem in stems)]
    seconds = config.seconds or max([0.0, *(event.time for event in events)])
    check_shape(Shape(rate=config.rate), "--")
    output.check_folder(out)
    files = replace(config.files, force=False, json=False)
    work = work_of(replace(config, files=files), events, surfaces, synth.instrument.fingerprint)
    with locked_folder(out, work) as continued:
        scene, paths = _perform(config, synth, events, surfaces, names, seconds, config.files.force or continued)
    _report(config, scene, paths)
    output.print_terms(synth.instrument)


def _perform(
    config: Perform, synth: Synth, events: list[Event], surfaces: dict[str, Curve], names: list[str], seconds: float,
    force: bool,
) -> tuple[Scene, list[Path]]:  # fmt: skip
    """Render and write the files `names`; return the scene and its sound files."""
    out, format = config.files.out, config.files.kind
    earlier = _earlier(out)
    existing = [path for name in names if (path := out / name).exists()]
    existing = list(dict.fromkeys([*existing, *sorted(earlier)]))
    length = Shape(seconds=seconds, rate=config.rate)
    size = (
        channels_asked(config.style, events)
        * (len(names) - 2)
        * output.bytes_per_sound(format, config.files.subtype, length, synth)
    )
    output.check_files(replace(config.files, force=force), [out, out / "stems"], existing, size, config.rate)
    scene = play(
        synth, events, config.label, surfaces=surfaces, seconds=config.seconds, seed=config.seed, style=config.style,
        progress=output.progress,
    )  # fmt: skip
    paths = scene.save(out, format, config.files.subtype, config.rate)
    kept = [path.resolve() for path in (*paths, config.onsets, config.guide) if path]
    for path in earlier:
        if path.resolve() not in kept:
            path.unlink(missing_ok=True)
    return scene, paths


def _earlier(out: Path) -> set[Path]:
    """Return the mix and the stems of an earlier scene in the folder: those that the recipe of its mix names."""
    mixes = [path for kind in SUFFIXES if (path := out / f"mix{kind}").is_file() and has_recipe(path, "perform")]
    found = set(mixes)
    for mix in mixes:
        recipe = find_recipe(mix)
        stems = (safe_name(name) for name in stem_names(recipe.make))
        paths = (out / "stems" / f"{stem}{mix.suffix}" for stem in stems)
        found |= {path for path in paths if path.is_file() and has_recipe(path, "perform")}
    return found


def _events(config: Perform, guide: Sequence[tuple[float, float]] | None) -> list[Event]:
    """Return the events of ONSETS, of --bpm or of --guide; none if there are none of these. Raises UserError for both."""
    midi = config.onsets is not None and config.onsets.suffix.lower() in (".mid", ".midi")
    for option, value in (("notes", config.notes), ("track", config.track)):
        if value and not midi:
            raise UserError(f"--{option} with {config.onsets or 'no list'}: expected a MIDI file")
    for option, value in (("map", config.map), ("fps", config.fps), ("start", config.start)):
        if value and config.onsets is None:
            raise UserError(f"--{option} without ONSETS, to which it applies: expected a list of times")
    if config.onsets is None:
        if config.bpm is not None:
            if not config.label:
                raise UserError(f"--bpm {config.bpm:g} without a label: name the sound with --label")
            events = pattern_events(config.bpm, config.pattern, config.repeat)
            return guided(events, guide) if guide else events
        return recorded_events(config.guide) if config.guide and config.label else []
    if config.bpm is not None:
        raise UserError(f"{config.onsets} and --bpm: expected one of the two")
    if config.fps is not None:
        frame_rate(config.fps)
    reading = Reading(config.fps, config.start, note_labels(config.notes), config.track)
    events = mapped(read_events(config.onsets, reading), config.map)
    nameless = sum(not event.label for event in events)
    if nameless and not config.label:
        hint = " (or --notes NOTE=LABEL)" if midi else ""
        raise UserError(f"{config.onsets} has {nameless:,} events without a label: name one with --label{hint}")
    return guided(events, guide) if guide else events


def _surface(text: str, guide: Sequence[tuple[float, float]] | None) -> tuple[str, Curve]:
    """Return the label and the curve of --surface rain=rain.csv, rain=0.5, rain=voice.wav, or rain with a guide."""
    label, equals, curve = text.partition("=")
    if not equals and label and guide:
        return label, guide
    if not (label and curve):
        raise UserError(
            f"--surface {text}: expected a label and a curve, such as rain=rain.csv, rain=0.5 or rain=voice.wav; "
            "without a curve, a --guide"
        )
    if Path(curve).suffix.lower() in RECORDINGS:
        return label, read_guide(Path(curve))
    try:
        return label, parse_number(curve)
    except UserError:
        return label, read_curve(curve)


def read_curve(path: str | Path) -> list[tuple[float, float]]:
    """Read an intensity curve: a CSV with the columns time (seconds) and intensity (0 to 1), lines in any order.

    Raises UserError, with the line number, for anything else.
    """
    table = read_table(path)
    if missing := {"time", "intensity"} - set(table.columns):
        raise UserError(f"{path} has no column {' or '.join(sorted(missing))}: expected time and intensity")
    points = []
    for row in table.rows:
        try:
            points.append((parse_number(row["time"]), parse_number(row["intensity"])))
        except UserError as error:
            raise UserError(f"{path}, line {row.line}: {error}") from None
    return points


def _report(config: Perform, scene: Scene, paths: list[Path]) -> None:
    """Print what was written."""
    placed = len(scene.markers())
    seconds = scene.make["samples"] / scene.synth.instrument.rate
    if config.files.json:
        for path, name in zip(paths, ("", *scene.stems)):
            facts = {"file": str(path), "stem": name, "seconds": round(seconds, 4)}
            print(json_module.dumps(facts, ensure_ascii=False))
        return
    gain = f", turned down by {-scene.gain_db:.1f} dB to stay below full scale" if scene.gain_db < 0 else ""
    events = f"{placed:,} event{'s' * (placed != 1)}"
    print(f"played {events} in {seconds:.3g} s{gain}: {paths[0]} and the stems {', '.join(scene.stems)}")
