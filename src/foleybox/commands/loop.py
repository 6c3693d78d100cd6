"""`foleybox loop`: seamless loops, with loop points."""

import itertools
import json as json_module
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import soundfile
from tyro.conf import Positional, arg

from foleybox.audio import Subtype, libsndfile_path, mono, read_channels, write_wave
from foleybox.commands import output
from foleybox.commands.output import InstrumentName
from foleybox.errors import UserError
from foleybox.labels import Label, find_label
from foleybox.studio import loop as loops
from foleybox.studio.extend import is_steady
from foleybox.studio.recipe import Recipe, read_recipe
from foleybox.studio.seeds import check_seed
from foleybox.studio.shape import CEILING, Shape, apply, check_shape, peak_step
from foleybox.studio.synth import Clip, Synth

SEEDS_TRIED = 4  # sounds of a label that are tried until one has an inaudible seam
MOST = 100  # loops


@dataclass(frozen=True)
class Loop:
    """Make a seamless loop, with loop points that game engines and samplers read.

    Steady sounds (rain, a motor) loop best. Of a label with events (dog_bark) the loop contains the loudest one, which repeats
    in every round; `foleybox perform` plays different ones. The channels and the bit depth of a given file are kept.

    The seam is measured: the change of the spectrum where the loop repeats, and clicks, compared with those inside the loop.
    Exit code 1 if they are larger. <loop>_x3.wav contains the loop three times in a row, to listen to the seam.

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
    "with a label: the first seed that is searched for a sound that loops well"
    count: Annotated[int, arg(aliases=["-n"], metavar="N")] = 1
    "number of different loops to choose from: <loop>_1.wav, <loop>_2.wav ..."
    fade: Annotated[float, arg(metavar="S")] = loops.FADE
    "crossfade in seconds, a quarter of the loop at most"
    lufs: Annotated[float | None, arg(metavar="LUFS", help_behavior_hint="(default: unchanged)")] = None
    "loudness of the loop"
    rate: Annotated[int | None, arg(metavar="HZ", help_behavior_hint="(default: that of the sound)")] = None
    "sample rate"
    subtype: Annotated[Subtype | None, arg(help_behavior_hint="(default: that of the file, else PCM_16)")] = None
    "16 bits, 24 bits, or floating point"
    instrument: InstrumentName = None
    "instrument to play"
    force: bool = False
    "overwrite existing files"
    json: bool = False
    "print JSON"


class Made(NamedTuple):
    """A loop of a source."""

    source: Clip
    clip: Clip
    wrap: loops.Wrap
    seam: loops.Seam


def loop(config: Loop) -> int:
    """Make loops and their three rounds, and print how their seams measure; return 1 if one of them may be audible."""
    synth = None if Path(config.source).is_file() else _synth(config)
    paths = _check(config)
    why_no_recipe = ""
    try:
        if synth is None:
            source, why_no_recipe = _read(Path(config.source))
            found = [_made(source, config, candidate) for candidate in range(config.count)]
        else:
            found = list(_rendered(synth, config))
    except UserError as error:
        raise UserError(f"{config.source}: {error}") from None
    subtype = config.subtype or (_subtype(Path(config.source)) if synth is None else "PCM_16")
    report = output.LevelReport(config.count)
    for path, made in zip(paths, found):
        _write(path, made, config, subtype, why_no_recipe, report)
    if synth is not None and (known := find_label(synth.resolve(config.source))):
        _print_kind(known, found)
    report.print()
    if why_no_recipe:
        print(f"foleybox: the loop has no recipe, since {why_no_recipe}", file=sys.stderr)
    return 0 if all(made.seam.inaudible for made in found) else 1


def _made(source: Clip, config: Loop, candidate: int = 0) -> Made:
    clip, wrap = loops.looped(source, config.seconds, rate=config.rate, fade=config.fade, candidate=candidate)
    return Made(source, clip, wrap, loops.measure_seam(clip.wave, clip.rate, wrap.fade * clip.rate // source.rate))


def _rendered(synth: Synth, config: Loop) -> Iterator[Made]:
    """Yield the loops of a label: each the first of up to SEEDS_TRIED sounds whose seam is inaudible, or the best of these."""
    clips = loops.loop_clips(synth, synth.resolve(config.source), config.seed)
    for _ in range(config.count):
        tried: list[Made] = []
        for clip in itertools.islice(clips, SEEDS_TRIED):
            source = loops.loop_source(synth, clip, config.seconds or loops.SECONDS, config.fade)
            tried.append(_made(source, config))
            if tried[-1].seam.inaudible:
                break
        yield min(tried, key=lambda made: made.seam.excess)


def _write(
    path: Path, made: Made, config: Loop, subtype: Subtype, why_no_recipe: str, report: output.LevelReport
) -> None:
    """Write a loop and its three rounds, with one gain, which keeps both under the ceiling; print what was written."""
    clip = made.clip.shaped(Shape(lufs=config.lufs, peak=CEILING))
    gain = list(clip.recipe.process[len(made.clip.recipe.process) :])
    rounds = loops.repeated(made.source, made.wrap, clip.rate, 3)
    if more := peak_step(apply(gain, rounds.wave, rounds.rate)[0], CEILING):  # where one round meets the next
        gain.append(more)
    chunks = {b"smpl": loops.smpl_chunk(len(clip.wave), clip.rate)}
    three_rounds = path.with_name(f"{path.stem}_x3.wav")
    for each, to, extra in ((made.clip, path, chunks), (rounds, three_rounds, {})):
        recipe = replace(each.recipe, process=(*each.recipe.process, *gain), asked=clip.recipe.asked)
        each = Clip(apply(gain, each.wave, each.rate)[0], recipe)
        if why_no_recipe:
            write_wave(to, each.wave, each.rate, subtype, {"comment": f"loop of {Path(config.source).name}"}, extra)
        else:
            each.save(to, subtype, extra, exact=True)
    db = sum(step["db"] for step in gain) if config.lufs is None else 0.0
    report.add(clip, 10 ** (db / 20))
    _print(path, clip, made, config)


def _print_kind(label: Label, found: list[Made]) -> None:
    """Print what a loop of a label with events is, or that a steady label gave no steady sound."""
    if not label.steady:
        print(
            f"foleybox: {label.slug} has events, and the same ones repeat in every round; for different ones: "
            f'foleybox perform --label {label.slug} --bpm 60 --pattern "x..." --repeat 8',
            file=sys.stderr,
        )
    elif not all(is_steady(made.source.wave, made.source.rate) for made in found):
        tried = loops.STEADY_TRIED
        print(f"foleybox: none of {tried} sounds of {label} is steady: this loop may pulse", file=sys.stderr)


def _check(config: Loop) -> list[Path]:
    """Check flags and files; return the paths of the loops."""
    check_seed(config.seed)
    check_shape(Shape(lufs=config.lufs, rate=config.rate), "--")
    if config.seconds is not None and not loops.SHORTEST <= config.seconds <= loops.LONGEST:
        raise UserError(f"--seconds {config.seconds}: expected {loops.SHORTEST:g} to {loops.LONGEST:g}")
    if not 0.005 <= config.fade <= loops.LONGEST:
        raise UserError(f"--fade {config.fade}: expected 0.005 seconds or more")
    if not 1 <= config.count <= MOST:
        raise UserError(f"--count {config.count}: expected 1 to {MOST}")
    if config.out.suffix.lower() != ".wav":
        raise UserError(f"--out {config.out}: expected a name that ends in .wav, the format with loop points")
    out = config.out
    paths = [out] if config.count == 1 else [out.with_name(f"{out.stem}_{n}.wav") for n in range(1, config.count + 1)]
    existing = [each for path in paths for each in (path, path.with_name(f"{path.stem}_x3.wav")) if each.exists()]
    output.check_overwrite(existing, config.force)
    seconds = config.count * (config.seconds or loops.SECONDS) * 4
    output.check_space(out.parent, [out.parent], seconds * (config.rate or 48_000) * 2)
    return paths


def _synth(config: Loop) -> Synth:
    """Return the instrument. Raises UserError if it does not play the label."""
    if Path(config.source).suffix:
        raise UserError(f"no file {config.source}: expected a sound file, or a label")
    synth = Synth.load(config.instrument)
    synth.resolve(config.source)
    return synth


def _read(path: Path) -> tuple[Clip, str]:
    """Return a file as a clip, and why a loop of it has no recipe ("" if it has one)."""
    wave, rate = read_channels(path)
    wave = mono(wave) if wave.shape[1] == 1 else wave
    recipe = read_recipe(path)
    if recipe is None:
        why = "has none"
    elif path.suffix.lower() == ".ogg":
        why = "is OGG, which is only close to the sound of its recipe"
    elif any(step["do"] == "resample" for step in recipe.process):
        why = "was resampled after it was made"
    else:
        return Clip(wave, recipe), ""
    return Clip(wave, Recipe("", "", "", rate, {"do": "read"})), f"{path} {why}"


def _subtype(path: Path) -> Subtype:
    """Return the subtype that keeps the bit depth of a file."""
    found = soundfile.info(libsndfile_path(path)).subtype
    return "PCM_24" if found == "PCM_24" else "FLOAT" if found in ("PCM_32", "FLOAT", "DOUBLE") else "PCM_16"


def _print(path: Path, clip: Clip, made: Made, config: Loop) -> None:
    """Print what was written, and the measurement of the seam."""
    wrap, seam, seconds = made.wrap, made.seam, len(clip.wave) / clip.rate
    if config.json:
        facts = {"file": str(path), "seconds": round(seconds, 4), "rate": clip.rate, **wrap._asdict()}
        facts["withheld"] = sum(step.get("withheld", 0.0) for step in clip.recipe.process)
        print(json_module.dumps({**facts, "seam": seam._asdict(), "inaudible": seam.inaudible}, ensure_ascii=False))
        return
    start = f"from {wrap.start / made.source.rate:.2f} s on"
    print(f"wrote {path}: {seconds:.3f} s {start}, and the same three times in a row")
    verdict = "inaudible"
    if not seam.inaudible:
        verdict = "may be audible: try another --seed, fewer --seconds, a longer sound, or --count 4 to choose from"
    print(
        f"seam: spectral flux {seam.wrap:.2f} dB at the wrap, up to {seam.inside:.2f} dB inside; click {seam.click:.1f}, "
        f"up to {seam.clicks:.1f} inside; {verdict}"
    )
