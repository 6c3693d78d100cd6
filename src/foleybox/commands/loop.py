"""`foleybox loop`: a seamless loop of a steady sound, with loop points."""

import json as json_module
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import soundfile
from tyro.conf import Positional, arg

from foleybox.audio import Subtype, libsndfile_path, read_wave, write_wave
from foleybox.commands import output
from foleybox.commands.output import InstrumentName
from foleybox.errors import UserError
from foleybox.studio import loop as loops
from foleybox.studio.extend import is_steady
from foleybox.studio.recipe import Recipe, read_recipe
from foleybox.studio.seeds import check_seed
from foleybox.studio.shape import Shape, apply, check_shape
from foleybox.studio.synth import Clip, Synth, is_silent


@dataclass(frozen=True)
class Loop:
    """Make a seamless loop of a steady sound (rain, a motor), with loop points that game engines and samplers read.

    The seam is measured: the change of the spectrum where the loop repeats, compared with the changes inside the loop. Exit
    code 1 if it is larger. <loop>_x3.wav contains the loop three times in a row, to listen to the seam.

    Example: foleybox loop rain --seconds 3 -o rain_loop.wav
    """

    source: Annotated[Positional[str], arg(metavar="LABEL|FILE")]
    "a label in any spelling, or a sound file"
    out: Annotated[Path, arg(aliases=["-o"], metavar="FILE.wav")] = Path("loop.wav")
    "file to write"
    seconds: Annotated[float | None, arg(metavar="S", help_behavior_hint="(default: 4, or less for a short file)")] = (
        None
    )
    "length; up to 25 ms longer or shorter for a hum, so that it repeats in phase"
    seed: Annotated[int, arg(aliases=["-s"], metavar="S")] = 0
    "with a label: the first seed that is searched for a steady sound"
    fade: Annotated[float, arg(metavar="S")] = loops.FADE
    "crossfade in seconds, a quarter of the loop at most"
    lufs: Annotated[float | None, arg(metavar="LUFS", help_behavior_hint="(default: unchanged)")] = None
    "loudness of the loop"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: that of the sound)")] = None
    "sample rate"
    subtype: Subtype = "PCM_16"
    "16 bits, 24 bits, or floating point"
    instrument: InstrumentName = None
    "instrument to play"
    force: bool = False
    "overwrite existing files"
    json: bool = False
    "print JSON"


