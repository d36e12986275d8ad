r"""How alike two layers are: centred kernel alignment with a linear kernel (Kornblith et al., 2019, arXiv 1905.00414).

In the unbiased form over batches of Nguyen et al. (2021, arXiv 2010.15327): with the Gram matrices :math:`\tilde K,
\tilde L` of a batch of :math:`b` images, diagonals zero,

.. math:: \mathrm{HSIC}_1 = \frac1{b(b-3)} \Big[ \mathrm{tr}(\tilde K \tilde L) + \frac{1^\top \tilde K 1\,
    1^\top \tilde L 1}{(b-1)(b-2)} - \frac2{b-2} 1^\top \tilde K \tilde L 1 \Big],

and CKA is its mean over batches for two layers over the geometric mean of theirs with themselves. It is 1 for the same
features, however turned or scaled, and about 0 for independent ones, which may make it negative.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

LEAST = 4
"""Images that a batch needs at least."""


def hsic(features: Sequence[Float[Tensor, "b _"]]) -> Float64[Tensor, "layers layers"]:
    """The unbiased estimate for every two of some layers' features of one batch."""
    b = len(features[0])
    if b < LEAST:
        raise ValueError(f"layers are compared on at least {LEAST} images at once, not {b}")
    grams = torch.stack([_gram(x) for x in features])
    sums = grams.sum(2)  # layers, b
    whole = sums.sum(1)
    trace = torch.einsum("kij,lij->kl", grams, grams)
    return (trace + whole.outer(whole) / ((b - 1) * (b - 2)) - 2 / (b - 2) * sums @ sums.T) / (b * (b - 3))


def _gram(x: Tensor) -> Tensor:
    x = x.double()
    gram = x @ x.T
    return gram - gram.diagonal().diag()


class Alignment:
    """CKA between every two layers, from batch after batch."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, features: Sequence[Float[Tensor, "b _"]]) -> None:
        """One batch of every layer's features; batches of fewer than four images say nothing and are left out."""
        if len(features[0]) >= LEAST:
            found = hsic(features).cpu()
            self.total = found if self.total is None else self.total + found

    def matrix(self) -> Float64[Tensor, "layers layers"]:
        """What was found. Raises ``ValueError`` where no batch held four images."""
        if self.total is None:
            raise ValueError(f"layers are compared on at least {LEAST} images at once; give more")
        own = self.total.diagonal().clamp_min(0).sqrt()
        return self.total / own.outer(own).clamp_min(1e-300)
