"""Encoders by name: sizes, channels, tokens; and one clear line for each mistake."""

import copy

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selfsight.encoders.backbone import wrap
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import Encoder, TokenEncoder

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def images(size: int, channels: int = 3, n: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "width", "stride", "last"),
    [
        ("resnet18", 32, 512, 8, True),
        ("resnet10t", 128, 512, 32, True),
        ("small_cnn", 32, 256, 8, True),
        ("convnext_atto", 32, 320, 8, True),
        ("mobilenetv3_small_050", 32, 1024, 16, True),
        ("mixer_s32_224", 64, 512, 32, False),
        ("vit_tiny_patch16_224", 64, 192, 16, False),
    ],
)
def test_width_stride_and_map_are_what_they_say(name, size, width, stride, last):
    encoder = build_encoder(name, image_size=size).eval()
    with torch.no_grad():
        pooled, dense = encoder(images(size)), encoder.dense(images(size))
    assert isinstance(encoder, Encoder)
    assert (encoder.width, encoder.stride, encoder.channels_last) == (width, stride, last)
    assert pooled.shape == (2, width)
    assert dense.shape[2:] == (size // stride, size // stride)
    if name in ("resnet18", "small_cnn", "convnext_atto"):
        norm = getattr(encoder.model, "norm_pre", nn.Identity())
        assert dense.shape[1] == width
        if name != "convnext_atto":  # which normalises after pooling
            torch.testing.assert_close(norm(dense.mean((2, 3))), pooled)


@pytest.mark.parametrize("name", ["resnet10t", "small_cnn", "vit_tiny_patch16_224"])
def test_channels(name):
    encoder = build_encoder(name, image_size=32, channels=5)
    assert encoder(images(32, 5)).shape == (2, encoder.width)


def test_swins_map_lies_as_the_image_does():
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=64, depths=(1, 1), num_heads=(1, 2)).eval()
    x = images(64, n=1)
    with torch.no_grad():
        maps = encoder.dense(x)
        assert maps.shape == (1, 192, 8, 8)
        torch.testing.assert_close(maps.mean((2, 3)), encoder(x))
        torch.testing.assert_close(maps, encoder.model.forward_features(x).permute(0, 3, 1, 2))


def transformer(**options: object) -> nn.Module:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, **VIT, **options).eval()
    for p in encoder.parameters():  # timm begins with biases and tokens at zero, which would hide their absence
        nn.init.normal_(p, std=0.3)
    return encoder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_embed_class": True},
        {"reg_tokens": 3},
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"pos_embed": "none"},
        {"pre_norm": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [32, 48])
def test_tokens_are_the_models_own(options, size):
    encoder = transformer(**options)
    x = images(size)
    model: VisionTransformer = encoder.model
    with torch.no_grad():
        pooled, patches = encoder.tokens(encoder.embed(x))
        torch.testing.assert_close(pooled, encoder(x))
        whole = model.fc_norm(model.forward_features(x)[:, model.num_prefix_tokens :])
        torch.testing.assert_close(patches, whole)
        dense = encoder.dense(x)
    assert isinstance(encoder, TokenEncoder)
    assert encoder.patch == 8
    assert dense.shape == (2, 24, size // 8, size // 8)
    torch.testing.assert_close(dense[:, :, 1, 2], patches[:, size // 8 + 2])


def test_visible_tokens_see_nothing_of_the_rest():
    encoder = transformer()
    x = images(32)
    visible = torch.tensor([[3, 0, 9], [15, 4, 1]])
    mask = torch.ones(2, 1, 16)
    for i, row in enumerate(visible):
        mask[i, 0, row] = 0
    hidden = nn.functional.interpolate(mask.view(2, 1, 4, 4), scale_factor=8)
    with torch.no_grad():
        token, patches = encoder.tokens(encoder.embed(x), visible)
        other, others = encoder.tokens(encoder.embed(x + 7 * hidden), visible)
        assert torch.equal(token, other)
        assert torch.equal(patches, others)
        assert patches.shape == (2, 3, 24)
        turned, rows = encoder.tokens(encoder.embed(x), visible.flip(1))
        torch.testing.assert_close(rows, patches.flip(1))
        torch.testing.assert_close(turned, token)
        every = torch.arange(16).expand(2, 16)
        torch.testing.assert_close(encoder.tokens(encoder.embed(x), every)[0], encoder(x))


def test_drop_path_rises_to_what_was_asked():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, drop_path=0.2, **{**VIT, "depth": 3})
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_a_small_stem_can_be_chosen_or_left_out():
    assert build_encoder("resnet10t", image_size=64, small_stem=False).stride == 32
    assert build_encoder("resnet10t", image_size=32, small_stem=True).stride == 8


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("resnet81", {}, r"unknown backbone 'resnet81'; did you mean 'resnet\d+"),
        ("vit_tiny_patch16_224", {"image_size": 100}, r"patches of 16 px, .* 100 px; use --image-size 96"),
        ("vit_tiny_patch16_224", {"patch_size": 5}, r"patches of 5 px, .* 32 px"),
        ("resnet18", {"colour": 3}, "resnet18 does not take these options: .*colour"),
        ("small_cnn", {"pretrained": True}, "no pretrained weights"),
        ("small_cnn", {"drop_path": 0.1, "depth": 2}, "no option drop_path, depth"),
        ("local-dir:nowhere", {}, "nowhere"),
    ],
)
def test_mistakes_get_one_line(name, options, line):
    with pytest.raises(ValueError, match=line) as caught:
        build_encoder(name, **{"image_size": 32, **options})
    assert "\n" not in str(caught.value)


def test_pretrained_without_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"no pretrained weights for resnet18 .*leave out --pretrained") as caught:
        build_encoder("resnet18", image_size=32, pretrained=True)
    assert "\n" not in str(caught.value)


def test_weights_fit_timms_own_model():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=48, channels=4, patch_size=8, **VIT)
    assert encoder.arguments["model_name"] == "vit_tiny_patch16_224"
    plain = timm.create_model(**encoder.arguments, num_classes=0).eval()
    plain.load_state_dict(encoder.model.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(images(48, 4)), encoder.eval()(images(48, 4)), rtol=0, atol=1e-6)
    native = build_encoder("vit_tiny_patch16_224", image_size=224, **VIT)
    assert native.arguments == {"model_name": "vit_tiny_patch16_224", **VIT}


def own_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_module_of_ones_own():
    net = own_net()
    encoder = wrap(net, 8, dense=net[:2], stride=2)
    assert isinstance(encoder, Encoder)
    assert encoder.dense(images(32)).shape == (2, 8, 16, 16)
    assert len(encoder.state_dict()) == 2
    assert list(encoder.model.state_dict()) == list(net.state_dict())


def test_a_copy_of_a_wrapped_module_has_its_own_map():
    net = own_net()
    encoder = wrap(net, 8, dense=net[0].forward, stride=2)
    twin = copy.deepcopy(encoder)
    nn.init.zeros_(twin.model[0].weight)
    nn.init.zeros_(twin.model[0].bias)
    assert twin.dense(images(32)).abs().max() == 0
    assert encoder.dense(images(32)).abs().max() > 0


def test_wrap_says_what_is_missing_or_wrong():
    with pytest.raises(ValueError, match="without a dense feature"):
        wrap(own_net(), 8).dense(images(32))
    with pytest.raises(ValueError, match="needs its stride"):
        wrap(own_net(), 8, dense=own_net())
    with pytest.raises(ValueError, match=r"width 9, but gives \[2, 8\]"):
        wrap(own_net(), 9)(images(32))
