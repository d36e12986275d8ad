"""Bins of colour and the decoder's sizes."""

import pytest
import torch

from selfsight.lab import to_lab
from selfsight.parts.colours import ColourDecoder, bins


def test_the_bins_are_the_published_ones() -> None:
    """Their number, their order, and sums that another set would not have (OpenCV's list of pts_in_hull.npy)."""
    centres = bins()
    assert centres.shape == (313, 2)
    assert centres.unique(dim=0).shape == (313, 2)
    assert bool((centres % 10 == 0).all())
    assert torch.equal(centres, centres[(centres[:, 0] * 1000 + centres[:, 1]).argsort()])
    a, counts = centres[:, 0].unique(return_counts=True)
    assert a.tolist() == list(range(-90, 101, 10))
    assert counts.tolist() == [5, 8, 10, 12, 14, 15, 16, 16, 17, 18, 18, 18, 19, 20, 19, 20, 20, 19, 19, 10]
    assert centres[:5].tolist() == [[-90, b] for b in (50, 60, 70, 80, 90)]
    assert centres[-10:, 1].tolist() == list(range(-90, 1, 10))


def test_every_colour_of_a_screen_has_a_bin_and_every_bin_a_colour() -> None:
    levels = torch.linspace(0, 1, 33)
    _, a, b = to_lab(*torch.cartesian_prod(levels, levels, levels).T)
    apart = torch.cdist(torch.stack([a, b], dim=1), bins())
    assert float(apart.amin(dim=1).max()) < 8  # half of a cell's diagonal is 7.1
    assert float(apart.amin(dim=0).max()) < 16


@pytest.mark.parametrize(
    ("stride", "y", "size"), [(8, 4, 8), (4, 8, 8), (32, 7, 56), (16, 14, 56), (14, 16, 56), (2, 16, 8)]
)
def test_the_decoder_comes_down_to_the_grid(stride: int, y: int, size: int) -> None:
    decoder = ColourDecoder(6, stride, 13, width=8)
    assert decoder(torch.randn(2, 6, y, y), (size, size)).shape == (2, 13, size, size)


def test_the_decoder_is_the_papers_last_block() -> None:
    decoder = ColourDecoder(512, 8, 313)
    shapes = [tuple(p.shape) for p in decoder.parameters() if p.ndim > 1]
    assert shapes == [(512, 256, 4, 4), (256, 256, 3, 3), (256, 256, 3, 3), (313, 256, 1, 1)]
