"""Pairs of patches: where they lie, what they are called, and that their pictures show question and answer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfsight.batches import PatchPairs
from selfsight.keyed import Key
from selfsight.report.grid import tiles as pictures_of
from selfsight.views.pairs import PairGrid, neighbours, patch_pairs
from selfsight.views.view import IMAGENET, View

WHOLE = View(size=48, scale=(1.0, 1.0), ratio=(1, 1), flip=0)
BARE = {"colour": "keep", "coarse": 0.0, "normal": False}


def key(n: int, *, epoch: int = 0) -> Key:
    return Key(0, torch.full((n,), epoch), torch.arange(n))


def numbered(n: int, size: int = 48) -> Tensor:
    """Images whose red and green are their row and column."""
    at = torch.arange(size, dtype=torch.uint8)
    row, column = at[:, None].expand(size, size), at[None].expand(size, size)
    return torch.stack([row, column, row]).expand(n, 3, size, size).contiguous()


def made(views: PairGrid, images: Tensor, *, epoch: int = 0) -> PatchPairs:
    k = key(len(images), epoch=epoch)
    return views.render(images, views.plan(k), k)


def corners(batch: PatchPairs) -> Tensor:
    """The corner of each patch of ``numbered``."""
    return (batch.x[:, :, :2, 0, 0] * 255).round().long()


def test_labels_count_the_places_round_the_first_patch() -> None:
    for which, count in (("centre", 8), ("all", 40)):
        first, second, label = neighbours(which)
        assert len(first) == count
        down, right = second // 3 - first // 3, second % 3 - first % 3
        names = {(-1, -1): 0, (-1, 0): 1, (-1, 1): 2, (0, -1): 3, (0, 1): 4, (1, -1): 5, (1, 0): 6, (1, 1): 7}
        assert [names[d, r] for d, r in zip(down.tolist(), right.tolist(), strict=True)] == label.tolist()
    named = {(int(a), int(b)): int(c) for a, b, c in neighbours("all").T}
    assert all(named[a, b] + named[b, a] == 7 for a, b in named)
    assert sorted(neighbours("centre")[2].tolist()) == list(range(8))


def test_patches_keep_their_gap_and_are_jittered_one_by_one() -> None:
    views = patch_pairs(WHOLE, patch=10, gap=5, jitter=2, **BARE)
    batch = made(views, numbered(200))
    assert batch.x.shape == (200, 9, 3, 10, 10)
    cells = torch.tensor([[r, c] for r in range(3) for c in range(3)]) * 15 + 4
    moved = corners(batch) - cells
    assert moved.abs().max() == 2
    counts = torch.stack([(moved == k).sum() for k in range(-2, 3)])
    assert (counts - 720).abs().max() < 120
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 200
    one = torch.corrcoef(moved.flatten(1).float().T).fill_diagonal_(0)
    assert one.abs().max() < 0.3  # no patch tells how another was moved
    for r in range(10):
        assert torch.equal((batch.x[:, :, 0, r, 0] * 255).round().long(), corners(batch)[..., 0] + r)


def test_views_depend_on_seed_epoch_and_index_alone() -> None:
    views = patch_pairs(View(size=48, scale=(0.5, 1.0)), patch=10, gap=5, jitter=2)
    images = torch.randint(0, 256, (6, 3, 60, 60), dtype=torch.uint8)
    whole = made(views, images)
    rows = torch.tensor([4, 1])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    torch.testing.assert_close(some.x, whole.x[rows])
    assert torch.equal(some.index, rows)
    assert not torch.allclose(made(views, images, epoch=1).x, whole.x)


def test_large_images_come_as_cuts() -> None:
    views = patch_pairs(replace(WHOLE, scale=(0.5, 0.5)), patch=10, gap=5, jitter=2, **BARE)
    images = torch.randint(0, 256, (4, 3, 200, 200), dtype=torch.uint8)
    plan = views.plan(key(4))
    whole, cut = views.render(images, plan, key(4)), views.render(views.cut(list(images), plan), plan, key(4))
    assert (cut.x - whole.x).abs().max() < 3 / 255


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("colour", ["drop", "project", "keep"])
def test_images_of_any_channels_and_flat_ones(channels: int, colour: str) -> None:
    views = patch_pairs(WHOLE, patch=10, gap=5, jitter=2, colour=colour)
    images = torch.randint(0, 256, (3, channels, 48, 48), dtype=torch.uint8)
    images[0] = 77
    x = made(views, images).x
    assert x.isfinite().all()
    assert x[0].abs().max() < 1e-3
    assert (x[1:].square().mean((2, 3, 4)) - 1).abs().max() < 0.02


def test_the_evaluation_view_is_whole_coloured_and_normalised() -> None:
    plain = patch_pairs(WHOLE, patch=10, gap=5, jitter=2).plain
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    x = plain.render(images, {}, key(2)).x
    mean, std = (torch.tensor(part)[:, None, None] for part in IMAGENET)
    torch.testing.assert_close(x, (images / 255 - mean) / std)


def test_pictures_show_a_pair_and_where_its_second_lies() -> None:
    views = patch_pairs(WHOLE, patch=10, gap=5, jitter=0, colour="keep", coarse=0)
    batch = made(views, torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8))
    question, answer = pictures_of(views, batch)
    assert question.shape == answer.shape == (8, 3, 38, 38)

    def cell(picture: Tensor, k: int) -> Tensor:
        top, left = 2 + k // 3 * 12, 2 + k % 3 * 12
        return picture[:, top : top + 10, left : left + 10]

    for b in range(8):  # image b shows its pair b, whose label is b
        place = b + (b >= 4)
        assert torch.equal(cell(question[b], 3), cell(answer[b], 4))
        assert torch.equal(cell(question[b], 5), cell(answer[b], place))
        filled = [k for k in range(9) if len(cell(answer[b], k).unique()) > 1]
        assert filled == sorted([4, place])


def test_it_says_what_it_does() -> None:
    assert patch_pairs(WHOLE, patch=10, gap=5, jitter=2).describe() == (
        "view 1: crop 1-1 of the area to 48 px (bilinear); 3 x 3 patches of 10 px, 5 px apart, jittered by up to "
        "2 px, coarse 0.33, two colours of each dropped, each normalised by itself"
    )


def test_calls_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="take 50 px of 48; take a smaller --patch, --gap or --jitter"):
        patch_pairs(WHOLE, patch=12, gap=5, jitter=2)
    with pytest.raises(ValueError, match=r"--coarse is 1\.5; it is a share"):
        patch_pairs(WHOLE, patch=10, gap=5, jitter=2, coarse=1.5)
    with pytest.raises(ValueError, match="a patch has at least 1 px"):
        patch_pairs(WHOLE, patch=10, gap=-1, jitter=2)
