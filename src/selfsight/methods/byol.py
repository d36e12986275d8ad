r"""BYOL: predict the target network's view of the same image, without negatives.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020, arXiv 2006.07733.

**Idea.** An online network predicts, from one view of an image, what a target network says of the other view. The
target is a slow moving average of the online network and gets no gradient. A predictor on the online side alone, batch
norm in the heads and the slow target keep the two from agreeing on a constant.

**Equations.** With online :math:`z = g_\theta(f_\theta(x))`, prediction :math:`p = q_\theta(z)` and target
:math:`z' = g_\xi(f_\xi(x))`,

.. math:: L = \frac1B \sum_b \lVert \hat p_1 - \mathrm{sg}(\hat z'_2) \rVert^2
    + \lVert \hat p_2 - \mathrm{sg}(\hat z'_1) \rVert^2 \in [0, 8],
    \qquad \xi \leftarrow m_k \xi + (1 - m_k) \theta .

The target moves after the optimiser's step, with :math:`m_k = 1 - (1 - m_0)(1 + \cos(\pi k / K)) / 2`.

**Differences** between the paper, the official code (google-deepmind/deepmind-research ``byol/``, f5de0ed) and this
file:

- The code starts the two networks from different random numbers and says that copying makes no difference; the paper's
  pseudo-code uses one seed. Here the target is a copy, unless networks of its own are passed in.
- The paper's pseudo-code has ``-2 cos`` and a bias in the heads' last layer; as in the code it is the squared distance,
  and no bias. Both directions are added, not averaged: the learning rate is tuned for that.
- The code trains a linear classifier beside it, with labels; here the engine's probe does that.
- The target's batch-norm statistics are those of its own forward passes, and each view has a batch of its own: as in
  the code.
"""

import torch
from torch import nn

from selfsight.batches import TwoViews
from selfsight.encoders.protocol import Encoder
from selfsight.losses.regression import cosine_regression
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.momentum import ema_, target_of


class BYOL(Method[TwoViews]):
    """Bootstrap your own latent.

    ``momentum`` is the target's, by the clock. ``target`` is an encoder and a projector of the same shapes that were
    initialised by themselves; without it the target begins as a copy.

    ``watch`` has the encoder's output as ``feature`` and the projector's as ``projection``, each with the rows of the
    first view before those of the second. The target's projections are not handed over as ``teacher``, which stands for
    probabilities.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        momentum: Schedule,
        target: tuple[Encoder, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor
        target_encoder, target_projector = target or (encoder, projector)
        self.target_encoder = target_of(target_encoder)
        self.target_projector = target_of(target_projector)
        self.momentum = momentum

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder(batch.x1), self.encoder(batch.x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1 = self.target_projector(self.target_encoder(batch.x1))
            t2 = self.target_projector(self.target_encoder(batch.x2))
        loss = cosine_regression(p1, t2) + cosine_regression(p2, t1)

        moved = yield Objective(
            loss, watch={"feature": torch.cat([h1, h2]).detach(), "projection": torch.cat([z1, z2]).detach()}
        )
        if moved:
            m = self.momentum(clock)
            ema_(self.target_encoder, self.encoder, m)
            ema_(self.target_projector, self.projector, m)
