"""The recipes of PixPro and PixContrast against sheet 14's table."""

from dataclasses import replace

import pytest
from paper_size import at, large, one_step, rendered, scopes, small
from torch import nn

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.losses.pixels import pixel_consistency, pixel_contrast
from selfsight.recipes.pixpro import pixcontrast, pixpro
from selfsight.recipes.recipe import Recipe, Setting, skip_vectors
from selfsight.views import augment


def convolutions(head: nn.Module) -> list[tuple[int, int, bool]]:
    found = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    return [(layer.in_channels, layer.out_channels, layer.bias is not None) for layer in found]


def the_papers(recipe: Recipe) -> None:
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (400, 1024)
    assert spec.build.func is LARS
    assert spec.build.keywords == {"momentum": 0.9, "eta": 1e-3, "variant": "byol"}
    assert spec.groups is skip_vectors
    rates = [spec.lr(at(epoch, 400, 1024)) for epoch in (0, 5, 202.5, 400)]
    assert rates == pytest.approx([0.04, 4.0, 2.0, 1e-6], rel=1e-2)
    assert spec.weight_decay(at(0, 400, 1024)) == 1e-5
    assert convolutions(method.projector) == [(2048, 4096, True), (4096, 256, True)]
    momenta = [method.momentum(at(epoch, 400, 1024)) for epoch in (0, 200, 400)]
    assert momenta == pytest.approx([0.99, 0.995, 1.0])
    assert method.threshold == 0.7
    assert scopes(method) == {"all"}
    views = [replace(augment.barlow_twins(224, view=view), interpolation="bilinear") for view in (1, 2)]
    assert recipe.views.views == tuple(views)
    assert [(view.blur.p, view.blur.kernel) for view in views] == [(1.0, None), (0.1, None)]
    assert [view.solarise and view.solarise.p for view in views] == [None, 0.2]


@pytest.mark.slow
def test_pixpro_s_paper() -> None:
    recipe = pixpro(large())
    the_papers(recipe)
    method = recipe.method
    assert method.loss is pixel_consistency
    assert (method.propagation.gamma, convolutions(method.propagation)) == (2.0, [(256, 256, True)])
    assert method.instance_projector is None
    batch = rendered(recipe)
    assert method.encoder.dense(batch.x1).shape == (2, 2048, 7, 7)
    loss, moved = one_step(recipe, batch)
    assert -4 <= loss <= 4
    assert moved > 0


@pytest.mark.slow
def test_pixcontrast_s_paper() -> None:
    recipe = pixcontrast(large())
    the_papers(recipe)
    method = recipe.method
    assert (method.loss.func, method.loss.keywords) == (pixel_contrast, {"temperature": 0.3})
    assert isinstance(method.propagation, nn.Identity)
    loss, moved = one_step(recipe, rendered(recipe))
    assert 0 < loss < 4 + 2 / 0.3
    assert moved > 0


@pytest.mark.parametrize("recipe", [pixpro, pixcontrast])
def test_small_images_keep_the_papers_settings_but_for_batch_and_views(recipe: type) -> None:
    built = recipe(small())
    spec = built.optimisers["main"]
    assert (built.epochs, built.batch_size, spec.lr.peak) == (400, 256, 1.0)
    assert spec.weight_decay(at(0, 400, 256, 50_000)) == 1e-5
    assert convolutions(built.method.projector) == [(512, 4096, True), (4096, 256, True)]
    assert built.views.views == tuple(augment.small(32, kind="asymmetric", view=view) for view in (1, 2))


def test_flags() -> None:
    options = {"hidden": 16, "projection": 8, "threshold": 0.5, "momentum": 0.9}
    method = pixpro(small(), gamma=3.0, transform_layers=2, instance_weight=0.5, **options).method
    assert (method.propagation.gamma, method.threshold, method.instance_weight) == (3.0, 0.5, 0.5)
    assert convolutions(method.propagation) == [(8, 8, True), (8, 8, True)]
    assert convolutions(method.instance_projector) == [(512, 16, True), (16, 8, True)]
    assert convolutions(method.instance_predictor) == [(8, 16, True), (16, 8, True)]
    assert method.momentum(at(0, 400, 256, 50_000)) == pytest.approx(0.9)
    assert isinstance(pixpro(small(), transform_layers=0, **options).method.propagation.transform, nn.Identity)
    assert pixcontrast(small(), temperature=0.1, **options).method.loss.keywords == {"temperature": 0.1}


def test_flags_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="--transform-layers must be 0, 1 or 2, not 3"):
        pixpro(small(), transform_layers=3)
    with pytest.raises(ValueError, match="--gamma and --instance-weight must be at least 0, not -1 and 0"):
        pixpro(small(), gamma=-1)
    with pytest.raises(ValueError, match="--threshold must be greater than 0"):
        pixcontrast(small(), threshold=0)


@pytest.mark.parametrize("recipe", [pixpro, pixcontrast])
def test_the_feature_of_a_transformer_is_the_mean_of_its_patches(recipe: type) -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    recipe(Setting(encoder=encoder, image_size=32, samples=100), hidden=8, projection=8)
    assert encoder.model.global_pool == "avg"  # type: ignore[union-attr]  # no loss reads the class token