def loop(config: Loop) -> int:
    """Make a loop and its three rounds, and print the measurement of its seam; return 1 if the seam may be audible."""
    synth = None if Path(config.source).is_file() else _synth(config)
    three_rounds = _check(config)
    source, why_no_recipe = _read(Path(config.source)) if synth is None else (_rendered(synth, config), "")
    try:
        clip, wrap = loops.looped(source, config.seconds, rate=config.rate, fade=config.fade)
    except UserError as error:
        raise UserError(f"{config.source}: {error}") from None
    seam = loops.measure_seam(clip.wave, clip.rate, wrap.fade * clip.rate // source.rate)
    clip = clip.shaped(Shape(lufs=config.lufs))
    gain = clip.recipe.process[-1:] if config.lufs is not None else ()
    rounds = loops.repeated(source, wrap, clip.rate, 3)
    rounds = Clip(
        apply(gain, rounds.wave, rounds.rate)[0],
        replace(rounds.recipe, process=(*rounds.recipe.process, *gain), asked=clip.recipe.asked),
    )
    levels = output.LevelReport(1)
    levels.add(
        clip, _save(config.out, clip, config, why_no_recipe, {b"smpl": loops.smpl_chunk(len(clip.wave), clip.rate)})
    )
    _save(three_rounds, rounds, config, why_no_recipe, {})
    if synth is not None and not is_steady(source.wave, source.rate):
        print(
            f"foleybox: none of {loops.STEADY_TRIED} sounds of {source.label} is steady: this loop may pulse",
            file=sys.stderr,
        )
    if is_silent(clip.wave):
        print("foleybox: the loop is silent: name a sound that lasts", file=sys.stderr)
    levels.print()
    if why_no_recipe:
        print(f"foleybox: the loop has no recipe, since {why_no_recipe}", file=sys.stderr)
    _report(config, clip, wrap, source.rate, seam)
    return 0 if seam.inaudible else 1


def _save(path: Path, clip: Clip, config: Loop, why_no_recipe: str, chunks: dict[bytes, bytes]) -> float:
    """Write a clip, with its recipe unless there is a reason against it; return the gain."""
    if not why_no_recipe:
        return clip.save(path, config.subtype, chunks)
    comment = {"comment": f"loop of {Path(config.source).name}"}
    return write_wave(path, clip.wave, clip.rate, config.subtype, comment, chunks)


def _check(config: Loop) -> Path:
    """Check flags and files; return the path of the three rounds."""
    check_seed(config.seed)
    check_shape(Shape(lufs=config.lufs, rate=config.rate), "--")
    if config.seconds is not None and not loops.SHORTEST <= config.seconds <= loops.LONGEST:
        raise UserError(f"--seconds {config.seconds}: expected {loops.SHORTEST:g} to {loops.LONGEST:g}")
    if not 0.005 <= config.fade <= loops.LONGEST:
        raise UserError(f"--fade {config.fade}: expected 0.005 seconds or more")
    if config.out.suffix.lower() != ".wav":
        raise UserError(f"--out {config.out}: expected a name that ends in .wav, the format with loop points")
    three_rounds = config.out.with_name(f"{config.out.stem}_x3.wav")
    output.check_overwrite([path for path in (config.out, three_rounds) if path.exists()], config.force)
    output.check_space(
        config.out.parent, [config.out.parent], (config.seconds or loops.SECONDS) * 4 * (config.rate or 48_000) * 2
    )
    return three_rounds


def _synth(config: Loop) -> Synth:
    """Return the instrument. Raises UserError if it does not play the label."""
    if Path(config.source).suffix:
        raise UserError(f"no file {config.source}: expected a sound file, or a label")
    synth = Synth.load(config.instrument)
    synth.resolve(config.source)
    return synth


def _rendered(synth: Synth, config: Loop) -> Clip:
    clip = loops.steady_clip(synth, synth.resolve(config.source), config.seed)
    return loops.loop_source(synth, clip, config.seconds or loops.SECONDS, config.fade)


def _read(path: Path) -> tuple[Clip, str]:
    """Return a file as a clip, and why a loop of it has no recipe ("" if it has one)."""
    wave, rate = read_wave(path)
    recipe = read_recipe(path)
    if (channels := soundfile.info(libsndfile_path(path)).channels) > 1:
        print(f"foleybox: {path} has {channels} channels: the loop is mono, their mean", file=sys.stderr)
    if recipe is None:
        why = "has none"
    elif path.suffix.lower() == ".ogg":
        why = "is OGG, which is only close to the sound of its recipe"
    elif any(step["do"] == "resample" for step in recipe.process):
        why = "was resampled after it was made"
    else:
        return Clip(wave, recipe), ""
    return Clip(wave, Recipe("", "", "", rate, {"do": "read"})), f"{path} {why}"


def _report(config: Loop, clip: Clip, wrap: loops.Wrap, rate: int, seam: loops.Seam) -> None:
    """Print what was written, and the measurement of the seam."""
    seconds = len(clip.wave) / clip.rate
    if config.json:
        facts = {"file": str(config.out), "seconds": round(seconds, 4), "rate": clip.rate, **wrap._asdict()}
        facts["withheld"] = sum(step.get("withheld", 0.0) for step in clip.recipe.process)
        print(json_module.dumps({**facts, "seam": seam._asdict(), "inaudible": seam.inaudible}, ensure_ascii=False))
        return
    print(f"wrote {config.out}: {seconds:.3f} s from {wrap.start / rate:.2f} s on, and the same three times in a row")
    verdict = (
        "inaudible" if seam.inaudible else "may be audible: try another --seed, fewer --seconds, or a longer sound"
    )
    print(f"seam: spectral flux {seam.wrap:.2f} dB at the wrap, {seam.inside:.2f} dB inside; {verdict}")
