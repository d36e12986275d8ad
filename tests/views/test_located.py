"""Located views: boxes say where the pixels of a view come from, on whole images and through a worker's cut."""

import pickle

import pytest
import torch
from torch import Tensor

from selfsight.batches import LocatedViews
from selfsight.data.loader import Loader
from selfsight.data.world import World
from selfsight.keyed import Key
from selfsight.losses.pixels import centres
from selfsight.report.grid import tiles
from selfsight.views.located import located_views
from selfsight.views.pipelines import two_views
from selfsight.views.view import View, boxes

FIRST = View(size=24, scale=(0.1, 1.0), normalise=None)
SECOND = View(size=24, scale=(0.3, 0.8), flip=1.0, normalise=None)
VIEWS = located_views(FIRST, SECOND)


def key(*index: int, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((len(index),), epoch), torch.tensor(index))


def ramps(height: int, width: int) -> Tensor:
    """An image whose first channel says how far right a pixel is, and the second how far down, in 255ths."""
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    return (torch.stack([across, down, across]) * 255).round().to(torch.uint8)


def shown(x: Tensor) -> Tensor:
    """Where each pixel of a view of ``ramps`` says that it comes from, ``b n 2``, as ``centres`` gives it."""
    return x[:, :2].flatten(2).mT


def check(batch: LocatedViews) -> None:
    inner = torch.zeros(24, 24, dtype=torch.bool)
    inner[4:-4, 4:-4] = True  # at the edge of a crop a resize has fewer pixels to weigh
    for x, box in ((batch.x1, batch.box1), (batch.x2, batch.box2)):
        gap = (shown(x) - centres(box, 24, 24)).abs()[:, inner.flatten()]
        assert gap.max() < 0.008, gap.max()


def test_a_box_is_where_the_pixels_come_from() -> None:
    images, who = ramps(60, 80).expand(64, 3, 60, 80).contiguous(), key(*range(64))
    batch = VIEWS.render(images, VIEWS.plan(who), who)
    assert isinstance(batch, LocatedViews)
    check(batch)
    mirrored = batch.box1[:, 0] > batch.box1[:, 2]
    assert 0 < mirrored.sum() < 64
    assert (batch.box2[:, 0] > batch.box2[:, 2]).all()
    assert (batch.box1[:, 1] < batch.box1[:, 3]).all()


def test_images_of_any_sizes_keep_their_boxes_through_a_cut() -> None:
    sizes = [(48, 56), (200, 40), (41, 190), (33, 33), (120, 64)]
    images, who = [ramps(h, w) for h, w in sizes], key(*range(5))
    plan = VIEWS.plan(who)
    cuts = VIEWS.cut(images, plan)
    batch = VIEWS.render(cuts, plan, who)
    check(batch)
    for k, image in enumerate(images):
        one = key(k)
        whole = VIEWS.render(image[None], VIEWS.plan(one), one)
        assert torch.equal(whole.box1[0], batch.box1[k])
        assert torch.equal(whole.box2[0], batch.box2[k])


def test_a_padded_crop_may_reach_beyond_the_image() -> None:
    padded = located_views(View(size=24, scale=None, padding=6, normalise=None))
    images, who = ramps(24, 24).expand(32, 3, 24, 24).contiguous(), key(*range(32))
    batch = padded.render(images, padded.plan(who), who)
    assert batch.box1.min() < 0
    inside = ((centres(batch.box1, 24, 24) > 0) & (centres(batch.box1, 24, 24) < 1)).all(dim=-1)
    assert ((shown(batch.x1) - centres(batch.box1, 24, 24)).abs().amax(dim=-1)[inside] < 0.008).all()


def test_the_plan_is_that_of_two_views() -> None:
    """So boxes depend on seed, epoch and index alone, and a resumed run sees what the whole one did."""
    who = key(3, 8, 1, seed=5, epoch=2)
    plan, other = VIEWS.plan(who), two_views(FIRST, SECOND).plan(who)
    assert plan.keys() == other.keys()
    assert all(torch.equal(plan[name], other[name]) for name in plan)


def test_the_loader_hands_boxes_on() -> None:
    """Large images, in chunks of several workers' size: boxes are those of the plan, sample by sample."""
    loader = Loader(World(60, size=128, split="train"), VIEWS, batch_size=40, seed=3, workers=0)
    (micro,) = loader.stream(0, 1)
    batch = VIEWS.render(micro.images, VIEWS.plan(micro.key), micro.key)
    box = boxes(FIRST, VIEWS.plan(micro.key)["view0"], 128, 128)
    left, right = box.left / 128, (box.left + box.width) / 128
    torch.testing.assert_close(batch.box1[:, 0], torch.where(box.flip, right, left).float())
    torch.testing.assert_close(batch.box1[:, 3], ((box.top + box.height) / 128).float())
    assert batch.x1.shape == (40, 3, 24, 24)
    loader.close()


def test_pictures_and_words_of_located_views() -> None:
    images, who = ramps(40, 40)[None].contiguous(), key(0)
    assert len(tiles(VIEWS, VIEWS.render(images, VIEWS.plan(who), who))) == 2
    assert pickle.loads(pickle.dumps(VIEWS)) == VIEWS
    assert VIEWS.describe().count("view ") == 2
    assert VIEWS.plain.size == 24


@pytest.mark.parametrize("other", [None, SECOND])
def test_one_view_stands_for_both(other: View | None) -> None:
    assert located_views(FIRST, other).views == (FIRST, other or FIRST)
