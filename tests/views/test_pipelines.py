"""Pipelines: plans by key, cuts, batches, masks, the plain view."""

import pickle

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF  # noqa: N812

from selfsight.batches import Images, MaskedImages, MultiCrop, TwoViews
from selfsight.keyed import Key
from selfsight.views.pipelines import Pipeline, masked_view, multi_crop, one_view, plain_view, two_views
from selfsight.views.view import IMAGENET, Blur, Jitter, Solarise, View

STRONG = View(
    size=32, jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), grey=0.2, blur=Blur(0.5), solarise=Solarise(0.2), normalise=None
)
SMALL = View(size=16, scale=(0.05, 0.4), grey=0.2, normalise=None)


def key(*index: int, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, torch.full((len(index),), epoch), torch.tensor(index))


def pipelines() -> list[Pipeline]:
    return [
        one_view(STRONG),
        two_views(STRONG, View(size=32, grey=1.0, normalise=None)),
        multi_crop([STRONG, STRONG], [SMALL] * 3),
        masked_view(STRONG, patch=4, ratio=0.75),
    ]


@pytest.mark.parametrize("views", pipelines())
def test_a_plan_depends_on_seed_epoch_and_index_alone(views: Pipeline) -> None:
    whole = views.plan(key(*range(40)))
    for other, same in (
        (views.plan(key(7, 31, 2)), True),
        (views.plan(key(7, 31, 2, seed=1)), False),
        (views.plan(key(7, 31, 2, epoch=1)), False),
    ):
        assert whole.keys() == other.keys()
        for name in whole:
            assert torch.equal(whole[name][[7, 31, 2]], other[name]) == same
    streams = [u for name, u in whole.items() if name != "mask"]
    assert all(not torch.equal(streams[0], stream) for stream in streams[1:])


def tensors(batch: tuple) -> list[Tensor]:
    """The images of a batch, whatever its type."""
    found = []
    for field in batch:
        found += field if isinstance(field, tuple) else [field]
    return [x for x in found if x.ndim == 4]


@pytest.mark.parametrize("views", pipelines())
def test_images_are_cut_together_as_each_alone(views: Pipeline) -> None:
    """Of any sizes, tall and wide ones that no drawn crop may fit, in any memory layout."""
    sizes = [(48, 56), (200, 20), (21, 190), (33, 33), (64, 48)]
    images = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8).permute(2, 0, 1) for h, w in sizes]
    plan = views.plan(key(*range(5)))
    together = views.cut(images, plan)
    for k, image in enumerate(images):
        alone = views.cut([image.contiguous()], {name: u[k : k + 1] for name, u in plan.items()})
        for whole, one in zip(together, alone, strict=True):
            assert torch.equal(whole[k], one[0])


@pytest.mark.parametrize("views", pipelines())
@pytest.mark.parametrize("channels", [3, 1])
def test_cut_and_render_is_rendering_whole_images(views: Pipeline, channels: int) -> None:
    coarse = torch.rand(24, channels, 6, 7, generator=torch.Generator().manual_seed(0))
    images = (torch.nn.functional.interpolate(coarse, (48, 56), mode="bilinear") * 255).to(torch.uint8)
    who = key(*range(24))
    plan = views.plan(who)
    stacks = views.cut(list(images), plan)
    assert all(stack.dtype == torch.uint8 for stack in stacks)
    assert len(stacks) == len({view.size for view in views.views})
    whole, from_cuts = views.render(images, plan, who), views.render(stacks, plan, who)
    assert type(whole) is type(from_cuts)
    for x, y in zip(tensors(whole), tensors(from_cuts), strict=True):
        assert x.shape == y.shape
        gap = (x - y).abs() * 255
        assert gap.mean() < 2  # a cut is rounded to uint8, and saturated colours magnify that
        assert gap.quantile(0.99) < 8
        assert not torch.equal(x, x.flip(-1))


def test_batches_have_their_types_shapes_and_indices() -> None:
    images, who = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8), key(9, 8, 7, 6, 5, 4)
    one, two, crops, masked = (views.render(images, views.plan(who), who) for views in pipelines())
    assert isinstance(one, Images)
    assert isinstance(two, TwoViews)
    assert isinstance(crops, MultiCrop)
    assert isinstance(masked, MaskedImages)
    assert not torch.equal(two.x1, two.x2)
    assert torch.equal(two.x2[:, 0], two.x2[:, 1])  # the second view is always grey
    assert [x.shape[-1] for x in (*crops.large, *crops.small)] == [32, 32, 16, 16, 16]
    for batch in (one, two, crops, masked):
        assert torch.equal(batch.index, who.index)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.1])
def test_masks_partition_the_patches_at_random(ratio: float) -> None:
    views, who = masked_view(View(size=32), patch=4, ratio=ratio), key(*range(500))
    batch = views.render(torch.zeros(500, 3, 32, 32, dtype=torch.uint8), views.plan(who), who)
    both = torch.cat([batch.visible, batch.masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(64).expand(500, 64))
    assert batch.visible.shape[1] == int(64 * (1 - ratio))
    often = torch.bincount(batch.masked.flatten(), minlength=64) / 500
    spread = (ratio * (1 - ratio) / 500) ** 0.5
    assert (often - batch.masked.shape[1] / 64).abs().max() < 4.5 * spread


def test_pipelines_travel_to_workers_and_describe_themselves() -> None:
    for views in pipelines():
        again = pickle.loads(pickle.dumps(views))
        assert again == views
        assert again.describe().count("view ") == len(views.views)


def test_the_plain_view_is_the_evaluation_view_and_needs_no_plan() -> None:
    plain = two_views(View(size=112, normalise=IMAGENET)).plain
    assert plain == plain_view(112, IMAGENET, resize=128)
    assert plain.plain == plain
    images, who = torch.randint(0, 256, (3, 3, 150, 170), dtype=torch.uint8), key(5, 6, 7)
    plan = plain.plan(who)
    cut = plain.cut(list(images), plan)[0]
    theirs = TF.center_crop(TF.resize(images, [128], antialias=True), [112, 112])
    expected = TF.normalize(theirs.float() / 255, *IMAGENET)
    for batch in (plain.render(images, plan, who), plain.render([cut], plan, who)):
        assert torch.equal(batch.index, who.index)
        assert ((batch.x - expected).abs() * 0.229 * 255).max() <= 2


def test_the_plain_view_of_small_images_changes_nothing() -> None:
    images, who = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8), key(1, 2, 3)
    plain = plain_view(32, None)
    assert torch.equal(plain.render(images, {}, who).x, images.float() / 255)
    assert torch.equal(plain.cut([images[0]], {})[0][0, 0], images[0])


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="at least two large views, not 1"):
        multi_crop([STRONG])
    with pytest.raises(ValueError, match="patch 5 does not divide a view of 32 px"):
        masked_view(STRONG, patch=5, ratio=0.75)
    with pytest.raises(ValueError, match=r"mask ratio 1.0 of 64 patches"):
        masked_view(STRONG, patch=4, ratio=1.0)
    with pytest.raises(ValueError, match="resize=20 is smaller"):
        plain_view(32, None, resize=20)
