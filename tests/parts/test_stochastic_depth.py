"""Stochastic depth: a line over the blocks, in training alone, and where there are blocks."""

import pytest
import torch
from timm.layers import DropPath

from selfsight.encoders.build import build_encoder
from selfsight.parts.stochastic_depth import residual_blocks, stochastic_depth_


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_rates_grow_in_a_line_from_nothing(name: str) -> None:
    encoder = build_encoder(name, image_size=32)
    keys = set(encoder.state_dict())
    blocks = residual_blocks(encoder)
    n = stochastic_depth_(encoder, 0.2)
    assert n == len(blocks) == {"efficientnet_b0": 16, "resnet18": 8}[name]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.2 * i / n for i in range(n)])
    assert set(encoder.state_dict()) == keys
    encoder.eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder(x), encoder(x))


def test_branches_are_left_out_in_training_alone() -> None:
    encoder = build_encoder("efficientnet_b0", image_size=32)
    stochastic_depth_(encoder, 0.9)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder.train()
    torch.manual_seed(0)
    first = encoder(x)
    torch.manual_seed(1)
    assert not torch.equal(encoder(x), first)
    torch.manual_seed(0)
    assert torch.equal(encoder(x), first), "what is left out goes by the seed, which the engine sets for every update"


def test_both_branches_of_a_transformers_block_and_nothing_of_a_plain_net() -> None:
    vit = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=4)
    assert stochastic_depth_(vit, 0.4) == 4
    for name in ("drop_path1", "drop_path2"):
        rates = [getattr(block, name).drop_prob for block in residual_blocks(vit)]
        assert rates == pytest.approx([0.1 * i for i in range(4)])
    plain = build_encoder("tiny_cnn", image_size=32)
    assert stochastic_depth_(plain, 0.2) == 0
    assert not any(isinstance(m, DropPath) for m in plain.modules())
