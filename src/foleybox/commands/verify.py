"""`foleybox verify`: render sounds again from their recipes, and compare.

A recipe contains every number that was measured or drawn, so that rendering it again measures nothing. On one machine
and one version of onnxruntime the samples are identical. Other processors and versions round differently
(results/determinism.md).
"""

import json as json_module
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import soundfile
from tyro.conf import Positional, arg

from foleybox.audio import BITS, SUFFIXES, Subtype, libsndfile_path, read_channels, write_wave
from foleybox.commands.output import progress
from foleybox.errors import UserError
from foleybox.instrument import MANIFEST, SIGNATURE, read_instrument, signed_content
from foleybox.signature import SUFFIX, read_public_key, signer
from foleybox.studio.recipe import Recipe, read_recipe, recipe_text, why_no_recipe
from foleybox.studio.remake import length, rerender
from foleybox.studio.synth import Synth

STEP = 2.0**-15  # one 16-bit step
ROUNDING_DB = -50.0
"""residual below which rounding explains a difference

The largest residual between versions of onnxruntime is -62 dB (results/determinism.md); that of another sound is about 0 dB.
"""
LOSSY_DB = -30.0  # residual of an OGG below which the encoder explains it; that of another sound is about +3 dB

Verdict = Literal[
    "identical", "within one step", "within rounding", "within the codec", "whole",
    "different", "other terms", "bad signature", "no recipe", "cannot tell",
]  # fmt: skip
GOOD: tuple[Verdict, ...] = ("identical", "within one step", "within rounding", "within the codec", "whole")


@dataclass(frozen=True)
class Verify:
    """Render sounds again from the recipes in their files, and compare sample by sample.

    identical: every sample is the same, as it is on the machine and with the version of onnxruntime that made the file.
    within one step: no sample differs by more than one 16-bit step. within rounding: the residual, which is the energy of
    the difference relative to that of the sound, is below -50 dB; other processors and versions of onnxruntime round
    differently (results/determinism.md). within the codec: an OGG whose decoded samples have a residual below -30 dB.
    different: any other difference. other terms: the recipe states another licence or instrument than the one that made the
    sound. The folder of an instrument is checked too: whole. bad signature: a signature (`foleybox sign`) is not of this file,
    or not by --signer. Exit code 0 if every file is one of the first four or whole, else 1.

    A checksum shows accidents, not forgery; a signature by a key that you trust shows both.

    Example: foleybox verify out
    """

    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE...", help_behavior_hint="(required)")]
    "sound files, folders that contain some, or folders of instruments"
    instrument: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="(default: those that ship)")] = (
        None
    )
    "the instrument that made them"
    signer: Annotated[str | None, arg(metavar="KEY|FILE.pub", help_behavior_hint="(default: anyone)")] = None
    "the public key that must have signed every file"
    json: bool = False
    "print a line of JSON for each file"


@dataclass(frozen=True)
class Verified:
    """The result for one file."""

    file: str
    verdict: Verdict
    steps: float | None = None  # the largest difference, in 16-bit steps
    residual_db: float | None = None  # energy of the difference relative to the sound
    why: str = ""
    signed_by: str | None = None  # public key


def verify(config: Verify) -> int:
    """Print a line for each file and a summary; return the exit code. Raises UserError if there is no file to compare."""
    trusted = read_public_key(config.signer) if config.signer else None
    paths = find_sounds(config.files, instruments=True)
    counts: dict[Verdict, int] = {}
    with progress(len(paths), lines=True) as bar:
        for found in (signed(each, trusted) for each in verify_files(paths, config.instrument)):
            counts[found.verdict] = counts.get(found.verdict, 0) + 1
            print(json_module.dumps(asdict(found), ensure_ascii=False) if config.json else line(found), flush=True)
            bar(found.file)
    if not config.json:
        parts = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
        print(f"{len(paths):,} file{'s' * (len(paths) > 1)}: {parts}")
    return 0 if set(counts) <= set(GOOD) else 1


