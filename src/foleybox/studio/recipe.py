"""The recipe that a sound file carries: everything that is needed to render it again.

Version 2 is one line of JSON:

    {"foleybox_recipe": 2, "foleybox": "0.1.0", "instrument": "foley", "fingerprint": "<sha256>",
     "licence": "CC-BY-NC-4.0", "rate": 44100,
     "make": {"do": "render", "label": "Rain", "seed": 3, "temperature": 1.0, "stream": 0},
     "asked": {"rate": 44100, "lufs": -23.0, "peak": -1.0},
     "process": [{"do": "resample", "rate": 44100}, {"do": "gain", "db": 2.31}],
     "checksum": "<sha256>"}

make      how the wave was rendered, at the instrument's rate; `do` is a key of `studio/remake.py`'s table
process   the steps that were applied to that wave, in order, with the numbers that were measured (`studio/shape.py`), so
          that rendering it again measures nothing
asked     the options of the user; a one-shot of a pack also has "kind": "one-shot" (and "event": its number, if it is not the
          loudest), for `vary` to cut its variations alike
rate      of the file, in Hz
checksum  SHA-256 of the text before `, "checksum"`, so that an edit is detected, in whatever language the recipe is read

After `process`, a wave above full scale is scaled down to it in every format but float (`audio.write_wave`).

In a WAV the recipe is a RIFF chunk of its own, `fbrc`, after the samples; a short comment is there for other programs. In
FLAC and OGG it is the comment. (libsndfile truncates WAV comments at some 2 kB; a chunk has no limit.) Version 1 had
label, seed and temperature instead of make, asked and process; it is still read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from foleybox.audio import MOST_SAMPLES, Subtype, Wave, check_regular, libsndfile_path, read_wave, wav_chunk, write_wave
from foleybox.errors import UserError
from foleybox.schema import (
    FINGERPRINT,
    HIGHEST_RATE,
    RATE,
    Choice,
    Either,
    Items,
    Number,
    OneOf,
    Record,
    Row,
    Schema,
    SchemaError,
    Text,
    Whole,
    parse_json,
)  # fmt: skip
from foleybox.studio.seeds import SEEDS, VARY
from foleybox.studio.shape import LIMITS
from foleybox.version import __version__

CHUNK = b"fbrc"
VERSION = 2
Json = dict[str, Any]  # an object of JSON values


@dataclass(frozen=True)
class Recipe:
    """How a clip was made; the head of this file describes the fields."""

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
        """The label in `make`; if it has none, that of the sound it was made `of`."""
        return str(_find(self.make, "label", ""))

    @property
    def seed(self) -> int:
        """The seed in `make`; if it has none, that of the sound it was made `of`."""
        return int(_find(self.make, "seed", 0))

    def to_json(self) -> str:
        """Return the recipe as one line of JSON that ends in its checksum.

        Raises ValueError for a recipe that `from_json` would refuse: a new step must be in the tables STEPS and MAKES.
        """
        content = asdict(self)
        RECIPE(content, "")
        text = json.dumps({"foleybox_recipe": VERSION, **content}, ensure_ascii=False, allow_nan=False)
        return f'{text[:-1]}{SEAL}{_checksum(text[:-1])}"}}'

    def comment(self) -> str:
        """Return a short description, which other programs show and keep."""
        return f"foleybox {self.foleybox}: {self.make['do']} {self.label}, seed {self.seed}, {self.instrument}"


SEAL = ', "checksum": "'


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _find(make: Any, key: str, default: Any) -> Any:
    while isinstance(make, dict):
        if key in make:
            return make[key]
        make = make.get("of")
    return default


# --- what a recipe may state --------------------------------------------------------------------------------------

MOST_BYTES, MOST_DEPTH = 64 << 20, 100
MOST_STEPS = 10_000
"""of a walk: each point follows from the one before, so that a sound far along it takes long to render again"""
SEED, STREAM = Whole(0, SEEDS - 1), Whole(0, VARY - 1)
SAMPLES, AMOUNT, DB = Whole(0, MOST_SAMPLES), Number(0, 1), Number(-400, 400)
POSITION = Whole(0, 7_200 * HIGHEST_RATE)  # sample in a scene, which a marker or a point of a curve may exceed
LABEL, LABELS = Text(100), Text(100_000)
ASKED = Record(
    {},
    {name: Number(low, high) for name, (low, high, _) in LIMITS.items()}
    | {"kind": OneOf(("one-shot",)), "event": Whole(1, 100)},
)
STEPS: dict[str, Schema] = {
    "cut": Record({"start": SAMPLES, "samples": SAMPLES}),
    "fade": Record({"in": SAMPLES, "out": SAMPLES}),
    "resample": Record({"rate": RATE}),
    "gain": Record({"db": DB}, {"withheld": DB}),
}
"""`do` of a step of `process` -> its parameters; `studio/shape.py` applies them"""
MAKES: dict[str, Schema] = {}
"""`do` of a `make` -> its parameters; `studio/remake.py` renders them"""
STEP, MAKE = Choice("do", STEPS), Choice("do", MAKES)
MAKES |= {
    "render": Record({"label": LABEL, "seed": SEED, "temperature": Number(0, 10)}, {"stream": STREAM}),
    "vary": Record({"of": MAKE, "amount": AMOUNT, "seed": SEED, "stream": STREAM}, {"follow": AMOUNT}),
    "walk": Record({"of": MAKE, "amount": AMOUNT, "seed": SEED, "step": Whole(0, MOST_STEPS)}),
    "morph": Record(
        {"of": MAKE, "to": MAKE, "at": AMOUNT},
        {"onsets": Items(SAMPLES, 2), "db": DB},
    ),
    "extend": Record(
        {"of": MAKE, "kind": OneOf(("steady", "events")), "amount": AMOUNT, "samples": SAMPLES, "joint": SAMPLES,
         "parts": Items(Row(SEED, STREAM, SAMPLES, SAMPLES, SAMPLES, DB), 100_000, 1)},
        {"background": Items(Items(SAMPLES, 100_000), 100_000, 1)},
    ),
    "stereo": Record({"of": MAKE, "side": MAKE, "start": SAMPLES, "edge": SAMPLES, "gain": Number(0, 1e10)}),
    "loop": Record(
        {"label": LABEL, "seed": SEED, "of": MAKE, "steps": Items(STEP, 1_000), "start": SAMPLES, "samples": SAMPLES,
         "fade": SAMPLES, "alike": Number(-1, 1), "rounds": Whole(1, 100_000)}
    ),
    "perform": Record(
        {"label": LABELS, "seed": SEED, "samples": SAMPLES,
         "tracks": Items(
             Either(
                 "events",
                 Record(
                     {"label": LABEL, "shots": Items(Row(MAKE, SAMPLES, SAMPLES, SAMPLES, DB), 100_000),
                      "events": Items(Row(POSITION, SAMPLES, Whole(0, 100_000), AMOUNT), 1_000_000)},
                     {"pans": Items(Number(-1, 1), 1_000_000)},
                 ),
                 Record({"label": LABEL, "of": MAKE, "db": DB, "curve": Items(Row(POSITION, AMOUNT), 1_000_000, 1)}),
             ),
             2_000,
         )},
        {"channels": OneOf((2,))},
    ),
}  # fmt: skip
HEAD = {"foleybox": Text(40), "instrument": Text(100), "fingerprint": FINGERPRINT, "licence": Text(100), "rate": RATE}
RECIPE = Record({**HEAD, "make": MAKE, "asked": ASKED, "process": Items(STEP, 1_000)})
VERSION_1 = Record({**HEAD, "label": LABEL, "seed": SEED, "temperature": Number(0, 10)})


def from_json(text: str) -> Recipe:
    """Return the recipe that `to_json` wrote, or one of version 1.

    Raises UserError for a text that is no recipe, a newer version, a recipe that was edited, and one that states anything
    that this version cannot follow, or a number out of range.
    """
    changed = "the file was changed after it was written, get it again from where it was made"
    try:
        content = parse_json(text, MOST_BYTES, MOST_DEPTH)
    except ValueError as error:
        raise UserError(f"the recipe is not JSON that foleybox writes ({error}): {changed}") from None
    found = content.pop("foleybox_recipe", None) if isinstance(content, dict) else None
    if found not in (1, VERSION) or type(found) is not int:
        newer = type(found) is int and found > VERSION
        raise UserError(
            f"the recipe is of version {found!r:.20}, this foleybox reads 1 and {VERSION}: "
            + ("update foleybox" if newer else changed)
        )
    if found == VERSION:
        body, _, seal = text.rpartition(SEAL)
        if content.pop("checksum", None) != _checksum(body) or seal.strip() != f'{_checksum(body)}"}}':
            raise UserError(f"the recipe was edited (its checksum does not fit): {changed}")
    try:
        (RECIPE if found == VERSION else VERSION_1)(content, "")
    except SchemaError as error:
        raise UserError(f"the recipe cannot be followed: {error}") from None
    if found == VERSION:
        return Recipe(**{**content, "process": tuple(content["process"])})
    make = {"do": "render", **{key: content.pop(key) for key in ("label", "seed", "temperature")}}
    return Recipe(**content, make=make, process=({"do": "resample", "rate": content["rate"]},))


# --- in sound files -----------------------------------------------------------------------------------------------


def write_clip(
    path: str | Path,
    wave: Wave,  # [L]
    recipe: Recipe,
    subtype: Subtype = "PCM_16",
    chunks: Mapping[bytes, bytes] | None = None,
) -> float:
    """Write a wave at `recipe.rate` with its recipe; return the gain that was applied, as `write_wave` does.

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
    """Return the recipe of a sound file, None if it has none (`why_no_recipe` says why).

    Raises UserError for a file that cannot be read and for a damaged recipe.
    """
    path = Path(path)
    try:
        text = recipe_text(path)
        return None if text is None else from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def recipe_text(path: Path) -> str | None:
    """Return the text of the recipe of a sound file, None if it has none. Raises UserError or OSError if it cannot be read."""
    check_regular(path)
    chunk = wav_chunk(path, CHUNK, MOST_BYTES)
    if chunk is not None:
        return chunk.decode(errors="replace")
    comment = read_comment(path)
    return comment if comment.startswith('{"foleybox_recipe"') else None


