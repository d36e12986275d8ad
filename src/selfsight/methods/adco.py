r"""AdCo: contrast with negatives that are not taken from images but learnt, to be as hard as they can.

Hu, Wang, Hu, Qi, "AdCo: Adversarial Contrast for Efficient Learning of Unsupervised Representations from Self-Trained
Negative Adversaries", CVPR 2021, arXiv 2011.08435.

**Idea.** A queue of old keys follows the network slowly, and most of its negatives are easy. AdCo makes the negatives
themselves trainable: two players share one contrastive loss, the network descends on it and the negatives climb it. So
each negative is drawn towards the queries that find it hardest to tell apart, and all of them move at every step.

**Equations.** With query :math:`q`, the keys :math:`k_j` of all images of the batch from a slowly moving encoder, the
bank :math:`W` of :math:`K` adversaries and :math:`\bar n_k = W_k / \lVert W_k \rVert`,

.. math:: L_\tau = \frac1B \sum_b -\log \frac{e^{q_b^\top k_b / \tau}}
    {\sum_{j=1}^B e^{q_b^\top k_j / \tau} + \sum_{k=1}^K e^{q_b^\top \bar n_k / \tau}},
    \qquad \theta \;\mathrm{descends}\; L_\tau, \qquad W \;\mathrm{ascends}\; L_{\tau_m} .

The ascent has a colder temperature, a rate and a momentum of its own. Its gradient lies along the sphere:

.. math:: \nabla_{W_k} L_{\tau_m} = \frac{1}{\tau_m \lVert W_k \rVert} \cdot \frac1B \sum_b p_{bk}
    \big(q_b - (q_b^\top \bar n_k)\, \bar n_k\big),

where :math:`p_{bk}` is the share of adversary :math:`k` in the softmax at :math:`\tau_m`. The bank starts with the keys
of the first :math:`K / B` batches, as a queue would; then the key encoder is set to the query encoder.

**Differences** between the paper, the official code (maple-research-lab/AdCo, fd65f12) and this file, which follows the
code:

- The code writes the gradient out and steps by hand. Here the ascent is a second objective, :math:`-L_{\tau_m}` by an
  optimiser of its own, and autograd gives the same gradient (a test compares them). The engine's SGD on it is the
  code's rule, momentum and decay included, averages the gradient over processes, and has its state in the checkpoint.
- The batches that fill the bank are the first of the training, the code's come before it. While they do, negatives are
  the bank alone and the adversaries stand still: as in the code.
- The code finds an image's own key by the number of its GPU, which is right on one machine only; here by its rank.
- The key encoder moves at the end of a step, the code's at the start of the next, which is the same sequence. Batch
  norm works in groups and keys are shuffled as in ``selfsight.methods.moco``.
- ``symmetric`` averages both directions. With small crops the losses of all queries are added, not averaged. The code
  cannot do both at once, nor can this file. While the bank fills, the code trains on one query and one direction, and
  with small crops it fills with the smallest's keys; here with the large crop's, and all queries and directions learn.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import MultiCrop
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import Encoder
from selfsight.losses.blockwise import log_sum_exp
from selfsight.losses.contrastive import info_nce
from selfsight.losses.precision import unit
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.momentum import ema_, target_of


class AdCo(Method[MultiCrop]):
    """Adversarial contrast: the first large crop and every small one is a query, the second large crop gives the key.

    ``width`` is the projector's output width, ``size`` the number of adversaries, ``momentum`` the key encoder's by the
    clock. ``fill=False`` leaves the bank at its random start. There are two optimisers: ``main``, and ``adversary`` for
    the bank.

    ``watch`` has the first query's feature as ``feature``, and as ``projection`` its normalised projection before the
    keys. ``key_share`` in the log is what the batch's keys have of the softmax at the adversaries' temperature: it
    falls as the adversaries win.
    """

    filled: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        *,
        width: int,
        size: int,
        temperature: float,
        adversary_temperature: float,
        momentum: Schedule,
        symmetric: bool = False,
        fill: bool = True,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"the number of adversaries is {size}; it must be at least 1")
        self.encoder = encoder
        self.projector = projector
        self.key_encoder = target_of(encoder)
        self.key_projector = target_of(projector)
        self.adversaries = nn.Parameter(torch.randn(size, width))
        self.register_buffer("filled", torch.tensor(0 if fill else size))
        self.temperature, self.adversary_temperature = temperature, adversary_temperature
        self.momentum = momentum
        self.symmetric = symmetric
        self._full = False  # spares the device a question at every step once the answer is yes

    def trainables(self) -> Mapping[str, Iterable[tuple[str, nn.Parameter]]]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return {
            "main": [(name, p) for name, p in named if p is not self.adversaries],
            "adversary": [(name, p) for name, p in named if p is self.adversaries],
        }

    def step(self, batch: MultiCrop, clock: Clock) -> Steps:
        x1, x2 = self._pair(batch)
        h = [self.encoder(x) for x in ((x1, x2) if self.symmetric else (x1, *batch.small))]
        q = [unit(self.projector(y), dim=1) for y in h]
        keys = [self.keys(x) for x in ((x2, x1) if self.symmetric else (x2,))]
        pairs = list(zip(q, keys if self.symmetric else keys * len(q), strict=True))
        weight = 0.5 if self.symmetric else 1.0
        filling = self._filling()

        bank, tau = self.adversaries.detach(), self.temperature
        loss = weight * torch.stack([self._contrast(q_, k, bank, tau, alone=filling) for q_, k in pairs]).sum()
        moved = yield Objective(loss, watch={"feature": h[0].detach(), "projection": self._beside(q[0], keys[0])})

        if filling:
            self._fill_(keys[0])
        else:  # the other player, on the same features: up, as the objective of a descent
            bank, tau, seen = self.adversaries, self.adversary_temperature, [(q_.detach(), k) for q_, k in pairs]
            gain = weight * torch.stack([self._contrast(q_, k, bank, tau) for q_, k in seen]).sum()
            yield Objective(-gain, by=("adversary",), log={"key_share": self._key_share(*seen[0])})
        if moved:
            self._follow_(self.momentum(clock))

    def _pair(self, batch: MultiCrop) -> tuple[Tensor, ...]:
        if len(batch.large) != 2:
            raise ValueError(f"AdCo takes two large crops, a query's and a key's, not {len(batch.large)}")
        if self.symmetric and batch.small:
            raise ValueError(f"symmetric AdCo takes no small crops, not {len(batch.small)}: they have no keys")
        return batch.large

    def _contrast(
        self,
        q: Float[Tensor, "b d"],
        keys: Float[Tensor, "n d"],
        bank: Float[Tensor, "k d"],
        temperature: float,
        *,
        alone: bool = False,
    ) -> Float[Tensor, ""]:
        """InfoNCE against the bank and, unless ``alone``, all other keys of the batch."""
        own = torch.arange(rank() * len(q), (rank() + 1) * len(q), device=q.device)
        if alone:
            return info_nce(q, keys[own], temperature=temperature, negatives=bank)
        others = torch.cat([keys, bank])
        return info_nce(q, keys[own], temperature=temperature, negatives=others, skip=own[:, None])

    @torch.no_grad()
    def keys(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "n d"]:
        """The normalised keys of all processes' images, each forwarded in a place drawn by lot."""
        everyone, b = gather(x), len(x)
        # the first process draws for all; its generator is reseeded with each step, so a resumed run draws the same
        order = gather(torch.randperm(len(everyone)).to(x.device))[: len(everyone)]
        mine = everyone[order[rank() * b : (rank() + 1) * b]]
        k = unit(self.key_projector(self.key_encoder(mine)), dim=1)
        return gather(k)[order.argsort()]

    def _filling(self) -> bool:
        self._full = self._full or int(self.filled) >= len(self.adversaries)
        return not self._full

    @torch.no_grad()
    def _fill_(self, keys: Float[Tensor, "n d"]) -> None:
        """Writes keys into the bank, and once it is full sets the key encoder to the query encoder.

        Keys that are not finite leave what was there.
        """
        start = int(self.filled)
        old = self.adversaries[start : start + len(keys)]
        new = keys[: len(old)].to(old.dtype)
        old.copy_(torch.where(new.isfinite().all(dim=1, keepdim=True), new, old))
        self.filled.add_(len(old))
        if not self._filling():
            self._follow_(0.0)

    def _follow_(self, m: float) -> None:
        ema_(self.key_encoder, self.encoder, m)
        ema_(self.key_projector, self.projector, m)

    @torch.no_grad()
    def _key_share(self, q: Float[Tensor, "b d"], keys: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        q, bank = q / self.adversary_temperature, unit(self.adversaries, dim=1)
        return torch.sigmoid(log_sum_exp(q, keys) - log_sum_exp(q, bank)).mean()

    def _beside(self, q: Float[Tensor, "b d"], keys: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
        """Queries before their keys."""
        return torch.cat([q.detach(), keys[rank() * len(q) : (rank() + 1) * len(q)]])
