"""Pixel targets and the pictures that come of predicting them."""

import pytest
import torch

from selfsight.losses.reconstruction import normalise_patches, patchify
from selfsight.parts.reconstruction import pixel_targets, reconstructed

MASKED = torch.tensor([[0, 3], [1, 2]])


@pytest.mark.parametrize("normalise", [True, False])
def test_a_perfect_prediction_gives_the_image(normalise: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    target = pixel_targets(x, 4, normalise=normalise)
    assert torch.equal(target, normalise_patches(patchify(x, 4)).x if normalise else patchify(x, 4))
    shown = reconstructed(x, target, MASKED, 4, normalised=normalise)
    torch.testing.assert_close(shown.reconstruction, x)
    assert torch.equal(shown.original, x)


def test_only_hidden_patches_are_predicted_and_zero_in_the_input() -> None:
    x = torch.rand(2, 3, 8, 8) + 1
    shown = reconstructed(x, torch.full((2, 4, 48), 7.0), MASKED, 4, normalised=False)
    hidden = patchify(shown.masked, 4).eq(0).all(dim=2)
    assert hidden.tolist() == [[True, False, False, True], [False, True, True, False]]
    assert torch.equal(patchify(shown.reconstruction, 4).eq(7).all(dim=2), hidden)
    assert torch.equal(shown.reconstruction[shown.masked > 0], x[shown.masked > 0])
