"""Holes: their places, shapes and shares, by key, and nothing of the view changed."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from selfsight.keyed import Key, uniforms
from selfsight.views.holes import Hole, blocks, centre, holed_view, region
from selfsight.views.view import View

WHOLE = View(size=32, scale=None, flip=0, normalise=None)


def key(n: int, *, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


def pictures(n: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_centre_is_half_of_the_side_less_its_overlap() -> None:
    """Sheet 11: of 128 px the 64 in the middle are painted and 56 hidden."""
    for overlap in (0, 4):
        hidden = centre(128, overlap)[0]
        expected = torch.zeros(128, 128, dtype=torch.bool)
        expected[32 + overlap : 96 - overlap, 32 + overlap : 96 - overlap] = True
        assert torch.equal(hidden, expected)


def test_blocks_lie_where_their_numbers_say() -> None:
    u = uniforms(key(50), "hole", 8)
    hidden = blocks(u, 32)
    for b in range(50):
        expected = torch.zeros(32, 32, dtype=torch.bool)
        for k in range(4):
            top, left = int(float(u[b, k]) * 25), int(float(u[b, 4 + k]) * 25)
            expected[top : top + 8, left : left + 8] = True
        assert torch.equal(hidden[b], expected)
    share = hidden.float().mean(dim=(1, 2))
    assert 1 / 16 <= share.min() < share.max() <= 1 / 4
    assert hidden.any(dim=0)[3:-3, 3:-3].all()  # a corner needs one draw in 625


@pytest.mark.parametrize("size", [32, 96])
def test_regions_hide_a_share_that_is_drawn(size: int) -> None:
    u = uniforms(key(400), "hole", 147)
    hidden = region(u, size)
    share = hidden.float().mean(dim=(1, 2))
    torch.testing.assert_close(share, 0.2 + 0.1 * u[:, -1], atol=0.6 / size**2, rtol=0)
    everywhere = hidden.float().mean(dim=0)
    assert (everywhere - 0.25).abs().max() < 5 * (0.25 * 0.75 / 400) ** 0.5  # no place is hidden more often


def test_regions_are_connected_rather_than_noise() -> None:
    """Neighbours mostly agree: about eight cells of noise lie along a side."""
    hidden = region(uniforms(key(50), "hole", 147), 96)
    assert (hidden[:, 1:] == hidden[:, :-1]).float().mean() > 0.93
    assert (hidden[:, :, 1:] == hidden[:, :, :-1]).float().mean() > 0.93


def test_regions_of_one_key_have_one_shape_at_all_sizes() -> None:
    u = uniforms(key(20), "hole", 147)
    large, small = region(u, 128), region(u, 32)
    shrunk = large.float().unflatten(1, (32, 4)).unflatten(3, (32, 4)).mean(dim=(2, 4)) > 0.5
    assert (shrunk == small).float().mean() > 0.95


@pytest.mark.parametrize("hole", ["region", "blocks", "centre"])
def test_the_view_is_untouched_and_holes_depend_on_the_key_alone(hole: Hole) -> None:
    views, images = holed_view(WHOLE, hole=hole), pictures(6)
    whole = views.render(images, views.plan(key(6)), key(6))
    torch.testing.assert_close(whole.x, images / 255)
    assert whole.hidden.shape == (6, 32, 32)
    rows = torch.tensor([4, 1])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    assert torch.equal(some.hidden, whole.hidden[rows])
    assert torch.equal(some.index, rows)
    for other in (key(6, epoch=1), key(6, seed=1)):
        later = views.render(images, views.plan(other), other).hidden
        assert torch.equal(later, whole.hidden) == (hole == "centre")
    cut = views.render(views.cut(list(images), views.plan(key(6))), views.plan(key(6)), key(6))
    assert torch.equal(cut.hidden, whole.hidden)


def test_it_says_what_is_hidden() -> None:
    assert holed_view(WHOLE, hole="region").describe().endswith("; a region of 20% to 30% hidden")
    assert holed_view(WHOLE, hole="blocks").describe().endswith("; 4 squares of 8 px hidden")
    assert holed_view(WHOLE, hole="centre", overlap=1).describe().endswith("; the central 14 px hidden")


def test_calls_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="take a multiple of 4"):
        holed_view(View(size=30), hole="centre")
    with pytest.raises(ValueError, match="an overlap of 8 px leaves no hole"):
        holed_view(WHOLE, hole="centre", overlap=8)
    with pytest.raises((ValueError, TypeCheckError)):  # the one without jaxtyping, which checks while tests run
        holed_view(WHOLE, hole="middle")  # type: ignore[arg-type]
