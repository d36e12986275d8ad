"""Puzzles: tiles stay in their cells, channels move apart only in colour, labels are even, pictures show the answer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfsight.batches import Puzzles
from selfsight.keyed import Key
from selfsight.parts.permutations import maximal_hamming
from selfsight.report.grid import tiles as pictures_of
from selfsight.views.puzzles import PuzzleGrid, puzzles
from selfsight.views.view import IMAGENET, View

WHOLE = View(size=48, scale=(1.0, 1.0), ratio=(1, 1), flip=0)
TABLE = maximal_hamming(24)


def key(n: int, *, epoch: int = 0) -> Key:
    return Key(0, torch.full((n,), epoch), torch.arange(n))


def made(views: PuzzleGrid, images: Tensor, *, epoch: int = 0) -> Puzzles:
    k = key(len(images), epoch=epoch)
    return views.render(images, views.plan(k), k)


def offsets(views: PuzzleGrid, n: int = 300) -> Tensor:
    """How far into its cell each tile's channel begins: ``n 9 c 2``, from images that show their rows and columns."""
    at = torch.arange(48, dtype=torch.uint8)
    found = []
    for image in (at[:, None].expand(48, 48), at[None].expand(48, 48)):
        batch = made(replace(views, normal=False), image.expand(n, 3, 48, 48).contiguous())
        found.append((batch.x[..., 0, 0] * 255).round().long())
    cells = torch.tensor([[r, c] for r in range(3) for c in range(3)]) * 16
    return torch.stack(found, dim=-1) - cells[:, None]


def test_tiles_come_from_random_places_in_their_cells() -> None:
    moved = offsets(puzzles(WHOLE, TABLE, tile=12, grey=0.0))
    assert torch.equal(moved, moved[:, :, :1].expand_as(moved))
    counts = moved[:, :, 0].flatten().bincount()
    assert len(counts) == 5
    assert (counts - 1080).abs().max() < 150
    own = torch.corrcoef(moved[:, :, 0].flatten(1).T.float())
    assert own.fill_diagonal_(0).abs().max() < 0.3


def test_channels_move_apart_tile_by_tile_and_stay_in_the_cell() -> None:
    moved = offsets(puzzles(WHOLE, TABLE, tile=12, grey=0.0, spread=2))
    assert (moved.min(), moved.max()) == (0, 4)
    apart = moved[:, :, 0] - moved[:, :, 1]
    assert (apart.min(), apart.max()) == (-2, 2)
    assert (apart.flatten(1).float().std(1) > 0).all()
    for share in ({"grey": 1.0}, {"grey": 0.0, "project": 1.0}):
        still = offsets(puzzles(WHOLE, TABLE, tile=12, spread=2, **share))
        assert torch.equal(still, still[:, :, :1].expand_as(still))
        assert (still.min(), still.max()) == (0, 4)


def test_colour_is_one_draw_a_puzzle() -> None:
    images = torch.randint(0, 256, (400, 3, 48, 48), dtype=torch.uint8)
    x = made(puzzles(WHOLE, TABLE, tile=12, grey=0.3, project=0.5, spread=2, normal=False), images).x
    grey = ((x[:, :, 0] - x[:, :, 1]).abs() < 1e-6).all(dim=(2, 3))
    plane = ((2 * x[:, :, 1] - x[:, :, 0] - x[:, :, 2]).abs() < 1e-5).all(dim=(2, 3))  # grey lies in it too
    for happens, share in ((grey, 0.3), (plane, 0.65)):
        assert torch.equal(happens.all(1), happens.any(1))
        assert float(happens.all(1).float().mean()) == pytest.approx(share, abs=0.07)


def test_labels_are_even_and_one_draw_a_puzzle() -> None:
    batch = made(puzzles(WHOLE, TABLE, tile=12, count=4), torch.zeros(600, 3, 48, 48, dtype=torch.uint8))
    assert batch.label.shape == (600, 4)
    counts = batch.label.flatten().bincount(minlength=24)
    assert (counts - 100).abs().max() < 45
    assert len({tuple(row) for row in batch.label.tolist()}) > 590


