"""Montages: every patch once, four images in each, nothing that tells a place; and quarters of a map."""

import pytest
import torch

from selfsight.parts.montage import arrangement, montage, quarters


def drawn(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 10, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [4, 5, 8, 64, 257])
def test_every_patch_is_shown_once_and_four_images_make_a_montage(n: int) -> None:
    for seed in range(10):
        shown = arrangement(drawn(n, seed))
        assert shown.flatten().sort().values.tolist() == list(range(4 * n))
        assert all(len(set(row)) == 4 for row in (shown // 4).tolist())


def test_un_shuffling_gives_images_and_places_in_blocks() -> None:
    """Sheet 7, check c."""
    shown = arrangement(drawn(9)).flatten()
    back = shown.argsort()
    assert (shown // 4)[back].tolist() == [image for image in range(9) for _ in range(4)]
    assert (shown % 4)[back].tolist() == [0, 1, 2, 3] * 9


def test_batches_are_shuffled_anew() -> None:
    first, second = arrangement(drawn(64, 0)), arrangement(drawn(64, 1))
    assert (first == second).float().mean() < 0.1
    mates = {tuple(sorted(row)) for row in (first // 4).tolist()}
    assert len(mates & {tuple(sorted(row)) for row in (second // 4).tolist()}) < 4


def test_equal_numbers_still_make_a_permutation() -> None:
    """One image may stand twice in a batch, in the place of one that cannot be read."""
    u = drawn(6)
    u[3] = u[1]
    assert arrangement(u).flatten().sort().values.tolist() == list(range(24))
    assert arrangement(torch.zeros(6, 10)).flatten().sort().values.tolist() == list(range(24))


def test_a_batch_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match="a montage shows 4 images; got a batch of 3"):
        arrangement(drawn(3))


def test_a_montage_has_its_patches_in_reading_order() -> None:
    x = torch.randn(3, 4, 2, 5, 5)
    whole = montage(x)
    assert whole.shape == (3, 2, 10, 10)
    for k, (row, column) in enumerate([(0, 0), (0, 5), (5, 0), (5, 5)]):
        assert torch.equal(whole[:, :, row : row + 5, column : column + 5], x[:, k])


@pytest.mark.parametrize("side", [2, 4, 14])
def test_quarters_of_an_even_map_are_the_patches_own(side: int) -> None:
    x = torch.randn(3, 4, 6, side // 2, side // 2)
    torch.testing.assert_close(quarters(montage(x)), x.mean(dim=(3, 4)))


def test_an_odd_map_gets_one_place_more() -> None:
    """ResNet-50's 7x7 becomes 8x8; without that the middle would belong to all quarters."""
    x = torch.randn(2, 3, 7, 7)
    wider = torch.nn.functional.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(quarters(x)[:, 0], wider[:, :, :4, :4].mean(dim=(2, 3)))
    torch.testing.assert_close(quarters(x)[:, 2], wider[:, :, 4:, :4].mean(dim=(2, 3)))
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)
    assert (quarters(x) - pooled).abs().max() > 0.01
    assert quarters(torch.randn(2, 3, 1, 1)).shape == (2, 4, 3)
