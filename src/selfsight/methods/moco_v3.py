r"""MoCo v3: momentum contrast within the batch, without a queue, made for vision transformers.

Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.02057.

**Idea.** A large batch has negatives enough, so MoCo's queue goes; a predictor behind the queries and a loss in both
directions come in from BYOL. What remains is the slowly moving key encoder. Transformers train unstably this way, which
shows as dips in accuracy and comes from the first layer: its patch projection is left as it was drawn at random.

**Equations.** With queries :math:`q = h(g(f_q(x)))`, keys :math:`k = \mathrm{sg}\, g_k(f_k(x))` and hats for unit
length,

.. math:: \mathrm{ctr}(q, k) = \frac{2\tau}B \sum_b
    -\log \frac{e^{\hat q_b^\top \hat k_b / \tau}}{\sum_{j=1}^{B} e^{\hat q_b^\top \hat k_j / \tau}}, \qquad
    L = \mathrm{ctr}(q_1, k_2) + \mathrm{ctr}(q_2, k_1),

.. math:: \theta_k \leftarrow m \theta_k + (1 - m) \theta_q, \qquad m = 1 - (1 - m_0)(1 + \cos(\pi t / T)) / 2 .

The factor :math:`2\tau` makes gradients comparable across temperatures.

**Differences** between the paper, the official code (facebookresearch/moco-v3, c349e6e; the paper's own was for TPUs)
and this file:

- The key encoder moves at the end of a step, the code's between the queries and the keys of the next: the same sequence
  of weights, but for a momentum that is read one update earlier.
- Which parameters are frozen is said where the encoder is made, by the recipe: what asks for no gradient is no
  trainable. The momentum copy has the same frozen tensors.
- The softmax is computed in float32, in blocks that never hold the whole matrix; the code computes it under autocast.
- The key branch's batch norms see its own passes, each view by itself: as in the code.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import TwoViews
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import Encoder
from selfsight.losses.cross_view import cross_view_info_nce
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.momentum import ema_, target_of


class MoCoV3(Method[TwoViews]):
    """Momentum contrast, version 3.

    ``momentum`` is the key encoder's, by the clock.

    ``watch`` has the query encoder's output as ``feature`` and the query projector's as ``projection``, each with the
    rows of the first view before those of the second. The keys are not handed over as ``teacher``, which stands for
    probabilities.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        temperature: float,
        momentum: Schedule,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor
        self.key_encoder = target_of(encoder)
        self.key_projector = target_of(projector)
        self.temperature = temperature
        self.momentum = momentum

    def step(self, batch: TwoViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder(batch.x1), self.encoder(batch.x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        q1, q2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            k1 = self.key_projector(self.key_encoder(batch.x1))
            k2 = self.key_projector(self.key_encoder(batch.x2))
        loss = self.contrast(q1, k2) + self.contrast(q2, k1)

        moved = yield Objective(
            loss, watch={"feature": torch.cat([h1, h2]).detach(), "projection": torch.cat([z1, z2]).detach()}
        )
        if moved:
            m = self.momentum(clock)
            ema_(self.key_encoder, self.encoder, m)
            ema_(self.key_projector, self.projector, m)

    def contrast(self, q: Float[Tensor, "b d"], k: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        """One direction: each query against the keys of all processes."""
        tau, start = self.temperature, rank() * len(k)
        return 2 * tau * cross_view_info_nce(q, k, temperature=tau, all_candidates=gather(k), offset=start)
