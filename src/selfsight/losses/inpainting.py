"""The error of a picture painted into a hole, weighted by pixel, and the rim that lies round a hole."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from selfsight.losses.precision import full


def rim(hidden: Bool[Tensor, "b h w"], width: int) -> Bool[Tensor, "b h w"]:
    """The visible pixels at most ``width`` rows and columns away from a hidden one.

    >>> import torch
    >>> rim(torch.tensor([[[False, False, True, False]]]), 1).int().tolist()
    [[[0, 1, 0, 1]]]
    """
    if width < 0:
        raise ValueError(f"the width of a rim is {width}; it must be at least 0")
    near = max_pool2d(hidden[:, None].float(), 2 * width + 1, stride=1, padding=width)[:, 0] > 0
    return near & ~hidden


def painted_error(
    picture: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], weight: Float[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    r"""The weighted squared error, for each image a mean over the pixels that have a weight.

    .. math:: L = \frac1b \sum_b \frac{1}{c\,|\{p : w_{bp} > 0\}|} \sum_{p, c} w_{bp}\, (\hat x_{bcp} - x_{bcp})^2

    Pathak et al., "Context Encoders", 2016, equation (1): a weight of 1 in the hole and 0 elsewhere. The official code
    (train.lua) weighs the rim of a central hole with 10, and divides by the number of pixels, as here. An image in
    which no pixel has a weight costs nothing.

    >>> import torch
    >>> picture, weight = torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[1.0, 0.0]]])
    >>> float(painted_error(picture, torch.ones(1, 1, 1, 2), weight))
    4.0
    """
    error = (full(picture) - full(target)).square().mean(dim=1) * weight
    return (error.flatten(1).sum(dim=1) / (weight > 0).flatten(1).sum(dim=1).clamp_min(1)).mean()
