"""Stems for small images: a first stage that keeps the resolution, as the papers' CIFAR models have it."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.regnet import RegNet
from timm.models.resnetv2 import ResNetV2
from torch import nn


def adapt_stem(model: nn.Module) -> nn.Module:
    r"""Changes a convolutional net's stem, in place, for images of up to 96 px; returns ``model``.

    ResNets (timm's and torchvision's, with all their relatives) and DenseNets get a 3x3 convolution of stride 1 in
    place of the 7x7 of stride 2, and no pooling before the first stage (SimCLR, arXiv 2002.05709, appendix B.9); deep
    stems, RegNets, EfficientNets and MobileNets, which begin with a 3x3 convolution, lose its stride; ConvNeXt's
    patches of 4x4 become a 3x3 convolution of stride 1. Everything else, transformers too, is left as it is.

    A smaller kernel is the centre of the larger one, times the ratio of their sides: for a new model that has the
    distribution of a fresh fan-out initialisation, for a trained one it keeps what the centre learnt. No parameter
    changes its name, so a state dict saved from an adapted model loads strictly into another one.

    >>> import timm
    >>> model = adapt_stem(timm.create_model("resnet18", num_classes=0))
    >>> model.conv1
    Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    adapted: Any = model
    if _adapt(adapted):
        adapted.has_small_stem = True
    return model


def _adapt(model: Any) -> bool:
    """Whether the model has a stem that can be adapted, which it then is."""
    if all(hasattr(model, name) for name in ("conv1", "maxpool", "layer1")):  # ResNet
        _keep_resolution(_convolutions(model.conv1))
        model.maxpool = _without_stride(model.maxpool)
    elif isinstance(getattr(model, "conv_stem", None), nn.Conv2d):  # EfficientNet, MobileNet
        _keep_resolution([model.conv_stem])
    elif isinstance(model, DenseNet) and hasattr(model.features, "pool0"):
        _keep_resolution([model.features.get_submodule("conv0")])  # pyright: ignore[reportArgumentType]
        model.features.pool0 = nn.Identity()
    elif isinstance(model, RegNet | ConvNeXt | ResNetV2):
        _keep_resolution(_convolutions(model.stem))
        for name in ("pad", "pool"):  # ResNet v2
            if hasattr(model.stem, name):
                setattr(model.stem, name, nn.Identity())
    else:
        return False
    return True


def _convolutions(part: nn.Module) -> list[nn.Conv2d]:
    return [m for m in part.modules() if isinstance(m, nn.Conv2d)]


def _without_stride(pool: nn.Module) -> nn.Module:
    """Nothing in place of a pooling; a convolution that stands for one loses its stride and keeps its weights."""
    convolutions = _convolutions(pool)
    _keep_resolution(convolutions)
    return pool if convolutions else nn.Identity()


def _keep_resolution(convolutions: Iterable[nn.Conv2d]) -> None:
    for convolution in convolutions:
        if convolution.stride != (1, 1):
            convolution.stride = (1, 1)
            side = convolution.kernel_size[0]
            if side > 3:
                _shrink(convolution, side)


def _shrink(convolution: nn.Conv2d, side: int) -> None:
    """Makes the kernel 3x3."""
    start = (side - 3) // 2
    with torch.no_grad():
        centre = convolution.weight[:, :, start : start + 3, start : start + 3] * (side / 3)
    convolution.weight = nn.Parameter(centre.clone(), requires_grad=convolution.weight.requires_grad)
    convolution.kernel_size = (3, 3)
    if not getattr(convolution, "same_pad", False):  # else it pads its input itself
        convolution.padding = (1, 1)