def test_puzzles_depend_on_seed_epoch_and_index_alone() -> None:
    views = puzzles(View(size=48, scale=(0.5, 1.0)), TABLE, tile=12, spread=1)
    images = torch.randint(0, 256, (6, 3, 60, 60), dtype=torch.uint8)
    whole = made(views, images)
    rows = torch.tensor([4, 1])
    part = Key(0, torch.zeros(2, dtype=torch.long), rows)
    some = views.render(images[rows], views.plan(part), part)
    torch.testing.assert_close(some.x, whole.x[rows])
    assert torch.equal(some.label, whole.label[rows])
    assert torch.equal(some.index, rows)
    later = made(views, images, epoch=1)
    assert not torch.allclose(later.x, whole.x)
    assert not torch.equal(later.label, whole.label)


def test_large_images_come_as_cuts() -> None:
    views = puzzles(WHOLE, TABLE, tile=12, spread=1, normal=False)
    images = torch.randint(0, 256, (4, 3, 200, 260), dtype=torch.uint8)
    plan = views.plan(key(4))
    whole, cut = views.render(images, plan, key(4)), views.render(views.cut(list(images), plan), plan, key(4))
    assert (cut.x - whole.x).abs().max() < 3 / 255
    assert torch.equal(cut.label, whole.label)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_of_any_channels_and_flat_ones(channels: int) -> None:
    images = torch.randint(0, 256, (3, channels, 48, 48), dtype=torch.uint8)
    images[0] = 77
    x = made(puzzles(WHOLE, TABLE, tile=12, spread=1, project=0.5), images).x
    assert x.shape == (3, 9, channels, 12, 12)
    assert x.isfinite().all()
    assert x[0].abs().max() < 1e-3
    assert x[1:].mean((3, 4)).abs().max() < 1e-4
    assert (x[1:].square().mean((3, 4)) - 1).abs().max() < 0.02


@pytest.mark.parametrize("grey", [0.3, 1.0])
def test_the_evaluation_view_is_whole_and_grey_where_all_puzzles_are(grey: float) -> None:
    plain = puzzles(WHOLE, TABLE, tile=12, grey=grey).plain
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    x = plain.render(images, {}, key(2)).x
    mean, std = (torch.tensor(part)[:, None, None] for part in IMAGENET)
    back = x * std + mean
    if grey < 1:
        torch.testing.assert_close(back, images / 255)
    assert ((back.amax(1) - back.amin(1)).max() < 1e-5) == (grey >= 1)


def test_pictures_show_the_puzzle_and_its_solution() -> None:
    views = puzzles(WHOLE, TABLE, tile=12, grey=0.0)
    batch = made(views, torch.randint(0, 256, (5, 3, 48, 48), dtype=torch.uint8))
    puzzle, solved = pictures_of(views, batch)
    assert puzzle.shape == (5, 3, 52, 52)

    def cell(picture: Tensor, k: int) -> Tensor:
        top, left = 4 + k // 3 * 16, 4 + k % 3 * 16
        return picture[:, top : top + 12, left : left + 12]

    for b in range(5):
        order = TABLE[batch.label[b, 0]].tolist()
        for slot, source in enumerate(order):
            assert torch.equal(cell(puzzle[b], slot), cell(solved[b], source))


def test_it_says_what_it_does() -> None:
    assert puzzles(WHOLE, TABLE, tile=12, spread=2, project=0.5, count=4).describe() == (
        "view 1: crop 1-1 of the area to 48 px (bilinear); 3 x 3 cells of 16 px, a tile of 12 px of each, all of them "
        "grey 0.3, else projected 0.5, else channels up to 2 px apart, each normalised by itself; 4 of 24 permutations"
    )


def test_calls_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="tiles of 15 px, with channels up to 2 px apart, do not fit into cells of 16"):
        puzzles(WHOLE, TABLE, tile=15, spread=2)
    with pytest.raises(ValueError, match="--grey is 2; it is a share of the puzzles"):
        puzzles(WHOLE, TABLE, tile=12, grey=2)
    with pytest.raises(ValueError, match=r"--project is -0\.1"):
        puzzles(WHOLE, TABLE, tile=12, project=-0.1)
    with pytest.raises(ValueError, match="--puzzles is 0; each image needs at least 1"):
        puzzles(WHOLE, TABLE, tile=12, count=0)
