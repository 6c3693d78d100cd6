"""The recipe that a sound carries: all it takes to make it again.

Version 2 is one line of JSON:

    {"foleybox_recipe": 2, "foleybox": "0.1.0", "instrument": "sagan-small", "fingerprint": "<sha256>",
     "licence": "CC-BY-NC-4.0", "rate": 44100,
     "make": {"do": "render", "label": "Rain", "seed": 3, "temperature": 1.0, "stream": 0},
     "asked": {"rate": 44100, "lufs": -23.0, "peak": -1.0},
     "process": [{"do": "resample", "rate": 44100}, {"do": "gain", "db": 2.31}],
     "checksum": "<sha256>"}

`make` says what drew the wave, at the instrument's rate (`studio/verify.py` holds the table of who makes what).
`process` is what was done to that wave, in order, every number as it came out: making it again measures nothing
(`studio/shape.py`). `asked` are the knobs in the user's words; a one-shot of a pack has `"kind": "one-shot"` there, for
its siblings to be cut out as it was. `rate` is the file's. `checksum` is the SHA-256 of the text before `, "checksum"`,
so that an edited recipe is told, whatever language wrote it. Last of all, a wave above full scale is turned down to it
in every format but float, as writing does (`audio.write_wave`).

In a WAV the recipe is a RIFF chunk of its own, `fbrc`, after the samples, beside a short comment that other programs
show; in FLAC and OGG it is the comment. (libsndfile loses WAV comments above some 2 kB; a chunk has no such limit.)
Version 1 (foleybox 0.1.0 before the studio) had label, seed and temperature in place of make, asked and process; it is read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from foleybox.audio import Subtype, Wave, libsndfile_path, read_wave, wav_chunk, write_wave
from foleybox.errors import UserError
from foleybox.version import __version__

CHUNK = b"fbrc"
VERSION = 2
Json = dict[str, Any]  # an object of JSON values


@dataclass(frozen=True)
class Recipe:
    """What a clip was made from: see the head of this file."""

    instrument: str
    fingerprint: str  # SHA-256 of the instrument, see Instrument.fingerprint
    licence: str
    rate: int  # Hz, of the file
    make: Json
    asked: Json = field(default_factory=dict)
    process: tuple[Json, ...] = ()
    foleybox: str = __version__

    @property
    def label(self) -> str:
        """The label of what was made; of a make without one, that of what it was made `of`."""
        return str(_find(self.make, "label", ""))

    @property
    def seed(self) -> int:
        return int(_find(self.make, "seed", 0))

    def to_json(self) -> str:
        """Return the recipe as one line of JSON that ends in its checksum."""
        text = json.dumps({"foleybox_recipe": VERSION, **asdict(self)}, ensure_ascii=False, allow_nan=False)
        return f'{text[:-1]}{SEAL}{_checksum(text[:-1])}"}}'

    def comment(self) -> str:
        """Return a short line for people, which other programs show and keep."""
        return f"foleybox {self.foleybox}: {self.make['do']} {self.label}, seed {self.seed}, {self.instrument}"


SEAL = ', "checksum": "'


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _find(make: Any, key: str, otherwise: Any) -> Any:
    while isinstance(make, dict):
        if key in make:
            return make[key]
        make = make.get("of")
    return otherwise


KEYS: dict[str, type] = {
    "foleybox": str, "instrument": str, "fingerprint": str, "licence": str, "rate": int,
    "make": dict, "asked": dict, "process": list,
}  # fmt: skip
KEYS_1: dict[str, type | tuple[type, ...]] = {
    "foleybox": str, "instrument": str, "fingerprint": str, "licence": str, "rate": int,
    "label": str, "seed": int, "temperature": (int, float),
}  # fmt: skip


def from_json(text: str) -> Recipe:
    """Return the recipe that `to_json` wrote, or one of version 1.

    Raises UserError if the text is no recipe, a newer one, or one that was changed after it was written.
    """
    changed = "the file was changed after it was written, get it again from where it was made"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of ten thousand digits is one too
        raise UserError(f"the recipe is not JSON ({error}): {changed}") from None
    found = content.pop("foleybox_recipe", None) if isinstance(content, dict) else None
    if found not in (1, VERSION) or isinstance(found, bool):
        newer = isinstance(found, int) and found > VERSION
        raise UserError(
            f"the recipe is of version {found!r:.20}, this foleybox reads 1 and {VERSION}: "
            + ("update foleybox" if newer else changed)
        )
    if found == 1:
        return _from_version_1(content, changed)
    body, _, seal = text.rpartition(SEAL)
    if content.pop("checksum", None) != _checksum(body) or seal.strip() != f'{_checksum(body)}"}}':
        raise UserError(f"the recipe was edited (its checksum does not fit): {changed}")
    _check_types(content, KEYS, changed)
    steps = [content["make"], *content["process"]]
    if not all(isinstance(step, dict) and isinstance(step.get("do"), str) for step in steps):
        raise UserError(f"the recipe has a step that does not say what to `do`: {changed}")
    return Recipe(**{**content, "process": tuple(content["process"])})


def _from_version_1(content: Json, changed: str) -> Recipe:
    _check_types(content, KEYS_1, changed)
    make = {"do": "render", **{key: content.pop(key) for key in ("label", "seed", "temperature")}}
    return Recipe(**content, make=make, process=({"do": "resample", "rate": content["rate"]},))


def _check_types(content: Json, expected: Mapping[str, type | tuple[type, ...]], changed: str) -> None:
    if set(content) != set(expected):
        found = ", ".join(map(repr, sorted(content))) or "nothing"
        raise UserError(f"the recipe states {found}: expected {', '.join(sorted(expected))}; {changed}")
    for key, kind in expected.items():
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise UserError(f"the recipe's {key} is {type(content[key]).__name__}, which it never is: {changed}")


def write_clip(
    path: str | Path,
    wave: Wave,  # [L]
    recipe: Recipe,
    subtype: Subtype = "PCM_16",
    chunks: Mapping[bytes, bytes] | None = None,
) -> float:
    """Write a wave at `recipe.rate` with its recipe; return the gain it was written with, as `write_wave` does.

    `chunks` are further RIFF chunks of a WAV by four-byte name, such as `smpl`.
    """
    tags = {
        "title": f"{recipe.label} {recipe.seed}",
        "comment": recipe.comment(),
        "license": recipe.licence,
    }
    if Path(path).suffix.lower() == ".wav":
        return write_wave(path, wave, recipe.rate, subtype, tags, {**(chunks or {}), CHUNK: recipe.to_json().encode()})
    return write_wave(path, wave, recipe.rate, subtype, {**tags, "comment": recipe.to_json()})


def read_recipe(path: str | Path) -> Recipe | None:
    """Return the recipe that a sound file carries, None if it carries none (see `lost_recipe`).

    Raises UserError for a file that cannot be read and for a damaged recipe.
    """
    path = Path(path)
    try:
        chunk = wav_chunk(path, CHUNK)
        if chunk is not None:
            return from_json(chunk.decode(errors="replace"))
        comment = read_comment(path)
        return from_json(comment) if comment.startswith('{"foleybox_recipe"') else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def find_recipe(path: Path) -> Recipe:
    """Return the recipe of a sound file, or of a text file (.json); raise UserError if there is none."""
    if not path.is_file():
        raise UserError(f"no file {path}: expected a sound file of ours, or a recipe (.json)")
    recipe = read_recipe_text(path) if path.suffix.lower() == ".json" else read_recipe(path)
    if recipe is None:
        raise UserError(f"{path}: {lost_recipe(path)}")
    return recipe


def is_ours(path: Path, do: str | None = None) -> bool:
    """Say whether a sound file carries a recipe; with `do`, one that was made so."""
    try:
        recipe = read_recipe(path)
    except UserError:
        return False
    return recipe is not None and do in (None, recipe.make["do"])


def read_recipe_text(path: Path) -> Recipe:
    """Return the recipe that stands alone in a text file; raise UserError for one that cannot be read, with its name."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_comment(path: Path) -> str:
    """Return the comment of a sound file, "" if it has none; raise UserError if it is no sound file."""
    try:
        with soundfile.SoundFile(libsndfile_path(path)) as file:
            return file.comment
    except (soundfile.SoundFileError, TypeError) as error:
        raise UserError(f"not a sound file that can be read ({error})") from None


def lost_recipe(path: Path) -> str:
    """Say of a file without a recipe whether it had one: the short comment outlives programs that drop the chunk.

    Raises UserError for a file that cannot be read: cut short, it has lost what stood after its samples.
    """
    read_wave(path)
    comment = read_comment(path)
    if comment.startswith("foleybox "):
        return f"it lost its recipe: a program that rewrote it kept only the comment ({comment})"
    return "it carries no recipe: it is not of foleybox, or a program that rewrote it dropped all beside the samples"
