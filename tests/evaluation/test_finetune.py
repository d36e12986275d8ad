"""Fine-tuning: which labels a fraction keeps, the settings of each kind of encoder, and that it learns."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.optim import SGD, AdamW

from selfsight.data.protocol import Source
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.errors import UserError
from selfsight.evaluation.finetune import Tuning, finetune, labelled_fraction, optimiser_spec, standard_epochs
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.protocols import Contender, Settings, finetune_on
from selfsight.evaluation.regularisation import MAE, Regularisation
from selfsight.evaluation.subject import LabelledData, crop_of
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
    lesson = Lesson(
        train=pictures(160),
        test=pictures(80, seed=1),
        crop=mild,
        plain=plain_view(16, None),
        classes=4,
        epochs=6,
        batch_size=32,
        lr=1.0,
        progress=lambda clock, loss: losses.append(loss),
    )
    got, how = finetune(encoder, lesson)
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
    lesson = Lesson(train=pictures(32), test=pictures(8, seed=1), crop=crop_of(plain), plain=plain, classes=4, epochs=1)
    _, how = finetune(vit, lesson)
    _, scratch = finetune(vit, lesson, scratch=True)
    assert (how.optimiser, how.layer_decay) == ("adamw", 0.65)
    assert scratch.layer_decay == 1.0


def vit(pictures: Make) -> tuple[nn.Module, Lesson]:
    torch.manual_seed(0)
    plain = plain_view(16, None)
    lesson = Lesson(train=pictures(33), test=pictures(8, seed=1), crop=crop_of(plain), plain=plain, classes=4, epochs=1)
    return build_encoder(image_size=16, **{**VIT, "depth": 3}), lesson


def test_every_part_is_on_and_named_and_the_batch_even(pictures: Make) -> None:
    net, lesson = vit(pictures)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    runs = [finetune(net, lesson, regularisation=MAE) for _ in range(2)]
    assert runs[0] == runs[1]  # nothing random but by key
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]
    how = runs[0][1]
    assert (how.mixup, how.cutmix, how.smoothing, how.drop_path) == (0.8, 1.0, 0.1, 0.1)
    assert how.batch_size == 32  # of 33: images are mixed in pairs
    assert not any(isinstance(module, DropPath) for module in net.modules())
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert finetune(net, lesson)[1].batch_size == 33


def test_drop_path_is_on_while_training_and_off_at_the_test(pictures: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net, lesson = vit(pictures)
    seen: list[tuple[bool, float]] = []
    forward = DropPath.forward

    def watched(self: DropPath, x: torch.Tensor) -> torch.Tensor:
        seen.append((self.training, round(self.drop_prob, 3)))
        return forward(self, x)

    monkeypatch.setattr(DropPath, "forward", watched)
    finetune(net, lesson, regularisation=Regularisation(drop_path=0.2))
    assert set(seen) == {(mode, rate) for mode in (True, False) for rate in (0.1, 0.2)}


def test_a_transformer_on_all_labels_has_maes_parts_and_every_one_can_be_changed(pictures: Make) -> None:
    net, lesson = vit(pictures)
    who = Contender(name="trained", encoder=net, plain=lesson.plain)  # type: ignore[arg-type]
    data = LabelledData(train=lesson.train, test=lesson.test, classes=4)

    def settings(fraction: float, **chosen: Any) -> Any:
        found = finetune_on(fraction)(who, data, Settings(epochs=1, **chosen)).settings
        return [found[name] for name in ("mixup", "cutmix", "smoothing", "drop_path", "layer_decay")]

    assert settings(1.0) == [0.8, 1.0, 0.1, 0.1, 0.65]
    assert settings(0.5) == [0, 0, 0, 0, 0.65]
    other = {"regularisation": {"mixup": 0.0, "cutmix": 0.0, "drop_path": 0.3}, "layer_decay": 0.75}
    assert settings(1.0, **other) == [0, 0, 0.1, 0.3, 0.75]


def test_what_an_encoder_cannot_have_is_refused(encoder, pictures: Make) -> None:
    _, lesson = vit(pictures)
    with pytest.raises(UserError, match=r"--drop-path is 0\.1, but TinyEncoder has no blocks that could be dropped"):
        finetune(encoder, lesson, regularisation=MAE)
    with pytest.raises(UserError, match="does not say which layers it has"):
        finetune(encoder, lesson, layer_decay=0.5)
    with pytest.raises(UserError, match=r"the layer decay must lie in \(0, 1\]; got 2"):
        finetune(vit(pictures)[0], lesson, layer_decay=2.0)  # type: ignore[arg-type]
