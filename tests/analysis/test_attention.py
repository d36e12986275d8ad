"""What heads look at: against loops over the definitions, and in networks whose attention is known."""

import math
from typing import Any

import pytest
import torch
from timm.layers.config import set_fused_attn
from timm.models.swin_transformer import window_partition
from torch import Tensor

from selfsight.analysis import attention as module
from selfsight.analysis.attention import (
    Layer,
    Tally,
    among_patches,
    distances,
    divergences,
    entropies,
    layers_of,
    listening,
)
from selfsight.encoders.build import build_encoder


def random_rows(b: int, heads: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(b, heads, n, n, generator=torch.Generator().manual_seed(seed)).double().mul(2).softmax(-1)


def test_the_means_are_those_of_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUERIES", 7)  # in parts that do not divide
    rows = random_rows(2, 3, 9)
    distance, entropy, divergence = (torch.zeros(3, dtype=torch.float64) for _ in range(3))
    for n in range(2):
        for h in range(3):
            for i in range(9):
                a = rows[n, h, i].tolist()
                away = [4 * math.dist(divmod(i, 3), divmod(j, 3)) for j in range(9)]
                distance[h] += sum(p * d for p, d in zip(a, away, strict=True)) / 18
                entropy[h] -= sum(p * math.log(p) for p in a) / 18
                for other in range(3):
                    if other != h:
                        b = rows[n, other, i].tolist()
                        divergence[h] += sum(p * math.log(p / q) for p, q in zip(a, b, strict=True)) / (18 * 2)
    torch.testing.assert_close(distances(rows, 4.0), distance)
    torch.testing.assert_close(entropies(rows), entropy)
    torch.testing.assert_close(divergences(rows), divergence)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(divergences(rows[:, order]), divergence[order])


def test_attention_that_is_known() -> None:
    even = torch.full((1, 2, 196, 196), 1 / 196, dtype=torch.float64)
    assert distances(even, 16.0).tolist() == pytest.approx([116.49] * 2, abs=0.005)
    assert entropies(even).tolist() == pytest.approx([math.log(196)] * 2)
    own = torch.eye(196, dtype=torch.float64).expand(1, 2, -1, -1)
    for measured in (distances(own, 16.0), entropies(own), divergences(own), divergences(even)):
        assert measured.abs().max() < 1e-9
    assert divergences(random_rows(1, 1, 4)).tolist() == [0.0]
    with pytest.raises(ValueError, match="over 5 patches is not over a square"):
        distances(random_rows(1, 1, 5), 16.0)


def test_tokens_that_are_no_patches_are_taken_out() -> None:
    rows = among_patches(random_rows(2, 2, 5), 1)
    assert rows.shape == (2, 2, 4, 4)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 2, 4, dtype=torch.float64))
    logits = torch.randn(1, 1, 5, 5).double()
    torch.testing.assert_close(among_patches(logits.softmax(-1), 1), logits[..., 1:, 1:].softmax(-1))


def heard(encoder: Any, x: Tensor, size: int) -> list[tuple[Layer, Tensor]]:
    found: list[tuple[Layer, Tensor]] = []
    encoder.eval()
    with torch.no_grad(), listening(layers_of(encoder, size), lambda layer, a: found.append((layer, a))):
        encoder(x)
    return found


