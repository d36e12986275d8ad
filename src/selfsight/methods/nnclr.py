r"""NNCLR: the positive is not the other view but its nearest neighbour among earlier images.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations", ICCV 2021, arXiv 2104.14548.

**Idea.** Two views of one image differ only as far as the augmentations go. The nearest neighbour of a view in a queue
of earlier embeddings is another image, often of the same kind, and differs as images do. So each view is replaced by
its neighbour before the other view's prediction is compared with it, against the predictions of all other images.

**Equations.** With :math:`z = g(f(x))`, :math:`p = h(z)`, hats for unit length, and the queue :math:`Q`,

.. math:: \mathrm{NN}(z) = \arg\max_{q \in Q} \hat z^\top q, \qquad
    \ell(z, p) = \frac1B \sum_b -\log \frac{e^{\mathrm{NN}(z_b)^\top \hat p_b / \tau}}
    {\sum_{j=1}^{B} e^{\mathrm{NN}(z_b)^\top \hat p_j / \tau}}, \qquad
    L = \tfrac12 \ell(z_1, p_2) + \tfrac12 \ell(z_2, p_1) .

No gradient goes through the neighbour. After the step the first views' :math:`\hat z` push out the oldest in the queue.

**Differences** between the paper, which has no official code, the libraries vturrisi/solo-learn (9187ea3) and
lightly-ai/lightly (e8d317f), and this file:

- As in the paper and in solo-learn the anchors are neighbours of one view and the candidates predictions of the other.
  lightly compares the rows of both with each other, as SimCLR does.
- Candidates are the predictions of all processes, with gradients: as in solo-learn; lightly's are those of one process
  unless it is asked.
- The queue starts with random directions, as in both; it takes the first view alone, as in solo-learn, where lightly's
  example pushes the second.
- With accumulated gradients each micro-batch enters the queue at once.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from selfsight.batches import TwoViews
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import Encoder
from selfsight.losses.cross_view import cross_view_info_nce
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.memory import Queue
from selfsight.parts.neighbours import nearest


class NNCLR(Method[TwoViews]):
    """Nearest-neighbour contrastive learning.

    ``width`` is the projector's output width, ``size`` the queue's length, a multiple of the batch.

    ``watch`` has the encoder's output as ``feature`` and the normalised projections as ``projection``, each with the
    rows of the first view before those of the second. ``log`` has the mean cosine of a projection and its neighbour.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        width: int,
        size: int,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor
        self.queue = Queue(size, width)
        self.temperature = temperature

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder(batch.x1), self.encoder(batch.x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        z = normalize(full(torch.cat([z1, z2]).detach()), dim=1)
        similarity, place = nearest(z, self.queue.keys)
        near1, near2 = self.queue.keys[place].chunk(2)
        loss = (self.contrast(near1, p2) + self.contrast(near2, p1)) / 2

        yield Objective(
            loss,
            log={"neighbour": similarity.mean()},
            watch={"feature": torch.cat([h1, h2]).detach(), "projection": z},
        )
        self.queue.push_(gather(z[: len(z1)]))

    def contrast(self, near: Float[Tensor, "b d"], p: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        """One direction: each neighbour against the predictions of all processes."""
        start = rank() * len(p)
        return cross_view_info_nce(near, p, temperature=self.temperature, all_candidates=gather(p), offset=start)
