"""A transformer's tokens between its blocks."""

import pytest
import torch
from torch import Tensor

from selfsight.encoders.backbone import Transformer
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import LayeredEncoder


def transformer(**options: object) -> Transformer:
    torch.manual_seed(0)
    encoder = build_encoder(
        "vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, **options
    )
    assert isinstance(encoder, Transformer)
    return encoder.eval()


VISIBLE = torch.tensor([[0, 3, 9], [2, 7, 15]])


def test_a_transformer_can_be_reached_between_its_blocks() -> None:
    assert isinstance(transformer(), LayeredEncoder)
    assert transformer().depth == 3


def test_without_blocks_in_between_it_is_tokens() -> None:
    encoder, x = transformer(), torch.randn(2, 3, 16, 16)
    embedded = encoder.embed(x)
    (last,) = encoder.levels(embedded, VISIBLE)
    assert all(torch.equal(a, b) for a, b in zip(last, encoder.tokens(embedded, VISIBLE), strict=True))


def test_each_level_is_what_its_block_gives_without_a_norm() -> None:
    encoder, x = transformer(), torch.randn(2, 3, 16, 16)
    seen: list[Tensor] = []
    for block in encoder.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    first, third, last = encoder.levels(encoder.embed(x), VISIBLE, after=(1, 3))
    for (token, patches), block in ((first, 0), (third, 2)):
        assert torch.equal(torch.cat([token[:, None], patches], dim=1), seen[block])
    assert torch.equal(encoder.model.norm(seen[2])[:, 1:], last[1])


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_register_tokens_are_left_out_and_a_missing_class_token_is_the_mean(options: dict[str, object]) -> None:
    encoder, x = transformer(**options), torch.randn(2, 3, 16, 16)
    (token, patches), last = encoder.levels(encoder.embed(x), VISIBLE, after=(2,))
    assert (token.shape, patches.shape, last[1].shape) == ((2, 32), (2, 3, 32), (2, 3, 32))
    if "class_token" in options:
        assert torch.equal(token, patches.mean(1))
