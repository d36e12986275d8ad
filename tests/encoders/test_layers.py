"""Layers of an encoder that sees a part of the image: against timm's own, and against attention pair by pair."""

from typing import Any

import pytest
import torch
from torch import Tensor

from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import ScaledEncoder
from selfsight.encoders.swin import _among_visible
from selfsight.views.pipelines import partition

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
SWIN: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2, 2), "num_heads": (2, 2, 2)}
KINDS = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_pooled": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "class_token": False}),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 4}),
    "swin_padded": ("swin_tiny_patch4_window7_224", SWIN),
}


def built(kind: str) -> Any:
    torch.manual_seed(0)
    name, options = KINDS[kind]
    encoder = build_encoder(name, image_size=32, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def visible(encoder: Any, share: float, n: int = 2) -> Tensor:
    units = (32 // encoder.unit) ** 2
    u = torch.rand(n, units, generator=torch.Generator().manual_seed(1))
    return partition(u, round(units * share))[0]


def as_map(layer: Any, side: int) -> Tensor:
    """Visible tokens in their places, ``b n d``; zeros elsewhere."""
    whole = torch.zeros(len(layer.seen), side * side, layer.seen.shape[-1])
    return whole.scatter(1, layer.where[..., None].expand_as(layer.seen), layer.seen)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_with_all_in_sight_the_layers_are_timms(kind: str) -> None:
    encoder, x = built(kind), images()
    assert isinstance(encoder, ScaledEncoder)
    numbers = list(range(1, encoder.depth + 1))
    found = encoder.layers(x, visible(encoder, 1.0), numbers)
    y = encoder.model.patch_embed(x)
    if "swin" not in kind:
        y = encoder.model.norm_pre(encoder.model._pos_embed(y))
    for number, layer in zip(numbers, found, strict=True):
        side = 32 // encoder.layer_stride(number)
        if "swin" in kind:
            y = encoder.model.layers[number - 1].blocks(y)
            last = number == encoder.depth
            y = encoder.model.norm(y) if last else encoder.model.layers[number].downsample(y)
            theirs = y.flatten(1, 2)
            assert layer.token is None
        else:
            y = encoder.model.blocks[number - 1](y)
            z = encoder.model.fc_norm(encoder.model.norm(y)) if number == encoder.depth else y
            theirs = z[:, encoder.model.num_prefix_tokens :]
            token = theirs.mean(1) if kind == "vit_pooled" else z[:, 0]
            if number == encoder.depth:
                token = encoder.model.forward_head(encoder.model.norm(y), pre_logits=True)
            torch.testing.assert_close(layer.token, token)
        assert layer.seen.shape[-1] == encoder.layer_width(number)
        torch.testing.assert_close(as_map(layer, side), theirs)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hidden_units_are_never_seen(kind: str) -> None:
    encoder, x = built(kind), images()
    seen = visible(encoder, 0.25)
    units = 32 // encoder.unit
    mask = torch.ones(2, units * units, dtype=torch.bool).scatter(1, seen, False).unflatten(1, (units, units))
    mask = mask.repeat_interleave(encoder.unit, 1).repeat_interleave(encoder.unit, 2)[:, None]
    numbers = [1, encoder.depth]
    one, other = (encoder.layers(y, seen, numbers) for y in (x, torch.where(mask, 9.0, x)))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.seen, b.seen)
    moved = encoder.layers(torch.where(mask, x, 9.0), seen, numbers)
    assert not torch.allclose(moved[1].seen, one[1].seen)


def pair_by_pair(block: Any, y: Tensor, where: Tensor, side: int) -> Tensor:
    """Swin's block for one image: two tokens look at each other where the shifted window holds both, side by side."""
    attention, (w, _), (s, _) = block.attn, block.window_size, block.shift_size
    table, heads = attention.relative_position_bias_table, attention.num_heads
    z = block.norm1(y)
    q, k, v = attention.qkv(z).unflatten(1, (3, heads, -1)).unbind(1)
    rows, columns = (where // side).tolist(), (where % side).tolist()

    def place(i: int) -> tuple[tuple[int, ...], tuple[int, int]]:
        moved = [(at - s) % side for at in (rows[i], columns[i])]
        group = tuple(part for m in moved for part in (m // w, int(s > 0 and m >= side - s)))
        return group, (moved[0] % w, moved[1] % w)

    out = torch.zeros_like(q)
    for i in range(len(where)):
        near = [j for j in range(len(where)) if place(j)[0] == place(i)[0]]
        (r, c) = place(i)[1]
        bias = torch.stack(
            [table[(r - place(j)[1][0] + w - 1) * (2 * w - 1) + c - place(j)[1][1] + w - 1] for j in near]
        )
        scores = torch.einsum("hd,jhd->jh", q[i], k[near]) * attention.scale + bias
        out[i] = torch.einsum("jh,jhd->hd", scores.softmax(0), v[near])
    y = y + attention.proj(out.flatten(1))
    return y + block.mlp(block.norm2(y))


@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_attention_among_visible_tokens_pair_by_pair(number: int) -> None:
    encoder = built("swin")
    block, side = encoder.model.layers[1].blocks[number], 8
    assert any(block.shift_size) is (number == 1)
    where = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:20] for seed in range(2)])
    hidden = torch.ones(2, 64, dtype=torch.bool).scatter(1, where, False).unflatten(1, (8, 8))
    y = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(5))
    found = _among_visible(block, y, where, hidden)
    for b in range(2):
        torch.testing.assert_close(found[b], pair_by_pair(block, y[b], where[b], side), rtol=1e-4, atol=1e-5)
