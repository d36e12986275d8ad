r"""Barlow Twins: two views agree in every feature, and no two features say the same.

Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021,
arXiv 2103.03230.

**Idea.** The features of two views of a batch are correlated with each other over the batch. The correlation of each
feature with itself should be one, so that it does not depend on the view; that of each with any other zero, so that
none is redundant. A constant has no correlation of one, so nothing else is needed against collapse: no negatives, no
target, no predictor.

**Equations.** With :math:`\tilde z` standardised over the batch for each feature,

.. math:: C = \frac1B \sum_b \tilde z^{(1)}_b \tilde z^{(2)\top}_b, \qquad
    L = \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2 .

**Differences** between the paper, the official code (facebookresearch/barlowtwins, 8e8d284) and this file:

- Over ``W`` processes the code sums ``C`` in a way that the gradient does not see, so that it trains with ``1 / W`` of
  the true gradient. Here the gradient is the true one on any number of processes; ``scale`` multiplies the loss, so
  that a recipe can have the factor that its learning rates were tuned with.
- λ and the weight decay are the code's (0.0051, 1e-6) rather than the paper's (0.005, 1.5e-6): they gave the released
  model.
- The code divides ``C`` by the nominal batch even where the last one is smaller; here such batches are dropped.
- Each view is standardised by itself, by one batch norm without scale and shift over all processes: as in the code. It
  is computed in float32 here, in half precision there.
"""

import torch
from torch import nn

from selfsight.batches import TwoViews
from selfsight.distributed import mean
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.losses.redundancy import barlow_twins, cross_correlation
from selfsight.method import Clock, Method, Objective, Steps


class BarlowTwins(Method[TwoViews]):
    """Barlow Twins.

    ``width`` is the projector's output width, ``weight`` is λ, ``scale`` multiplies the loss.

    ``watch`` has the encoder's output as ``feature`` and the projector's, not yet standardised, as ``projection``, each
    with the rows of the first view before those of the second. ``log`` has the mean of the diagonal of ``C``.
    """

    def __init__(
        self, encoder: Encoder, projector: nn.Module, *, width: int, weight: float = 0.0051, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.standardise = nn.BatchNorm1d(width, affine=False)
        self.weight = weight
        self.scale = scale

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder(batch.x1), self.encoder(batch.x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        c = mean(cross_correlation(self.standardise(full(z1)), self.standardise(full(z2))))  # of the joined batch
        loss = self.scale * barlow_twins(c, weight=self.weight)

        yield Objective(
            loss,
            log={"diagonal": c.detach().diagonal().mean()},
            watch={"feature": torch.cat([h1, h2]).detach(), "projection": torch.cat([z1, z2]).detach()},
        )
