"""A jigsaw's pieces: where quadrants lie, what is drawn for each of them, and the whole image for evaluation."""

from dataclasses import replace

import pytest
import torch

from selfsight.batches import Pieces
from selfsight.keyed import Key
from selfsight.report.grid import tiles
from selfsight.views.quadrants import pieces_of, quadrants
from selfsight.views.view import Jitter, View

PLAIN = View(size=16, scale=(1, 1), ratio=(1, 1), flip=0, normalise=None)


def key(n: int, *, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


def pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def made(view: View, images: torch.Tensor, *, cross: float = 0.3, epoch: int = 0) -> Pieces:
    views, k = pieces_of(view, cross=cross, shuffle=10), key(len(images), epoch=epoch)
    return views.render(images, views.plan(k), k)


def test_quadrants_span_four_fifths_of_each_side() -> None:
    at = torch.arange(224 * 224).view(1, 224, 224).to(torch.int32)
    found = [(int(q[0, 0, 0]) // 224, int(q[0, 0, 0]) % 224, *q.shape[1:]) for q in quadrants(at, 0.3)]
    assert found == [(0, 0, 179, 179), (0, 45, 179, 179), (45, 0, 179, 179), (45, 45, 179, 179)]
    assert [q.shape for q in quadrants(at[:, :33, :50], 0.3)] == [(1, 26, 40)] * 4


@pytest.mark.parametrize("cut", [False, True])
def test_pieces_are_in_reading_order(cut: bool) -> None:
    images = torch.tensor([10, 60, 110, 160], dtype=torch.uint8).view(1, 1, 2, 2).repeat_interleave(20, 2)
    images = images.repeat_interleave(30, 3).expand(3, 3, -1, -1).contiguous()
    views, k = pieces_of(replace(PLAIN, scale=(0.2, 1.0)), cross=0.0, shuffle=10), key(3)
    plan = views.plan(k)
    x = views.render(views.cut(list(images), plan) if cut else images, plan, k).x
    expected = torch.tensor([10, 60, 110, 160.0]).view(1, 4, 1, 1, 1) / 255
    torch.testing.assert_close(x, expected.expand_as(x))


def test_without_overlap_and_crop_pieces_are_the_image() -> None:
    images = pictures(2)
    x = made(PLAIN, images, cross=0.0).x
    for j, (row, column) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        torch.testing.assert_close(x[:, j], images[:, :, row : row + 16, column : column + 16] / 255)


def test_each_piece_has_its_own_colours_flip_and_crop() -> None:
    flat = pictures(1, 1, 1).expand(8, -1, 32, 32).contiguous()
    coloured = made(replace(PLAIN, jitter=Jitter(0.4, 0.4, 0.4, 0.1)), flat).x[..., 0, 0].flatten(0, 1)
    assert len({tuple(c) for c in coloured.tolist()}) == 32
    ramp = torch.arange(32, dtype=torch.uint8).mul(7).expand(40, 3, 32, 32).contiguous()
    flips = made(replace(PLAIN, flip=0.5), ramp).x
    left = flips[..., 0].mean((2, 3)) > flips[..., -1].mean((2, 3))
    assert 0.35 < left.float().mean() < 0.65
    assert ((left.float().mean(1) > 0) & (left.float().mean(1) < 1)).any()
    crops = made(replace(PLAIN, scale=(0.2, 1.0)), ramp).x
    assert len({round(v, 5) for v in crops.amax((2, 3, 4)).flatten().tolist()}) > 20


def test_pieces_depend_on_seed_epoch_and_index_alone() -> None:
    views = pieces_of(View(size=16, jitter=Jitter(0.4, 0.4, 0.4, 0.1)), cross=0.3, shuffle=10)
    images = pictures(6, 40, 40)
    whole = views.render(images, views.plan(key(6)), key(6))
    rows = torch.tensor([4, 1])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    torch.testing.assert_close(some.x, whole.x[rows])
    assert torch.equal(some.shuffle, whole.shuffle[rows])
    later = views.render(images, views.plan(key(6, epoch=1)), key(6, epoch=1))
    assert not torch.allclose(later.x, whole.x)
    assert not torch.equal(later.shuffle, whole.shuffle)


def test_large_images_come_as_cuts() -> None:
    views, k = pieces_of(View(size=32, scale=(0.2, 1.0)), cross=0.3, shuffle=10), key(4)
    images, plan = pictures(4, 150, 200), views.plan(k)
    (stack,) = views.cut(list(images), plan)
    assert stack.shape == (4, 4, 3, 32, 32)
    whole, cut = views.render(images, plan, k).x, views.render([stack], plan, k).x
    assert (whole - cut).abs().max() < 0.02
    mixed = views.cut([images[0], pictures(1, 60, 301)[0]], {name: u[:2] for name, u in plan.items()})[0]
    assert torch.equal(mixed[0], stack[0])


def test_the_evaluation_view_is_the_whole_image_in_a_montages_size() -> None:
    views = pieces_of(PLAIN, cross=0.3, shuffle=10)
    images = pictures(2)
    torch.testing.assert_close(views.plain.render(images, {}, key(2)).x, images / 255)
    assert views.plain.size == 32


def test_the_picture_shows_the_pieces_and_a_montage() -> None:
    images = pictures(5)
    views, k = pieces_of(PLAIN, cross=0.0, shuffle=10), key(5)
    batch = views.render(images, views.plan(k), k)
    pieces, seen = tiles(views, batch)
    assert pieces.shape == (5, 3, 34, 34)  # a gap after each piece
    assert seen.shape == (5, 3, 32, 32)
    assert seen.flatten().sort().values.equal(images.flatten().sort().values)
    few = type(batch)(*(part[:3] for part in batch))
    assert len(tiles(views, few)) == 1  # too few for a montage


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--cross is 0\.6; a quadrant reaches"):
        pieces_of(PLAIN, cross=0.6, shuffle=10)
    assert "0.8 of each side" in pieces_of(PLAIN, cross=0.3, shuffle=10).describe()
