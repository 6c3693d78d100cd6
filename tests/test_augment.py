"""The mel DiffAug keeps silence silent, moves sounds where it says, and passes the gradient on."""

import pytest
import torch

from foleybox.lab.core.augment import MelAugment, augment_mel, colour, cut, draw_changes, gain, shift_bands, shift_time

FLOOR = -0.9
POLICY = MelAugment(probability=1.0)
EVENT = torch.tensor([False, False])


def picture() -> torch.Tensor:
    """Two items [2, 1, 8, 40]: silence with one bright dot at band 3, frame 10."""
    image = torch.full((2, 1, 8, 40), FLOOR)
    image[:, 0, 3, 10] = 0.5
    return image


def test_probability_zero_is_the_identity() -> None:
    image = picture()
    changes = draw_changes(2, 8, 40, MelAugment())
    assert all((part == 0).all() for part in (changes.gain, changes.shift, changes.bands))
    assert torch.equal(augment_mel(image, changes, EVENT, FLOOR, 0.1), image)


def test_a_part_of_the_drawn_changes_does_to_its_items_what_the_whole_does() -> None:
    """Which is how processes share a batch."""
    torch.manual_seed(0)
    images, steady = torch.rand(6, 1, 8, 40), torch.arange(6) % 2 == 0
    changes = draw_changes(6, 8, 40, POLICY)
    whole = augment_mel(images, changes, steady, FLOOR, 0.1)
    part = augment_mel(images[1::2], type(changes)(*(each[1::2] for each in changes)), steady[1::2], FLOOR, 0.1)
    assert torch.equal(part, whole[1::2])


def test_silence_stays_silence() -> None:
    silence = torch.full((8, 1, 8, 40), FLOOR)
    torch.manual_seed(0)
    for _ in range(5):
        changes = draw_changes(8, 8, 40, POLICY)
        assert torch.equal(augment_mel(silence, changes, torch.arange(8) % 2 == 0, FLOOR, 0.1), silence)


def test_a_shift_lets_silence_in_and_wraps_steady_sounds() -> None:
    moved = shift_time(picture(), torch.tensor([35, 35]), torch.tensor([False, True]), FLOOR)
    assert moved[0].max() == FLOOR
    assert moved[1, 0, 3, 5] == 0.5
    assert shift_time(picture(), torch.tensor([-4, 4]), EVENT, FLOOR)[:, 0, 3].argmax(1).tolist() == [6, 14]


def test_bands_shift_up_by_repeating_the_edge() -> None:
    moved = shift_bands(picture(), torch.tensor([2, -1]))
    assert moved[:, 0, :, 10].argmax(1).tolist() == [5, 2]


def test_gain_is_the_decibels_asked_for() -> None:
    louder = gain(picture(), torch.tensor([0.2, -2.0]), FLOOR)
    assert louder[0, 0, 3, 10] == pytest.approx(0.7)
    assert louder[1].max() == FLOOR  # and never below silence


def test_a_colour_is_its_points_and_straight_between_and_leaves_silence() -> None:
    image = torch.full((1, 1, 5, 3), FLOOR)
    image[..., 1] = 0.0
    after = colour(image, torch.tensor([[0.1, 0.3, -0.1]]), FLOOR)
    assert after[0, 0, :, 1].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.1, -0.1])
    assert (after[..., [0, 2]] == FLOOR).all()


def test_a_cut_is_silence_and_nothing_else_changes() -> None:
    image = torch.zeros(1, 1, 8, 40)
    after = cut(image, torch.tensor([5.0]), torch.tensor([10.0]), 3, FLOOR)
    assert (after == FLOOR).any(2)[0, 0].nonzero().flatten().tolist() == list(range(5, 15))


def test_items_draw_apart_and_the_gradient_passes() -> None:
    torch.manual_seed(1)
    image = picture().requires_grad_()
    changes = draw_changes(2, 8, 40, MelAugment(probability=1.0, cut_time=0, cut_bands=0))
    after = augment_mel(image, changes, EVENT, FLOOR, 0.1)
    assert not torch.equal(after[0], after[1])
    after.sum().backward()
    assert image.grad is not None
    assert (image.grad[:, 0, 3, 10] != 0).all()
