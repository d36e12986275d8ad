r"""MoCo: pick the other view's key out of a long queue of keys from a slowly moving encoder.

He, Fan, Wu, Xie, Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
arXiv 1911.05722 (v1); Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020,
arXiv 2003.04297 (v2: another head, other views, another temperature, and a cosine schedule: another recipe).

**Idea.** Contrastive learning wants many negatives, and a queue of earlier batches' keys has them at the price of a
small batch. Keys that were made by different encoders would not be comparable, so the key encoder is a moving average
of the query encoder and changes slowly. The keys are forwarded in shuffled order, with batch norm over small groups,
since a query and its key could otherwise recognise each other by the statistics of their group.

**Equations.** With query :math:`q = f_q(x_1)`, key :math:`k^+ = \mathrm{sg} f_k(x_2)`, both normalised, and the queue
:math:`\{k_j\}_{j=1}^K`,

.. math:: L = \frac1B \sum_b
    -\log \frac{e^{q_b^\top k_b^+ / \tau}}{e^{q_b^\top k_b^+ / \tau} + \sum_j e^{q_b^\top k_j / \tau}},
    \qquad \theta_k \leftarrow m \theta_k + (1 - m) \theta_q .

The keys enter the queue after the step and push out the oldest.

**Differences** between the papers, the official code (facebookresearch/moco, 132aea9) and this file:

- The key encoder moves at the end of a step, as in the paper's Algorithm 1; the code moves it at the start of the next,
  which is the same sequence.
- The code's groups for batch norm are its 8 GPUs. Here they are groups of so many samples (a recipe sets
  ``parts.batchnorm``'s scope), whatever the number of processes, and the shuffle is over all of them.
- ``symmetric`` is the later variant that averages both directions, with one queue for each view (solo-learn's
  "MoCo v2+"). The official CIFAR-10 notebook's adds the two and has one queue.
- The loss can be another one of queries, keys and a queue: alignment and uniformity make another recipe.
- With accumulated gradients each micro-batch's keys enter the queue at once.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import TwoViews
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import Encoder
from selfsight.losses.contrastive import QueueLoss, info_nce
from selfsight.losses.precision import unit
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.memory import Queue
from selfsight.parts.momentum import ema_, target_of


class MoCo(Method[TwoViews]):
    """Momentum contrast, v1 and v2.

    ``width`` is the projector's output width, ``size`` the queue's length (a multiple of the batch), ``momentum`` the
    key encoder's by the clock. ``loss`` stands in for InfoNCE at ``temperature``.

    ``watch`` has the query encoder's output as ``feature``, and as ``projection`` the normalised queries before their
    keys. The keys are not handed over as ``teacher``, which stands for probabilities.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        *,
        width: int,
        size: int,
        temperature: float = 0.07,
        momentum: Schedule,
        symmetric: bool = False,
        loss: QueueLoss | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.key_encoder = target_of(encoder)
        self.key_projector = target_of(projector)
        self.queues = cast("Sequence[Queue]", nn.ModuleList(Queue(size, width) for _ in range(1 + symmetric)))
        self.temperature = temperature
        self.momentum = momentum
        self.symmetric = symmetric
        self.loss = loss

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        pairs = [(batch.x1, batch.x2), (batch.x2, batch.x1)] if self.symmetric else [(batch.x1, batch.x2)]
        h = [self.encoder(x) for x, _ in pairs]
        q = [unit(self.projector(x), dim=1) for x in h]
        all_k = [self.keys(x) for _, x in pairs]
        b = len(batch.x1)
        k = [x[rank() * b : (rank() + 1) * b] for x in all_k]
        losses = [self.score(q_, k_, queue.keys) for q_, k_, queue in zip(q, k, self.queues, strict=True)]
        loss = torch.stack(losses).mean()

        moved = yield Objective(loss, watch={"feature": torch.cat(h).detach(), "projection": torch.cat(q + k).detach()})
        for queue, x in zip(self.queues, all_k, strict=True):
            queue.push_(x)
        if moved:
            m = self.momentum(clock)
            ema_(self.key_encoder, self.encoder, m)
            ema_(self.key_projector, self.projector, m)

    def score(
        self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], negatives: Float[Tensor, "n d"]
    ) -> Float[Tensor, ""]:
        """The loss of queries and keys against a queue."""
        if self.loss is None:
            return info_nce(q, k, temperature=self.temperature, negatives=negatives)
        return self.loss(q, k, negatives=negatives, all_q=gather(q))

    @torch.no_grad()
    def keys(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "n d"]:
        """The normalised keys of all processes' images, each forwarded in a place drawn by lot."""
        everyone, b = gather(x), len(x)
        # the first process draws for all; its generator is reseeded with each step, so a resumed run draws the same
        order = gather(torch.randperm(len(everyone)).to(x.device))[: len(everyone)]
        mine = everyone[order[rank() * b : (rank() + 1) * b]]
        k = unit(self.key_projector(self.key_encoder(mine)), dim=1)
        return gather(k)[order.argsort()]