def find_sounds(paths: tuple[Path, ...], instruments: bool = False) -> list[Path]:
    """Return files, and the sound files in folders; with `instruments`, the folders of instruments are kept as they are.

    Raises UserError for a path that does not exist, and for none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"no file {path}: expected a sound file, or a folder of them")
        inside = [path]
        if path.is_dir() and not (instruments and (path / MANIFEST).is_file()):
            files = (Path(folder, name) for folder, _, names in os.walk(path, onerror=_refuse) for name in names)
            inside = sorted(each for each in files if each.suffix.lower() in SUFFIXES)
        found += [each for each in inside if each is path or not each.name.startswith(".")]
    if not found:
        where = ", ".join(map(str, paths)) or "(no path given)"
        raise UserError(f"no sound files in {where}: expected {', '.join(SUFFIXES)}")
    return found


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename} ({error.strerror}): name the files and folders that can be read")


def line(found: Verified) -> str:
    """Return the result for a file as one line of text."""
    residual = "" if found.residual_db is None else f"residual {found.residual_db:.1f} dB"
    by = f"signed by {found.signed_by}" if found.signed_by else ""
    parts = [residual if found.verdict not in ("identical", "no recipe", "cannot tell") else "", found.why, by]
    return f"{found.verdict:16} {found.file}" + "".join(f"  {' '.join(part.split())}" for part in parts if part)


def verify_files(paths: list[Path], instrument: str | Path | None = None) -> Iterator[Verified]:
    """Yield the result for each file. Sounds are rendered one at a time on one thread, the reference way."""
    synths: dict[str, Synth] = {}
    for path in paths:
        try:
            if path.is_dir():
                made = read_instrument(path)
                yield Verified(str(path), "whole", why=f"instrument {made.name} {made.version}, {made.licence.terms}")
                continue
            recipe = read_recipe(path)
            if recipe is None:
                yield Verified(str(path), "no recipe", why=why_no_recipe(path))
                continue
            if recipe.fingerprint not in synths:
                synths[recipe.fingerprint] = Synth.of(recipe, instrument, threads=1)
            synth = synths[recipe.fingerprint]
            found = compare(path, recipe, synth)
            yield replace(found, verdict="other terms", why=why) if (why := contradiction(recipe, synth)) else found
        except (UserError, OSError, soundfile.SoundFileError) as error:
            yield Verified(str(path), "cannot tell", why=str(error).removeprefix(f"{path}: "))


def contradiction(recipe: Recipe, synth: Synth) -> str:
    """Return how the instrument and licence that a recipe states differ from those of the instrument, "" if they do not."""
    made = synth.instrument
    stated, true = (recipe.instrument, recipe.licence), (made.name, made.licence.terms)
    return (
        "" if stated == true else "its recipe states {} under {}, the instrument is {} under {}".format(*stated, *true)
    )


def signed(found: Verified, trusted: str | None) -> Verified:
    """Return a result with who signed the file; `trusted` is the public key that must have, None for anyone.

    A signature that is not of the file takes the place of a better verdict.
    """
    path = Path(found.file)
    try:
        if path.is_dir():
            key = signer(path / SIGNATURE, "instrument", signed_content(path))
        else:
            key = signer(
                path.with_name(path.name + SUFFIX), "recipe", (recipe_text(path) or "").encode(errors="replace")
            )
    except (UserError, OSError) as error:
        return replace(found, verdict="bad signature", why=str(error)) if found.verdict in GOOD else found
    if trusted and key != trusted and found.verdict in GOOD:
        why = "it is not signed" if key is None else f"it is signed with another key, {key}"
        return replace(found, verdict="bad signature", why=why)
    return replace(found, signed_by=key)


def compare(path: Path, recipe: Recipe, synth: Synth) -> Verified:
    """Render the sound of a file again, write and read it in the same format, and compare."""
    samples, rate = read_channels(path)
    about = soundfile.info(libsndfile_path(path))
    if rate != recipe.rate:
        return Verified(str(path), "different", why=f"its rate is {rate} Hz, that of its recipe {recipe.rate} Hz")
    if (expected := length(recipe, synth.instrument)) != len(samples):
        return Verified(str(path), "different", why=f"it has {len(samples):,} samples, its recipe {expected:,}")
    wave, rate = rerender(recipe, synth)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"again{path.suffix.lower()}"
        write_wave(copy, wave, rate, cast(Subtype, about.subtype if about.subtype in BITS else "PCM_16"))
        made, _ = read_channels(copy)
    if made.shape != samples.shape:
        why = f"it has {samples.shape[1]} channels, its recipe {made.shape[1]}"
        return Verified(str(path), "different", why=why)
    difference = samples.astype(np.float64) - made
    above = max(
        1.0, float(np.abs(made).max(initial=0))
    )  # a float file may exceed full scale, and rounding grows with it
    steps = float(np.abs(difference).max(initial=0)) / STEP / above
    if steps == 0:
        return Verified(str(path), "identical", 0.0)
    energies = [max(float(np.square(each, dtype=float).sum()), 1e-30) for each in (difference, made)]
    residual = 10 * np.log10(energies[0] / energies[1])
    verdict: Verdict = "different"
    if steps <= 1:
        verdict = "within one step"
    elif about.subtype == "VORBIS":
        verdict = "within the codec" if residual < LOSSY_DB else "different"
    elif residual < ROUNDING_DB:
        verdict = "within rounding"
    return Verified(str(path), verdict, round(steps, 3), round(residual, 1))
