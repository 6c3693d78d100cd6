"""`foleybox loop`: a seamless loop of a steady sound, with loop points."""

import json as json_module
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import soundfile
from tyro.conf import Positional, arg

from foleybox.audio import Subtype, named, read_wave, write_wave
from foleybox.commands.output import LevelReport, Source, check_room
from foleybox.errors import UserError
from foleybox.studio.extend import steady
from foleybox.studio.loop import (
    FADE,
    LONGEST,
    SECONDS,
    SHORTEST,
    STEADY_TRIED,
    Seam,
    Wrap,
    _round,
    looped,
    material,
    measure_seam,
    smpl,
    steady_clip,
)
from foleybox.studio.recipe import Recipe, read_recipe
from foleybox.studio.seeds import check_seed
from foleybox.studio.shape import Shape, apply, check_shape
from foleybox.studio.synth import Clip, Synth, is_silent

Length = Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: 4, or what a file has room for)")]


@dataclass(frozen=True)
class Loop:
    """Make a seamless loop of a steady sound (rain, a motor), with loop points that game engines and samplers read.

    The seam is measured: how much the spectrum rises at the wrap, and inside. Exit code 1 if it is more at the wrap.
    Beside the loop there is <loop>_x3.wav, three rounds of it, to hear it with.

    Example: foleybox loop rain --seconds 3 -o rain_loop.wav
    """

    source: Annotated[Positional[str], arg(metavar="LABEL|FILE")]
    "a label, in any spelling, or a sound file"
    out: Annotated[Path, arg(aliases=["-o"], metavar="FILE.wav")] = Path("loop.wav")
    "the loop"
    seconds: Length = None
    "length; a hum may make it up to 25 ms longer or shorter, to meet itself in phase"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "of a label: the first seed that is looked at for a steady sound"
    fade: Annotated[float, arg(metavar="S")] = FADE
    "crossfade in seconds, a quarter of the loop at most"
    lufs: Annotated[float | None, arg(help_behavior_hint="(default: as it is)")] = None
    "loudness of the loop"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: that of the sound)")] = None
    "resample to this rate"
    subtype: Subtype = "PCM_16"
    "16 or 24 bits, or float"
    instrument: Source = None
    "instrument to play"
    force: bool = False
    "overwrite existing files"
    json: bool = False
    "print JSON"


# --- the verb -----------------------------------------------------------------------------------------------------


