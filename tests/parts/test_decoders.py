"""MAE's decoder: tokens in their places, and its start."""

import math

import pytest
import torch
from torch import nn

from selfsight.parts.decoders import MaskedDecoder, xavier_
from selfsight.parts.positions import sincos_2d


def test_tokens_go_to_their_places_and_mask_tokens_elsewhere() -> None:
    """With no blocks and identities round it, the decoder's output is what it put in each place."""
    decoder = MaskedDecoder(8, 8, (2, 3), width=8, depth=0, heads=2)
    decoder.embed, decoder.norm, decoder.predict = nn.Identity(), nn.Identity(), nn.Identity()
    seen, visible = torch.randn(2, 2, 8), torch.tensor([[5, 0], [1, 4]])
    out = decoder(torch.randn(2, 8), seen, visible) - sincos_2d(8, 2, 3)
    for b in range(2):
        for place in range(6):
            slots = visible[b].tolist()
            expected = seen[b, slots.index(place)] if place in slots else decoder.mask_token[0, 0]
            torch.testing.assert_close(out[b, place], expected)


def test_the_order_of_visible_tokens_does_not_matter() -> None:
    decoder = MaskedDecoder(6, 5, (2, 2), width=8, depth=1, heads=2).double()
    token, seen, visible = torch.randn(1, 6).double(), torch.randn(1, 3, 6).double(), torch.tensor([[3, 0, 2]])
    turn = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(token, seen[:, turn], visible[:, turn]), decoder(token, seen, visible))


def test_the_class_token_takes_part_but_gets_no_prediction() -> None:
    decoder = MaskedDecoder(6, 5, (2, 2), width=8, depth=1, heads=2)
    seen, visible = torch.randn(1, 3, 6), torch.tensor([[3, 0, 2]])
    one, other = decoder(torch.zeros(1, 6), seen, visible), decoder(torch.ones(1, 6), seen, visible)
    assert one.shape == (1, 4, 5)
    assert not torch.allclose(one, other)


def test_an_encoder_without_class_token_needs_none() -> None:
    decoder = MaskedDecoder(6, 5, (2, 2), width=8, depth=1, heads=2)
    seen, visible = torch.randn(1, 3, 6), torch.tensor([[3, 0, 2]])
    patches = decoder.mask_token.expand(1, 4, 8).clone()
    patches[0, visible[0]] = decoder.embed(seen[0])
    wanted = decoder.predict(decoder.norm(decoder.blocks(patches + decoder.positions)))
    torch.testing.assert_close(decoder(None, seen, visible), wanted)


def test_xavier_bounds_see_a_patch_embedding_as_a_matrix() -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.Linear(64, 192), nn.LayerNorm(8))
    xavier_(module)
    for layer, fans in ((module[0], 48 + 32), (module[1], 64 + 192)):
        bound = math.sqrt(6 / fans)
        largest = float(layer.weight.detach().abs().max())
        assert 0.95 * bound < largest <= bound
        assert not layer.bias.any()


def test_mae_s_decoder_has_the_papers_size() -> None:
    decoder = MaskedDecoder(768, 768, (14, 14))
    assert len(decoder.blocks) == 8
    assert decoder.embed.out_features == 512
    assert decoder.blocks[0].attn.num_heads == 16
    assert "positions" not in decoder.state_dict()


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot have 3 heads"):
        MaskedDecoder(8, 8, (2, 2), width=16, heads=3)
