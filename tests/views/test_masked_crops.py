"""iBOT's masks of crops: how often, how much, and by whose numbers."""

import pytest
import torch
from torch import Tensor

from selfsight.keyed import Key
from selfsight.views.blocks import DRAWS, block_masks
from selfsight.views.masked_crops import CropMask, masked_crops
from selfsight.views.view import View


def key(n: int, *, start: int = 0, epoch: int = 0) -> Key:
    return Key(3, torch.full((n,), epoch), torch.arange(start, start + n))


def shares(mask: CropMask, grid: int, n: int = 4000) -> Tensor:
    views = masked_crops([View(size=16 * grid)] * 2, [], patch=16, mask=mask)
    u = views.plan(key(n))["mask0"]
    return mask.masks(u, grid).float().mean(dim=1)


@pytest.mark.parametrize("shape", ["block", "random"])
def test_half_of_the_crops_are_masked_by_a_tenth_to_a_half(shape: str) -> None:
    found = shares(CropMask(shape=shape), 14)  # type: ignore[arg-type]
    masked = found[found > 0]
    assert len(masked) / len(found) == pytest.approx(0.5, abs=0.03)
    assert float(masked.max()) <= 0.5
    assert float(masked.mean()) == pytest.approx(0.297 if shape == "random" else 0.29, abs=0.01)
    if shape == "random":
        assert float(masked.min()) >= 0.1 - 1 / 196
        assert float(masked.std()) == pytest.approx(0.4 / 12**0.5, abs=0.01)


def test_random_masks_have_the_budgets_count() -> None:
    counts = 64 * shares(CropMask(share=1.0, ratio=0.3, spread=0.0, shape="random"), 8, n=50)
    assert counts.tolist() == [19.0] * 50  # 19.2, rounded down
    mask = CropMask(share=1.0, ratio=0.3, spread=0.0, shape="random")
    u = torch.rand(4000, mask.draws(8), generator=torch.Generator().manual_seed(0))
    assert mask.masks(u, 8).float().mean(dim=0).sub(19 / 64).abs().max() < 0.04


def test_blocks_of_at_least_a_ninth_of_the_grid() -> None:
    mask = CropMask(share=1.0)
    u = torch.rand(50, mask.draws(14), generator=torch.Generator().manual_seed(0))
    assert mask.draws(14) == 2 + DRAWS
    budget = (0.1 + 0.4 * u[:, 1].double()) * 196
    expected = block_masks(u[:, 2:], 14, budget, smallest=16).flatten(1)
    assert torch.equal(mask.masks(u, 14), expected)


def test_none_are_masked_where_none_shall_be() -> None:
    assert not shares(CropMask(share=0.0), 8, n=50).any()
    assert not shares(CropMask(share=1.0, ratio=0.0, spread=0.0), 8, n=50).any()


def test_a_mask_depends_on_seed_epoch_index_and_crop_alone() -> None:
    views = masked_crops([View(size=32)] * 2, [View(size=16)] * 3, patch=4, mask=CropMask(share=1.0))
    images = torch.randint(0, 255, (6, 3, 40, 44), dtype=torch.uint8)
    whole = views.render(images, views.plan(key(6)), key(6))
    part = views.render(images[2:5], views.plan(key(3, start=2)), key(3, start=2))
    other = views.render(images, views.plan(key(6, epoch=1)), key(6, epoch=1))
    assert [x.shape for x in whole.large] == [(6, 3, 32, 32)] * 2
    assert [x.shape for x in whole.small] == [(6, 3, 16, 16)] * 3
    assert [m.shape for m in whole.masked] == [(6, 64)] * 2
    for v in range(2):
        assert torch.equal(part.masked[v], whole.masked[v][2:5])
        assert not torch.equal(other.masked[v], whole.masked[v])
    assert not torch.equal(whole.masked[0], whole.masked[1])
    assert views.describe().splitlines()[-1] == "10%-50% of the patches hidden (block) in 100% of the large crops"


def test_mistakes_get_one_line() -> None:
    with pytest.raises(ValueError, match="share of masked crops must lie in"):
        CropMask(share=1.5)
    with pytest.raises(ValueError, match=r"mask ratio 0\.3 with spread 0\.4 must stay within 0 and 1"):
        CropMask(spread=0.4)
    with pytest.raises(ValueError, match="at least two large ones, not 1"):
        masked_crops([View(size=32)], [], patch=4, mask=CropMask())
    with pytest.raises(ValueError, match=r"patch 4 does not divide crops of \[14, 32\] px"):
        masked_crops([View(size=32)] * 2, [View(size=14)], patch=4, mask=CropMask())
