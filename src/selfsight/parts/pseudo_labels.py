"""Which pseudo-labelled images are kept, and how many copies of each: filtered by confidence, balanced by class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Balance:
    """How many ``copies`` of each image a student is shown, 0 where it is left out.

    ``confident`` counts each class's images at or above the threshold, ``least`` is the lowest confidence of those
    that are kept.
    """

    copies: Int[np.ndarray, " n"]
    confident: Int[np.ndarray, " k"]
    least: Float[np.ndarray, " k"]


def balanced(
    predicted: Int[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"],
    *,
    classes: int,
    threshold: float,
    per_class: int,
    order: Int[np.ndarray, " n"],
) -> Balance:
    """Of each predicted class exactly ``per_class`` copies, of images whose ``confidence`` is at least ``threshold``.

    Where there are more images than that, the most confident ones are kept, once. Where there are fewer all are kept,
    each as often as it goes and some of them, the first in ``order``, once more. A class without any image stays empty
    (Xie et al., 2020, arXiv 1911.04252, section 3.1: 130,000 a class, confidence 0.3).

    >>> answers = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.45, 0.55]])
    >>> how = {"classes": 2, "threshold": 0.5, "per_class": 2, "order": np.arange(4)}
    >>> balanced(answers.argmax(axis=1), answers.max(axis=1), **how).copies.tolist()
    [1, 1, 0, 2]
    """
    if per_class < 1:
        raise ValueError(f"--per-class is {per_class}; give at least 1")
    rank = np.empty(len(predicted), dtype=np.int64)
    rank[order] = np.arange(len(predicted))
    copies = np.zeros(len(predicted), dtype=np.int64)
    confident, least = np.zeros(classes, dtype=np.int64), np.full(classes, np.nan)
    for k in range(classes):
        mine = np.flatnonzero((predicted == k) & (confidence >= threshold))
        confident[k] = len(mine)
        if not len(mine):
            continue
        if len(mine) > per_class:
            mine = mine[np.lexsort((rank[mine], -confidence[mine]))[:per_class]]
        each, more = divmod(per_class, len(mine))
        copies[mine] = each
        copies[mine[np.argsort(rank[mine])[:more]]] += 1
        least[k] = confidence[mine].min()
    return Balance(copies, confident, least)
