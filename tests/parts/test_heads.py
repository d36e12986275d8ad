"""The head builder expresses each paper's head."""

from functools import partial

import pytest
import torch
from paper_size import layers
from torch import nn

from selfsight.parts import heads


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            heads.mlp(8, 8, 4, bias=False, out_bias=False, out_norm="scale"),
            ["8-8", "bn[wb]", "ReLU", "8-4", "bn[w]"],
        ),
        (heads.mlp(8, 16, 4, out_bias=False), ["8-16+b", "bn[wb]", "ReLU", "16-4"]),
        (heads.mlp(8, 4), ["8-4+b"]),
        (heads.mlp(8, 8, 4, norm=False), ["8-8+b", "ReLU", "8-4+b"]),
        (
            heads.mlp(8, 16, 16, 16, bias=False, out_bias=False),
            ["8-16", "bn[wb]", "ReLU", "16-16", "bn[wb]", "ReLU", "16-16"],
        ),
        (heads.mlp(8, 4, out_bias=False, out_norm="plain"), ["8-4", "bn[]"]),
        (heads.mlp(8, 6, 4, norm=False, activation=nn.GELU, out_norm="affine"), ["8-6+b", "GELU", "6-4+b", "bn[wb]"]),
    ],
    ids=["simclr", "byol", "moco_v1", "moco_v2", "barlow_twins", "plain", "gelu"],
)
def test_layers(head: nn.Sequential, expected: list[str]) -> None:
    assert layers(head) == expected


def test_scale_alone_starts_and_stays_without_shift() -> None:
    last = heads.mlp(3, 5, out_norm="scale")[-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert not last.bias.any()
    assert not last.bias.requires_grad
    assert set(last.state_dict()) == set(nn.BatchNorm1d(5).state_dict())


def test_init_fills_every_weight_and_empties_biases() -> None:
    head = heads.mlp(400, 300, 200, init=partial(nn.init.normal_, std=0.01))
    for layer in head:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert not layer.bias.any()


def test_fan_in_normal() -> None:
    weight = heads.fan_in_normal_(torch.empty(500, 400))
    assert weight.abs().max() <= 2 / 20
    # a normal cut at two standard deviations keeps 0.8796 of its own
    assert weight.std().item() == pytest.approx(0.8796 / 20, rel=0.02)


def test_one_width_is_refused() -> None:
    with pytest.raises(ValueError, match="those of the input and of the output"):
        heads.mlp(8)
