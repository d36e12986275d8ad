r"""SwAV: predict from one view the cluster that another view of the same image was assigned to.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", NeurIPS 2020, arXiv 2006.09882.

**Idea.** Instead of comparing features, SwAV compares what they are assigned to: each view of an image predicts, from
its own feature, the soft assignment of another view to a set of learnt prototypes. The assignments are computed online
by the Sinkhorn-Knopp algorithm, which spreads a batch evenly over the prototypes, so that everything in one cluster is
out of reach. Cheap small crops predict as well but are never assigned: multi-crop.

**Equations.** With unit features :math:`z_v`, prototypes :math:`C` of unit rows, and assigned crops :math:`A` out of
:math:`V`,

.. math:: q_s = \mathrm{Sinkhorn}(z_s C^\top / \varepsilon), \qquad
    L = \frac1{|A|(V-1)} \sum_{s \in A} \sum_{v \ne s} \mathrm{CE}(q_s, \mathrm{softmax}(z_v C^\top / \tau)) .

With a small batch the features of earlier batches join in the assignment (one queue for each assigned crop), since an
even spread over 3000 prototypes says little about 256 samples.

**Differences** between the paper, the official code (facebookresearch/swav, 06b1b7c) and this file, which follows the
code where the paper is silent:

- As in the code, prototypes are brought back to the sphere before every forward, also while they are frozen, and a
  queue starts at an epoch and is used once it is full.
- The Sinkhorn runs in the log domain (the same numbers, without overflow) and scores are float32, the code's float16.
- Each queue holds the features of all processes in the order of the joined batch, and each process scores its share of
  them; the code keeps one queue file for each process. So the number of processes changes nothing.
- With accumulated gradients each micro-batch is assigned by itself and enters the queue at once.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import MultiCrop
from selfsight.distributed import gather, rank, world_size
from selfsight.encoders.protocol import Encoder
from selfsight.losses.clustering import sinkhorn, swapped_prediction
from selfsight.losses.precision import unit
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.memory import Queue
from selfsight.parts.prototypes import Prototypes


class SwAV(Method[MultiCrop]):
    """SwAV; the large crops are those that are assigned.

    ``queue`` counts the features kept for each large crop, over all processes, 0 for none; it must be a multiple of the
    batch. It is filled from ``queue_epoch`` on. ``frozen_epochs`` (or a share of one) is how long the prototypes stand
    still at the start. ``hard`` assigns each sample to its likeliest prototype alone, one of the README's remedies
    against collapse. Defaults: ``main_swav.py`` and the README's scripts.
    """

    pushed: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        prototypes: Prototypes,
        *,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        frozen_epochs: float = 1,
        queue: int = 0,
        queue_epoch: float = 15,
        large_crops: int = 2,
        hard: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.prototypes = prototypes
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.frozen_epochs, self.queue_epoch, self.hard = frozen_epochs, queue_epoch, hard
        width = prototypes.weight.shape[1]
        queues = [Queue(queue, width) for _ in range(large_crops if queue else 0)]
        self.queues = cast("Sequence[Queue]", nn.ModuleList(queues))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))
        self._queue_full = False  # spares the device a question at every step once the answer is yes

    def step(self, batch: MultiCrop, clock: Clock) -> Steps:
        self.prototypes.renormalise_()

        # one forward for each resolution, the head once over everything: so batch norm sees what it does in the paper
        h = self.encoder(torch.cat(batch.large))
        if batch.small:
            h = torch.cat([h, self.encoder(torch.cat(batch.small))])
        z = unit(self.projector(h), dim=1)
        scores = self.prototypes(z)

        b, large = len(batch.index), len(batch.large)
        z_large = z[: large * b].detach().reshape(large, b, -1)
        scores = scores.reshape(-1, b, scores.shape[1])
        queueing = bool(self.queues) and clock.step >= self.queue_epoch * clock.steps_per_epoch
        q = self.assign(z_large, scores[:large].detach(), remember=queueing)
        loss = swapped_prediction(scores, q, temperature=self.temperature)

        frozen = clock.step < self.frozen_epochs * clock.steps_per_epoch
        yield Objective(
            loss,
            hold=(self.prototypes.weight,) if frozen else (),
            watch={"feature": h[:b].detach(), "projection": z_large[:2].flatten(0, 1), "assignment": q.flatten(0, 1)},
        )

        if queueing:
            self._push_(z_large)

    @torch.no_grad()
    def assign(
        self, z: Float[Tensor, "a b d"], scores: Float[Tensor, "a b k"], *, remember: bool = True
    ) -> Float[Tensor, "a b k"]:
        """The assignments of each large crop, balanced over all processes' samples and the queue if that is full.

        ``remember=False`` leaves the queue out.
        """
        if self.queues and len(z) != len(self.queues):
            raise ValueError(f"SwAV has queues for {len(self.queues)} large crops but the batch has {len(z)}")
        assigned: list[Tensor] = []
        for crop, own in enumerate(scores):
            before = self._remembered(crop) if remember and self.queues else None
            joined = own if before is None else torch.cat([before, own])
            q = sinkhorn(joined, epsilon=self.epsilon, iterations=self.iterations, gather=gather)[-len(own) :]
            if self.hard:
                q = torch.zeros_like(q).scatter_(1, q.argmax(dim=1, keepdim=True), 1.0)
            assigned.append(q)
        return torch.stack(assigned)

    def _remembered(self, crop: int) -> Tensor | None:
        """The scores of this process's share of the queue; None until it is full."""
        keys = self.queues[crop].keys
        self._queue_full = self._queue_full or int(self.pushed) >= len(keys)
        return self.prototypes(keys.tensor_split(world_size())[rank()]) if self._queue_full else None

    @torch.no_grad()
    def _push_(self, z: Float[Tensor, "a b d"]) -> None:
        for queue, own in zip(self.queues, z, strict=True):
            queue.push_(gather(own))
        self.pushed.add_(z.shape[1] * world_size())
