"""CPC's recipes against sheets 2 and 3."""

import math
from collections.abc import Callable

import pytest
import torch
from paper_size import IMAGENET, Width, at, one_step, rendered, scopes, small
from torch import nn
from torch.optim import Adam

from selfsight.encoders.build import build_encoder
from selfsight.encoders.norms import LayerNorm
from selfsight.evaluation.subject import crop_of
from selfsight.flags import Flags
from selfsight.keyed import Key
from selfsight.parts.forecast import DIRECTIONS, MaskedConvolutions, RowGRU
from selfsight.recipes.assembly import assemble, encoder_facts
from selfsight.recipes.catalogue import card
from selfsight.recipes.cpc import cpc, cpc_v2
from selfsight.recipes.recipe import Recipe, Setting
from selfsight.views.view import View


def large(name: str, size: int, **options: object) -> Setting:
    """ImageNet with the card's encoder."""
    facts = card(name)
    torch.manual_seed(0)
    encoder = build_encoder(facts.encoder, image_size=size, **{"norm": facts.norm, **facts.options})
    return Setting(encoder=encoder, image_size=size, samples=IMAGENET, **options)


def bare(size: int, **options: object) -> Setting:
    """The width of three stages, where the encoder is not looked at."""
    return Setting(encoder=Width(1024), image_size=size, samples=IMAGENET, **options)


def adam(recipe: Recipe) -> dict[str, object]:
    build = recipe.optimisers["main"].build
    assert (getattr(build, "func", build)) is Adam
    return getattr(build, "keywords", {})


@pytest.mark.slow
def test_cpc_at_the_papers_size() -> None:
    recipe = cpc(large("cpc", 256))
    method, spec, grid = recipe.method, recipe.optimisers["main"], recipe.views
    assert (recipe.epochs, recipe.batch_size) == (200, 512)
    assert adam(recipe) == {}
    assert {spec.lr(at(e, 200, 512)) for e in (0, 100, 200)} == {2e-4}
    assert spec.weight_decay.peak == 0
    assert (grid.side, grid.each.size, grid.stride, grid.each.padding) == (7, 64, 32, 2)
    assert (grid.views[0].grey, grid.views[0].flip, grid.each.flip) == (1.0, 0.5, 0)
    assert grid.views[0].scale[0] ** 0.5 * 300 == pytest.approx(256)
    assert method.encoder.width == 1024
    assert scopes(method) == set()  # no batch norm anywhere
    assert not any(isinstance(m, LayerNorm) for m in method.modules())
    assert tuple(method.ahead) == (1, 2, 3, 4, 5)
    assert list(method.forecasts) == ["down"]
    forecast = method.forecasts["down"]
    assert isinstance(forecast.target, nn.Identity)
    assert [(p.in_features, p.out_features, p.bias) for p in forecast.predictors] == [(1024, 1024, None)] * 5
    assert forecast.context.blocks[0].layers[0].out_channels == 256
    assert (method.scale, method.average) == (1.0, True)
    loss, moved = one_step(recipe, rendered(recipe))
    assert 0 < loss < 3 * math.log(98)
    assert moved > 0


@pytest.mark.slow
def test_cpc_v2_at_the_papers_size() -> None:
    recipe = cpc_v2(large("cpc_v2", 260))
    method, spec, grid = recipe.method, recipe.optimisers["main"], recipe.views
    assert (recipe.epochs, recipe.batch_size) == (200, 512)
    assert adam(recipe) == {"betas": (0.8, 0.999), "eps": 1e-8}
    assert (spec.lr.peak, spec.weight_decay.peak, spec.clip, spec.clip_each) == (4e-4, 1e-5, 0.01, "all")
    assert (grid.side, grid.each.size, grid.stride) == (6, 80, 36)
    assert (grid.views[0].flip, grid.each.flip, grid.drop, grid.primitives) == (0, 0.5, 0.25, 2)
    assert method.encoder.width == 1024
    assert scopes(method) == set()
    assert any(isinstance(m, LayerNorm) for m in method.encoder.modules())
    assert tuple(method.ahead) == (3, 4, 5)
    assert tuple(method.forecasts) == DIRECTIONS
    assert (method.scale, method.average) == (0.1, False)
    for forecast in method.forecasts.values():
        assert isinstance(forecast.context, MaskedConvolutions)
        assert len(forecast.context.blocks) == 5
        assert forecast.context.blocks[0].layers[0].out_channels == 256
        heads = [*forecast.predictors, forecast.target]
        assert [(p.in_features, p.out_features) for p in heads] == [(1024, 64)] * 4
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss == pytest.approx(12 * math.log(72), rel=0.05)  # small at first: predictions times 0.1
    assert moved > 0


