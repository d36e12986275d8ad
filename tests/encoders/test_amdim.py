"""AMDIM's encoder: its maps' sizes, how local they are, how it begins, and that all uses of an encoder work."""

import pytest
import torch

from selfsight.encoders.amdim import NAMES, LocalResNet
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import Encoder, LocalEncoder
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.engine.export import export
from selfsight.engine.optimisers import layer_decay
from selfsight.errors import UserError

TINY = {"first": 4, "width": 40, "depth": 2}
FIELDS = {32: (8, 16), 64: (16, 32), 128: (35, 67)}
"""Pixels that a place of the 7x7 and of the 5x5 map sees along an axis."""


def made(size: int = 32, **options: object) -> LocalEncoder:
    torch.manual_seed(0)
    return build_encoder("amdim_tiny", image_size=size, **{**TINY, **options})


def images(size: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_maps_of_one_five_and_seven(size: int) -> None:
    """Sheet 20, check 2."""
    encoder = made(size)
    one, five, seven = encoder.scales(images(size))
    wide = 16 if size == 32 else 32
    assert (one.shape, five.shape, seven.shape) == ((2, 40), (2, wide, 5, 5), (2, wide, 7, 7))
    assert (encoder.width, encoder.local_width, encoder.stride) == (40, wide, round(size / 7))
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, LocalEncoder)
    encoder.eval()
    assert torch.equal(encoder(images(size)), encoder.scales(images(size))[0])
    assert torch.equal(encoder.dense(images(size)), encoder.scales(images(size))[2])


@pytest.mark.parametrize("size", [32, 64, 128])
def test_features_are_local(size: int) -> None:
    """Sheet 20, check 3: pixels outside a place's field do not change a bit of it."""
    encoder = made(size).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    for scale, field in ((2, FIELDS[size][0]), (1, FIELDS[size][1])):
        x = images(size, 1).requires_grad_()
        feature = encoder.scales(x)[scale]
        (grad,) = torch.autograd.grad(feature[0, :, 1, 2].square().sum(), x)
        seen = grad[0].abs().sum(dim=0) > 0
        rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
        box = [slice(int(at.min()), int(at.max()) + 1) for at in (rows, columns)]
        assert [edge.stop - edge.start for edge in box] == [field, field]
        outside = x.detach() + 3.0
        outside[0, :, *box] = x.detach()[0, :, *box]
        changed = encoder.scales(outside)[scale]
        assert torch.equal(changed[0, :, 1, 2], feature[0, :, 1, 2])
        assert not torch.equal(changed, feature)


def test_residual_branches_begin_at_zero() -> None:
    """Sheet 20, check 4: at first the local features are average pools of the stem's."""
    encoder = made(32, depth=3)
    x = images(32)
    stem = encoder.model.stem(x)
    pooled = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(stem, 4, 2), 2, 2)
    seven = encoder.scales(x)[2]
    torch.testing.assert_close(seven[:, :4], pooled)
    assert not seven[:, 4:].any()


def test_the_papers_sizes() -> None:
    assert NAMES["amdim_large"] == (320, 2560, 10)
    assert NAMES["amdim_small"] == (192, 1536, 8)
    with torch.device("meta"):
        large = LocalResNet(3, 128, NAMES["amdim_large"])
    assert sum(p.numel() for p in large.parameters()) / 1e6 == pytest.approx(626, rel=0.01)


def test_hidden_batch_norm_is_an_option() -> None:
    plain, normed = (
        [type(m).__name__ for m in made(32, batch_norm=on).modules()].count("BatchNorm2d") for on in (False, True)
    )
    assert plain == 1
    assert normed > 10


def test_it_is_stored_exported_and_finetuned(tmp_path) -> None:
    encoder = made().eval()
    encoder.model.norm.running_mean.uniform_(-1, 1)
    again = load_encoder(save_encoder(encoder, tmp_path / "own")).eval()
    assert again.options == encoder.options
    assert torch.equal(again(images(32)), encoder(images(32)))
    assert export(encoder, "onnx", tmp_path).exists()
    with pytest.raises(UserError):
        export(encoder, "timm", tmp_path / "timm")
    groups = layer_decay(encoder, 0.5)
    rate = {name: groups(name, p).lr_scale for name, p in encoder.model.named_parameters()}
    assert rate["stem.0.weight"] < rate["blocks.1.0.conv1.weight"] < rate["middle.0.conv1.weight"]
    assert rate["middle.0.conv1.weight"] < rate["norm.weight"] <= 1


def test_what_it_does_not_take() -> None:
    with pytest.raises(UserError, match="takes images of 32, 64 or 128 px, not 96; use --image-size"):
        build_encoder("amdim_small", image_size=96)
    with pytest.raises(UserError, match="has no option depths"):
        build_encoder("amdim_tiny", image_size=32, depths=3)
    with pytest.raises(UserError, match="has no pretrained weights"):
        build_encoder("amdim_tiny", image_size=32, pretrained=True)
    with pytest.raises(UserError, match="take at least 64"):
        build_encoder("amdim_tiny", image_size=64, first=8, width=40)
    with pytest.raises(UserError, match="did you mean 'amdim_small'"):
        build_encoder("amdim_smal", image_size=32)