def test_a_vits_attention_is_what_its_blocks_compute() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)
    x = torch.randn(2, 3, 32, 32)
    found = heard(encoder, x, 32)
    assert [(layer.name, layer.prefix, layer.patch) for layer, _ in found] == [
        ("blocks.0.attn", 1, 8.0),
        ("blocks.1.attn", 1, 8.0),
    ]
    model: Any = encoder.model
    with torch.no_grad():
        tokens = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(x).flatten(1, 2)], 1) + model.pos_embed
        for block, (_, rows) in zip(model.blocks, found, strict=True):
            q, k, _ = block.attn.qkv(block.norm1(tokens)).view(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
            torch.testing.assert_close(rows, (q @ k.transpose(-1, -2) / 8).softmax(-1))
            tokens = block(tokens)


def test_a_convmaes_attention_is_what_its_blocks_compute() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("convvit_tiny", image_size=32, widths=(8, 12, 16), depths=(1, 1, 2), heads=2)
    x = torch.randn(2, 3, 32, 32)
    found = heard(encoder, x, 32)
    assert [(layer.name, layer.prefix, layer.patch) for layer, _ in found] == [
        ("blocks.0.attn", 0, 4.0),
        ("blocks.1.attn", 0, 4.0),
    ]
    model: Any = encoder.model
    with torch.no_grad():
        grid = x
        for embed, blocks in ((model.embed1, model.stage1), (model.embed2, model.stage2)):
            grid = embed(grid)
            for block in blocks:
                grid = block(grid)
        tokens = model.project(model.embed3(grid).flatten(2).transpose(1, 2)) + model.pos_embed
        for block, (_, rows) in zip(model.blocks, found, strict=True):
            q, k, _ = block.attn.qkv(block.norm1(tokens)).view(2, 64, 3, 2, 8).permute(2, 0, 3, 1, 4)
            torch.testing.assert_close(rows, (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1))
            tokens = block(tokens)


def test_patches_are_as_far_apart_as_the_network_has_them() -> None:
    """A class token that comes late, registers and no ``patch_embed``, and patches of a convolutional net's map."""
    convit = [(layer.prefix, layer.patch) for layer in layers_of(build_encoder("convit_tiny", image_size=64), 64)]
    assert convit == [(0, 16.0)] * 10 + [(1, 16.0)] * 2
    naflex = build_encoder("naflexvit_base_patch16_gap", image_size=64, depth=1, embed_dim=48, num_heads=3)
    assert [(layer.prefix, layer.patch) for layer in layers_of(naflex, 64)] == [(4, 16.0)]
    hybrid = build_encoder("vit_tiny_r_s16_p8_224", image_size=64, small_stem=False, depth=1)
    assert [(layer.prefix, layer.patch) for layer in layers_of(hybrid, 64)] == [(1, 32.0)]
    assert hybrid.dense(torch.zeros(1, 3, 64, 64)).shape == (1, 192, 2, 2)


def test_swins_second_version_of_another_author() -> None:
    encoder = build_encoder("swinv2_cr_tiny_ns_224", image_size=64, window_size=2, embed_dim=24, depths=(2, 1, 1, 1))
    found = heard(encoder, torch.randn(2, 3, 64, 64), 64)
    assert [layer.patch for layer, _ in found] == [4.0, 4.0, 8.0, 16.0, 32.0]
    assert all(torch.allclose(rows.sum(-1), torch.ones(())) for _, rows in found)


def test_a_shifted_windows_distances_are_those_in_the_image() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=56, window_size=7)
    found = heard(encoder, torch.randn(2, 3, 56, 56), 56)
    model: Any = encoder.model
    shifted = 0
    for layer, rows in found:
        block = model.get_submodule(layer.name.rpartition(".")[0])
        height, width = block.input_resolution
        assert layer.patch == 56 / height
        at = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)[None].double()
        shift = block.shift_size
        windows = window_partition(at.roll((-shift[0], -shift[1]), (1, 2)), block.window_size).flatten(1, 2)
        apart = torch.cdist(windows, windows).repeat(2, 1, 1) * layer.patch
        truth = torch.einsum("bhij,bij->h", rows.double(), apart) / (rows.shape[0] * rows.shape[2])
        torch.testing.assert_close(distances(rows.double(), layer.patch), truth)
        shifted += shift[0] > 0
    assert shifted >= 1


def test_networks_are_left_as_they_were() -> None:
    set_fused_attn(True)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)
    x = torch.randn(1, 3, 32, 32)
    before = encoder.eval()(x)
    assert encoder.model.blocks[0].attn.fused_attn
    assert len(heard(encoder, x, 32)) == 2
    assert encoder.model.blocks[0].attn.fused_attn
    assert not encoder.model.blocks[0].attn.attn_drop._forward_pre_hooks
    assert torch.equal(before, encoder(x))


@pytest.mark.parametrize("name", ["tiny_cnn", "pvt_v2_b0", "cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_other_networks_have_none(name: str) -> None:
    assert layers_of(build_encoder(name, image_size=32 if name == "tiny_cnn" else 224), 224) == []


def test_uneven_batches_weigh_by_their_images() -> None:
    layer = Layer("a", torch.nn.Identity(), 0, 4.0)
    rows = random_rows(5, 2, 9)
    whole, parts = Tally(), Tally()
    whole(layer, rows)
    parts(layer, rows[:4])
    parts(layer, rows[4:])
    for one, other in zip(whole.means()["a"], parts.means()["a"], strict=True):
        torch.testing.assert_close(one, other)