def test_small_images_follow_greedy_infomax_and_bolts() -> None:
    recipe = cpc(small(image_size=64))
    assert (recipe.epochs, recipe.batch_size, tuple(recipe.method.ahead)) == (300, 32, (2, 3, 4, 5, 6))
    assert (recipe.views.side, recipe.views.each.size, recipe.views.stride) == (7, 16, 8)
    assert recipe.views.views[0].scale == ((64 / 96) ** 2,) * 2
    assert recipe.views.each.normalise.mean == (0.412,) * 3
    second = cpc_v2(small())
    assert (second.epochs, second.batch_size, tuple(second.method.ahead)) == (300, 128, (3, 4, 5))
    assert adam(second) == {"betas": (0.8, 0.999), "eps": 1e-7}
    assert (second.optimisers["main"].lr.peak, second.optimisers["main"].clip) == (1e-4, None)
    assert (second.views.side, second.views.each.size, second.views.stride) == (7, 8, 4)
    whole: View = second.views.views[0]
    assert (whole.scale, whole.padding, second.views.primitives) == (None, 4, 0)


@pytest.mark.parametrize("size", [28, 32, 48, 64, 96, 128, 192, 224, 256, 260, 384])
def test_patches_fill_images_of_any_size(size: int) -> None:
    for name, function in (("cpc", cpc), ("cpc_v2", cpc_v2)):
        views = function(bare(size)).views
        assert views.side == (6 if name == "cpc_v2" and size > 96 else 7)
        assert (views.side - 1) * views.stride + views.each.size == views.views[0].size


def test_flags() -> None:
    recipe = cpc(
        bare(64, batch_size=8, epochs=3), context="gru", width=96, steps=2, skip=0, patch=32, stride=16, grey=0.5
    )
    assert (recipe.epochs, recipe.batch_size, tuple(recipe.method.ahead)) == (3, 8, (1, 2))
    forecast = recipe.method.forecasts["down"]
    assert isinstance(forecast.context, RowGRU)
    assert [(p.in_features, p.out_features) for p in forecast.predictors] == [(96, 1024)] * 2
    assert recipe.views.side == 3
    assert not recipe.views.plain.grey
    assert cpc(bare(64), everywhere=False).method.everywhere is False
    assert len(cpc(bare(64), depth=2).method.forecasts["down"].context.blocks) == 2
    second = cpc_v2(
        bare(224), nearest=2, farthest=4, directions="two", projection=32, depth=3, colour_drop=0, primitives=1
    )
    assert tuple(second.method.ahead) == (2, 3, 4)
    assert tuple(second.method.forecasts) == ("down", "up")
    assert second.method.forecasts["up"].target.out_features == 32
    assert len(second.method.forecasts["up"].context.blocks) == 3
    assert (second.views.drop, second.views.primitives) == (0, 1)


@pytest.mark.parametrize(("function", "grey"), [(cpc, True), (cpc_v2, False)])
def test_what_was_learnt_in_grey_is_probed_and_tuned_in_grey(function: Callable[..., Recipe], grey: bool) -> None:
    """The crops of linear-sgd and of fine-tuning: grey images are what the encoder and the test know."""
    crop = crop_of(function(small(image_size=64)).views.plain)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    key = Key(0, torch.zeros(4, dtype=torch.long), torch.arange(4))
    for views in (crop, crop.plain):
        x = views.render(images, views.plan(key), key).x
        assert torch.equal(x[:, 0], x[:, 1]) == grey
        assert torch.equal(x[:, 0], x[:, 2]) == grey


def test_shares_and_strides_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="--grey is 2; it is a share"):
        cpc(small(), grey=2.0)
    with pytest.raises(ValueError, match="7 patches an axis, 6 px apart, do not fit into 32 px; give --patch too"):
        cpc(small(), stride=6)
    with pytest.raises(ValueError, match=r"probability from 0 to 1, not 1\.5"):
        cpc_v2(small(), colour_drop=1.5)
    with pytest.raises(ValueError, match="0 or more primitives, not -1"):
        cpc_v2(small(), primitives=-1)


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows \[2, 3, 4, 5, 6, 7\] ahead cannot be predicted on a grid of 7 rows"):
        cpc(small(), steps=6)
    with pytest.raises(ValueError, match="do not fit twice into a view of 32 px"):
        cpc(small(), patch=30, stride=4)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 does not encode patches of 8 px; use a convolutional"):
        cpc(Setting(encoder=encoder, image_size=32, samples=100))


@pytest.mark.parametrize(("name", "norm"), [("cpc", "none"), ("cpc_v2", "layer")])
def test_every_backbone_is_built_without_batch_norm(name: str, norm: str) -> None:
    default = assemble(name, Flags(batch_size=8), {}, samples=64, native=(3, 32, 32))
    other = assemble(name, Flags(batch_size=8, backbone="mobilenetv3_small_050"), {}, samples=64, native=(3, 32, 32))
    for made, backbone, kind in ((default, "resnet18", norm), (other, "mobilenetv3_small_050", "layer")):
        assert made.encoder.name == backbone
        assert made.encoder.options == {"norm": kind}
        assert made.resolved["backbone_options"] == {"norm": kind}
        assert scopes(made.encoder) == set()
    settings = {"method": name, "data": {"name": "d"}, "resolved": default.resolved, "selfsight": "0"}
    assert encoder_facts(default, settings).get("grey", False) == (name == "cpc")


def test_large_images_take_three_stages() -> None:
    made = assemble("cpc_v2", Flags(batch_size=8), {}, samples=64, native=None)
    assert made.encoder.options == {"norm": "layer", "layers": [3, 4, 6]}
    assert (made.encoder.width, made.resolved["image_size"]) == (1024, 224)
