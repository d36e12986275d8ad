"""Transformers whose patches can be replaced: equal to timm's own forward pass, and back into timm afterwards."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from selfsight.encoders.beit import BeitEncoder
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import MaskableEncoder, TokenEncoder
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.encoders.swin import Swin

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
SHARED: dict[str, Any] = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
KINDS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_pooled": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "class_token": False}),
    "beit": ("beit_base_patch16_224", VIT),
    "beit_shared": ("beit_base_patch16_224", {**VIT, **SHARED, "use_fc_norm": False}),
    "beit_absolute": ("beit_base_patch16_224", {**VIT, "use_abs_pos_emb": True}),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}),
    "swin_padded": ("swin_tiny_patch4_window7_224", SWIN),
}


def images(n: int = 2, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def built(kind: str) -> Any:
    """In evaluation mode, with every parameter drawn: tables of relative positions begin at zero."""
    torch.manual_seed(0)
    name, options = KINDS[kind]
    encoder = build_encoder(name, image_size=32, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_a_mask_it_is_timms_forward_pass(kind: str) -> None:
    encoder, x = built(kind), images()
    assert isinstance(encoder, MaskableEncoder)
    found = encoder.encode(encoder.patches(x))
    assert found.shape == (2, encoder.width, 32 // encoder.stride, 32 // encoder.stride)
    if kind.startswith("beit"):
        tokens = encoder.model.fc_norm(encoder.model.forward_features(x))[:, 1:]
        own = tokens.transpose(1, 2).reshape(found.shape)
    elif kind.startswith("vit"):
        tokens = encoder.model.fc_norm(encoder.model.forward_features(x))[:, encoder.model.num_prefix_tokens :]
        own = tokens.transpose(1, 2).reshape(found.shape)
    else:
        own = encoder.model.forward_features(x).permute(0, 3, 1, 2)
        torch.testing.assert_close(found.mean((2, 3)), encoder(x))
    torch.testing.assert_close(found, own)
    assert encoder.patches(x).shape[1:3] == (32 // encoder.patch, 32 // encoder.patch)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_loads_back_into_timm(kind: str, tmp_path: Any) -> None:
    encoder = built(kind).train()
    encoder.encode(encoder.patches(images())).square().mean().backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.sub_(0.1 * (parameter.grad if parameter.grad is not None else 0))
    save_encoder(encoder.eval(), tmp_path)
    again = load_encoder(tmp_path).eval()
    theirs = timm.create_model(num_classes=0, **encoder.arguments).eval()
    theirs.load_state_dict(encoder.model.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images()), encoder(images()))
        torch.testing.assert_close(again(images()), encoder(images()))


@pytest.mark.parametrize(
    ("size", "patch", "window", "fitted"),
    [(192, 4, 7, 6), (224, 4, 7, 7), (32, 2, 7, 4), (64, 2, 7, 4), (32, 4, 7, 4), (384, 4, 12, 12), (96, 2, 7, 6)],
)
def test_windows_shrink_until_they_divide_each_map(size: int, patch: int, window: int, fitted: int) -> None:
    options: dict[str, Any] = {"embed_dim": 4, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "patch_size": patch}
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=size, window_size=window, **options)
    assert isinstance(encoder, Swin)
    encoder.fit_windows_()
    assert encoder.window == fitted
    for stage in encoder.model.layers:
        side, own = stage.output_resolution[0], stage.blocks[0].window_size[0]
        assert side % own == 0
    rebuilt = build_encoder(encoder.name, image_size=size, **encoder.options)
    rebuilt.model.load_state_dict(encoder.model.state_dict(), strict=True)
    theirs = timm.create_model(num_classes=0, **encoder.arguments)  # type: ignore[arg-type]
    theirs.load_state_dict(encoder.model.state_dict(), strict=True)
    x = images(1, size)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), encoder.eval()(x))


def test_tables_keep_what_they_say_of_the_distances_that_stay() -> None:
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=32, **SWIN)
    assert isinstance(encoder, Swin)
    attention = encoder.model.layers[0].blocks[1].attn
    before = attention._get_rel_pos_bias().detach().unflatten(3, (7, 7)).unflatten(2, (7, 7))
    encoder.fit_windows_()
    after = attention._get_rel_pos_bias().detach().unflatten(3, (4, 4)).unflatten(2, (4, 4))
    assert torch.equal(after, before[:, :, :4, :4, :4, :4])


def windows_of(encoder: Swin) -> list[int]:
    return [block.attn.window_size[0] for stage in encoder.model.layers for block in stage.blocks]


@pytest.mark.parametrize(
    ("theirs", "mine", "found"),
    [((32, 7), (32, 7), [7, 7]), ((32, 4), (32, 7), [4, 4]), ((64, 14), (24, 7), [7, 6]), ((24, 7), (48, 14), None)],
)
def test_weights_bring_their_windows(theirs: tuple[int, int], mine: tuple[int, int], found: list[int] | None) -> None:
    """Smaller ones as they are, of larger ones the distances that are needed; nothing is made up for smaller maps."""
    options = {**SWIN, "patch_size": 2, "depths": (1, 1), "num_heads": (1, 1)}
    given, taken = (
        build_encoder("swin_tiny_patch4_window7_224", image_size=size, **{**options, "window_size": window})
        for size, window in (theirs, mine)
    )
    assert isinstance(given, Swin)
    assert isinstance(taken, Swin)
    state = taken.make_room_(given.state_dict())
    if found is None:
        with pytest.raises(RuntimeError, match=r"size mismatch for model\.layers\.1\.blocks\.0"):
            taken.load_state_dict(state)
        return
    taken.load_state_dict(state)
    assert windows_of(taken) == found
    for old, new, side in zip(given.model.layers, taken.model.layers, found, strict=True):
        before, window = old.blocks[0].attn._get_rel_pos_bias(), old.blocks[0].attn.window_size
        places = before.unflatten(3, window).unflatten(2, window)[:, :, :side, :side, :side, :side]
        after = new.blocks[0].attn._get_rel_pos_bias().unflatten(3, (side, side)).unflatten(2, (side, side))
        assert torch.equal(after, places)
    rebuilt = build_encoder(taken.name, image_size=taken.image_size, **taken.options)
    rebuilt.load_state_dict(taken.state_dict())
    x = images(1, taken.image_size)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt.eval()(x), taken.eval()(x))


def test_relative_positions_are_no_token_encoders() -> None:
    """Their biases belong to all places, so that a part of the tokens cannot go alone."""
    assert type(built("beit")) is BeitEncoder
    assert not isinstance(built("beit"), TokenEncoder)
    assert not isinstance(nn.Identity(), MaskableEncoder)
