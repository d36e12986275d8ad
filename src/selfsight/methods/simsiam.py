r"""SimSiam: predict one view from the other, with no negatives, no momentum and no large batch.

Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566.

**Idea.** One network encodes two views of an image, and a predictor maps the projection of the one to that of the
other. The gradient is stopped at what is predicted, which alone keeps the network from agreeing on a constant: it is
BYOL with a target that is the online network itself. The authors read it as an alternation: one view's representation
is held while the network is fitted to it.

**Equations.** With :math:`z = g(f(x))` and :math:`p = h(z)`,

.. math:: D(p, z) = -\frac1B \sum_b \frac{p_b^\top z_b}{\lVert p_b \rVert \lVert z_b \rVert}, \qquad
    L = \tfrac12 D(p_1, \mathrm{sg}(z_2)) + \tfrac12 D(p_2, \mathrm{sg}(z_1)) \in [-1, 1] .

**Differences** between the paper, the official code (facebookresearch/simsiam, a7bc177) and this file, which follow
each other:

- The code keeps a bias before the projector's last batch norm and freezes it; it would cancel there, and is left out.
- The predictor's constant learning rate is its optimiser's business: the recipe's ``fixed_predictor_lr``.
- Each view has a forward pass, and so batch-norm statistics, of its own: as in the code. The cosine is computed in
  float32.
"""

import torch
from torch import nn

from selfsight.batches import TwoViews
from selfsight.encoders.protocol import Encoder
from selfsight.losses.similarity import negative_cosine
from selfsight.method import Clock, Method, Objective, Steps


class SimSiam(Method[TwoViews]):
    """Simple Siamese networks.

    ``watch`` has the encoder's output as ``feature`` and the projector's as ``projection``, each with the rows of the
    first view before those of the second.
    """

    def __init__(self, encoder: Encoder, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder(batch.x1), self.encoder(batch.x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2

        yield Objective(
            loss, watch={"feature": torch.cat([h1, h2]).detach(), "projection": torch.cat([z1, z2]).detach()}
        )
