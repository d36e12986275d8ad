"""The centre of self-distillation: once for each update, by the mean of its micro-batches."""

import math

import torch

from selfsight.parts.centre import Centre


def test_it_moves_by_the_mean_of_what_was_noted_and_forgets_it() -> None:
    centre = Centre(3, momentum=0.75)
    centre.value.copy_(torch.tensor([4.0, 0.0, -4.0]))
    centre.note_(torch.tensor([1.0, 2.0, 3.0]))
    centre.note_(torch.tensor([3.0, 2.0, 1.0]))
    assert centre.value.tolist() == [4.0, 0.0, -4.0]
    centre.move_()
    torch.testing.assert_close(centre.value, 0.75 * torch.tensor([4.0, 0.0, -4.0]) + 0.25 * torch.full((3,), 2.0))
    centre.value.zero_()
    centre.note_(torch.ones(3))
    centre.move_()
    torch.testing.assert_close(centre.value, torch.full((3,), 0.25))


def test_an_overflow_does_not_stay() -> None:
    centre = Centre(2)
    centre.value.fill_(0.5)
    centre.note_(torch.tensor([math.inf, 1.5]))
    centre.note_(torch.tensor([math.nan, 1.5]))
    centre.move_()
    torch.testing.assert_close(centre.value, torch.tensor([0.5, 0.6]))


def test_its_state_is_saved_in_the_middle_of_an_update() -> None:
    centre, again = Centre(2), Centre(2)
    centre.note_(torch.ones(2))
    again.load_state_dict(centre.state_dict())
    again.note_(torch.zeros(2))
    again.move_()
    torch.testing.assert_close(again.value, torch.full((2,), 0.05))
    assert Centre(2).momentum == 0.9
