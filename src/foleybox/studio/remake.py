"""Recipe -> wave: render a sound again. A recipe states every number that was chosen, so nothing is decided here."""

from collections.abc import Callable, Iterable, Iterator

from foleybox.audio import Wave, check_samples
from foleybox.errors import UserError
from foleybox.instrument import Instrument
from foleybox.studio import extend, latents, loop, scene
from foleybox.studio.recipe import MOST_STEPS, Json, Recipe
from foleybox.studio.shape import apply
from foleybox.studio.synth import Synth

MAKERS: dict[str, Callable[[Json, Synth], Wave]] = {
    "render": latents.remake,
    "vary": latents.remake,
    "walk": latents.remake,
    "morph": latents.remake,
    "extend": extend.remake,
    "stereo": lambda make, synth: extend.remake_stereo(make, synth, remake),
    "perform": lambda make, synth: scene.remake(make, synth, remake),
    "loop": lambda make, synth: loop.remake(make, synth, remake),
}
"""`do` of a recipe's `make` -> function (make, synth) -> wave [L] or [L, C] at the instrument's rate

Stereo sounds, scenes and loops consist of other sounds, and get `remake` to render these.
"""


def rerender(recipe: Recipe, synth: Synth) -> tuple[Wave, int]:
    """Return the wave [L] of a recipe, and its rate in Hz.

    Raises UserError for a recipe that asks for more than the limits (`length`), or whose numbers contradict each other,
    as another program may write it.
    """
    try:
        length(recipe, synth.instrument)
        return apply(recipe.process, remake(recipe.make, synth), synth.instrument.rate)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"the recipe cannot be followed ({reason}): was it written by foleybox?") from error


def length(recipe: Recipe, instrument: Instrument) -> int:
    """Return how many samples the sound of a recipe has, without rendering it.

    Raises UserError for a sound or a part of one beyond `audio.MOST_SAMPLES`, for walks of more than MOST_STEPS steps in
    all, and for a fade that is longer than its sound.
    """
    steps = sum(make["step"] for make in _makes(recipe.make) if make["do"] == "walk")
    if steps > MOST_STEPS:
        raise UserError(f"the recipe walks {steps:,} steps: expected {MOST_STEPS:,} in all at most")
    long = sum(make["samples"] for make in _makes(recipe.make) if make["do"] in ("extend", "perform"))
    check_samples(long / 4, "a quarter of the parts of the recipe's sound")
    return _processed(recipe.process, _length(recipe.make, instrument), instrument.rate)


def _makes(value: object) -> Iterator[Json]:
    """Yield every `make` in a recipe's."""
    if isinstance(value, dict):
        if value.get("do") in MAKERS:
            yield value
        value = list(value.values())
    for each in value if isinstance(value, list | tuple) else ():
        yield from _makes(each)


def _length(make: Json, instrument: Instrument) -> int:
    match make["do"]:
        case "extend" | "perform":
            for shot in (shot for track in make.get("tracks", ()) for shot in track.get("shots", ())):
                _length(shot[0], instrument)
            shots = sum(
                max(0, shot[3] - shot[1]) for track in make.get("tracks", ()) for shot in track.get("shots", ())
            )
            check_samples(2 * shots, "the recipe's shots")
            return make["samples"]
        case "stereo":
            _length(make["side"], instrument)
            return _length(make["of"], instrument)
        case "loop":
            _processed(make["steps"], _length(make["of"], instrument), instrument.rate)
            check_samples(make["rounds"] * make["samples"], "the recipe's loop")
            return make["rounds"] * make["samples"]
        case _:
            return instrument.samples


def _processed(steps: Iterable[Json], samples: int, rate: int) -> int:
    for step in steps:
        if step["do"] == "cut":
            samples = step["samples"]
        elif step["do"] == "fade" and max(step["in"], step["out"]) > samples:
            raise UserError(f"the recipe fades {max(step['in'], step['out']):,} samples of a sound of {samples:,}")
        elif step["do"] == "resample":
            samples, rate = round(samples * step["rate"] / rate), step["rate"]
            check_samples(samples, f"the recipe's sound at {rate:,} Hz")
    return samples


def remake(make: Json, synth: Synth) -> Wave:
    """Return the wave [L] of the `make` of a recipe, at the instrument's rate. Raises UserError for an unknown one."""
    if make.get("do") not in MAKERS:
        raise UserError(f"the recipe says to {make.get('do')!r}, which this foleybox does not know: update foleybox")
    return MAKERS[make["do"]](make, synth)
