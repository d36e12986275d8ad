r"""Weighted nearest neighbours (Wu et al., *Instance discrimination*, 2018, arXiv 1805.01978).

A test feature ``f`` asks its ``k`` nearest training features by cosine; neighbour ``j`` votes for its class with
weight ``exp(cos(f, f_j) / T)``. ``T = 0.07`` is the paper's; ``k = 20`` is the best of DINO's four (arXiv 2104.14294),
where the paper has 200. Both belong beside every number.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from selfsight.errors import UserError
from selfsight.evaluation.features import Features
from selfsight.evaluation.score import Score, score

QUERIES, KEYS = 1024, 25_600  # rows and columns of one block of similarities, 100 MB in float32: fewer cost more
GROUP = 16  # columns of a block that are judged by their largest at first


def neighbours(
    keys: Float[Tensor, "n d"], queries: Float[Tensor, "m d"], k: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Cosines and positions of the ``k`` nearest ``keys`` of each query, best first; memory does not grow with ``n m``.

    >>> neighbours(torch.eye(3), torch.tensor([[1.0, 0.5, 0.0]]), 2)[1]
    tensor([[0, 1]])
    """
    if not 1 <= k <= len(keys):
        raise UserError(f"k is {k}, but there are {len(keys)} training features; choose k from 1 to {len(keys)}")
    keys, queries = _unit(keys), _unit(queries)
    cosines = queries.new_empty(len(queries), k)
    found = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    columns = -(-len(keys) // -(-len(keys) // KEYS))  # of blocks of one size
    memory = queries.new_empty(min(QUERIES, len(queries)) * columns)  # for every block: fresh pages would cost more
    for start in range(0, len(queries), QUERIES):
        rows = queries[start : start + QUERIES]
        tops: list[Tensor] = []
        places: list[Tensor] = []
        for first in range(0, len(keys), columns):
            some = keys[first : first + columns]
            block = memory[: len(rows) * len(some)].view(len(rows), len(some))
            top, place = _largest(torch.mm(rows, some.T, out=block), k)
            tops.append(top)
            places.append(place + first)
        best, order = torch.cat(tops, 1).sort(dim=1, descending=True, stable=True)
        cosines[start : start + QUERIES] = best[:, :k]
        found[start : start + QUERIES] = torch.cat(places, 1).gather(1, order[:, :k])
    return cosines, found


def _largest(block: Float[Tensor, "m n"], k: int) -> tuple[Float[Tensor, "m t"], Int[Tensor, "m t"]]:
    """The ``k`` largest of each row, or all there are, and where they stand.

    They all lie in the ``k`` groups whose maxima are largest, so that little more than those is sorted.
    """
    rows, columns = block.shape
    count = columns // GROUP
    if count <= k:
        return block.topk(min(k, columns), dim=1)
    # column c is of group c % count: maxima over the first of two axes run along memory
    groups = block[:, : count * GROUP].unflatten(1, (GROUP, count))
    chosen = groups.amax(dim=1).topk(k, dim=1).indices
    places = (chosen[:, None] + count * torch.arange(GROUP, device=block.device)[:, None]).flatten(1)
    rest = torch.arange(count * GROUP, columns, device=block.device).expand(rows, -1)
    places = torch.cat([places, rest], dim=1)
    top, at = block.gather(1, places).topk(k, dim=1)
    return top, places.gather(1, at)


def knn_votes(
    train: Features, test: Features, *, k: int = 20, temperature: float = 0.07, classes: int | None = None
) -> Float[Tensor, "m c"]:
    """Each test image's votes by class, the nearest neighbour's being 1; -inf for a class without a vote."""
    if temperature <= 0:
        raise UserError(f"temperature is {temperature}; it must be above 0")
    cosines, found = neighbours(train.x, test.x, k)
    labels = train.labels.to(found.device)[found]
    # the largest cosine is taken off before the exponential: exp(1 / 0.07) is 1.6 million
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    columns = classes or int(max(train.labels.max(), test.labels.max())) + 1
    votes = weights.new_zeros(len(cosines), columns).scatter_add_(1, labels, weights)
    asked = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, labels, torch.ones_like(labels, dtype=torch.bool))
    return votes.masked_fill(~asked, -torch.inf)


def knn_score(
    train: Features, test: Features, *, k: int = 20, temperature: float = 0.07, classes: int | None = None
) -> Score:
    """Top-1, top-5 and per-class accuracy of weighted nearest neighbours; every label must be known (0 or more)."""
    votes = knn_votes(train, test, k=k, temperature=temperature, classes=classes)
    return score(votes, test.labels.to(votes.device))


def knn_accuracy(train: Features, test: Features, *, k: int = 20, temperature: float = 0.07) -> float:
    """Top-1 accuracy of weighted nearest neighbours, a share between 0 and 1.

    >>> x, labels, positions = torch.eye(3), torch.arange(3), torch.arange(3)
    >>> knn_accuracy(Features(x, labels, positions), Features(x, labels, positions), k=1)
    1.0
    """
    return knn_score(train, test, k=k, temperature=temperature).top1


def _unit(x: Tensor) -> Tensor:
    return normalize(x if x.dtype == torch.float64 else x.float(), dim=1)
