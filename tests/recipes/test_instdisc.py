"""InstDisc's and NCE's recipes against the tables of sheets 17 and 1."""

import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
from paper_size import IMAGENET, at, large, layers, one_step, rendered, scopes, small
from stand_ins import SmallEncoder, two_views
from torch import nn
from torch.nn.functional import normalize
from torch.optim import SGD, AdamW

from selfsight.batches import Images
from selfsight.engine.machine import Machine
from selfsight.engine.update import Updater
from selfsight.flags import Flags
from selfsight.method import drive
from selfsight.recipes.assembly import assemble
from selfsight.recipes.instdisc import instdisc, nce
from selfsight.recipes.quick import on_the_world, quick
from selfsight.recipes.recipe import Group
from selfsight.schedules import constant
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
    assert view == replace(augment.moco_v1(32), flip=0.0, order=view.order, normalise=augment.CIFAR10_BY_IMAGE)


def test_nce_learns_a_constant_with_an_optimiser_of_its_own() -> None:
    recipe = nce(small())
    spec, method = recipe.optimisers["main"], recipe.method
    assert (method.negatives, method.temperature, method.partition.kind) == (4096, 0.1, "learnt")
    named = {name: dict(pairs) for name, pairs in method.trainables().items()}
    assert named["constant"].keys() == {"partition.log_z"}
    assert named["constant"]["partition.log_z"].item() == pytest.approx(math.log(50_000))
    assert "partition.log_z" not in named["main"]
    for name in ("encoder.norm.weight", "projector.0.bias"):
        assert spec.groups(name, named["main"][name]) == Group()
    own = recipe.optimisers["constant"]
    assert (own.build, own.lr(at(0, 200, 128)), own.lr(at(199, 200, 128)), own.clip) == (SGD, 0.5, 0.5, 1.0)
    assert own.weight_decay(at(0, 200, 128)) == 0
    assert nce(small(image_size=224)).method.temperature == 0.07
    for z in ("fixed", "estimated"):
        assert list(nce(small(), z=z).optimisers) == ["main"]


def test_a_quick_optimiser_leaves_the_constants_alone() -> None:
    recipe = nce(small())
    for quicker in (quick(recipe), on_the_world(recipe)):
        assert quicker.optimisers["main"].build is AdamW
        assert quicker.optimisers["constant"] is recipe.optimisers["constant"]


@pytest.mark.parametrize("optimiser", ["paper", "adamw"])
def test_flags_for_the_network_leave_the_constant_alone(optimiser: str) -> None:
    """Above 2 its rate would make it swing ever wider, and decay would draw it to 0, where it is no estimate."""
    flags = Flags(backbone="tiny_cnn", batch_size=8, optimiser=optimiser, lr=0.3, weight_decay=0.01)
    recipe, now = assemble("nce", flags, {}, samples=64, native=(3, 32, 32)).recipe, at(100, 200, 8, 64)
    main, own = recipe.optimisers["main"], recipe.optimisers["constant"]
    assert (main.lr.peak, main.weight_decay(now)) == pytest.approx((0.3, 0.01))
    assert (own.lr(now), own.weight_decay(now)) == (0.5, 0.0)


@pytest.mark.parametrize("off", [-6.0, 6.0])
def test_the_constant_comes_back_from_far_off(off: float) -> None:
    """As where an untrained network makes all embeddings alike: scores rise by the inverse temperature within updates.

    Then too small a constant holds all noise for data, whose own gradient is gone.
    """
    torch.manual_seed(0)
    recipe = nce(small(encoder=SmallEncoder(), samples=40), negatives=200, projection=4, temperature=0.5)
    method, main = recipe.method.double(), recipe.optimisers["main"]
    still = replace(recipe, optimisers={**recipe.optimisers, "main": replace(main, lr=constant(0.0))})
    updater = Updater(still, Machine(torch.device("cpu"), 0, 1, "32", torch.enable_grad), 1)
    bank, log_z = method.bank.vectors.clone(), method.partition.log_z
    batch = Images(two_views(32, dtype=torch.float64).x1, torch.arange(32))
    f = normalize(method.projector(method.encoder(batch.x)), dim=1)
    exact = (f @ bank.T / 0.5).logsumexp(dim=1).mean().item()
    with torch.no_grad():
        log_z.fill_(exact + off)
    for k in range(40):
        before = log_z.item()
        torch.manual_seed(k)
        updater.begin(at(0, 200, 128), first=True, last=True)
        drive(method.step(batch, at(0, 200, 128)), updater)
        assert abs(log_z.item() - before) <= 0.5 + 1e-9
        method.bank.vectors.copy_(bank)
    assert abs(log_z.item() - exact) < 0.5


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


def test_words_that_are_no_choice_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user meets them, whom no type checker warns."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="--loss is 'info'; choose nce or softmax"):
        instdisc(small(), loss="info")
    with pytest.raises(ValueError, match="kind is 'learned'; choose learnt, fixed, estimated"):
        nce(small(), z="learned")
