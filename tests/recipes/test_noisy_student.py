"""Noisy Student's recipe against its sheet and the official scripts; which images a student is shown."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paper_size import Width, at, one_step
from timm.layers import DropPath
from timm.optim.rmsprop_tf import RMSpropTF

from selfsight.batches import Images
from selfsight.data.order import SHUFFLED, Mixed
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.errors import UserError
from selfsight.evaluation.answers import as_rows
from selfsight.evaluation.finetune import labelled_fraction
from selfsight.recipes.noisy_student import noisy_student
from selfsight.recipes.recipe import Recipe, Setting

LABELS = np.arange(4000) % 4


def answers(folder: Path, positions: np.ndarray, probabilities: np.ndarray) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers.json").write_text(json.dumps({"parts": 1}))
    np.save(folder / "part-00000.npy", as_rows(positions, probabilities))
    return str(folder)


def others(fraction: float) -> np.ndarray:
    return np.setdiff1d(np.arange(4000), labelled_fraction(LABELS, fraction, seed=0))


def told(n: int, right: float = 0.7) -> np.ndarray:
    p = np.full((n, 4), (1 - right) / 3)
    p[np.arange(n), np.arange(n) % 4] = right
    return p


def named(name: str, size: int = 224) -> Recipe:
    """The recipe of a backbone of that name, opened without data."""
    encoder: Any = Width(32)
    encoder.name = name
    where = Setting(encoder=encoder, image_size=size, samples=10**7, classes=1000, training=False)
    return noisy_student(where, teacher="any")


@pytest.mark.parametrize(
    ("name", "epochs", "ratio", "dropout", "magnitude"),
    [
        ("efficientnet_b0", 700, 1, 0.2, 0),
        ("tf_efficientnet_b2", 700, 3, 0.3, 6),
        ("tf_efficientnet_b5.ns_jft_in1k", 350, 3, 0.4, 18),
        ("tf_efficientnet_b7", 350, 3, 0.5, 27),
        ("tf_efficientnet_l2.ns_jft_in1k_475", 350, 3, 0.5, 27),
        ("resnet50", 350, 3, 0.5, 27),
    ],
)
def test_the_scripts_settings(name: str, epochs: int, ratio: int, dropout: float, magnitude: float) -> None:
    recipe = named(name)
    method, view = recipe.method, recipe.views
    assert (recipe.epochs, recipe.batch_size) == (epochs, 2048 * (1 + ratio))
    assert (method.ratio, method.dropout.p, method.smoothing, method.average) == (ratio, dropout, 0.1, 0.9999)
    assert (view.layers, view.magnitude, view.hole) == (2, magnitude, 0)
    assert (view.views[0].scale, view.views[0].flip, view.views[0].interpolation) == ((0.08, 1.0), 0.5, "bicubic")
    assert (method.temperature, method.hard) == (1.0, False)


def test_the_rate_of_imagenet() -> None:
    """0.128 for 2048 labelled images, 5 epochs up to it, then 0.97 every 2.4 epochs."""
    lr = named("tf_efficientnet_b7").optimisers["main"].lr
    found = [lr(at(epoch, 350, 2048)) for epoch in (2.5, 5.1, 7.3, 24.1, 349)]
    falls = [0, 2, 3, 10, 145]
    assert found[0] == pytest.approx(0.064, rel=2e-3)
    assert found[1:] == pytest.approx([0.128 * 0.97**k for k in falls[1:]], rel=1e-9)
    assert named("efficientnet_b0").optimisers["main"].lr(at(24.1, 700, 2048)) == pytest.approx(0.128 * 0.97**5)


def test_svhns_settings() -> None:
    recipe = named("efficientnet_b0", size=32)
    assert (recipe.epochs, recipe.batch_size, recipe.method.ratio) == (202, 128 * 6, 5)
    assert (recipe.views.magnitude, recipe.views.hole, recipe.views.views[0].padding) == (5, 0.25, 4)
    main = recipe.optimisers["main"]
    assert main.lr.peak == pytest.approx(0.008)
    every = (202 - 5) / (math.log(0.0002 / 0.016) / math.log(0.97))  # as main.py has it: 147 falls, to an 88th
    assert main.lr(at(201.9, 202, 128, samples=69_257)) == pytest.approx(0.008 * 0.97 ** (201.9 // every))
    assert main.weight_decay(at(0, 202, 128)) == 1e-4


def test_the_optimiser_spares_batch_norms_alone() -> None:
    encoder = build_encoder("efficientnet_b0", image_size=32)
    recipe = noisy_student(Setting(encoder=encoder, image_size=32, samples=100, classes=4, training=False))
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, method.trainables()["main"])
    assert isinstance(optimiser, RMSpropTF)
    group = optimiser.param_groups[0]
    assert (group["alpha"], group["momentum"], group["eps"]) == (0.9, 0.9, 1e-3)
    named_groups = {name: spec.groups(name, p).decay for name, p in method.trainables()["main"]}
    assert {name.split(".")[0] for name in named_groups} == {"online", "online_classifier"}
    spared = {name for name, decay in named_groups.items() if not decay}
    assert all(".bn" in name for name in spared)
    assert named_groups["online_classifier.bias"]
    assert len(spared) == 2 * sum("bn" in n.rsplit(".", 1)[-1] for n, _ in method.online.named_modules())
    rates = [m.drop_prob for m in method.online.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.2 * 15 / 16)


def test_a_student_is_shown_labels_and_balanced_answers(tmp_path: Path) -> None:
    rest = others(0.1)
    p = told(len(rest))
    p[: len(rest) // 2] = told(len(rest) // 2, right=0.28)  # under the threshold
    folder = answers(tmp_path / "a", rest, p)
    where = Setting(
        encoder=build_encoder("tiny_cnn", image_size=32),
        image_size=32,
        samples=4000,
        batch_size=40,
        labels=LABELS,
        classes=4,
    )
    recipe = noisy_student(where, teacher="any", answers=folder, fraction=0.1, ratio=3)
    kept = labelled_fraction(LABELS, 0.1, seed=0)
    images = recipe.images
    assert images is not None
    assert np.array_equal(images[: len(kept)], kept)
    assert not set(images[len(kept) :].tolist()) & set(kept.tolist())
    assert len(images) == len(kept) + 4 * (len(rest) // 4), "each class its even share"
    method = recipe.method
    assert torch.equal(method.labels, torch.from_numpy(LABELS[kept]))
    place = torch.arange(len(kept), len(images))
    wanted = dict(zip(rest.tolist(), p, strict=True))
    found = method.targets(place).numpy()
    assert all(np.allclose(found[i], wanted[images[len(kept) + i]], atol=1e-6) for i in range(0, len(place), 97))
    assert found.max(axis=1).min() >= 0.3
    assert recipe.order == Mixed(labelled=len(kept), share=40, ratio=3)
    assert recipe.batch_size == 160
    again = noisy_student(where, teacher="any", answers=folder, fraction=0.1, ratio=3, per_class=30)
    assert np.bincount(again.method.targets(torch.arange(400, 520)).argmax(dim=1)).tolist() == [30] * 4


def test_the_first_teacher_has_labels_alone() -> None:
    where = Setting(
        encoder=build_encoder("tiny_cnn", image_size=32),
        image_size=32,
        samples=4000,
        batch_size=40,
        labels=LABELS,
        classes=4,
    )
    recipe = noisy_student(where, fraction=0.05)
    assert recipe.order == SHUFFLED
    assert (recipe.batch_size, recipe.method.ratio) == (40, 0)
    assert np.array_equal(recipe.images, labelled_fraction(LABELS, 0.05, seed=0))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    rest = others(0.1)
    unsure = answers(tmp_path / "unsure", rest, told(len(rest), right=0.26))
    known = answers(tmp_path / "known", np.arange(100), told(100))
    few = answers(tmp_path / "few", rest, np.eye(4)[np.zeros(len(rest), dtype=int)])

    def built(**hyper: Any) -> Recipe:
        encoder = build_encoder("tiny_cnn", image_size=32)
        where: dict[str, Any] = {"encoder": encoder, "image_size": 32, "samples": 4000, "labels": LABELS, "classes": 4}
        batch = hyper.pop("batch_size", 40)
        return noisy_student(Setting(**where, batch_size=batch), **{"fraction": 0.1, **hyper})

    for hyper, words in (
        ({"teacher": "any", "answers": unsure}, "no answer is as sure as --threshold 0.3"),
        ({"teacher": "any", "answers": few, "per_class": 10}, "5 x 40 unlabelled images, but 10 are kept"),
        ({"batch_size": 401}, "--batch-size counts labelled images; it is 401, but there are 400"),
        ({"fraction": 1.5}, "--fraction is 1.5"),
        ({"dropout": 1.0}, "--dropout is 1; it lies from 0 to below 1"),
        ({"drop_path": 0.2}, "--drop-path needs a backbone with residual branches"),
        ({"threshold": 1.0}, "--threshold is 1"),
        ({"ratio": 0}, "--ratio must be greater than 0"),
        ({"temperature": 0.0}, "--temperature must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=words):
            built(**hyper)
    for folder, words in (
        (known, "answers for images whose label is used"),
        (str(tmp_path / "no"), "no teacher's answers"),
    ):
        with pytest.raises(UserError, match=words):
            built(teacher="any", answers=folder)


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step(tmp_path: Path) -> None:
    """EfficientNet-B0 at 224 pixels: 2 labelled images and 2 of a teacher's."""
    torch.manual_seed(0)
    encoder = build_encoder("efficientnet_b0", image_size=224)
    folder = answers(tmp_path / "a", others(0.1), told(3600))
    where = Setting(encoder=encoder, image_size=224, samples=4000, batch_size=2, labels=LABELS, classes=4)
    recipe = noisy_student(where, teacher="any", answers=folder, fraction=0.1)
    index = torch.from_numpy(recipe.order(len(recipe.images), seed=0, round=0)[:4])
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    method: Any = recipe.method
    start = {name: p.detach().clone() for name, p in method.online.named_parameters()}
    loss, followed = one_step(recipe, Images(x, index), epoch=10)
    assert math.isfinite(loss)
    assert loss > 2 * 0.5  # two means of cross-entropies against targets that have an entropy
    assert followed > 0
    assert all(not torch.equal(start[name], p) for name, p in method.online.named_parameters() if p.grad is not None)