def find_recipe_text(path: Path) -> str:
    """Return the text of the recipe of a sound file. Raises UserError if it has none, or a damaged one."""
    if read_recipe(path) is None:
        raise UserError(f"{path}: {why_no_recipe(path)}")
    return recipe_text(path) or ""


def find_recipe(path: Path) -> Recipe:
    """Return the recipe of a sound file, or in a text file (.json). Raises UserError if there is none."""
    if not path.is_file():
        raise UserError(f"no file {path}: expected a sound file made by foleybox, or a recipe (.json)")
    recipe = read_recipe_text(path) if path.suffix.lower() == ".json" else read_recipe(path)
    if recipe is None:
        raise UserError(f"{path}: {why_no_recipe(path)}")
    return recipe


def has_recipe(path: Path, do: str | None = None) -> bool:
    """Return whether a sound file has a readable recipe; with `do`, one whose `make` does that."""
    try:
        recipe = read_recipe(path)
    except UserError:
        return False
    return recipe is not None and do in (None, recipe.make["do"])


def read_recipe_text(path: Path) -> Recipe:
    """Return the recipe in a text file. Raises UserError, with the file's name, for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return from_json(file.read(MOST_BYTES + 1).decode())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_comment(path: Path) -> str:
    """Return the comment of a sound file, "" if it has none. Raises UserError if it is no sound file."""
    try:
        with soundfile.SoundFile(libsndfile_path(path)) as file:
            return file.comment
    except (soundfile.SoundFileError, TypeError) as error:
        raise UserError(f"not a sound file that can be read ({error})") from None


def why_no_recipe(path: Path) -> str:
    """Return why a sound file has no recipe: programs that rewrite a WAV may drop the chunk and keep the short comment.

    Raises UserError for a file that cannot be read; a truncated one lacks what follows its samples.
    """
    read_wave(path)
    comment = read_comment(path)
    if comment.startswith("foleybox "):
        return f"it lost its recipe: a program that rewrote it kept only the comment ({comment})"
    return "it carries no recipe: foleybox did not make it, or a program rewrote it and kept the samples only"
