r"""Predictive coding's loss: a prediction picks the patch it was made for out of all patches of the batch."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.precision import full


def future_nce(
    predicted: Float[Tensor, "b r w d"],
    targets: Float[Tensor, "b h w d"],
    *,
    ahead: int,
    everyone: Float[Tensor, "n h w d"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    r"""InfoNCE of predictions on a grid (van den Oord et al., 2018, eq. 4; Hénaff et al., 2019, eq. 2).

    Row ``r`` of ``predicted`` is for row ``r + ahead`` of ``targets``, so it has ``h - ahead`` rows. With all
    :math:`N = nhw` targets as candidates, the positive included,

    .. math:: L = \frac1{b (h - k) w} \sum_{b, r, c} -\log
        \frac{\exp(p_{b,r,c}^\top y_{b,r+k,c})}{\sum_{b', r', c'} \exp(p_{b,r,c}^\top y_{b',r',c'})}

    Scores are plain inner products: neither normalised nor divided by a temperature. Over several processes
    ``everyone`` is the gathered targets, where this process's begin at ``offset``: the mean of this loss over processes
    is the loss of the joined batch, and so is its gradient. Without it the candidates are this process's own.

    >>> y = torch.randn(2, 7, 7, 16)
    >>> future_nce(torch.zeros(2, 5, 7, 16), y, ahead=2)  # nothing predicted: log(2 * 49)
    tensor(4.5850)
    """
    (b, h, w, _), rows = targets.shape, predicted.shape[1]
    if rows != h - ahead or ahead < 0 or not rows:
        raise ValueError(f"future_nce got {rows} rows of predictions, {ahead} ahead, for {h} rows of targets")
    candidates = targets if everyone is None else everyone
    if not 0 <= offset <= len(candidates) - b:
        raise ValueError(f"future_nce got offset {offset} for {b} images among {len(candidates)}")
    image, row, column = (torch.arange(n, device=targets.device) for n in (b, rows, w))
    own = ((offset + image)[:, None, None] * h + (row + ahead)[:, None]) * w + column
    anchors = full(predicted).flatten(0, 2)
    negatives = log_sum_exp(anchors, full(candidates).flatten(0, 2), skip=own.reshape(-1, 1))
    positive = (anchors * full(targets[:, ahead:]).flatten(0, 2)).sum(dim=1)
    return softplus(negatives - positive).mean()
