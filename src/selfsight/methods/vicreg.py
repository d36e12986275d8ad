r"""VICReg: two views agree, every feature varies over the batch, and no two features vary together.

Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR 2022,
arXiv 2105.04906.

**Idea.** Views of one image should have the same embedding, which a constant would satisfy. So each feature's standard
deviation over the batch is held above one by a hinge, and covariances between features are pressed to zero, that they
do not all say the same. Both act on each branch by itself: no normalisation of the embeddings, no negatives, no target,
no predictor, and the two branches need not be alike.

**Equations.** With embeddings :math:`Z, Z'` of :math:`n` images in :math:`d` features and the covariance :math:`C`,

.. math:: s = \frac1{nd} \sum_i \lVert z_i - z'_i \rVert^2, \quad
    v(Z) = \frac1d \sum_j \max\big(0, 1 - \sqrt{\mathrm{Var}(z^j) + \epsilon}\big), \quad
    c(Z) = \frac1d \sum_{i \ne j} C(Z)_{ij}^2,

.. math:: L = \lambda\, s + \mu\, \tfrac12 [v(Z) + v(Z')] + \nu\, [c(Z) + c(Z')] .

**Differences** between the paper, the official code (facebookresearch/vicreg, 4e12602) and this file:

- The paper's equation 5 does not divide :math:`s` by :math:`d`, and its equation 6 adds the two variances; its
  algorithm divides and adds. The code, which gave the released models, divides and averages, and so does this file.
- Variance and covariance are those of the batch joined over processes, with gradients: as in the code. The terms are
  computed in float32, the code's under autocast.
- Where the batch is smaller than the width, the covariances' squares are summed over the matrix of the images' inner
  products, which has the same sum and is smaller.
- The code divides by the nominal batch less one even where the last one is smaller; here such batches are dropped.
"""

import torch
from torch import nn

from selfsight.batches import TwoViews
from selfsight.distributed import gather
from selfsight.encoders.protocol import Encoder
from selfsight.losses.variance import covariance, invariance, variance
from selfsight.method import Clock, Method, Objective, Steps


class VICReg(Method[TwoViews]):
    """Variance, invariance, covariance.

    ``weights`` are those of invariance, variance and covariance, in this order. Default: the paper's.

    ``watch`` has the encoder's output as ``feature`` and the expander's as ``projection``, each with the rows of the
    first view before those of the second. ``log`` has the three terms without their weights.
    """

    def __init__(
        self, encoder: Encoder, expander: nn.Module, *, weights: tuple[float, float, float] = (25.0, 25.0, 1.0)
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.expander = expander
        self.weights = weights

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder(batch.x1), self.encoder(batch.x2)
        z1, z2 = self.expander(h1), self.expander(h2)
        all1, all2 = gather(z1), gather(z2)
        terms = (
            invariance(z1, z2),
            (variance(all1) + variance(all2)) / 2,
            covariance(all1) + covariance(all2),
        )
        loss = sum((w * term for w, term in zip(self.weights, terms, strict=True)), torch.zeros_like(terms[0]))

        yield Objective(
            loss,
            log={n: x.detach() for n, x in zip(("invariance", "variance", "covariance"), terms, strict=True)},
            watch={"feature": torch.cat([h1, h2]).detach(), "projection": torch.cat([z1, z2]).detach()},
        )
