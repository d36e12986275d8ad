"""InstDisc's and NCE's recipes against the tables of sheets 17 and 1."""

import math
from dataclasses import replace

import pytest
from paper_size import IMAGENET, at, large, layers, one_step, rendered, scopes, small
from torch import nn
from torch.optim import SGD

from selfsight.recipes.instdisc import instdisc, nce
from selfsight.recipes.recipe import Group
from selfsight.views import augment


@pytest.mark.slow
def test_paper() -> None:
    recipe = instdisc(large())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 256)
    assert (spec.build.func, spec.build.keywords) == (SGD, {"momentum": 0.9})
    rates = [spec.lr(at(epoch, 200, 256)) for epoch in (0, 119.9, 120.1, 159.9, 160.1)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003])
    assert spec.weight_decay(at(0, 200, 256)) == 1e-4
    assert layers(method.projector) == ["2048-128+b"]
    assert method.bank.vectors.shape == (IMAGENET, 128)
    assert (method.temperature, method.negatives, method.momentum, method.proximal) == (0.07, 4096, 0.5, 0.0)
    assert method.partition.kind == "estimated"
    assert scopes(method) == {"rank"}
    assert recipe.views.views == (augment.moco_v1(224),)
    loss, moved = one_step(recipe, rendered(recipe))
    # right after the constant is set the mean density is uniform, so the loss is near, and below, that of noise
    assert 0.5 * 9.318 < loss < 9.318 + 5
    assert moved > 0
    assert method.partition.log_z.item() == pytest.approx(math.log(IMAGENET) + 0.8, abs=0.5)
    assert method.bank.vectors[:2].norm(dim=1).tolist() == pytest.approx([1, 1])


def test_small_images_follow_the_repositorys_cifar_command() -> None:
    recipe = instdisc(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (recipe.epochs, recipe.batch_size) == (200, 128)
    rates = [spec.lr(at(epoch, 200, 128, 50_000)) for epoch in (0, 119.9, 120.1, 160.1)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.0003])
    assert spec.weight_decay(at(0, 200, 128, 50_000)) == 5e-4
    assert layers(method.projector) == ["512-128+b"]
    assert method.bank.vectors.shape == (50_000, 128)
    assert (method.temperature, method.negatives, method.partition) == (0.1, 0, None)
    (view,) = recipe.views.views
    assert (view.scale, view.flip, view.grey, view.order[:2]) == ((0.2, 1.0), 0.0, 0.2, ("jitter", "grey"))
    assert view == replace(augment.moco_v1(32), flip=0.0, order=view.order, normalise=augment.CIFAR10)


def test_nce_learns_a_constant_that_does_not_decay() -> None:
    recipe = nce(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (method.negatives, method.temperature, method.partition.kind) == (4096, 0.1, "learnt")
    named = dict(method.trainables()["main"])
    assert named["partition.log_z"].item() == pytest.approx(math.log(50_000))
    assert spec.groups("partition.log_z", named["partition.log_z"]) == Group(decay=False)
    for name in ("encoder.norm.weight", "projector.0.bias"):
        assert spec.groups(name, named[name]) == Group()
    assert nce(small(image_size=224)).method.temperature == 0.07


def test_flags() -> None:
    method = instdisc(
        small(), loss="nce", negatives=64, temperature=0.3, bank_momentum=0.9, proximal=30, projection=32
    ).method
    assert (method.negatives, method.temperature, method.momentum, method.proximal) == (64, 0.3, 0.9, 30)
    assert method.partition.kind == "estimated"
    assert method.bank.vectors.shape == (50_000, 32)
    method = instdisc(small(image_size=224), loss="softmax", negatives=65536).method
    assert (method.partition, method.negatives) == (None, 65536)
    fixed = nce(small(), z="fixed", log_z=0.0).method.partition
    assert (fixed.kind, fixed.log_z.item()) == ("fixed", 0.0)
    assert not isinstance(fixed.log_z, nn.Parameter)
    for build, options, message in (
        (instdisc, {"bank_momentum": 1.0}, r"--bank-momentum must lie in \[0, 1\), not 1"),
        (instdisc, {"proximal": -1.0}, "at least 0, not 0 and -1"),
        (instdisc, {"loss": "nce", "negatives": 0}, "0 negatives"),
        (instdisc, {"temperature": 0.0}, "--temperature must be greater than 0"),
        (nce, {"z": "estimated", "log_z": 3.0}, "log Z is 3 but it is to be estimated"),
    ):
        with pytest.raises(ValueError, match=message):
            build(small(), **options)