def loop(config: Loop) -> int:
    """Make a loop and its audition file, and say how its seam measures; return 1 if it may be heard."""
    synth = None if Path(config.source).is_file() else _synth(config)
    audition = _check(config)
    source, why_no_recipe = _read(Path(config.source)) if synth is None else (_rendered(synth, config), "")
    try:
        clip, wrap = looped(source, config.seconds, rate=config.rate, fade=config.fade)
    except UserError as error:
        raise UserError(f"{config.source}: {error}") from None
    seam = measure_seam(clip.wave, clip.rate, wrap.fade * clip.rate // source.rate)
    clip = clip.shaped(Shape(lufs=config.lufs))
    gain = clip.recipe.process[-1:] if config.lufs is not None else ()
    rounds = _round(source, wrap, clip.rate, 3)
    rounds = Clip(
        apply(gain, rounds.wave, rounds.rate)[0],
        replace(rounds.recipe, process=(*rounds.recipe.process, *gain), asked=clip.recipe.asked),
    )
    for path, each, chunks in ((config.out, clip, {b"smpl": smpl(len(clip.wave), clip.rate)}), (audition, rounds, {})):
        if why_no_recipe:
            comment = {"comment": f"loop of {Path(config.source).name}"}
            write_wave(path, each.wave, each.rate, config.subtype, comment, chunks)
        else:
            each.save(path, config.subtype, chunks)
    if synth is not None and not steady(source.wave, source.rate):
        print(
            f"foleybox: none of {STEADY_TRIED} sounds of {source.label} is steady: the loop is of one that is not",
            file=sys.stderr,
        )
    _tell(config, clip, wrap, source.rate, seam, why_no_recipe)
    return 0 if seam.inaudible else 1


def _check(config: Loop) -> Path:
    """Check flags and files; return the name of the audition file."""
    check_seed(config.seed)
    check_shape(Shape(lufs=config.lufs, rate=config.rate), "--")
    if config.seconds is not None and not SHORTEST <= config.seconds <= LONGEST:
        raise UserError(f"--seconds {config.seconds}: expected {SHORTEST:g} to {LONGEST:g}")
    if not 0.005 <= config.fade <= LONGEST:
        raise UserError(f"--fade {config.fade}: expected 0.005 seconds or more")
    if config.out.suffix.lower() != ".wav":
        raise UserError(f"--out {config.out}: expected a name that ends in .wav, which carries loop points")
    audition = config.out.with_name(f"{config.out.stem}_x3.wav")
    existing = [path for path in (config.out, audition) if path.exists()]
    if existing and not config.force:
        raise UserError(f"{existing[0]} exists already: add --force to overwrite, or use another -o")
    check_room(config.out.parent, [config.out.parent], (config.seconds or SECONDS) * 4 * (config.rate or 48_000) * 2)
    return audition


def _synth(config: Loop) -> Synth:
    """Return the instrument, once it is seen to play the label."""
    if Path(config.source).suffix:
        raise UserError(f"no file {config.source}: expected a sound file, or a label")
    synth = Synth.load(config.instrument)
    synth.resolve(config.source)
    return synth


def _rendered(synth: Synth, config: Loop) -> Clip:
    clip = steady_clip(synth, synth.resolve(config.source), config.seed)
    return material(synth, clip, config.seconds or SECONDS, config.fade)


def _read(path: Path) -> tuple[Clip, str]:
    """Return a file as a clip, and why a loop of it carries no recipe ("" if it does)."""
    wave, rate = read_wave(path)
    recipe = read_recipe(path)
    if (channels := soundfile.info(named(path)).channels) > 1:
        print(f"foleybox: {path} has {channels} channels: the loop is of their mean, one channel", file=sys.stderr)
    if recipe is None:
        why = "carries none"
    elif path.suffix.lower() == ".ogg":
        why = "holds only nearly what its recipe makes, as OGG does"
    elif any(step["do"] == "resample" for step in recipe.process):
        why = "was resampled after it was made"
    else:
        return Clip(wave, recipe), ""
    return Clip(wave, Recipe("", "", "", rate, {"do": "read"})), f"{path} {why}"


def _tell(config: Loop, clip: Clip, wrap: Wrap, rate: int, seam: Seam, why_no_recipe: str) -> None:
    """Say what was written, and how the seam measures."""
    seconds = len(clip.wave) / clip.rate
    if config.json:
        facts = {"file": str(config.out), "seconds": round(seconds, 4), "rate": clip.rate, **wrap._asdict()}
        facts["withheld"] = sum(step.get("withheld", 0.0) for step in clip.recipe.process)
        print(json_module.dumps({**facts, "seam": seam._asdict(), "inaudible": seam.inaudible}, ensure_ascii=False))
        return
    print(f"wrote {config.out}: {seconds:.3f} s from {wrap.start / rate:.2f} s on, and three rounds of it")
    verdict = (
        "it is not heard"
        if seam.inaudible
        else "it may be heard: try another --seed, fewer --seconds, or a longer sound"
    )
    if is_silent(clip.wave):
        print("foleybox: the loop is silence: name a sound that lasts", file=sys.stderr)
    told = LevelReport(1)
    told.add(clip, 1.0)
    told.tell()
    print(f"seam: flux {seam.wrap:.2f} dB at the wrap, {seam.inside:.2f} dB inside; {verdict}")
    if why_no_recipe:
        print(f"foleybox: the loop carries no recipe, since {why_no_recipe}", file=sys.stderr)
