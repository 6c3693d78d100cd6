"""foleybox generates foley sounds by category: any number of different sounds of a label.

>>> import foleybox
>>> synth = foleybox.load()  # doctest: +SKIP
>>> synth.render("rain", seed=3).save("rain.wav")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from foleybox.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from foleybox.errors import UserError
    from foleybox.studio.events import Event, pattern_events, read_events
    from foleybox.studio.extend import finished
    from foleybox.studio.latents import morph, vary, walk
    from foleybox.studio.loop import looped
    from foleybox.studio.recipe import Recipe, read_recipe
    from foleybox.studio.scene import Scene, Style, perform
    from foleybox.studio.shape import Shape
    from foleybox.studio.synth import Clip, Synth

# Name -> its module, imported when the name is first used, so that `import foleybox` is fast.
_HOMES = {
    "Clip": "studio.synth",
    "Event": "studio.events",
    "Recipe": "studio.recipe",
    "Scene": "studio.scene",
    "Shape": "studio.shape",
    "Style": "studio.scene",
    "Synth": "studio.synth",
    "UserError": "errors",
    "finished": "studio.extend",
    "looped": "studio.loop",
    "morph": "studio.latents",
    "pattern_events": "studio.events",
    "perform": "studio.scene",
    "read_events": "studio.events",
    "read_recipe": "studio.recipe",
    "vary": "studio.latents",
    "walk": "studio.latents",
}
__all__ = [
    "Clip",
    "Event",
    "Recipe",
    "Scene",
    "Shape",
    "Style",
    "Synth",
    "UserError",
    "finished",
    "load",
    "looped",
    "morph",
    "pattern_events",
    "perform",
    "read_events",
    "read_recipe",
    "vary",
    "walk",
]


def load(source: "str | Path | None" = None, threads: int | None = None) -> "Synth":
    """Return an instrument: one that ships by its name, one in a folder, or None for the default.

    Raises UserError if there is no such instrument, or if it is incomplete.
    """
    from foleybox.studio.synth import Synth

    return Synth.load(source, threads)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foleybox' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"foleybox.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
