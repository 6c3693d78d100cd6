"""Shared by `vary`, `morph` and `walk`: the sound that they start from, and how the new sounds are written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foleybox.commands import output
from foleybox.commands.output import Files
from foleybox.errors import UserError
from foleybox.files import safe_name
from foleybox.studio import latents
from foleybox.studio.extend import finished
from foleybox.studio.jobs import MAX_SOUNDS
from foleybox.studio.recipe import Json, Recipe, find_recipe
from foleybox.studio.shape import Shape, check_shape
from foleybox.studio.shots import ONE_SHOT, one_shot
from foleybox.studio.synth import Clip, Synth


@dataclass(frozen=True)
class Source:
    """The sound that others are made from."""

    synth: Synth
    recipe: Recipe
    name: str  # with which the names of the others begin

    @property
    def make(self) -> Json:
        """The make of the rendered sound; that of a longer sound is the one that it begins with."""
        return self.recipe.make["of"] if self.recipe.make["do"] == "extend" else self.recipe.make


def find_source(text: str, instrument: str | None) -> Source:
    """Return the sound of a file with a recipe, a recipe, or LABEL:SEED.

    Raises UserError for anything else, and for a recipe of something that is not one rendered sound, such as a loop.
    """
    path = Path(text)
    if path.is_file():
        recipe = find_recipe(path)
        try:
            source = Source(Synth.of(recipe, instrument), recipe, path.stem)
            latents.point_of(source.make, source.synth)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return source
    synth = Synth.load(instrument)
    label, colon, seed = text.rpartition(":")
    if not colon or not seed.isascii() or not seed.isdigit():
        raise UserError(
            f"no file {text}: expected a sound file made by foleybox, a recipe (.json), or LABEL:SEED such as rain:7"
        )
    recipe = synth.render(label, int(seed)).recipe
    return Source(synth, recipe, f"{safe_name(recipe.label)}_s{recipe.seed}")


def check_count(flag: str, count: int, most: int = MAX_SOUNDS) -> None:
    """Raise UserError for more than `most`, since all names are listed before the first sound is rendered."""
    if count > most:
        raise UserError(f"{flag} {count:,}: expected {most:,} at most")


def write_neighbours(
    files: Files, shape: Shape, sheet: Path | None, source: Source, names: list[str], clips: Iterator[Clip]
) -> None:
    """Process the clips as the source was processed, except for what `shape` changes, and write them.

    Raises UserError before the first render.
    """
    synth, asked = source.synth, {**source.recipe.asked, **shape.asked()}
    as_one_shot, event = asked.pop("kind", "") == ONE_SHOT, asked.pop("event", 0)
    shape = Shape(**asked)
    check_shape(shape, "--", synth.instrument.seconds)

    def processed(clip: Clip) -> Clip:
        return one_shot(clip, event)[0].shaped(shape) if as_one_shot else finished(synth, clip, shape)

    paths = [files.out / f"{name}.{files.kind}" for name in names]
    existing = [path for path in paths if path.exists()]
    size = len(paths) * output.bytes_per_sound(files.kind, files.subtype, shape, synth)
    output.check_sheet(sheet, files.force)
    output.check_folder(files.out)
    output.check_files(files, [files.out], existing, size, shape.rate)
    output.write_clips(files, len(paths), ((path, processed(clip)) for path, clip in zip(paths, clips)), sheet)
