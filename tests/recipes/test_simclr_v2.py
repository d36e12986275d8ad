"""SimCLR v2's recipes against sheet 9's table: pretraining, fine-tuning, distillation."""

import math

import numpy as np
import pytest
import torch
from paper_size import IMAGENET, Width, at, large, layers, one_step, rendered, scopes, small

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.recipes.distill import distill
from selfsight.recipes.finetune import finetune
from selfsight.recipes.recipe import Group, Setting
from selfsight.recipes.simclr import simclr
from selfsight.recipes.simclr_v2 import simclr_v2
from selfsight.views import augment
from selfsight.views.view import Normalise, View

VIEW = {"size": 224, "interpolation": "bicubic", "normalise": None, "grey": False}
BEFORE = {"method": "simclr_v2", "hyper": {}, "epochs": 800, "batch_size": 4096, "view": VIEW}


@pytest.mark.slow
def test_paper() -> None:
    recipe = simclr_v2(large())
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (800, 4096)
    assert (spec.build.func, spec.build.keywords) == (LARS, {"momentum": 0.9, "eta": 1e-3, "variant": "simclr"})
    assert spec.lr.peak == pytest.approx(6.4)
    assert spec.lr(at(20, 800, 4096)) == pytest.approx(3.2, rel=1e-3)
    assert spec.lr(at(40, 800, 4096)) == pytest.approx(6.4)
    assert spec.lr(at(420, 800, 4096)) == pytest.approx(3.2, rel=1e-3)
    assert spec.weight_decay(at(3, 800, 4096)) == 1e-4
    assert layers(recipe.method.projector) == [*["2048-2048", "bn[wb]", "ReLU"] * 2, "2048-128", "bn[w]"]
    assert recipe.method.projector[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert recipe.method.loss.keywords == {"temperature": 0.1}
    assert scopes(recipe.method) == {"all"}
    assert recipe.views.views == (augment.simclr(224),) * 2
    loss, moved = one_step(recipe)
    assert 0 < loss < math.log(3) + 20
    assert moved > 0


def test_small_images_are_simclrs() -> None:
    ours, theirs = simclr_v2(small()), simclr(small())
    assert (ours.epochs, ours.batch_size, ours.views) == (theirs.epochs, theirs.batch_size, theirs.views)
    assert layers(ours.method.projector) == layers(theirs.method.projector)
    a, b = ours.optimisers["main"], theirs.optimisers["main"]
    assert str(a.lr) == str(b.lr)
    assert str(a.weight_decay) == str(b.weight_decay)
    assert ours.method.loss.keywords == theirs.method.loss.keywords


def test_flags() -> None:
    recipe = simclr_v2(small(), temperature=0.2, projection=64, projection_layers=2, strength=0.0)
    assert recipe.method.loss.keywords == {"temperature": 0.2}
    assert layers(recipe.method.projector) == ["512-512", "bn[wb]", "ReLU", "512-64", "bn[w]"]
    assert recipe.views.views == (augment.simclr(32, strength=0.0, blur=False),) * 2


@pytest.mark.parametrize("name", ["skresnet50d", "wide_resnet50_2"])
@pytest.mark.slow
def test_the_encoders_that_its_page_names_are_timms(name: str) -> None:
    encoder = build_encoder(name, image_size=64)
    assert encoder.width == 2048
    assert (
        layers(simclr_v2(Setting(encoder=encoder, image_size=224, samples=IMAGENET)).method.projector)[0] == "2048-2048"
    )


def labelled(fraction: float, encoder: torch.nn.Module | None = None, **own: object):
    labels = np.arange(128_100) % 1000
    setting = Setting(encoder=encoder or Width(2048), image_size=224, samples=len(labels), labels=labels, classes=1000)
    return finetune(setting, fraction=fraction, pretext=BEFORE, **own)


@pytest.mark.parametrize(("fraction", "epochs", "kept"), [(0.01, 60, 1000), (0.1, 30, 13_000), (1.0, 30, 128_100)])
def test_fine_tuning(fraction: float, epochs: int, kept: int) -> None:
    recipe = labelled(fraction)
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size) == (epochs, 1024)
    assert (spec.build.func, spec.build.keywords["variant"]) == (LARS, "simclr")
    assert spec.lr(at(0, epochs, 1024)) == pytest.approx(0.16)  # 0.005 x √1024, and no warm-up
    assert spec.weight_decay(at(1, epochs, 1024)) == 0
    assert recipe.images is not None
    assert abs(len(recipe.images) - kept) <= 1000
    assert torch.equal(recipe.method.labels, torch.from_numpy(recipe.images % 1000))
    assert layers(recipe.method.projector) == ["2048-2048", "bn[wb]", "ReLU"]
    assert (recipe.method.classifier.in_features, recipe.method.classifier.out_features) == (2048, 1000)
    assert not recipe.method.classifier.weight.any()
    assert scopes(recipe.method) == {"all"}
    assert recipe.views.views == (View(size=224, scale=(0.08, 1.0), interpolation="bicubic", normalise=None),)
    weight, scale = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 3), (3,)))
    assert spec.groups("encoder.conv.weight", weight) == Group()
    assert spec.groups("encoder.norm.weight", scale) == Group(decay=False, adapt=False)
    assert spec.groups("classifier.weight", weight) == Group(decay=False, adapt=False)


