r"""The losses of discrete autoencoders and of those that predict their codes.

Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, arXiv 2102.12092, appendix A.

.. math::
    f(x \mid \mu, b) = \frac{1}{2 b\, x (1 - x)} \exp\Big(-\frac{|\mathrm{logit}(x) - \mu|}{b}\Big), \quad 0 < x < 1
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from selfsight.losses.precision import full

MARGIN = 0.1
"""Pixels are moved from [0, 1] into [0.1, 0.9] (openai/DALL-E 5be4b23, ``utils.py``): their logit stays finite."""


def map_pixels(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """From [0, 1] into [0.1, 0.9]."""
    return (1 - 2 * MARGIN) * x + MARGIN


def unmap_pixels(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Back, cut off at 0 and 1.

    >>> unmap_pixels(map_pixels(torch.tensor([0.0, 0.25, 1.0])))
    tensor([0.0000, 0.2500, 1.0000])
    """
    return ((x - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


def logit_laplace(
    mu: Float[Tensor, "b c h w"], log_scale: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    r"""The mean over pixels and channels of :math:`-\log f(x \mid \mu, b)`: ``x`` in (0, 1), ``log_scale`` is ln b.

    >>> round(logit_laplace(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)).item(), 4)
    -0.6931
    """
    mu, log_scale, x = full(mu), full(log_scale), full(x)
    distance = (torch.logit(x) - mu).abs()
    return (distance * torch.exp(-log_scale) + log_scale + math.log(2) + torch.log(x * (1 - x))).mean()


def divergence_from_uniform(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, ""]:
    r"""The mean over places of :math:`\mathrm{KL}(q \,\|\, \mathrm{uniform}) = \ln k - H(q)`, q the logits' softmax.

    >>> divergence_from_uniform(torch.zeros(1, 8, 2, 2))
    tensor(0.)
    """
    log_q = full(logits).log_softmax(dim=1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(dim=1).mean()


def code_loss(logits: Float[Tensor, "m k"], codes: Int[Tensor, " m"]) -> Float[Tensor, ""]:
    r"""The sum over hidden patches of :math:`-\log p(z_i)`: not the mean, since their number differs by process."""
    return cross_entropy(full(logits), codes, reduction="sum")
