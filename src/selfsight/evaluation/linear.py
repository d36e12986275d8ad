r"""Linear classification of frozen features, under the name of its protocol.

``linear-lbfgs``: multinomial logistic regression on standardised features, no augmentation, solved by L-BFGS:

    min_W,b  mean_i CE(W x_i + b, y_i) + (lambda / 2) |W|^2

scikit-learn's ``C`` is ``1 / (lambda n)``. ``lambda`` is picked on a fifth of the training data, held out by key, and
the classifier is solved again on all of it: the test data choose nothing. The papers' protocol is in ``linear_sgd``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from selfsight import keyed
from selfsight.errors import UserError
from selfsight.evaluation.features import Features
from selfsight.evaluation.score import Score, score

STRENGTHS = tuple(10.0**e for e in (1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -5.0, -6.0))
"""``lambda`` from strong to weak; features are standardised, so one grid fits all encoders."""


@dataclass(frozen=True)
class Logistic:
    """A solved classifier: what standardises its input, and its weights."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, " k"]
    strength: float

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return (x - self.mean) / self.std @ self.weight + self.bias


def solve(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    classes: int,
    strength: float,
    start: Float[Tensor, "e k"] | None = None,
    max_iter: int = 200,
) -> Float[Tensor, "e k"]:
    """The minimum of the regularised mean cross-entropy, as weights with the bias in the last row (``e = d + 1``)."""
    w = x.new_zeros(x.shape[1] + 1, classes) if start is None else start.clone()
    w.requires_grad_()
    lbfgs = torch.optim.LBFGS(
        [w],
        max_iter=max_iter,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = cross_entropy(x @ w[:-1] + w[-1], labels) + strength / 2 * w[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        lbfgs.step(closure)  # pyright: ignore[reportArgumentType] - a tensor is what torch's own examples return
    return w.detach()


def fit_logistic(
    train: Features,
    *,
    classes: int,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    max_iter: int = 200,
    device: str | torch.device = "cpu",
) -> Logistic:
    """Picks ``lambda`` on a held-out fifth, then solves on all of ``train``.

    The grid is walked from strong to weak, each solution the next one's start, and left once two strengths in a row
    better neither held-out loss nor accuracy. Accuracy picks; at equal accuracy the stronger one stays.
    """
    n = len(train.x)
    if n < 5:
        raise UserError(f"linear-lbfgs needs at least 5 labelled training images to hold out a fifth, got {n}")
    x, labels = train.x.to(device), train.labels.to(device)
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max().clamp_min(1e-30), std, torch.ones_like(std))  # constant channels: no scale
    x = (x - mean) / std
    if len(strengths) == 1:
        best = strengths[0]
    else:
        best = _pick(x, labels, classes=classes, seed=seed, strengths=strengths, max_iter=max_iter)
    w = solve(x, labels, classes=classes, strength=best, max_iter=max_iter)
    return Logistic(mean, std, w[:-1], w[-1], best)


def _pick(x: Tensor, labels: Tensor, *, classes: int, seed: int, strengths: Sequence[float], max_iter: int) -> float:
    out = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    out[torch.from_numpy(keyed.subset(len(x), len(x) // 5, seed=seed)).to(x.device)] = True
    inner, held = x[~out], x[out]
    best, best_right, best_loss, worse = strengths[0], -1, float("inf"), 0
    w = None
    for strength in strengths:
        w = solve(inner, labels[~out], classes=classes, strength=strength, start=w, max_iter=max_iter)
        logits = held @ w[:-1] + w[-1]
        loss, right = cross_entropy(logits, labels[out]).item(), int((logits.argmax(1) == labels[out]).sum())
        worse = 0 if loss < best_loss or right > best_right else worse + 1
        best_loss = min(best_loss, loss)
        if right > best_right:
            best, best_right = strength, right
        if worse == 2 or right == len(held):
            break
    return best


def linear_lbfgs(
    train: Features,
    test: Features,
    *,
    classes: int | None = None,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    max_iter: int = 200,
    device: str | torch.device = "cpu",
) -> tuple[Score, float]:
    """The test score of logistic regression on frozen features, and the ``lambda`` that was picked.

    >>> x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    >>> train = Features(x + 9 * y[:, None], y, torch.arange(40))
    >>> linear_lbfgs(train, train)[0].top1
    1.0
    """
    k = classes or int(max(train.labels.max(), test.labels.max())) + 1
    fitted = fit_logistic(train, classes=k, seed=seed, strengths=strengths, max_iter=max_iter, device=device)
    return score(fitted(test.x.to(device)), test.labels.to(device)), fitted.strength
