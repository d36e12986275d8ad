"""Sinkhorn and swapped prediction against naive float64 loops and SwAV's checks."""

import math
import threading

import pytest
import torch
from torch import Tensor

from selfsight.losses.clustering import sinkhorn, swapped_prediction


def slow_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The paper's algorithm on the transposed matrix, with all of its factors, one number at a time."""
    n, k = scores.shape
    shift = float(scores.max())
    q = [[math.exp((float(scores[j, i]) - shift) / epsilon) for j in range(n)] for i in range(k)]
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        q = [[x / sum(row) / k for x in row] for row in q]
        columns = [sum(row[j] for row in q) for j in range(n)]
        q = [[x / columns[j] / n for j, x in enumerate(row)] for row in q]
    return torch.tensor([[q[i][j] * n for i in range(k)] for j in range(n)], dtype=torch.float64)


def slow_swapped(scores: Tensor, q: Tensor, temperature: float) -> float:
    v, b, k = scores.shape
    loss = 0.0
    for s in range(len(q)):
        inner = 0.0
        for other in range(v):
            if other == s:
                continue
            for row in range(b):
                logits = [float(x) / temperature for x in scores[other, row]]
                log_sum = math.log(sum(math.exp(x) for x in logits))
                inner -= sum(float(q[s, row, i]) * (logits[i] - log_sum) for i in range(k)) / b
        loss += inner / (v - 1)
    return loss / len(q)


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_sinkhorn_is_the_papers() -> None:
    scores = cosines(12, 7)
    for epsilon, iterations in [(0.05, 3), (0.5, 1), (0.03, 5)]:
        got = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
        torch.testing.assert_close(got, slow_sinkhorn(scores, epsilon, iterations), rtol=1e-9, atol=1e-12)


def test_rows_sum_to_one_and_long_runs_balance() -> None:
    scores = cosines(64, 10)
    q = sinkhorn(scores)
    torch.testing.assert_close(q.sum(1), torch.ones(64, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (q.sum(0) - 6.4).abs().max() > 0.05  # three iterations leave prototypes unequal
    even = sinkhorn(scores, epsilon=0.5, iterations=50).sum(0)
    torch.testing.assert_close(even, torch.full((10,), 6.4, dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    scores = cosines(16, 9)
    torch.testing.assert_close(sinkhorn(scores + 0.7), sinkhorn(scores), rtol=1e-12, atol=1e-13)


def test_a_shift_of_one_sample_is_not_the_same_before_the_last_division() -> None:
    """Where a per-sample maximum would be subtracted, one iteration's row sums would differ: the assignments too."""
    scores = cosines(16, 9)
    shifted = scores + torch.linspace(0, 0.5, 16, dtype=torch.float64)[:, None]
    assert (sinkhorn(shifted) - sinkhorn(scores)).abs().max() > 1e-3


def test_half_types_and_sharp_temperatures_do_not_overflow() -> None:
    scores = cosines(8, 5).bfloat16()
    q = sinkhorn(scores, epsilon=1e-3)
    assert q.dtype == torch.float32
    assert q.isfinite().all()
    torch.testing.assert_close(sinkhorn(scores), sinkhorn(scores.double()).float(), rtol=1e-4, atol=1e-5)


def test_processes_share_the_prototypes_sums() -> None:
    """Two processes in lock step, played by two threads that exchange their rows."""
    scores = cosines(10, 6)
    barrier = threading.Barrier(2)
    desk: dict[int, Tensor] = {}
    parts: dict[int, Tensor] = {}

    def process(rank: int) -> None:
        def gather(x: Tensor) -> Tensor:
            desk[rank] = x
            barrier.wait()
            both = torch.cat([desk[0], desk[1]])
            barrier.wait()
            return both

        mine = scores[:4] if rank == 0 else scores[4:]
        parts[rank] = sinkhorn(mine, gather=gather)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([parts[0], parts[1]]), sinkhorn(scores), rtol=1e-12, atol=1e-14)


def test_no_gradient_reaches_the_scores() -> None:
    assert not sinkhorn(cosines(4, 3).requires_grad_()).requires_grad


def test_zero_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 iteration"):
        sinkhorn(cosines(4, 3), iterations=0)


@pytest.mark.parametrize(("crops", "assigned"), [(2, 2), (5, 2), (4, 3), (3, 1)])
def test_swapped_prediction_is_the_equation(crops: int, assigned: int) -> None:
    scores = cosines(crops, 3, 6).requires_grad_()
    q = sinkhorn(cosines(assigned * 3, 6, seed=1)).reshape(assigned, 3, 6)
    loss = swapped_prediction(scores, q, temperature=0.3)
    assert float(loss.detach()) == pytest.approx(slow_swapped(scores.detach(), q, 0.3), rel=1e-9)
    (grad,) = torch.autograd.grad(loss, scores)
    step = 1e-5
    for place in [(0, 0, 0), (1, 2, 5), (crops - 1, 1, 3)]:
        up, down = scores.detach().clone(), scores.detach().clone()
        up[place] += step
        down[place] -= step
        slope = (slow_swapped(up, q, 0.3) - slow_swapped(down, q, 0.3)) / (2 * step)
        assert float(grad[place]) == pytest.approx(slope, abs=1e-7)


def test_equal_scores_cost_log_k() -> None:
    """The collapse that SwAV's README names by its number: 8.006 for 3000 prototypes."""
    q = sinkhorn(torch.zeros(4, 3000)).expand(2, 4, 3000)
    torch.testing.assert_close(q, torch.full((2, 4, 3000), 1 / 3000), rtol=1e-5, atol=0)
    assert float(swapped_prediction(torch.zeros(8, 4, 3000), q)) == pytest.approx(math.log(3000), rel=1e-5)


def test_a_crop_does_not_predict_its_own_assignment() -> None:
    """With one assigned crop its own scores get no gradient at all."""
    scores = cosines(3, 4, 5).requires_grad_()
    q = sinkhorn(cosines(4, 5, seed=1))[None]
    (grad,) = torch.autograd.grad(swapped_prediction(scores, q), scores)
    assert (grad[0] == 0).all()
    assert (grad[1:] != 0).any(dim=-1).all()


def test_swapped_prediction_in_float64_and_half() -> None:
    scores, q = cosines(3, 4, 5).requires_grad_(), sinkhorn(cosines(8, 5)).reshape(2, 4, 5)
    assert torch.autograd.gradcheck(lambda s: swapped_prediction(s, q, temperature=0.5), scores)
    assert swapped_prediction(scores.bfloat16(), q).dtype == torch.float32
    with pytest.raises(ValueError, match="needs 2 crops"):
        swapped_prediction(scores[:1], q[:1])
