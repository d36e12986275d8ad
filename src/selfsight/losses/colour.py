"""Colorization's loss: a distribution over bins of colour for each place, soft targets, and rare colours that count."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from selfsight.losses.precision import full


class SoftCode(NamedTuple):
    """A distribution over bins at each place, by its few bins that have a share; the nearest, which has most, first."""

    bins: Int[Tensor, "b k h w"]
    shares: Float[Tensor, "b k h w"]


def soft_code(
    ab: Float[Tensor, "b 2 h w"], centres: Float[Tensor, "q 2"], *, neighbours: int = 5, sigma: float = 5.0
) -> SoftCode:
    r"""Each colour among its nearest bins, :math:`Z_q \propto e^{-\lVert y - c_q \rVert^2 / 2 \sigma^2}`.

    Defaults: the paper; the official layer takes ten neighbours.

    >>> code = soft_code(torch.zeros(1, 2, 1, 1), torch.tensor([[0.0, 0.0], [10.0, 0.0], [90.0, 0.0]]), neighbours=2)
    >>> code.bins.flatten(), code.shares.flatten()
    (tensor([0, 1]), tensor([0.8808, 0.1192]))
    """
    b, _, h, w = ab.shape
    colours = full(ab).permute(0, 2, 3, 1).reshape(-1, 2)
    # not by way of a matrix product, which loses what small differences of large squares are
    apart = torch.cdist(colours, centres.to(colours), compute_mode="donot_use_mm_for_euclid_dist")
    distance, bins = apart.topk(neighbours, dim=1, largest=False)
    shares = softmax(distance.square() / (-2 * sigma**2), dim=1)
    return SoftCode(*(part.view(b, h, w, neighbours).permute(0, 3, 1, 2) for part in (bins, shares)))


def code_cross_entropy(logits: Float[Tensor, "b q h w"], code: SoftCode) -> Float[Tensor, "b h w"]:
    r"""The cross-entropy :math:`- \sum_q Z_q \log \hat Z_q` at each place."""
    log_p = log_softmax(full(logits), dim=1).gather(1, code.bins)
    return -(code.shares.to(log_p.dtype) * log_p).sum(dim=1)


def rebalanced_cross_entropy(
    logits: Float[Tensor, "b q h w"], code: SoftCode, weights: Float[Tensor, " q"], counted: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    r"""The mean over all places of ``code_cross_entropy`` times the weight of the place's own bin.

    .. math:: L = - \frac1{bhw} \sum_{hw} v_{hw} \sum_q Z_{hwq} \log \hat Z_{hwq}, \qquad
              v_{hw} = w_{\arg\max_q Z_{hwq}}

    Images that ``counted`` has at 0, grey ones, cost nothing and stay in the mean, so that it is one of samples.
    """
    cost = code_cross_entropy(logits, code)
    return (weights.to(cost.dtype)[code.bins[:, 0]] * counted.to(cost.dtype)[:, None, None] * cost).mean()


def rarity(prior: Float[Tensor, " q"], *, mix: float = 0.5) -> Float[Tensor, " q"]:
    r"""Each bin's weight, greater the rarer it is, with a mean of one under ``prior``.

    .. math:: w_q \propto \Big((1 - \lambda)\, p_q + \frac{\lambda}{Q}\Big)^{-1}, \qquad \sum_q p_q w_q = 1

    >>> rarity(torch.tensor([0.9, 0.1, 0.0]))
    tensor([0.8442, 2.4026, 3.1234])
    """
    weights = 1 / ((1 - mix) * prior + mix / len(prior))
    return weights / (prior * weights).sum()


def frequencies(code: SoftCode, bins: int) -> Float[Tensor, " q"]:
    """The mean over all places of their distributions: an empirical prior, smoothed by the soft codes themselves."""
    total = code.shares.new_zeros(bins).index_add_(0, code.bins.flatten(), code.shares.flatten())
    return total / (code.bins.numel() // code.bins.shape[1])


def annealed_mean(
    logits: Float[Tensor, "b q h w"], centres: Float[Tensor, "q 2"], *, temperature: float = 0.38
) -> Float[Tensor, "b 2 h w"]:
    r"""One colour for each place: the expectation under :math:`\hat Z^{1 / T}`, normalised.

    At 1 it is the mean, which is pale; towards 0 the most probable bin, which is spotty. Default: the paper.
    """
    p = softmax(full(logits) / temperature, dim=1)
    return torch.einsum("bqhw,qc->bchw", p, centres.to(p))
