"""Fine-tuning: which labels a fraction keeps, the settings of each kind of encoder, and that it learns."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW

from selfsight.data.protocol import Source
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.evaluation.finetune import Tuning, finetune, labelled_fraction, optimiser_spec, standard_epochs
from selfsight.evaluation.subject import crop_of
from selfsight.views.pipelines import one_view, plain_view
from selfsight.views.view import View

Make = Callable[..., Source]


def test_a_fraction_is_balanced_like_the_data() -> None:
    labels = np.array([0] * 1000 + [1] * 400 + [2] * 30 + [-1] * 50)
    kept = labelled_fraction(labels, 0.1, seed=0)
    assert np.bincount(labels[kept]).tolist() == [100, 40, 3]
    assert len(np.unique(kept)) == len(kept)


def test_every_class_keeps_at_least_one_image() -> None:
    labels = np.repeat(np.arange(20), 9)
    assert np.bincount(labels[labelled_fraction(labels, 0.01, seed=0)]).tolist() == [1] * 20


def test_a_larger_fraction_holds_the_smaller_and_the_seed_chooses() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 500)
    small, large = (set(labelled_fraction(labels, f, seed=3).tolist()) for f in (0.1, 0.4))
    assert small < large
    assert small != set(labelled_fraction(labels, 0.1, seed=4).tolist())
    assert set(labelled_fraction(labels, 1.0, seed=3).tolist()) == set(range(500))


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.1])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction of labels"):
        labelled_fraction(np.arange(3), fraction, seed=0)


def test_lengths_are_the_papers() -> None:
    assert [standard_epochs(f, tokens=False) for f in (0.01, 0.1, 1.0)] == [60, 30, 30]
    assert [standard_epochs(f, tokens=True) for f in (0.01, 0.1, 1.0)] == [60, 30, 100]


def tuning(optimiser: str, decay: float) -> Tuning:
    return Tuning(fraction=1.0, labelled=9, epochs=1, batch_size=512, optimiser=optimiser, lr=0.1, layer_decay=decay)


def test_transformers_get_layer_wise_decay_and_convolutions_sgd() -> None:
    vit = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=2)
    spec = optimiser_spec(tuning("adamw", 0.5), vit)
    groups = build_optimiser(spec, vit.named_parameters()).param_groups
    assert isinstance(spec.build, partial)
    assert spec.build.func is AdamW
    assert {round(group["lr_scale"], 6) for group in groups} == {0.125, 0.25, 0.5, 1.0}
    assert sum(len(group["params"]) for group in groups) == len(list(vit.parameters()))
    flat = build_optimiser(optimiser_spec(tuning("adamw", 1.0), vit), vit.named_parameters()).param_groups
    assert {group["lr_scale"] for group in flat} == {1.0}
    sgd = optimiser_spec(tuning("sgd", 1.0), build_encoder("small_cnn", image_size=32))
    assert isinstance(sgd.build, partial)
    assert (sgd.build.func, sgd.build.keywords) == (SGD, {"momentum": 0.9, "nesterov": True})
    assert sgd.lr.peak == pytest.approx(0.2)  # pyright: ignore[reportFunctionMemberAccess]


def test_learns_and_leaves_the_encoder_alone(encoder, pictures: Make) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    mild = one_view(View(size=16, scale=(0.9, 1.0), flip=0.0, normalise=None))
    losses: list[float] = []
    got, how = finetune(
        encoder,
        pictures(160),
        pictures(80, seed=1),
        crop=mild,
        plain=plain_view(16, None),
        classes=4,
        epochs=6,
        batch_size=32,
        lr=1.0,
        progress=lambda clock, loss: losses.append(loss),
    )
    assert losses[0] == pytest.approx(np.log(4), abs=1e-5)  # a classifier from zero knows nothing
    assert got.top1 > 0.85
    assert (how.optimiser, how.epochs, how.batch_size, how.labelled) == ("sgd", 6, 32, 160)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
HYBRID = {"name": "convvit_tiny", "patch_size": 8, "depths": (1, 1, 1), "widths": (8, 12, 24), "heads": 2}


@pytest.mark.parametrize("of", [VIT, HYBRID], ids=lambda of: of["name"])
def test_a_transformer_is_tuned_with_adamw(of: dict, pictures: Make) -> None:
    vit = build_encoder(image_size=16, **of)
    plain = plain_view(16, None)
    kwargs = {"crop": crop_of(plain), "plain": plain, "classes": 4, "epochs": 1}
    _, how = finetune(vit, pictures(32), pictures(8, seed=1), **kwargs)
    _, scratch = finetune(vit, pictures(32), pictures(8, seed=1), scratch=True, **kwargs)
    assert (how.optimiser, how.layer_decay) == ("adamw", 0.65)
    assert scratch.layer_decay == 1.0
