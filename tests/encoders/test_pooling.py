"""A feature that is the mean of the patches: what it computes, and that it is stored and built again as such."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfsight.encoders.build import build_encoder
from selfsight.encoders.pooling import pool_patches_
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.evaluation.baselines import fresh

SMALL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_the_feature_is_the_patches_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", **SMALL).eval()
    names, x = list(encoder.state_dict()), torch.randn(2, 3, 32, 32)
    before = encoder(x)
    pool_patches_(encoder)
    torch.testing.assert_close(encoder(x), encoder.dense(x).mean(dim=(2, 3)))
    assert not torch.allclose(encoder(x), before)
    assert list(encoder.state_dict()) == names
    torch.testing.assert_close(load_encoder(save_encoder(encoder, tmp_path)).eval()(x), encoder(x))
    other: Any = fresh(encoder, seed=1)
    assert other.model.global_pool == "avg"
    assert list(other.state_dict()) == names


@pytest.mark.parametrize("made", [nn.Identity(), build_encoder("tiny_cnn", image_size=32)])
def test_others_stay_as_they_are(made: nn.Module) -> None:
    options = dict(getattr(made, "options", {}))
    pool_patches_(made)
    assert getattr(made, "options", {}) == options
