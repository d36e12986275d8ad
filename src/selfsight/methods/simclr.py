r"""SimCLR: agreement of two views against all other images of the batch.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
arXiv 2002.05709.

**Idea.** Two random views of one image should have similar embeddings, and views of different images should not. The
other images of the batch serve as negatives, so a large batch replaces a memory. The similarity is measured behind a
small head that is thrown away, which lets the encoder keep what the head may forget.

**Equations.** With :math:`h = f(x)`, :math:`z = g(h)`, :math:`\hat z = z / \lVert z \rVert`, and :math:`j(i)` the other
view of embedding :math:`i` among the :math:`2B`,

.. math:: L = \frac1{2B} \sum_{i=1}^{2B} \Big[-\frac{\hat z_i^\top \hat z_{j(i)}}{\tau}
    + \log \sum_{k \ne i} e^{\hat z_i^\top \hat z_k / \tau}\Big].

**Differences** between the paper, the official code (google-research/simclr, 383d414) and this file:

- The code returns the sum of two means over ``B`` anchors, twice the paper's loss; here it is the paper's.
- Both views go through the network in one batch, so that they share batch-norm statistics: as in the code. ``apart``
  gives each a batch of its own, as other repositories do.
- The loss is an argument: a debiased, hard-negative, decoupled or flat loss with the same signature makes another
  recipe.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from selfsight.batches import TwoViews
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import Encoder
from selfsight.losses.contrastive import PairLoss
from selfsight.method import Clock, Method, Objective, Schedule, Steps


class SimCLR(Method[TwoViews]):
    """SimCLR with any loss of two views.

    ``log`` has functions of the two views that are written down beside the loss, without gradient. ``scheduled`` has
    keyword arguments by the clock, which the loss and the functions of ``log`` all take: the hardness of negatives.
    With ``apart`` each view goes through the network in a batch of its own, with its own batch-norm statistics.

    ``watch`` has the encoder's output as ``feature`` and the head's as ``projection``, each with the rows of the first
    view before those of the second.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        *,
        loss: PairLoss,
        log: Mapping[str, PairLoss] | None = None,
        scheduled: Mapping[str, Schedule] | None = None,
        apart: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.loss = loss
        self.log = dict(log or {})
        self.scheduled = dict(scheduled or {})
        self.apart = apart

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        forwards = [batch.x1, batch.x2] if self.apart else [torch.cat([batch.x1, batch.x2])]
        h = [self.encoder(x) for x in forwards]
        z1, z2 = torch.cat([self.projector(x) for x in h]).chunk(2)
        given: dict[str, Any] = {"all1": gather(z1), "all2": gather(z2), "offset": rank() * len(z1)}
        given |= {name: schedule(clock) for name, schedule in self.scheduled.items()}
        loss = self.loss(z1, z2, **given)
        with torch.no_grad():
            log = {name: measure(z1, z2, **given) for name, measure in self.log.items()}
        z = torch.cat([z1, z2]).detach()
        yield Objective(loss, log=log, watch={"feature": torch.cat(h).detach(), "projection": z})
