"""Montages: 2x2 pictures, each of four patches of four different images; and the features of their quarters."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

DRAWS = 10
"""Numbers in [0, 1) that an image brings to the shuffle of its batch."""
PIECES = 4


def arrangement(u: Float[Tensor, "n 10"]) -> Int[Tensor, "n 4"]:
    """Which patches the montages of ``n`` images show: patch ``4 i + j`` is that at place ``j`` of image ``i``.

    Each patch is shown once, and the four of a montage come from four images: in each of four rounds the images stand
    in one random order, shifted by another random number, and bring one of their patches, in a random order of their
    own. A montage is what stands at one position in the four rounds, in random slots.

    >>> arrangement(torch.rand(5, 10)).flatten().sort().values.tolist() == list(range(20))
    True
    """
    n = len(u)
    if n < PIECES:
        raise ValueError(f"a montage shows {PIECES} images; got a batch of {n}, take --batch-size {PIECES} or more")
    order = u[:, 0].argsort(stable=True)
    shifts = u[:, 1].argsort(stable=True)[:PIECES]
    images = order[(torch.arange(n, device=u.device)[:, None] + shifts) % n]
    places = u[:, 2:6].argsort(dim=1, stable=True)[images, torch.arange(PIECES, device=u.device)]
    return (PIECES * images + places).gather(1, u[:, 6:10].argsort(dim=1, stable=True))


def montage(patches: Float[Tensor, "n 4 c p p"]) -> Float[Tensor, "n c s s"]:
    """Four patches as one picture, in row-major order."""
    (n, _, c, p, _) = patches.shape
    return patches.reshape(n, 2, 2, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 2 * p, 2 * p)


def quarters(features: Float[Tensor, "n d y x"]) -> Float[Tensor, "n 4 d"]:
    """The mean feature of each quarter of a map, in row-major order.

    A map of an odd number of places (ResNet-50: 7x7) is first brought to one more (bilinear), since a place in the
    middle would see two patches.
    """
    even = [side + side % 2 for side in features.shape[2:]]
    if even != list(features.shape[2:]):
        features = interpolate(features, size=even, mode="bilinear", align_corners=False)
    return adaptive_avg_pool2d(features, (2, 2)).flatten(2).transpose(1, 2)
