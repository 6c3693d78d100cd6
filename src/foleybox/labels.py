"""The seven labels of DCASE 2023 Task 7: id, name, accepted spellings, category of the Universal Category System."""

from dataclasses import dataclass

from foleybox.errors import UserError


@dataclass(frozen=True)
class Label:
    """One of the seven labels. `str(label)` is its folder name in the development set."""

    id: int
    name: str  # spelling of the development set and of the baseline: DogBark
    slug: str  # spelling of the official FAD tool: dog_bark
    ucs: str  # Universal Category System CatID, for file names in sound libraries
    aliases: tuple[str, ...] = ()
    steady: bool = False  # a continuous sound, without events: loops by default, may be shifted in time circularly
    lufs: float = -26.0  # loudness that about 98 % of its one-shots or loops can have below -1 dBTP (results/studio.md)

    def __str__(self) -> str:
        return self.name


LABELS: tuple[Label, ...] = (
    Label(0, "DogBark", "dog_bark", "ANMLDog", ("dog", "bark")),
    Label(1, "Footstep", "footstep", "FEETHmn", ("footsteps", "step", "steps")),
    Label(2, "GunShot", "gunshot", "GUNMisc", ("gun", "shot", "gunshots"), lufs=-28.0),
    Label(3, "Keyboard", "keyboard", "CMPTKey", ("key", "keys", "typing"), lufs=-27.0),
    Label(
        4,
        "MovingMotorVehicle",
        "moving_motor_vehicle",
        "VEHMisc",
        ("motor", "vehicle", "motorvehicle", "car", "engine"),
        steady=True,
        lufs=-24.0,
    ),
    Label(5, "Rain", "rain", "RAIN", steady=True, lufs=-24.0),
    Label(6, "Sneeze_Cough", "sneeze_cough", "HMNCough", ("sneeze", "cough")),
)


def canonical(text: str) -> str:
    """Return a label without what its spellings differ in: case, `_`, `-`, `/`, `&` and spaces."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())


_BY_NAME = {canonical(spelling): label for label in LABELS for spelling in (label.name, label.slug)}
_BY_SPELLING = {
    canonical(spelling): label
    for label in LABELS
    for spelling in (label.name, label.slug, str(label.id), *label.aliases)
}


def find_folder_label(text: str) -> Label | None:
    """Return the label that a folder or a manifest names, or None. Only names and slugs count, in any spelling.

    Stricter than `find_label`: a folder called `engine` or `1` in an arbitrary collection is none of the seven labels.
    """
    return _BY_NAME.get(canonical(text))


def find_label(text: str | int) -> Label | None:
    """Return the label that `text` names (any spelling or alias, or an id 0-6), or None."""
    spelling = str(text).strip()
    return None if spelling.startswith("-") else _BY_SPELLING.get(canonical(spelling))  # -1 is not 1


def parse_label(text: str | int) -> Label:
    """Return the label that `text` names (any spelling or alias, or an id 0-6).

    >>> parse_label("sneeze/cough") is parse_label("SneezeCough") is parse_label(6)
    True

    Raises UserError if it names none; the message lists the seven.
    """
    label = find_label(text)
    if label is None:
        raise UserError(
            f"unknown label {str(text)!r}: expected one of {', '.join(each.slug for each in LABELS)}, or an id 0-6"
        )
    return label
