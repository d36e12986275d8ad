"""SimMIM and LocalMIM against values of their official code: losses and gradients of whole models."""

from typing import Any

import pytest
import torch
from recorded import drawn, fill_, recorded, same
from torch import Tensor

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.losses.hog import hog
from selfsight.method import Clock, Method, drive
from selfsight.methods.localmim import LocalMIM
from selfsight.methods.simmim import SimMIM
from selfsight.parts.local_decoder import LocalDecoder

OFFICIAL = recorded("hidden_cells")


def hidden(visible: int) -> MaskedImages:
    """Two images of 64 px in 16 cells, ordered by random numbers."""
    order = drawn(2, 2, 16).argsort(dim=1)
    return MaskedImages(drawn(1, 2, 3, 64, 64), order[:, :visible], order[:, visible:], torch.arange(2))


def filled(method: Any) -> Any:
    """In double precision, every parameter drawn in the order of names; positions stay."""
    named = {name: p for name, p in method.double().named_parameters() if not name.endswith("pos_embed")}
    fill_([named[name] for name in sorted(named)], 7)
    return method.eval()


def simmim_vit() -> SimMIM:
    encoder = build_encoder(
        "beit_base_patch16_224",
        image_size=64,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        use_fc_norm=False,
    )
    return filled(SimMIM(encoder, embedded=16, channels=3))


def simmim_swin() -> SimMIM:
    encoder = build_encoder(
        "swin_tiny_patch4_window7_224",
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        drop_path_rate=0.0,
    )
    return filled(SimMIM(encoder, embedded=8, channels=3))


def localmim_vit() -> LocalMIM:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=64, patch_size=16, embed_dim=16, depth=7, num_heads=2)
    table = LocalDecoder(16, 27, 4, scale=1, width=16, heads=2).tokens.positions
    with torch.no_grad():
        encoder.model.pos_embed.copy_(torch.cat([torch.zeros(1, 1, 16), table], dim=1))  # type: ignore[union-attr]
    decoders = [LocalDecoder(16, 27, 4, scale=scale, width=16, heads=2) for scale in (4, 2, 1, 0.5)]
    return filled(LocalMIM(encoder, decoders, layers=(2, 4, 5, 7), cells=(4, 8, 16, 32)))  # type: ignore[arg-type]


CASES = {"simmim_vit": (simmim_vit, 6), "simmim_swin": (simmim_swin, 6), "localmim_vit": (localmim_vit, 4)}
LOOKED_AT = {
    "simmim_vit": "encoder.model.rel_pos_bias.relative_position_bias_table",
    "simmim_swin": "encoder.model.layers.0.blocks.1.attn.relative_position_bias_table",
    "localmim_vit": "encoder.model.blocks.1.attn.proj.weight",
}


def loss_of(method: Method[Any], batch: MaskedImages) -> Tensor:
    found: list[Tensor] = []
    drive(method.step(batch, Clock(step=0, steps=1, epoch=0, epochs=1)), lambda o: bool(found.append(o.loss)))
    return found[0]


@pytest.mark.parametrize("name", CASES)
def test_the_whole_model(name: str) -> None:
    make, visible = CASES[name]
    method = make()
    loss = loss_of(method, hidden(visible))
    loss.backward()
    same(loss, OFFICIAL[name]["loss"], rtol=1e-6)
    looked_at = dict(method.named_parameters())[LOOKED_AT[name]].grad
    assert looked_at is not None
    same(looked_at.flatten()[:40], OFFICIAL[name]["gradient"], rtol=1e-4)


@pytest.mark.parametrize("name", ["hog", "hog_offset"])
def test_histograms(name: str) -> None:
    offset = None if name == "hog" else torch.tensor(OFFICIAL[name]["offset"])
    found = hog(drawn(1, 1, 3, 16, 16).float(), cell=8, bins=9, offset=offset)
    same(found[0], OFFICIAL[name]["target"], rtol=1e-4)
