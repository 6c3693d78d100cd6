"""Augmentation keeps silence silent, changes mels by the drawn amounts, and is differentiable."""

import pytest
import torch

from foleybox.lab.core.augment import colour, cut, gain, shift_bands, shift_time
from foleybox.lab.kt.augment import augment_mel, draw_changes

FLOOR = -0.9
EVENT = torch.tensor([False, False])


def picture() -> torch.Tensor:
    """Two items [2, 1, 8, 40]: silence with one bright dot at band 3, frame 10."""
    image = torch.full((2, 1, 8, 40), FLOOR)
    image[:, 0, 3, 10] = 0.5
    return image


def test_probability_zero_is_the_identity() -> None:
    image = picture()
    changes = draw_changes(2, 8, 40, 0.0)
    assert all((part == 0).all() for part in (changes.gain, changes.shift, changes.bands))
    assert torch.equal(augment_mel(image, changes, EVENT, FLOOR, 0.1), image)


def test_processes_that_share_the_drawn_changes_augment_as_one_does() -> None:
    torch.manual_seed(0)
    images, steady = torch.rand(6, 1, 8, 40), torch.arange(6) % 2 == 0
    changes = draw_changes(6, 8, 40, 1.0)
    whole = augment_mel(images, changes, steady, FLOOR, 0.1)
    part = augment_mel(images[1::2], type(changes)(*(each[1::2] for each in changes)), steady[1::2], FLOOR, 0.1)
    assert torch.equal(part, whole[1::2])


def test_silence_stays_silence() -> None:
    silence = torch.full((8, 1, 8, 40), FLOOR)
    torch.manual_seed(0)
    for _ in range(5):
        changes = draw_changes(8, 8, 40, 1.0)
        assert torch.equal(augment_mel(silence, changes, torch.arange(8) % 2 == 0, FLOOR, 0.1), silence)


def test_silence_is_shifted_in_and_steady_sounds_wrap_round() -> None:
    moved = shift_time(picture(), torch.tensor([35, 35]), torch.tensor([False, True]), FLOOR)
    assert moved[0].max() == FLOOR
    assert moved[1, 0, 3, 5] == 0.5
    assert shift_time(picture(), torch.tensor([-4, 4]), EVENT, FLOOR)[:, 0, 3].argmax(1).tolist() == [6, 14]


def test_bands_shift_up_by_repeating_the_edge() -> None:
    moved = shift_bands(picture(), torch.tensor([2, -1]))
    assert moved[:, 0, :, 10].argmax(1).tolist() == [5, 2]


def test_gain_adds_its_amount_and_never_falls_below_the_floor() -> None:
    louder = gain(picture(), torch.tensor([0.2, -2.0]), FLOOR)
    assert louder[0, 0, 3, 10] == pytest.approx(0.7)
    assert louder[1].max() == FLOOR  # and never below silence


def test_a_colour_is_piecewise_linear_and_leaves_silence() -> None:
    image = torch.full((1, 1, 5, 3), FLOOR)
    image[..., 1] = 0.0
    after = colour(image, torch.tensor([[0.1, 0.3, -0.1]]), FLOOR)
    assert after[0, 0, :, 1].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1, -0.1])
    assert (after[..., [0, 2]] == FLOOR).all()


def test_a_cut_is_silence_and_nothing_else_changes() -> None:
    image = torch.zeros(1, 1, 8, 40)
    after = cut(image, torch.tensor([5.0]), torch.tensor([10.0]), 3, FLOOR)
    assert (after == FLOOR).any(2)[0, 0].nonzero().flatten().tolist() == list(range(5, 15))


def test_items_are_changed_independently_and_the_gradient_passes() -> None:
    torch.manual_seed(1)
    image = picture().requires_grad_()
    changes = draw_changes(2, 8, 40, 1.0)
    changes = changes._replace(cut_time=torch.zeros(2), cut_bands=torch.zeros(2))
    after = augment_mel(image, changes, EVENT, FLOOR, 0.1)
    assert not torch.equal(after[0], after[1])
    after.sum().backward()
    assert image.grad is not None
    assert (image.grad[:, 0, 3, 10] != 0).all()
