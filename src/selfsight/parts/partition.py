"""The normalising constant of an unnormalised model, in the three ways that noise-contrastive estimation has it."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.distributed import gather, world_size
from selfsight.losses.nce import log_partition

Kind = Literal["learnt", "fixed", "estimated"]


class Partition(nn.Module):
    r""":math:`\log Z` of a model over ``samples`` images.

    - ``learnt``: a parameter (Gutmann and Hyvärinen's), which should not decay;
    - ``fixed``: what it starts as, for all time;
    - ``estimated``: from the first batch's scores on all processes, then constant (InstDisc, CMC).

    ``log_z`` is where it starts; by default at :math:`\log n`, where a model that scores all images 0 is normalised. It
    is in the checkpoint, whichever it is. An estimate that is not there yet is NaN.

    >>> float(Partition(1, "fixed")(torch.zeros(2), torch.zeros(2, 3)))
    0.0
    """

    log_z: Tensor

    def __init__(self, samples: int, kind: Kind, *, log_z: float | None = None) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"the constant's kind is '{kind}'; choose {', '.join(get_args(Kind))}")
        if kind == "estimated" and log_z is not None:
            raise ValueError(f"log Z is {log_z:g} but it is to be estimated; give either")
        self.samples, self.kind = samples, kind
        start = torch.tensor(math.log(samples) if log_z is None else log_z)
        if kind == "learnt":
            self.log_z = nn.Parameter(start)
        else:
            self.register_buffer("log_z", torch.full_like(start, torch.nan) if kind == "estimated" else start)
        self._known = kind != "estimated"  # spares the device a question at every step once the answer is yes

    def forward(self, positive: Float[Tensor, " b"], negatives: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """The constant for these scores, which the first batch's estimate comes from."""
        if not self._known:
            if not self.log_z.isfinite():
                mine = log_partition(positive, negatives, samples=self.samples)
                self.log_z.copy_(gather(mine[None]).logsumexp(dim=0) - math.log(world_size()))
            self._known = bool(self.log_z.isfinite())
        return self.log_z
