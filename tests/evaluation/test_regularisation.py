"""Mixup, CutMix, smoothing and drop path: their losses from the equations, and what is random by key alone."""

import math

import numpy as np
import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from selfsight.encoders.build import build_encoder
from selfsight.encoders.drop_path import set_drop_path_
from selfsight.errors import UserError
from selfsight.evaluation.regularisation import MAE, Loss, Regularisation, by_key


def images(b: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(b, 3, 8, 8, generator=rng), torch.arange(b) % 4


def test_nothing_is_cross_entropy() -> None:
    (x, y), loss = images(), Loss(Regularisation(), 4)
    seen, target = loss.mixed(x, y)
    assert seen is x
    assert target is y
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(logits, target), nn.functional.cross_entropy(logits, y))


def test_smoothing_gives_every_class_its_share() -> None:
    (x, y), loss = images(), Loss(Regularisation(smoothing=0.2), 4)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = loss(logits, loss.mixed(x, y)[1])
    total = 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        norm = math.log(sum(math.exp(v) for v in row))
        total -= sum((0.8 * (k == label) + 0.2 / 4) * (v - norm) for k, v in enumerate(row))
    assert float(found) == pytest.approx(total / 6)


def test_mixup_blends_images_and_targets_by_one_share() -> None:
    (x, y), loss = images(), Loss(Regularisation(mixup=0.8, smoothing=0.1), 4)
    before = x.clone()
    with by_key(0, 3, "cpu"):
        seen, target = loss.mixed(x, y)
    share = float(((seen - before.flip(0)) / (before - before.flip(0))).median())
    assert 0 < share < 1
    torch.testing.assert_close(seen, share * before + (1 - share) * before.flip(0))
    smooth = 0.9 * nn.functional.one_hot(y, 4) + 0.1 / 4
    torch.testing.assert_close(target, share * smooth + (1 - share) * smooth.flip(0), atol=1e-5, rtol=0)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(logits, target), -(target * logits.log_softmax(1)).sum(1).mean())


def test_cutmix_puts_a_box_of_another_image_in_and_counts_its_pixels() -> None:
    (x, y), loss = images(), Loss(Regularisation(cutmix=1.0), 4)
    before = x.clone()
    with by_key(0, 1, "cpu"):
        seen, target = loss.mixed(x, y)
    foreign = (seen != before).any(1)
    assert 0 < int(foreign[0].sum()) < 64
    assert bool((foreign == foreign[0]).all())
    torch.testing.assert_close(seen, torch.where(foreign[:, None], before.flip(0), before))
    share = 1 - int(foreign[0].sum()) / 64
    hot = nn.functional.one_hot(y, 4).float()
    torch.testing.assert_close(target, share * hot + (1 - share) * hot.flip(0))


def test_random_numbers_are_the_updates_and_leave_the_others_alone() -> None:
    def drawn(seed: int, step: int) -> tuple[float, float]:
        with by_key(seed, step, "cpu"):
            return float(np.random.rand()), float(torch.rand(()))

    assert drawn(0, 1) == drawn(0, 1)
    for kind in zip(drawn(0, 1), drawn(0, 2), drawn(1, 1), strict=True):  # numpy's and torch's
        assert len(set(kind)) == 3
    np.random.seed(5)
    torch.manual_seed(5)
    expected = float(np.random.rand()), float(torch.rand(()))
    np.random.seed(5)
    torch.manual_seed(5)
    drawn(0, 1)
    assert (float(np.random.rand()), float(torch.rand(()))) == expected


def test_images_are_mixed_in_pairs() -> None:
    assert MAE.for_batch(33) == (MAE, 32)
    assert MAE.for_batch(32) == (MAE, 32)
    lone, batch = MAE.for_batch(1)
    assert (lone.mixup, lone.cutmix, lone.smoothing, batch) == (0, 0, 0.1, 1)
    assert Regularisation(smoothing=0.1).for_batch(33)[1] == 33


@pytest.mark.parametrize(("name", "value"), [("mixup", -0.1), ("smoothing", 1.0), ("drop_path", 1.5)])
def test_values_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is {value:g}; it must be at least 0"):
        Regularisation(**{name: value})


SMALL = {
    "vit_tiny_patch16_224": {"patch_size": 16, "depth": 3, "embed_dim": 24, "num_heads": 2},
    "beit_base_patch16_224": {"patch_size": 16, "depth": 3, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1), "embed_dim": 24, "num_heads": (1, 2), "window_size": 4},
    "convvit_tiny": {"depths": (1, 1, 1), "widths": (8, 12, 24), "heads": 2},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_transformer_drops_its_paths_evenly_from_none_on(name: str) -> None:
    net = build_encoder(name, image_size=32, **SMALL[name])
    names = list(net.state_dict())
    set_drop_path_(net, 0.2)
    rates = [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2])  # twice in each of three blocks; the first drops none
    assert list(net.state_dict()) == names
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert not torch.equal(net.train()(x), net(x))
    set_drop_path_(net, 0.0)
    assert not any(isinstance(module, DropPath) for module in net.modules())
    assert torch.equal(net(x), net(x))
