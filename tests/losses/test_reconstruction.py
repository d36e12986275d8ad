"""Patches and the masked error against naive loops and MAE's checks."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from selfsight.losses.reconstruction import (
    masked_l1,
    masked_mse,
    normalise_patches,
    patchify,
    unpatchify,
    weighted_mse,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_patches_are_ordered_row_column_channel() -> None:
    x = noise(2, 3, 4, 6)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    for token in range(6):
        row, column = divmod(token, 3)
        expected = [float(x[1, c, 2 * row + i, 2 * column + j]) for i in range(2) for j in range(2) for c in range(3)]
        assert patches[1, token].tolist() == expected


@pytest.mark.parametrize(("size", "patch"), [((1, 3, 32, 32), 4), ((2, 1, 8, 12), 4), ((1, 5, 6, 3), 3)])
def test_unpatchify_is_the_inverse(size: tuple[int, int, int, int], patch: int) -> None:
    x = noise(*size)
    assert torch.equal(unpatchify(patchify(x, patch), patch, size[2], size[3]), x)


def test_each_patch_by_its_own_unbiased_statistics() -> None:
    patches = noise(2, 3, 8) * 5 + 2
    normal = normalise_patches(patches)
    values = patches[1, 2].tolist()
    deviation = math.sqrt(statistics.variance(values) + 1e-6)
    expected = [(x - statistics.fmean(values)) / deviation for x in values]
    torch.testing.assert_close(normal.x[1, 2], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(normal.x * normal.scale + normal.mean, patches)
    assert torch.equal(normalise_patches(torch.full((1, 1, 8), 7.0)).x, torch.zeros(1, 1, 8))


def test_a_zero_prediction_costs_p_minus_1_over_p() -> None:
    """0.9987 at 768 numbers a patch."""
    target = normalise_patches(noise(4, 9, 768)).x
    loss = masked_mse(torch.zeros_like(target), target, torch.tensor([[0, 4, 8]] * 4))
    assert float(loss) == pytest.approx(767 / 768, abs=1e-5)


def test_only_masked_patches_count() -> None:
    prediction, target = noise(2, 5, 6).requires_grad_(), noise(2, 5, 6, seed=1)
    masked = torch.tensor([[0, 3], [4, 1]])
    loss = masked_mse(prediction, target, masked)
    total, rows, guess = 0.0, masked.tolist(), prediction.detach()
    for b, row in enumerate(rows):
        for i in row:
            total += sum((float(guess[b, i, j]) - float(target[b, i, j])) ** 2 for j in range(6)) / 6
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-12)
    (grad,) = torch.autograd.grad(loss, prediction)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    for b, row in enumerate(rows):
        hidden[b, row] = True
    assert (grad[~hidden] == 0).all()
    expected = 2 * (prediction.detach() - target)[hidden] / (4 * 6)
    torch.testing.assert_close(grad[hidden], expected)
    assert torch.autograd.gradcheck(lambda x: masked_mse(x, target, masked), prediction)


def test_the_order_of_the_batch_and_of_the_mask_does_not_matter() -> None:
    prediction, target = noise(3, 5, 6), noise(3, 5, 6, seed=1)
    masked = torch.tensor([[0, 3], [4, 1], [2, 3]])
    turn = torch.tensor([2, 0, 1])
    loss = masked_mse(prediction, target, masked)
    torch.testing.assert_close(masked_mse(prediction[turn], target[turn], masked[turn]), loss)
    torch.testing.assert_close(masked_mse(prediction, target, masked.flip(1)), loss)


def test_types_and_refusals() -> None:
    x, masked = noise(2, 5, 6), torch.tensor([[0], [1]])
    assert masked_mse(x.bfloat16(), x.bfloat16(), masked).dtype == torch.float32
    assert normalise_patches(x.half()).x.dtype == torch.float32
    with pytest.raises(ValueError, match="nothing is masked"):
        masked_mse(x, x, masked[:, :0])
    with pytest.raises(ValueError, match="30x32"):
        patchify(noise(1, 3, 30, 32), 4)
    with pytest.raises(ValueError, match="do not make an image"):
        unpatchify(x, 2, 8, 8)


def naive_l1(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """SimMIM's equation, pixel by pixel."""
    b, c, h, w = target.shape
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i in range(b):
        for row in range(h):
            for column in range(w):
                if hidden[i, row, column]:
                    count += 1
                    for k in range(c):
                        total = total + (prediction[i, k, row, column] - target[i, k, row, column]).abs()
    return total / (c * (count + 1e-5))


def test_masked_l1_is_the_mean_of_hidden_pixels_of_all_images() -> None:
    prediction, target = noise(2, 3, 4, 4).requires_grad_(), noise(2, 3, 4, 4, seed=1)
    hidden = noise(2, 4, 4, seed=2) > 0.3
    hidden[0] |= noise(4, 4, seed=3) > 0  # images may hide unequal numbers: the mean is one over all pixels
    found, wanted = masked_l1(prediction, target, hidden), naive_l1(prediction, target, hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    (own,), (theirs,) = (torch.autograd.grad(x, prediction) for x in (found, wanted))
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=0)
    assert not own[~hidden[:, None].expand_as(own)].any()
    assert torch.autograd.gradcheck(lambda p: masked_l1(p, target, hidden), prediction)


def test_masked_l1_never_looks_at_visible_pixels() -> None:
    target, hidden = noise(2, 3, 4, 4), noise(2, 4, 4, seed=2) > 0
    garbage = torch.where(hidden[:, None], target, torch.full_like(target, torch.inf)).requires_grad_()
    loss = masked_l1(garbage, target, hidden)
    loss.backward()
    assert float(loss.detach()) == 0
    assert garbage.grad is not None
    assert not garbage.grad.isnan().any()


def test_masked_l1_of_a_zero_prediction_is_the_targets_mean_size() -> None:
    """Of unit normal pixels sqrt(2 / pi)."""
    target = noise(8, 3, 32, 32).float()
    loss = masked_l1(torch.zeros_like(target), target, torch.ones(8, 32, 32, dtype=torch.bool))
    assert float(loss) == pytest.approx(math.sqrt(2 / math.pi), rel=0.02)
    assert masked_l1(target.bfloat16(), target, torch.ones(8, 32, 32, dtype=torch.bool)).dtype == torch.float32


def test_weighted_mse_is_the_mean_by_weight() -> None:
    prediction, target = noise(2, 5, 3).requires_grad_(), noise(2, 5, 3, seed=1)
    weight = torch.tensor([[0.0, 0.25, 1.0, 0.5, 0.0], [1.0, 0.75, 0.0, 0.0, 0.25]], dtype=torch.float64)
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for b in range(2):
        for i in range(5):
            squares = [(prediction[b, i, k] - target[b, i, k]) ** 2 for k in range(3)]
            total, count = total + weight[b, i] * sum(squares) / 3, count + float(weight[b, i])
    found = weighted_mse(prediction, target, weight)
    torch.testing.assert_close(found, total / count, rtol=1e-12, atol=0)
    (own,), (theirs,) = (torch.autograd.grad(x, prediction) for x in (found, total / count))
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-15)
    assert not own[weight == 0].any()
    assert torch.autograd.gradcheck(lambda p: weighted_mse(p, target, weight), prediction)
    places = torch.tensor([[2, 4], [0, 1]])
    whole = torch.zeros(2, 5, dtype=torch.float64).scatter(1, places, 1.0)
    torch.testing.assert_close(weighted_mse(prediction, target, whole), masked_mse(prediction, target, places))
