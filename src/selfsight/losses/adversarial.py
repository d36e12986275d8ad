"""The two sides of a generative adversarial game, on logits."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from selfsight.losses.precision import full


def discriminator_loss(real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    r"""What a discriminator descends on (Goodfellow et al., 2014, arXiv 1406.2661, equation 1).

    .. math:: L = -\frac1b \sum_i \log D(x_i) - \frac1b \sum_i \log (1 - D(\hat x_i)), \qquad D = \sigma(\text{logit})

    Undecided, with logits of 0, it is :math:`2 \log 2`.

    >>> import torch
    >>> round(float(discriminator_loss(torch.zeros(3), torch.zeros(3))), 4)
    1.3863
    """
    return softplus(-full(real)).mean() + softplus(full(fake)).mean()


def generator_loss(fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    r"""What a generator descends on, without saturation: :math:`-\frac1b \sum_i \log D(\hat x_i)` (there, section 3).

    >>> import torch
    >>> round(float(generator_loss(torch.zeros(3))), 4)
    0.6931
    """
    return softplus(-full(fake)).mean()
