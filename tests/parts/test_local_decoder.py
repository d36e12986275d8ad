"""LocalMIM's decoders: grids of all four scales, and each place's own cells."""

import pytest
import torch
from torch import nn

from selfsight.parts.decoders import MaskedDecoder
from selfsight.parts.local_decoder import LocalDecoder, rescaled


@pytest.mark.parametrize(("scale", "cells"), [(4, 16 * 16), (2, 8 * 8), (1, 4 * 4), (0.5, 2 * 2)])
def test_the_map_is_rescaled(scale: float, cells: int) -> None:
    decoder = LocalDecoder(6, 5, 4, scale=scale, width=16, heads=2)
    seen, where = torch.randn(2, 3, 6), torch.tensor([[3, 0, 2], [15, 7, 1]])
    assert decoder(torch.randn(2, 6), seen, where).shape == (2, cells, 5)


@pytest.mark.parametrize("scale", [4, 2, 1, 0.5])
def test_a_place_has_its_own_cells(scale: float) -> None:
    head, x = rescaled(16, 3, scale), torch.randn(1, 16, 4, 4)
    changed = x.clone()
    changed[0, :, 1, 2] += 1
    moved = (head(x) != head(changed)).any(1)[0].nonzero()
    assert set((moved / scale).floor().int().flatten().tolist()) <= ({1, 2} if scale >= 1 else {0, 2})
    assert len(moved) == max(scale, 1) ** 2


def test_the_papers_decoders() -> None:
    decoder = LocalDecoder(768, 27, 14, scale=4)
    assert (decoder.tokens.embed.out_features, decoder.tokens.blocks[0].attn.num_heads) == (256, 8)
    assert len(decoder.tokens.blocks) == 1
    shapes = [tuple(layer.weight.shape) for layer in decoder.head if hasattr(layer, "weight")]
    assert shapes == [(256, 128, 2, 2), (128,), (128, 64, 2, 2), (27, 64, 1, 1)]


def test_a_decoder_without_a_class_token_is_one_with_none_of_it() -> None:
    decoder = MaskedDecoder(6, 5, (2, 2), width=8, depth=0, heads=2)
    decoder.norm = nn.Identity()
    seen, visible = torch.randn(1, 3, 6), torch.tensor([[3, 0, 2]])
    torch.testing.assert_close(decoder(None, seen, visible), decoder(torch.randn(1, 6), seen, visible))


def test_scales_without_a_head_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be made 3 times as fine"):
        rescaled(8, 3, 3)
