"""The painted error against a loop over pixels, the rim against its definition, the adversarial pair in closed form."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.adversarial import discriminator_loss, generator_loss
from selfsight.losses.inpainting import painted_error, rim


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights() -> Tensor:
    """Two holes of different size, one with a rim of weight 10."""
    w = torch.zeros(2, 4, 5, dtype=torch.float64)
    w[0, 1:3, 1:4] = 1
    w[1] = 10 * rim(w[0:1] > 0, 1)[0].double() + w[0]
    return w


def slow(picture: Tensor, target: Tensor, w: Tensor) -> float:
    images = []
    for b in range(len(picture)):
        total, count = 0.0, 0
        for i in range(picture.shape[2]):
            for j in range(picture.shape[3]):
                for c in range(picture.shape[1]):
                    total += float(w[b, i, j]) * (float(picture[b, c, i, j]) - float(target[b, c, i, j])) ** 2
                    count += float(w[b, i, j]) > 0
        images.append(total / count)
    return sum(images) / len(images)


def test_the_error_is_a_mean_over_the_pixels_that_count() -> None:
    picture, target, w = noise(2, 3, 4, 5).requires_grad_(), noise(2, 3, 4, 5, seed=1), weights()
    loss = painted_error(picture, target, w)
    assert float(loss.detach()) == pytest.approx(slow(picture.detach(), target, w), rel=1e-12)
    (grad,) = torch.autograd.grad(loss, picture)
    counted = (w > 0).sum(dim=(1, 2)).view(2, 1, 1, 1) * 3
    torch.testing.assert_close(grad, 2 * w[:, None] * (picture.detach() - target) / counted / 2)
    assert (grad[(w == 0)[:, None].expand_as(grad)] == 0).all()
    assert torch.autograd.gradcheck(lambda x: painted_error(x, target, w), picture)


def test_a_perfect_painting_costs_nothing_and_no_hole_either() -> None:
    x = noise(2, 3, 4, 5)
    assert float(painted_error(x, x, weights())) == 0
    assert float(painted_error(x, -x, torch.zeros(2, 4, 5, dtype=torch.float64))) == 0


def test_a_central_square_with_a_rim_weighs_as_the_codes_matrix() -> None:
    """train.lua: 64 pixels, ten everywhere but within the rim of four, and a mean over all of them."""
    hidden = torch.zeros(1, 128, 128, dtype=torch.bool)
    hidden[:, 36:92, 36:92] = True
    round_it = rim(hidden, 4)
    assert torch.equal((hidden | round_it).nonzero()[:, 1:].aminmax(dim=0)[0], torch.tensor([32, 32]))
    matrix = torch.full((64, 64), 10.0)
    matrix[4:60, 4:60] = 1
    w = (hidden.float() + 10 * round_it.float())[:, 32:96, 32:96]
    assert torch.equal(w[0], matrix)
    picture, target = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    expected = (matrix * (picture - target).square()).mean()
    torch.testing.assert_close(painted_error(picture, target, w), expected)


@pytest.mark.parametrize("width", [0, 1, 2])
def test_the_rim_is_what_lies_near_and_is_visible(width: int) -> None:
    hidden = noise(2, 6, 7) > 1
    found = rim(hidden, width)
    for b in range(2):
        for i in range(6):
            for j in range(7):
                near = hidden[b, max(0, i - width) : i + width + 1, max(0, j - width) : j + width + 1].any()
                assert bool(found[b, i, j]) == bool(near and not hidden[b, i, j])
    with pytest.raises(ValueError, match="the width of a rim is -1"):
        rim(hidden, -1)


def test_the_two_players_losses() -> None:
    real, fake = noise(5).requires_grad_(), noise(5, seed=1).requires_grad_()
    d, g = 1 / (1 + (-real.detach()).exp()), 1 / (1 + (-fake.detach()).exp())
    torch.testing.assert_close(discriminator_loss(real, fake).detach(), -(d.log().mean() + (1 - g).log().mean()))
    torch.testing.assert_close(generator_loss(fake).detach(), -g.log().mean())
    slopes = torch.autograd.grad(discriminator_loss(real, fake), (real, fake))
    torch.testing.assert_close(slopes, ((d - 1) / 5, g / 5))
    torch.testing.assert_close(torch.autograd.grad(generator_loss(fake), fake)[0], (g - 1) / 5)
    assert torch.autograd.gradcheck(discriminator_loss, (real, fake))
    assert torch.autograd.gradcheck(generator_loss, (fake,))


def test_an_undecided_discriminator_and_one_that_is_sure() -> None:
    zero, far = torch.zeros(4), torch.full((4,), 200.0)
    assert float(discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(generator_loss(zero)) == pytest.approx(math.log(2))
    assert float(discriminator_loss(far, -far)) == 0
    assert float(generator_loss(-far)) == 200  # logits, so that nothing saturates
    assert generator_loss(zero.bfloat16()).dtype == torch.float32
    assert painted_error(noise(1, 1, 2, 2).bfloat16(), noise(1, 1, 2, 2).bfloat16(), torch.ones(1, 2, 2)).dtype == (
        torch.float32
    )
