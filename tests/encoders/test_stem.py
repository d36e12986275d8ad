"""Stems for small images: what changes, what does not, and that weights come back strictly."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from selfsight.encoders.stem import adapt_stem

# strides before and after at 32 px, counted by hand from each architecture
MODELS = {
    "resnet18": (32, 8),
    "resnet26d": (32, 8),
    "resnetblur50": (32, 8),
    "resnet10t": (32, 8),
    "resnetv2_50": (32, 8),
    "regnety_002": (32, 16),
    "convnext_atto": (32, 8),
    "convnext_atto_ols": (32, 8),
    "densenet121": (32, 8),
    "mobilenetv3_small_050": (32, 16),
}


def create(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0).eval()


def stride(model: nn.Module) -> int:
    return 64 // model.forward_features(torch.zeros(1, 3, 64, 64, device="meta")).shape[-1]


@pytest.mark.parametrize(("name", "strides"), MODELS.items())
def test_resolution_is_kept_and_names_too(name, strides):
    with torch.device("meta"):  # shapes without arithmetic
        model = create(name)
    before = stride(model), list(model.state_dict())
    assert adapt_stem(model) is model
    assert (before[0], stride(model)) == strides
    assert list(model.state_dict()) == before[1]


@pytest.mark.parametrize("name", ["resnet10t", "regnety_002", "convnext_atto"])
def test_weights_load_strictly_and_compute_the_same(name):
    model = adapt_stem(create(name))
    twin = adapt_stem(timm.create_model(name, num_classes=0)).eval()
    assert twin.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vgg11"])
def test_others_are_left_alone(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    before = str(model)
    adapt_stem(model)
    assert str(model) == before
    assert not hasattr(model, "has_small_stem")


def test_a_new_kernel_is_the_centre_and_has_a_fresh_ones_spread():
    model = create("resnet18")
    wide = model.conv1.weight.detach().clone()
    adapt_stem(model)
    torch.testing.assert_close(model.conv1.weight.detach(), wide[:, :, 2:5, 2:5] * 7 / 3)
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert model.conv1.weight.requires_grad
    again = str(model)
    adapt_stem(model)
    assert str(model) == again


def test_torchvisions_resnet_adapts_to_the_same():
    ours, theirs = adapt_stem(create("resnet18")), torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    assert adapt_stem(theirs).eval().load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-6)
