"""What every protocol reports: top-1, top-5 and mean per-class accuracy, as shares between 0 and 1."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfsight.errors import UserError


@dataclass(frozen=True)
class Score:
    """Accuracy on ``samples`` test images. ``top5`` is None where there are fewer than six classes."""

    top1: float
    top5: float | None
    per_class: float
    """Mean over the classes that the test images hold: unlike ``top1`` it does not favour frequent classes."""
    samples: int

    def row(self) -> dict[str, float | int | None]:
        """The score as it stands in a JSON file."""
        return {"top1": self.top1, "top5": self.top5, "per_class": self.per_class, "samples": self.samples}


def score(answers: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Score:
    """Scores one row of ``k`` class scores per image, larger is likelier; -inf says that a class is no answer at all.

    >>> answers = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    >>> score(answers, torch.tensor([0, 1, 1]))
    Score(top1=0.666..., top5=None, per_class=0.75, samples=3)
    """
    n, k = answers.shape
    if n == 0:
        raise UserError("no test image to score: 0 labelled test images; give data with labels in its test part")
    best = answers.topk(min(5, k), dim=1)
    hits = (best.indices == labels[:, None]) & best.values.isfinite()
    first = hits[:, 0].double()
    seen = torch.bincount(labels, minlength=k).double()
    right = torch.bincount(labels, weights=first, minlength=k)
    return Score(
        top1=first.mean().item(),
        top5=hits.any(1).double().mean().item() if k > 5 else None,
        per_class=(right[seen > 0] / seen[seen > 0]).mean().item(),
        samples=n,
    )
