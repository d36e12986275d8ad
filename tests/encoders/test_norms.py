"""Encoders without batch norm: samples do not see each other, the encoder is built, stored and exported as it is."""

import pytest
import torch
from torch import nn

from selfsight.encoders.build import build_encoder
from selfsight.encoders.norms import replace_batch_norms
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.engine.export import export
from selfsight.errors import UserError

NAMES = ["tiny_cnn", "resnet10t", "mobilenetv3_small_050"]


def images(n: int, size: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_encoded_alone_as_in_a_batch(name: str, norm: str) -> None:
    """Sheet 3, check 3."""
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=32, norm=norm)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    together = encoder(images(4))
    torch.testing.assert_close(encoder(images(4)[2:3])[0], together[2], rtol=1e-4, atol=1e-5)
    batch_norm = build_encoder(name, image_size=32)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(batch_norm(images(4)[:2]), batch_norm(images(4))[:2], rtol=1e-2, atol=1e-2)


def test_layer_norm_is_over_channels_and_places() -> None:
    x = torch.randn(3, 6, 5, 4)
    norm = replace_batch_norms(nn.Sequential(nn.BatchNorm2d(6)), "layer")
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (6, 5, 4)))
    affine = replace_batch_norms(nn.Sequential(nn.BatchNorm2d(6)), "none")
    nn.init.constant_(affine[0].weight, 2.0)
    nn.init.constant_(affine[0].bias, 1.0)
    torch.testing.assert_close(affine(x), 2 * x + 1)


def test_scales_and_activations_stay() -> None:
    """A residual branch that begins at zero still does, and what timm's norm activates is activated."""
    old = build_encoder("resnet18", image_size=32)
    new = build_encoder("resnet18", image_size=32, norm="none")
    assert not new.model.layer1[0].bn2.weight.any()
    assert new.model.layer1[0].bn1.weight.all()
    assert {n for n, _ in new.named_parameters()} == {n for n, _ in old.named_parameters()}
    net = build_encoder("mobilenetv3_small_050", image_size=32, norm="layer")
    assert net.model.bn1(torch.randn(2, 16, 4, 4)).min() > -0.376  # hard swish's least


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_it_is_stored_and_exported(norm: str, tmp_path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=32, norm=norm).eval()
    for p in encoder.parameters():
        if p.ndim == 1:
            nn.init.uniform_(p, 0.2, 0.6)
    again = load_encoder(save_encoder(encoder, tmp_path / "own")).eval()
    assert again.options == {"norm": norm}
    torch.testing.assert_close(again(images(2)), encoder(images(2)))
    written = export(encoder, "timm", tmp_path / "timm")
    text = (written / "README.md").read_text()
    assert f'replace_batch_norms(model, "{norm}")' in text
    code = text.split("```python\n")[1].split("```")[0].replace("model.safetensors", f"{written}/model.safetensors")
    found: dict[str, nn.Module] = {}
    exec(code, found)  # what the README shows
    torch.testing.assert_close(found["model"].eval()(images(2)), encoder(images(2)), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has no counterpart in torchvision"):
        export(encoder, "torchvision", tmp_path / "torchvision")
    with pytest.raises(UserError):
        export(build_encoder("resnet18", image_size=128, norm=norm), "huggingface", tmp_path / "hub")


def test_a_model_without_batch_norm_stays() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    before = [type(m) for m in encoder.modules()]
    replace_batch_norms(encoder, "layer")
    assert [type(m) for m in encoder.modules()] == before


def test_three_stages_of_a_resnet_v2() -> None:
    """What CPC's cards ask for."""
    encoder = build_encoder("resnetv2_50", image_size=64, norm="layer", layers=[1, 1, 1])
    assert encoder.width == 1024
    assert encoder(images(2, 16)).shape == (2, 1024)
