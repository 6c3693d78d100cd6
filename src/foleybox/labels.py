"""The seven labels of DCASE 2023 Task 7: id, name, every spelling in circulation, UCS category."""

from dataclasses import dataclass

from foleybox.errors import UserError


@dataclass(frozen=True)
class Label:
    """One of the seven sounds. `str(label)` is the development set's folder name."""

    id: int
    name: str  # as the development set and the baseline write it: DogBark
    slug: str  # as the official FAD tool writes it: dog_bark
    ucs: str  # Universal Category System CatID, for file names in sound libraries
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


LABELS: tuple[Label, ...] = (
    Label(0, "DogBark", "dog_bark", "ANMLDog", ("dog", "bark")),
    Label(1, "Footstep", "footstep", "FEETHmn", ("footsteps", "step", "steps")),
    Label(2, "GunShot", "gunshot", "GUNMisc", ("gun", "shot", "gunshots")),
    Label(3, "Keyboard", "keyboard", "CMPTKey", ("key", "keys", "typing")),
    Label(
        4,
        "MovingMotorVehicle",
        "moving_motor_vehicle",
        "VEHMisc",
        ("motor", "vehicle", "motorvehicle", "car", "engine"),
    ),
    Label(5, "Rain", "rain", "RAIN"),
    Label(6, "Sneeze_Cough", "sneeze_cough", "HMNCough", ("sneeze", "cough")),
)


def canonical(text: str) -> str:
    """Strip what the spellings differ in: case, `_`, `-`, `/`, `&` and spaces."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())


_BY_NAME = {canonical(spelling): label for label in LABELS for spelling in (label.name, label.slug)}
_BY_SPELLING = {
    canonical(spelling): label
    for label in LABELS
    for spelling in (label.name, label.slug, str(label.id), *label.aliases)
}


def find_folder_label(text: str) -> Label | None:
    """Return the label whose name this is, in any spelling, or None: for folders and manifests.

    Stricter than `find_label`: a folder `engine` of somebody's collection, or a fold called `1`, is not one of the seven.
    """
    return _BY_NAME.get(canonical(text))


def find_label(text: str | int) -> Label | None:
    """Return the label that `text` (any spelling, or an id 0-6) names, or None."""
    spelling = str(text).strip()
    return None if spelling.startswith("-") else _BY_SPELLING.get(canonical(spelling))  # -1 is not 1


def parse_label(text: str | int) -> Label:
    """Return the label that `text` names.

    >>> parse_label("sneeze/cough") is parse_label("SneezeCough") is parse_label(6)
    True

    Raises UserError, naming the seven, if it names none.
    """
    label = find_label(text)
    if label is None:
        raise UserError(
            f"unknown label {str(text)!r}: expected one of {', '.join(each.slug for each in LABELS)}, or an id 0-6"
        )
    return label
