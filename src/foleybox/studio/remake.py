"""Recipe -> wave: render a sound again. A recipe states every number that was chosen, so nothing is decided here."""

from collections.abc import Callable

from foleybox.audio import Wave
from foleybox.errors import UserError
from foleybox.studio import extend, latents, loop, scene
from foleybox.studio.recipe import Json, Recipe
from foleybox.studio.shape import apply
from foleybox.studio.synth import Synth

MAKERS: dict[str, Callable[[Json, Synth], Wave]] = {
    "render": latents.remake,
    "vary": latents.remake,
    "walk": latents.remake,
    "morph": latents.remake,
    "extend": extend.remake,
    "perform": lambda make, synth: scene.remake(make, synth, remake),
    "loop": lambda make, synth: loop.remake(make, synth, remake),
}
"""`do` of a recipe's `make` -> function (make, synth) -> wave [L] at the instrument's rate

Scenes and loops consist of other sounds, and get `remake` to render these.
"""


def rerender(recipe: Recipe, synth: Synth) -> tuple[Wave, int]:
    """Return the wave [L] of a recipe, and its rate in Hz.

    Raises UserError for a recipe that lacks what its `make` or `process` needs, as another program may write it.
    """
    try:
        return apply(recipe.process, remake(recipe.make, synth), synth.instrument.rate)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the recipe cannot be followed ({type(error).__name__}: {error}): was it written by foleybox?"
        ) from error


def remake(make: Json, synth: Synth) -> Wave:
    """Return the wave [L] of the `make` of a recipe, at the instrument's rate. Raises UserError for an unknown one."""
    if make.get("do") not in MAKERS:
        raise UserError(f"the recipe says to {make.get('do')!r}, which this foleybox does not know: update foleybox")
    return MAKERS[make["do"]](make, synth)
