"""ConvMAE's encoder: its stages' sizes, and places that are hidden in all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsight.encoders.build import build_encoder
from selfsight.encoders.convvit import NAMES, ConvTransformer, ConvViT, MaskedBlock
from selfsight.encoders.protocol import StagedEncoder, TokenEncoder
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.engine.export import export
from selfsight.engine.optimisers import layer_decay
from selfsight.errors import UserError

SMALL: dict[str, Any] = {"widths": (8, 12, 16), "depths": (1, 2, 2), "heads": 2}


def made(size: int = 32, **options: Any) -> ConvTransformer:
    torch.manual_seed(0)
    encoder = build_encoder("convvit_tiny", image_size=size, **{**SMALL, **options})
    assert isinstance(encoder, ConvTransformer)
    return encoder


def images(size: int = 32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, size, size)


def some(n: int = 64, keep: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    order = torch.rand(2, n).argsort(dim=1)
    return order[:, :keep].sort(dim=1).values, order[:, keep:]


def painted(x: Tensor, masked: Tensor, patch: int) -> Tensor:
    """Other pixels in every hidden place."""
    x, side = x.clone(), x.shape[-1] // patch
    for image, places in zip(x, masked.tolist(), strict=True):
        for place in places:
            row, column = patch * (place // side), patch * (place % side)
            image[:, row : row + patch, column : column + patch] = torch.randn(3, patch, patch)
    return x


@pytest.mark.parametrize(("size", "patch", "kernel"), [(32, 4, 3), (64, 4, 3), (96, 4, 3), (128, 16, 5)])
def test_grids_keep_their_ratio(size: int, patch: int, kernel: int) -> None:
    encoder = made(size)
    assert isinstance(encoder, StagedEncoder)
    assert not isinstance(encoder, TokenEncoder)  # tokens of hidden places would have been read before
    found, grid = encoder.stages(images(size)), size // patch
    assert [m.shape[1:] for m in found.maps] == [(8, 4 * grid, 4 * grid), (12, 2 * grid, 2 * grid)]
    assert (found.tokens.shape, found.pooled.shape) == ((2, grid**2, 16), (2, 16))
    assert encoder.model.stage1[0].mix.kernel_size == (kernel, kernel)
    assert (encoder.width, encoder.stride, encoder.patch, encoder.map_widths) == (16, patch, patch, (8, 12))
    assert encoder.dense(images(size)).shape == (2, 16, grid, grid)


def test_the_base_is_the_papers() -> None:
    with torch.device("meta"):
        model = ConvViT(3, 224, NAMES["convvit_base"], patch=16, kernel=5)
    assert NAMES["convvit_base"] == ((256, 384, 768), (2, 2, 11), 12)
    sizes = [m[0].kernel_size[0] for m in (model.embed1, model.embed2, model.embed3)]
    assert sizes == [4, 2, 2]
    assert model.pos_embed.shape == (1, 196, 768)
    assert sum(p.numel() for p in model.blocks.parameters()) == 11 * 7_087_872  # a block of ViT-B
    for stage, w in ((model.stage1, 256), (model.stage2, 384)):
        # two norms, two 1x1 convolutions, a 5x5 depthwise one, and a perceptron of four times the width, with biases
        each = 4 * w + 2 * (w * w + w) + 26 * w + (4 * w * w + 4 * w) + (4 * w * w + w)
        assert sum(p.numel() for p in stage.parameters()) == 2 * each


@pytest.mark.parametrize("size", [32, 128])
def test_what_is_hidden_is_never_read(size: int) -> None:
    encoder = made(size).eval()
    visible, masked = some((size // encoder.patch) ** 2)
    x = images(size)
    before, after = encoder.stages(x, visible), encoder.stages(painted(x, masked, encoder.patch), visible)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.pooled, after.pooled)
    grid = size // encoder.patch
    for a, b, ratio in zip(before.maps, after.maps, (4, 2), strict=True):
        seen = torch.zeros(2, grid**2).scatter(1, visible, 1.0).view(2, 1, grid, grid)
        seen = torch.kron(seen, torch.ones(ratio, ratio)) > 0
        assert torch.equal(a.where(seen, 0), b.where(seen, 0))
        assert not torch.equal(a, b)
    blind = encoder.stages(x)
    assert not torch.equal(blind.tokens, encoder.stages(painted(x, masked, encoder.patch)).tokens)


def test_without_the_mask_hidden_pixels_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, (visible, masked) = made().eval(), some()
    plain = MaskedBlock.forward
    monkeypatch.setattr(MaskedBlock, "forward", lambda self, x, seen=None: plain(self, x))
    before, after = (encoder.stages(x, visible).tokens for x in (images(), painted(images(), masked, 4)))
    assert not torch.equal(before, after)


def test_with_all_places_visible_it_is_the_encoder() -> None:
    encoder = made().eval()
    everything = torch.arange(64).expand(2, -1)
    seen, plain = encoder.stages(images(), everything), encoder.stages(images())
    torch.testing.assert_close(seen.tokens, plain.tokens)
    torch.testing.assert_close(seen.pooled, encoder(images()))


def test_a_convolutional_block_is_its_equation() -> None:
    torch.manual_seed(0)
    block, x = MaskedBlock(4, 3).double(), torch.randn(1, 4, 3, 3, dtype=torch.float64)
    seen = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=torch.float64)[None, None]

    def norm(of: nn.LayerNorm, y: Tensor) -> Tensor:
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        return y * of.weight[:, None, None] + of.bias[:, None, None]

    def one(of: Any, y: Tensor) -> Tensor:
        return torch.einsum("oi,biyx->boyx", of.weight[:, :, 0, 0], y) + of.bias[:, None, None]

    inside = one(block.conv1, norm(block.norm1, x)) * seen
    mixed = block.mix.bias[:, None, None].expand(1, 4, 3, 3).clone()
    for row in range(3):
        for column in range(3):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= row + dy < 3 and 0 <= column + dx < 3:
                        weight = block.mix.weight[:, 0, dy + 1, dx + 1]
                        mixed[:, :, row, column] += weight * inside[:, :, row + dy, column + dx]
    y = x + one(block.conv2, mixed)
    first, act, second = block.mlp
    torch.testing.assert_close(block(x, seen), y + one(second, act(one(first, norm(block.norm2, y)))))


def test_it_begins_as_maes_but_for_convolutions() -> None:
    model = build_encoder("convvit_tiny", image_size=32).model
    linear, patches = model.project.weight.detach(), model.embed3[0].weight.detach()
    assert float(linear.abs().max()) == pytest.approx((6 / (192 + 192)) ** 0.5, rel=0.01)
    assert float(patches.abs().max()) == pytest.approx((6 / (4 * 96 + 192)) ** 0.5, rel=0.01)
    convolution = model.stage1[0].conv1
    assert float(convolution.weight.detach().abs().max()) == pytest.approx(64**-0.5, rel=0.01)
    assert convolution.bias.detach().any()
    assert not model.project.bias.detach().any()


def test_other_sizes_interpolate_positions() -> None:
    encoder = made()
    assert encoder(images(48)).shape == (2, 16)
    assert encoder.dense(torch.randn(1, 3, 32, 48)).shape == (1, 16, 8, 12)


def test_it_is_stored_exported_and_finetuned(tmp_path: Path) -> None:
    encoder = made().eval()
    again: Any = load_encoder(save_encoder(encoder, tmp_path / "own")).eval()
    assert torch.equal(again(images()), encoder(images()))
    assert export(encoder, "onnx", tmp_path).exists()
    with pytest.raises(UserError):
        export(encoder, "timm", tmp_path / "timm")


def test_convolutions_and_patches_share_the_lowest_rate() -> None:
    encoder = made()
    groups = layer_decay(encoder, 0.5)
    rate = {name: groups(name, p).lr_scale for name, p in encoder.model.named_parameters()}
    lowest = {r for name, r in rate.items() if not name.startswith("blocks.")}
    assert lowest == {0.5**3}  # two blocks and the head above
    assert (rate["blocks.0.norm1.weight"], rate["blocks.1.norm1.weight"]) == (0.5**2, 0.5)


def test_what_it_does_not_take() -> None:
    with pytest.raises(UserError, match="patch of 6 px cannot be; use --patch-size"):
        made(patch_size=6)
    with pytest.raises(UserError, match="patches of 16 px, which do not divide 120 px; use --image-size 128"):
        made(120)
    with pytest.raises(UserError, match="has no option width; it has patch_size"):
        made(width=3)
    with pytest.raises(UserError, match="has no pretrained weights"):
        build_encoder("convvit_base", image_size=32, pretrained=True)
    with pytest.raises(UserError, match="did you mean 'convvit_base'"):
        build_encoder("convvit_bas", image_size=32)
