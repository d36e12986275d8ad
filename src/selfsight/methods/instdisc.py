r"""Instance discrimination: tell an image from all others by a memory of their embeddings.

Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
arXiv 1805.01978; Gutmann, Hyvärinen, "Noise-Contrastive Estimation: A New Estimation Principle for Unnormalized
Statistical Models", AISTATS 2010, whose estimator it trains with.

**Idea.** Every image is a class of its own, and its classifier's weight is what the network said of it the last time: a
memory bank with one unit vector for each image stands in for a million classes. A softmax over the whole bank is dear,
so noise-contrastive estimation asks instead whether an index was the image's own or drawn by lot. The model is left
unnormalised, and its constant is learnt with the network (the estimator's own way) or taken from the first batch.

**Equations.** With the embedding :math:`f = \mathrm{norm}(g(h(x_i)))`, the bank :math:`V`, scores
:math:`s_j = v_j^\top f / \tau`, and :math:`m` indices :math:`j` drawn uniformly out of :math:`n`,

.. math:: P(j|f) = \frac{e^{s_j}}{Z}, \qquad h(j, f) = \frac{P(j|f)}{P(j|f) + m/n}, \qquad
    L = -\log h(i, f) - \sum_{j} \log(1 - h(j, f)) + \lambda \lVert f - v_i \rVert^2 .

After the step :math:`v_i \leftarrow \mathrm{norm}(\mu v_i + (1 - \mu) f)`. Without noise (:math:`m = 0`) the loss is
the cross-entropy of picking row :math:`i` of the whole bank; the official repository's later model picks it out of
itself and :math:`m` drawn rows.

**Differences** between the papers, the official code (zhirongw/lemniscate.pytorch, f7cfe29) and this file:

- The proximal term is in the paper and not in the code; it is an option here, by default none.
- The code adds 1e-7 to the denominator of :math:`h`, which is not small beside :math:`1/n`; here log-odds are exact.
- The code's bank lies with one process. Here all processes update theirs with everyone's embeddings, and draw the
  indices of the joined batch alike, so the number of processes changes nothing. :math:`Z` comes from all of them.
- The code updates the bank in the backward pass, here after the step: with the same embeddings.
- Among drawn rows may be the image's own. Noise-contrastive estimation wants that; a softmax leaves it out here. The
  repository has the later model's weights and not its loss; others (HobbitLong/CMC, bl0/PIC) keep it.
- With accumulated gradients each micro-batch's embeddings enter the bank at once.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.distributed import gather, rank, shared_generator, world_size
from selfsight.encoders.protocol import Encoder
from selfsight.losses.instance import instance_softmax
from selfsight.losses.nce import nce, sampled_softmax
from selfsight.losses.precision import unit
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.memory import Bank
from selfsight.parts.partition import Partition


class InstDisc(Method[Images]):
    """Instance discrimination against a memory bank.

    With a ``partition`` the loss is noise-contrastive estimation, without one a softmax, over the whole bank where
    ``negatives`` is 0. ``momentum`` is the bank's, ``proximal`` the weight of the distance to the image's own row. A
    learnt constant has an optimiser of its own, ``constant``; that of all else is ``main``.

    ``watch`` has the encoder's output as ``feature``, and as ``projection`` the embeddings before their bank rows.
    """

    by_index = True

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        bank: Bank,
        *,
        temperature: float,
        negatives: int,
        partition: Partition | None = None,
        momentum: float = 0.5,
        proximal: float = 0.0,
    ) -> None:
        super().__init__()
        if partition is not None and negatives < 1:
            raise ValueError(f"noise-contrastive estimation got {negatives} negatives; it needs at least 1")
        self.encoder = encoder
        self.projector = projector
        self.bank = bank
        self.partition = partition
        self.temperature, self.negatives = temperature, negatives
        self.momentum, self.proximal = momentum, proximal
        learnt = partition is not None and partition.kind == "learnt"
        self.by = ("constant", "main") if learnt else ("main",)  # the last one's gradient is what the log shows

    def trainables(self) -> Mapping[str, Iterable[tuple[str, nn.Parameter]]]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        if "constant" not in self.by:
            return {"main": named}
        return {
            "main": [(name, p) for name, p in named if name != "partition.log_z"],
            "constant": [(name, p) for name, p in named if name == "partition.log_z"],
        }

    def step(self, batch: Images, clock: Clock) -> Steps:
        drawn = self.draw(batch.index)
        h = self.encoder(batch.x)
        f = unit(self.projector(h), dim=1)
        own = self.bank.vectors[batch.index]
        loss = self.loss(f, batch.index, drawn)
        if self.proximal:
            loss = loss + self.proximal * (f - own).square().sum(dim=1).mean()

        log = {} if self.partition is None else {"log_z": self.partition.log_z.detach()}
        yield Objective(
            loss,
            by=self.by,
            log=log,
            watch={"feature": h.detach(), "projection": torch.cat([f.detach(), own])},
        )

        self.bank.update_(gather(batch.index), gather(f.detach()), momentum=self.momentum)

    def loss(
        self, f: Float[Tensor, "b d"], index: Int[Tensor, " b"], drawn: Int[Tensor, "b m"] | None
    ) -> Float[Tensor, ""]:
        """The loss of embeddings whose images are ``index``; without ``drawn`` rows, over the whole bank."""
        if drawn is None:
            return instance_softmax(f, self.bank.vectors, index, temperature=self.temperature)
        scores = self.bank.scores(f / self.temperature, torch.cat([index[:, None], drawn], dim=1))
        positive, negatives = scores[:, 0], scores[:, 1:]
        if self.partition is None:
            return sampled_softmax(positive, negatives, skip=drawn == index[:, None])
        log_z = self.partition(positive, negatives)
        return nce(positive, negatives, log_z=log_z, log_noise=-math.log(len(self.bank.vectors)))

    def draw(self, index: Int[Tensor, " b"]) -> Int[Tensor, "b m"] | None:
        """The rows drawn for this process's images: its share of those for the joined batch."""
        if not self.negatives:
            return None
        b, n = len(index), len(self.bank.vectors)
        generator = shared_generator(index.device)
        shape = (b * world_size(), self.negatives)
        drawn = torch.randint(n, shape, generator=generator, device=index.device)
        return drawn[rank() * b : (rank() + 1) * b]
