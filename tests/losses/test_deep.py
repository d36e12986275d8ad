"""Deep supervision's errors and hybrid targets against their equations."""

import pytest
import torch
from torch import Tensor

from selfsight.losses.deep import deep_masked_mse, hybrid_target

MASKED = torch.tensor([[0, 3], [1, 2]])


def numbers(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, 5, dtype=torch.float64) for _ in range(count)]


def oracle(predictions: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    found = []
    for prediction, target in zip(predictions, targets, strict=True):
        errors = [
            sum((prediction[b, i, c] - target[b, i, c]) ** 2 for c in range(5)) / 5
            for b in range(2)
            for i in MASKED[b].tolist()
        ]
        found.append(sum(errors) / len(errors))
    return found


def test_the_equation() -> None:
    *predictions, a, b, c = numbers(6)
    for p in predictions:
        p.requires_grad_()
    losses = deep_masked_mse(predictions, [a, b, c], MASKED)
    wanted = oracle(predictions, [a, b, c])
    torch.testing.assert_close(losses, torch.stack(wanted))
    found = torch.autograd.grad(losses.sum(), predictions)
    for got, want in zip(found, torch.autograd.grad(sum(wanted), predictions), strict=True):  # pyright: ignore
        torch.testing.assert_close(got, want)
        assert not got[0, [1, 2]].any()  # visible patches


def test_gradcheck() -> None:
    first, second, a, b = numbers(4)
    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, q: deep_masked_mse([p, q], [a, b], MASKED), inputs)


def test_levels_do_not_see_each_other() -> None:
    first, second, a = numbers(3)
    first.requires_grad_()
    second.requires_grad_()
    deep_masked_mse([first, second], [a, a], MASKED)[0].backward()
    assert first.grad is not None
    assert second.grad is None or not second.grad.any()


def test_every_prediction_needs_a_target() -> None:
    first, second = numbers(2)
    with pytest.raises(ValueError, match="argument 2 is"):
        deep_masked_mse([first, second], [first], MASKED)


@pytest.mark.parametrize("share", [0.0, 1 / 3, 2 / 3, 1.0])
def test_a_hybrid_lies_between_guess_and_pixels(share: float) -> None:
    target, guess = numbers(2)
    found = hybrid_target(target, guess, share)
    wanted = torch.tensor([share * x + (1 - share) * y for x, y in zip(target.flatten(), guess.flatten(), strict=True)])
    torch.testing.assert_close(found.flatten(), wanted.to(found.dtype))


def test_the_ends_are_exact() -> None:
    target, guess = (x.float() for x in numbers(2))
    assert torch.equal(hybrid_target(target, guess, 1.0), target)
    assert torch.equal(hybrid_target(target, guess, 0.0), guess)


def test_half_precision_is_blended_in_full() -> None:
    target, guess = numbers(2)
    assert hybrid_target(target.bfloat16(), guess.bfloat16(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_other_shares_are_refused(share: float) -> None:
    target, guess = numbers(2)
    with pytest.raises(ValueError, match=f"share in a hybrid is {share:g}; it lies from 0 to 1"):
        hybrid_target(target, guess, share)
