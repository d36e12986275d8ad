"""Logistic regression on frozen features against scikit-learn, and what its choice of lambda looks at."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from selfsight.errors import UserError
from selfsight.evaluation.features import Features
from selfsight.evaluation.linear import STRENGTHS, fit_logistic, linear_lbfgs, solve


def some(n: int, *, d: int = 12, classes: int = 3, noise: float = 1.0, seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=rng)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(7))
    x = (centres[labels] + noise * torch.randn(n, d, generator=rng)) * torch.logspace(-2, 2, d) + 5
    return Features(x, labels, torch.arange(n))


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-3])
def test_solve_equals_scikit_learn(strength: float) -> None:
    data = some(300)
    x = (data.x - data.x.mean(0)) / data.x.std(0)
    theirs = LogisticRegression(C=1 / (strength * len(x)), max_iter=5000, tol=1e-10)
    theirs.fit(x.double().numpy(), data.labels.numpy())
    w = solve(x, data.labels, classes=3, strength=strength)
    ours = (x @ w[:-1] + w[-1]).softmax(1).numpy()
    assert np.abs(ours - theirs.predict_proba(x.double().numpy())).max() < 2e-3


def test_the_optimum_has_no_gradient() -> None:
    data = some(200)
    x = ((data.x - data.x.mean(0)) / data.x.std(0)).double()
    w = solve(x, data.labels, classes=3, strength=0.01)
    p = (x @ w[:-1] + w[-1]).softmax(1) - torch.nn.functional.one_hot(data.labels, 3)
    gradient = x.T @ p / len(x) + 0.01 * w[:-1]
    assert gradient.abs().max() < 1e-4
    assert p.mean(0).abs().max() < 1e-4


def test_features_are_standardised_with_the_training_data() -> None:
    train, test = some(300), some(100, seed=1)
    fitted = fit_logistic(train, classes=3, strengths=[0.01])
    assert torch.allclose(fitted.mean, train.x.mean(0))
    shifted = [f._replace(x=f.x * 50 - 3) for f in (train, test)]
    expected, _ = linear_lbfgs(train, test, strengths=[0.1, 0.01])
    got, _ = linear_lbfgs(shifted[0], shifted[1], strengths=[0.1, 0.01])
    assert expected.top1 > 0.6
    assert got.top1 == pytest.approx(expected.top1, abs=0.011)


def test_a_constant_channel_does_no_harm() -> None:
    train = some(200)
    train.x[:, 3] = 4.0
    fitted = fit_logistic(train, classes=3)
    assert fitted.std[3] == 1
    assert fitted(train.x).isfinite().all()


def test_lambda_grows_with_noise_and_is_not_chosen_on_test_data() -> None:
    noisy = some(120, d=80, noise=6.0)
    clean = some(800, d=12, noise=0.8)
    weak = fit_logistic(clean, classes=3).strength
    strong = fit_logistic(noisy, classes=3).strength
    assert weak < strong
    assert {weak, strong} <= set(STRENGTHS)


def test_same_seed_same_answer() -> None:
    train, test = some(150, noise=3.0), some(150, noise=3.0, seed=1)
    assert linear_lbfgs(train, test, seed=3) == linear_lbfgs(train, test, seed=3)


def test_it_beats_the_mean_of_each_class_where_noise_is_correlated() -> None:
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(20, 20, generator=rng)

    def draw(n: int) -> Features:
        y = torch.randint(2, (n,), generator=rng)
        noise = torch.randn(n, 20, generator=rng) @ mix
        return Features(noise + 3 * y[:, None] * torch.linalg.inv(mix).sum(0) * 0.3, y, torch.arange(n))

    train, test = draw(1500), draw(500)
    means = torch.stack([train.x[train.labels == c].mean(0) for c in range(2)])
    nearest = (torch.cdist(test.x, means).argmin(1) == test.labels).double().mean().item()
    assert linear_lbfgs(train, test)[0].top1 > nearest + 0.02


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(UserError, match="at least 5 labelled training images"):
        linear_lbfgs(some(4), some(4))
