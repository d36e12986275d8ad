"""BEiT as an encoder: the same as timm's own forward pass, and patches that can be replaced before their positions."""

from pathlib import Path

import pytest
import torch
from timm.models.beit import Beit
from torch import nn

from selfsight.encoders.beit import BeitEncoder
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import MaskableEncoder
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.errors import UserError

SHARED = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
PER_BLOCK = {"use_rel_pos_bias": True}
ABSOLUTE = {"use_rel_pos_bias": False, "use_abs_pos_emb": True}


def build(**options: object) -> BeitEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(
        "beit_base_patch16_224", image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, **options
    )
    assert isinstance(encoder, BeitEncoder)
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.2)
    return encoder


@pytest.mark.parametrize("options", [SHARED, PER_BLOCK, ABSOLUTE, {**SHARED, "global_pool": "token"}])
def test_it_computes_what_timm_does(options: dict) -> None:
    encoder, x = build(**options), torch.randn(3, 3, 32, 32)
    model: Beit = encoder.model
    patches = encoder.encode(encoder.patches(x)).flatten(2).transpose(1, 2)
    last = model.forward_features(x)
    wanted = model.fc_norm(last)
    torch.testing.assert_close(patches, wanted[:, 1:])
    pooled = model.fc_norm(last[:, 1:].mean(dim=1)) if model.global_pool == "avg" else wanted[:, 0]
    torch.testing.assert_close(encoder(x), pooled)
    torch.testing.assert_close(encoder.dense(x).flatten(2).transpose(1, 2), patches)
    assert (encoder.patch, encoder.width, encoder.stride) == (8, 32, 8)
    assert isinstance(encoder, MaskableEncoder)


def test_relative_positions_mirror_each_other() -> None:
    """(2g - 1)² + 3 rows: how far patches lie apart, class to patch, patch to class, class to class."""
    index = build(**SHARED).model.rel_pos_bias.relative_position_index
    assert len(index.unique()) == 7**2 + 3
    assert int(index.max()) == 7**2 + 2
    between = index[1:, 1:]
    centre = 7 * 7 // 2
    assert torch.equal(between - centre, centre - between.T)
    assert bool((index[0, 1:] == index[0, 1]).all())
    assert bool((index[1:, 0] == index[1, 0]).all())


def test_positions_come_after_the_patches() -> None:
    """Patches alike beside one that is not are told apart by their places; without positions they are not."""
    encoder = build(**SHARED)
    patches = torch.ones(1, 4, 4, 32)
    patches[0, 0, 0] = 3 * torch.randn(32)
    table = encoder.model.rel_pos_bias.relative_position_bias_table

    def spread() -> float:
        return float(encoder.encode(patches).detach().flatten(2)[..., 1:].std(dim=2).max())

    nn.init.normal_(table, std=2.0)
    assert spread() > 1e-2
    nn.init.zeros_(table)
    assert spread() < 1e-5


def test_it_is_stored_and_loaded(tmp_path: Path) -> None:
    encoder, x = build(**SHARED).eval(), torch.randn(1, 3, 32, 32)
    again = load_encoder(save_encoder(encoder, tmp_path)).eval()
    assert isinstance(again, BeitEncoder)
    torch.testing.assert_close(again(x), encoder(x))


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="patches of 16 px, which do not divide 40 px"):
        build_encoder("beit_base_patch16_224", image_size=40)
