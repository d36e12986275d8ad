"""Blockwise masks: one by one against the algorithm written out, and in number against what the code draws."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.keyed import Key, uniforms
from selfsight.views.blocks import BLOCKS, DRAWS, FAILURES, block_masks


def drawn(n: int, *, seed: int = 3, stream: str = "mask") -> Tensor:
    return uniforms(Key(seed, torch.zeros(n, dtype=torch.long), torch.arange(n)), stream, DRAWS)


def one_by_one(u: Tensor, grid: int, budget: float, smallest: float) -> Tensor:
    """The algorithm for one image, cell by cell."""
    numbers = u.double().view(BLOCKS, 4).tolist()
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    failures, count = 0, 0
    for a, b, c, d in numbers:
        left = budget - count
        if left <= 0 or failures == FAILURES:
            break
        area, ratio = smallest + a * (left - smallest), math.exp(math.log(0.3) * (1 - 2 * b))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        failures += 1
        if height >= grid or width >= grid:
            continue
        top, edge = int(c * (grid - height + 1)), int(d * (grid - width + 1))
        cells = [(i, j) for i in range(top, top + height) for j in range(edge, edge + width) if not mask[i, j]]
        if 0 < len(cells) <= left:
            for cell in cells:
                mask[cell] = True
            count, failures = count + len(cells), 0
    return mask


@pytest.mark.parametrize(("grid", "budget", "smallest"), [(14, 75.0, 16), (8, 26.0, 4), (14, 43.7, 16), (8, 2.0, 4)])
def test_each_mask_is_the_algorithms(grid: int, budget: float, smallest: int) -> None:
    u = drawn(24)
    masks = block_masks(u, grid, budget, smallest=smallest)
    for k in range(len(u)):
        assert torch.equal(masks[k], one_by_one(u[k], grid, budget, smallest)), k


def test_the_numbers_of_beits_masks() -> None:
    """Measured with the official algorithm: 74.5 hidden on average, 75 in 68 %, the centre in 72 %, a corner in 4 %."""
    masks = block_masks(drawn(4000), 14, 75).float()
    counts = masks.sum(dim=(1, 2))
    assert counts.max() == 75
    assert counts.min() >= 60
    assert float(counts.mean()) == pytest.approx(74.5, abs=0.2)
    assert float((counts == 75).float().mean()) == pytest.approx(0.68, abs=0.04)
    density = masks.mean(dim=0)
    assert float(density[6:8, 6:8].mean()) == pytest.approx(0.72, abs=0.03)
    corners = density[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.mean()) == pytest.approx(0.04, abs=0.012)
    torch.testing.assert_close(density, density.mT, atol=0.05, rtol=0)
    torch.testing.assert_close(density, density.flip(0), atol=0.05, rtol=0)


def test_small_grids() -> None:
    """8x8 patches, 26 of them, blocks of at least 4: 25.96 on average, 26 in 96 %."""
    counts = block_masks(drawn(4000), 8, 26, smallest=4).sum(dim=(1, 2)).float()
    assert counts.max() == 26
    assert float(counts.mean()) == pytest.approx(25.96, abs=0.03)
    assert float((counts == 26).float().mean()) == pytest.approx(0.96, abs=0.02)


def test_a_budget_for_each_image() -> None:
    """iBOT's: a share of the patches, no whole number; 0 hides nothing, 0.3 reaches 0.292 on average."""
    u = drawn(3000)
    budget = torch.where(torch.arange(3000) % 2 == 0, 0.3 * 196, 0.0).double()
    share = block_masks(u, 14, budget).float().mean(dim=(1, 2))
    assert not share[1::2].any()
    assert float(share[::2].max()) <= 0.3
    assert float(share[::2].mean()) == pytest.approx(0.292, abs=0.004)


def test_blocks_keep_their_shape() -> None:
    """A mask of one block is a rectangle, as large as it must be and no longer than its aspect allows."""
    alone = 0
    for mask in block_masks(drawn(200), 14, 40, smallest=40):
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        height, width = len(rows), len(columns)
        if height * width != int(mask.sum()):
            continue  # of more than one block
        alone += 1
        assert 30 <= height * width <= 40
        assert 0.2 < height / width < 5
    assert alone > 20


def test_exact_masks_use_up_the_budget() -> None:
    u = drawn(500)
    loose, exact = block_masks(u, 14, 75), block_masks(u, 14, 75, exact=True)
    assert bool((exact.sum(dim=(1, 2)) == 75).all())
    assert bool((exact | ~loose).all()), "what blocks hid stays hidden"


def test_a_mask_is_its_own_numbers_alone() -> None:
    u = drawn(40)
    assert torch.equal(block_masks(u, 14, 75)[[7, 31]], block_masks(u[[7, 31]], 14, 75))
    assert not torch.equal(block_masks(u, 14, 75)[0], block_masks(u, 14, 75)[1])


def test_blocks_enough() -> None:
    """Images that would need more blocks than are drawn are so rare that nobody meets them."""
    masks = block_masks(drawn(4000), 14, 75)
    cut = drawn(4000).view(4000, BLOCKS, 4).clone()
    cut[:, 100:] = 0.5
    assert int((block_masks(cut.flatten(1), 14, 75) != masks).flatten(1).any(dim=1).sum()) <= 4
