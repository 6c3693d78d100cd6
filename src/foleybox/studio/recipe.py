"""The recipe that a sound carries: all it takes to render it again.

In a WAV it is JSON in a RIFF chunk of its own, `fbrc`, after the samples, beside a short comment that other programs
show; in FLAC and OGG it is the comment. (libsndfile loses WAV comments above some 2 kB; a chunk has no such limit.)
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import soundfile

import foleybox
from foleybox.audio import Subtype, Wave, wav_chunk, write_wave
from foleybox.doors import UserError

CHUNK = b"fbrc"
FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """What a clip was made from. The instrument, label, seed and temperature decide the sound; rate is the file's."""

    instrument: str
    fingerprint: str  # SHA-256 of the instrument, see Instrument.fingerprint
    label: str
    seed: int
    temperature: float
    rate: int  # Hz
    licence: str
    foleybox: str = foleybox.__version__

    def to_json(self) -> str:
        return json.dumps({"foleybox_recipe": FORMAT, **asdict(self)}, ensure_ascii=False)


def from_json(text: str) -> Recipe:
    """Return the recipe that `to_json` wrote; raise UserError if the text is no recipe, or a newer one."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the recipe is not JSON ({error}): the file was changed after it was written") from None
    found = content.pop("foleybox_recipe", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"the recipe is of format {found}, this foleybox reads format {FORMAT}: update foleybox")
    expected = {each.name for each in fields(Recipe)}
    if set(content) != expected:
        raise UserError(f"the recipe states {', '.join(sorted(content))}: expected {', '.join(sorted(expected))}")
    return Recipe(**content)


def write_clip(path: str | Path, wave: Wave, recipe: Recipe, subtype: Subtype = "PCM_16") -> float:
    """Write a wave [L] at `recipe.rate` with its recipe; return the gain it was written with, as `write_wave` does."""
    tags = {
        "title": f"{recipe.label} {recipe.seed}",
        "comment": f"foleybox {recipe.foleybox}: {recipe.instrument}, {recipe.label}, seed {recipe.seed}",
        "license": recipe.licence,
    }
    if Path(path).suffix.lower() == ".wav":
        return write_wave(path, wave, recipe.rate, subtype, tags, {CHUNK: recipe.to_json().encode()})
    return write_wave(path, wave, recipe.rate, subtype, {**tags, "comment": recipe.to_json()})


def read_recipe(path: str | Path) -> Recipe | None:
    """Return the recipe that a sound file carries, None if it carries none.

    Raises UserError for a file that cannot be read and for a damaged recipe.
    """
    path = Path(path)
    try:
        chunk = wav_chunk(path, CHUNK)
        if chunk is not None:
            return from_json(chunk.decode(errors="replace"))
        with soundfile.SoundFile(path) as file:
            comment = file.comment
        return from_json(comment) if comment.startswith('{"foleybox_recipe"') else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (soundfile.SoundFileError, TypeError) as error:
        raise UserError(f"{path} is not a sound file that can be read ({error})") from None
