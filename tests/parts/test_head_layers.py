"""A head's first layers: which they are, whose they are, and an encoder that ends in them."""

import pytest
import torch
from stand_ins import SmallEncoder
from torch import nn

from selfsight.encoders.protocol import Encoder
from selfsight.parts import heads
from selfsight.parts.head_layers import WithHead, backbone_of, first_layers


def head() -> nn.Sequential:
    torch.manual_seed(0)
    return heads.mlp(6, 8, 8, 4, bias=False, out_bias=False, out_norm="scale")


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        (0, []),
        (1, ["Linear", "BatchNorm1d", "ReLU"]),
        (2, ["Linear", "BatchNorm1d", "ReLU"] * 2),
        (3, [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]),
    ],
)
def test_a_layer_ends_where_the_next_begins(count: int, kinds: list[str]) -> None:
    whole = head()
    layers = first_layers(whole, count)
    assert [type(layer).__name__ for layer in layers] == kinds
    assert all(a is b for a, b in zip(layers, whole, strict=False)), "the head's own, not copies"
    assert layers.state_dict().keys() <= whole.state_dict().keys()


@pytest.mark.parametrize("count", [-1, 4])
def test_layers_that_are_not_there(count: int) -> None:
    with pytest.raises(ValueError, match=rf"--head-layers is {count}, but the head has 3 layers; use 0 to 3"):
        first_layers(head(), count)


def test_no_layer_is_the_encoder_itself() -> None:
    """Sheet 9, check 1: selector 0 reproduces the plain features."""
    encoder, x = SmallEncoder().eval(), torch.randn(3, 3, 6, 6)
    whole = WithHead(encoder, first_layers(head(), 0)).eval()
    assert torch.equal(whole(x), encoder(x))
    assert whole.width == encoder.width


def test_the_first_layer_ends_in_its_relu() -> None:
    """Sheet 9, check 1: selector 1 is never negative, and is not the plain feature."""
    encoder, x = SmallEncoder().eval(), torch.randn(3, 3, 6, 6)
    whole = WithHead(encoder, first_layers(head(), 1)).eval()
    y = whole(x)
    assert y.shape == (3, whole.width) == (3, 8)
    assert y.min() >= 0
    assert y.max() > 0
    torch.testing.assert_close(y, head().eval()[:3](encoder(x)))
    assert torch.equal(whole.dense(x), encoder.dense(x))
    assert isinstance(whole, Encoder)
    assert backbone_of(whole) is encoder
    assert backbone_of(encoder) is encoder