@pytest.mark.slow
def test_one_step_of_fine_tuning_at_its_size() -> None:
    recipe = labelled(1.0, build_encoder("resnet50", image_size=224))
    torch.nn.init.normal_(recipe.method.classifier.weight, std=0.01)  # from zero no gradient reaches the encoder
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss == pytest.approx(math.log(1000), abs=3)
    assert moved > 0


def test_fine_tuning_from_other_layers() -> None:
    assert layers(labelled(1.0, head_layers=0).method.projector) == []
    assert len(layers(labelled(1.0, head_layers=3).method.projector)) == 8
    with pytest.raises(ValueError, match="the head has 3 layers; use 0 to 3"):
        labelled(1.0, head_layers=4)


def test_no_labels_no_fine_tuning() -> None:
    for labels in (None, np.full(10, -1)):
        setting = Setting(encoder=Width(8), image_size=224, samples=10, labels=labels)
        with pytest.raises(ValueError, match="no labels to fine-tune on; give --labels"):
            finetune(setting, pretext=BEFORE)


@pytest.mark.parametrize("fraction", [0.0, 10.0])
def test_a_share_is_no_percentage(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"--fraction is {fraction:g}; .*: 0.1 is 10 %"):
        labelled(fraction)


def student(setting: Setting, monkeypatch: pytest.MonkeyPatch, kind: str = "another", **own: object):
    teacher = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 7))
    teacher.encoder = torch.nn.Identity()
    teacher.encoder.name = kind
    monkeypatch.setattr("selfsight.recipes.distill.load_classifier", lambda run: teacher)
    return distill(setting, teacher="some/run", classes=list("abcdefg"), **{"pretext": BEFORE, **own})


def test_a_student_of_the_teachers_kind_learns_its_answers_sharpened(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = small(samples=1000, labels=np.arange(1000) % 7)
    setting.encoder.name = "resnet18"
    assert student(setting, monkeypatch, "resnet18").method.temperature == 0.1
    assert student(setting, monkeypatch, "resnet50").method.temperature == 1.0
    assert student(setting, monkeypatch, "resnet18", temperature=2.0).method.temperature == 2.0
    assert student(setting, monkeypatch, "resnet18", label_weight=0.5).method.temperature == 1.0


@pytest.mark.parametrize("method", ["mae", "amdim", "cpc"])
def test_the_student_need_not_be_what_the_pretraining_takes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolutional student of a transformer, or of AMDIM's encoder; it sees images as they did."""
    view = {"size": 224, "interpolation": "bilinear", "normalise": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], "grey": True}
    recipe = student(
        Setting(encoder=Width(8), image_size=224, samples=IMAGENET),
        monkeypatch,
        pretext={**BEFORE, "method": method, "view": view},
    )
    normalise = Normalise((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert recipe.views.views == (View(size=224, scale=(0.08, 1.0), grey=1.0, normalise=normalise),)
    assert (recipe.views.plain.normalise, recipe.views.plain.grey) == (normalise, True)


@pytest.mark.slow
def test_distillation(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = student(large(), monkeypatch)
    spec = recipe.optimisers["main"]
    assert (recipe.epochs, recipe.batch_size, recipe.images) == (400, 4096, None)
    assert spec.lr.peak == pytest.approx(6.4)
    assert spec.lr(at(10, 400, 4096)) == pytest.approx(3.2, rel=1e-3)
    assert spec.weight_decay(at(3, 400, 4096)) == 1e-4
    assert recipe.method.temperature == 1.0
    assert recipe.views.views == (View(size=224, scale=(0.08, 1.0), interpolation="bicubic", normalise=None),)
    assert recipe.method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss == pytest.approx(math.log(7), abs=0.7)
    assert moved > 0


def test_distillation_of_small_images_and_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.where(np.arange(1000) < 200, np.arange(1000) % 7, -1)
    setting = small(samples=1000, labels=labels)
    recipe = student(setting, monkeypatch, label_weight=0.5, fraction=0.1, temperature=2.0)
    assert (recipe.batch_size, recipe.optimisers["main"].lr.peak) == (512, 2.0)
    known = recipe.method.labels >= 0
    assert 14 <= int(known.sum()) <= 28, "a tenth of each class's labels, of all that are known"
    assert torch.equal(recipe.method.labels[known], torch.from_numpy(labels)[known])
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="--label-weight is"):
            student(setting, monkeypatch, label_weight=wrong)
    with pytest.raises(ValueError, match="--temperature must be greater than 0"):
        student(setting, monkeypatch, temperature=0.0)
    with pytest.raises(ValueError, match="--label-weight needs images with labels"):
        student(small(samples=1000), monkeypatch, label_weight=0.5)
