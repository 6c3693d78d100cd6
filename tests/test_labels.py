"""Every spelling in circulation finds its label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foleybox.errors import UserError
from foleybox.labels import LABELS, find_label, parse_label


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("DogBark", "DogBark"),
        ("dog_bark", "DogBark"),
        ("DOG BARK", "DogBark"),
        ("0", "DogBark"),
        (6, "Sneeze_Cough"),
        ("Sneeze/Cough", "Sneeze_Cough"),
        ("SneezeCough", "Sneeze_Cough"),
        ("sneeze_cough", "Sneeze_Cough"),
        ("GunShot", "GunShot"),
        ("gunshot", "GunShot"),
        ("moving-motor-vehicle", "MovingMotorVehicle"),
    ],
)
def test_spelling_in_circulation_is_understood(text: str | int, name: str) -> None:
    assert parse_label(text).name == name


def test_ids_are_the_indices_of_the_table_and_spellings_never_collide() -> None:
    assert [label.id for label in LABELS] == list(range(7))
    for label in LABELS:
        for spelling in (label.name, label.slug, str(label.id), *label.aliases):
            assert find_label(spelling) is label


@pytest.mark.parametrize("text", ["", "cat", "7", "-1", "dogbarks please"])
def test_an_unknown_label_is_refused_and_the_message_lists_the_seven(text: str) -> None:
    with pytest.raises(UserError, match="expected one of dog_bark, footstep"):
        parse_label(text)


@given(st.sampled_from(LABELS), st.sampled_from(["_", "-", " ", "/", ""]), st.booleans())
def test_case_and_separators_never_matter(label, separator: str, upper: bool) -> None:
    text = label.slug.replace("_", separator)
    assert parse_label(text.upper() if upper else text) is label
