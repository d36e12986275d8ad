"""Images in which a shortcut alone tells something, what sees nothing but the shortcut, and who reads it off that."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample


def told(x: Tensor, y: Tensor) -> float:
    """How often ``y`` is read off ``x`` by a linear discriminant with one covariance.

    It is fitted on the first half of the rows and tested on the second.
    """
    x, half, classes = x.double(), len(x) // 2, int(y.max()) + 1
    means = torch.stack([x[:half][y[:half] == k].mean(0) for k in range(classes)])
    within = x[:half] - means[y[:half]]
    precision = torch.linalg.inv(within.T @ within / half + 1e-4 * torch.eye(x.shape[1]))
    scores = x[half:] @ precision @ means.T - (means @ precision * means).sum(1) / 2
    return float((scores.argmax(1) == y[half:]).double().mean())


def texture(n: int, size: int = 96, channels: int = 3) -> Tensor:
    """Noise that is alike within two or three pixels, in [0, 1], as if of no place in particular."""
    x = torch.rand(n, channels, size + 4, size + 4, generator=torch.Generator().manual_seed(0))
    x = avg_pool2d(avg_pool2d(x, 3, 1), 3, 1)
    return ((x - 0.5) * 1.5 + 0.5).clamp(0, 1)


def fringes(x: Tensor) -> Tensor:
    """How green against magenta goes with brightness moved by up to three pixels: it lags where a lens splits colours.

    That compares colours only. In a projected or grey tile every edge is still double, to who compares it with itself.
    """
    x = x - x.mean((2, 3), keepdim=True)
    magenta = (x[:, 0] + x[:, 2]) / 2
    split, bright = (x[:, 1] - magenta)[:, 3:-3, 3:-3], (x[:, 1] + magenta) / 2
    bright = bright / (bright.square().mean((1, 2), keepdim=True) + 1e-4)
    p = split.shape[-1]
    moved = [(split * bright[:, d : d + p, r : r + p]).mean((1, 2)) for d in range(7) for r in range(7)]
    return torch.stack(moved, dim=1)


def through_a_lens(n: int, size: int = 96, more: float | Tensor = 0.06) -> Tensor:
    """Grey textures whose green is larger than red and blue, about the middle; ``more`` may be each image's own."""
    grey = texture(n, size, 1)
    scale = 1 + torch.as_tensor(more, dtype=torch.float32).expand(n)
    at = torch.linspace(-1, 1, size) / scale[:, None]
    place = torch.stack([at[:, None].expand(n, size, size), at[:, :, None].expand(n, size, size)], dim=-1)
    green = grid_sample(grey, place, align_corners=True)
    return torch.cat([grey, green, grey], dim=1)
