"""NT-Xent and InfoNCE: the sheet's closed forms, slow oracles from the equations, invariances, and their relations."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from selfsight.losses import blockwise
from selfsight.losses.contrastive import info_nce, nt_xent


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[3, 512])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blockwise._SIDE, "cpu", request.param)


def two_views(b: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(b, d, dtype=dtype, requires_grad=True), torch.randn(b, d, dtype=dtype, requires_grad=True)


def slow_nt_xent(z1: Tensor, z2: Tensor, tau: float) -> Tensor:
    """Equation 1 of the paper, one anchor and one candidate at a time."""
    z = [x / x.square().sum().sqrt() for x in [*z1, *z2]]
    b, losses = len(z1), []
    for i in range(2 * b):
        scores = {k: (z[i] * z[k]).sum() / tau for k in range(2 * b) if k != i}
        losses.append(-(scores[(i + b) % (2 * b)].exp() / sum(s.exp() for s in scores.values())).log())
    return sum(losses) / (2 * b)


def slow_info_nce(q: Tensor, k: Tensor, negatives: Tensor, tau: float) -> Tensor:
    losses = []
    for i in range(len(q)):
        cosines = [(q[i] * x).sum() / q[i].norm() / x.norm() for x in [k[i], *negatives]]
        exps = [(c / tau).exp() for c in cosines]
        losses.append(-(exps[0] / sum(exps)).log())
    return sum(losses) / len(q)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_nt_xent_equals_the_papers_equation(blocks: None, tau: float) -> None:
    z1, z2 = two_views(5, 7)
    mine, theirs = nt_xent(z1, z2, temperature=tau), slow_nt_xent(z1, z2, tau)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, [z1, z2]), torch.autograd.grad(theirs, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("b", [2, 64, 700])
def test_nt_xent_of_equal_embeddings_is_the_log_of_the_candidates(b: int) -> None:
    z = torch.ones(b, 8)
    assert nt_xent(z, z, temperature=0.1).item() == pytest.approx(math.log(2 * b - 1), rel=1e-6)


def test_nt_xent_of_orthogonal_pairs() -> None:
    """Sheet 8, check 4."""
    z, tau = torch.eye(6, dtype=torch.float64), 0.3
    expected = math.log(1 + (2 * 6 - 2) * math.exp(-1 / tau))
    assert nt_xent(z, 2 * z, temperature=tau).item() == pytest.approx(expected, rel=1e-12)


def test_nt_xent_does_not_mind_which_view_is_first_or_how_images_are_ordered() -> None:
    z1, z2 = two_views(9, 4)
    order = torch.randperm(9)
    value = nt_xent(z1, z2, temperature=0.2)
    torch.testing.assert_close(nt_xent(z2, z1, temperature=0.2), value)
    torch.testing.assert_close(nt_xent(z1[order], z2[order], temperature=0.2), value)
    torch.testing.assert_close(nt_xent(3 * z1, 0.1 * z2, temperature=0.2), value)
    assert abs(nt_xent(z1[order], z2, temperature=0.2) - value) > 1e-3


def test_nt_xent_of_parts_is_that_of_the_whole(blocks: None) -> None:
    """Sheet 8, check 3, with the processes played one after the other: values average, gradients average."""
    z1, z2 = two_views(6, 5)
    whole = nt_xent(z1, z2, temperature=0.5)
    parts = [nt_xent(z1[o : o + 2], z2[o : o + 2], temperature=0.5, all1=z1, all2=z2, offset=o) for o in range(0, 6, 2)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    for a, b in zip(torch.autograd.grad(sum(parts) / 3, [z1, z2]), torch.autograd.grad(whole, [z1, z2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    z1, z2 = two_views(4, 3)
    negatives = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, t: nt_xent(a, b, temperature=t), (z1, z2, tau))
    assert torch.autograd.gradcheck(
        lambda a, b, n, t: info_nce(a, b, negatives=n, temperature=t), (z1, z2, negatives, tau)
    )


def test_info_nce_equals_the_equation_with_a_queue(blocks: None) -> None:
    q, k = two_views(5, 7)
    queue = torch.randn(11, 7, dtype=torch.float64)
    mine, theirs = info_nce(q, k, temperature=0.07, negatives=queue), slow_info_nce(q, k, queue, 0.07)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, [q, k]), torch.autograd.grad(theirs, [q, k]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_info_nce_of_equal_features_is_the_log_of_the_queue_and_one() -> None:
    """Sheet 16, check 1: log(65537) = 11.0904."""
    q, queue = torch.ones(3, 4), torch.ones(65536, 4)
    assert info_nce(q, q, temperature=0.07, negatives=queue).item() == pytest.approx(11.0904, abs=1e-4)


def test_info_nce_within_the_batch_is_a_cross_entropy() -> None:
    q, k = two_views(8, 5)
    logits = normalize(q, dim=1) @ normalize(k, dim=1).T / 0.2
    expected = cross_entropy(logits, torch.arange(8))
    torch.testing.assert_close(info_nce(q, k, temperature=0.2), expected)
    own = torch.arange(8)[:, None]
    torch.testing.assert_close(info_nce(q, k, temperature=0.2, negatives=k, skip=own), expected)


def test_nt_xent_is_info_nce_with_both_views_as_negatives() -> None:
    z1, z2 = two_views(6, 5)
    both, i = torch.cat([z1, z2]), torch.arange(6)
    first = info_nce(z1, z2, temperature=0.4, negatives=both, skip=torch.stack([i, i + 6], dim=1))
    second = info_nce(z2, z1, temperature=0.4, negatives=both, skip=torch.stack([i + 6, i], dim=1))
    torch.testing.assert_close((first + second) / 2, nt_xent(z1, z2, temperature=0.4))


def test_gradient_survives_a_nearly_certain_positive() -> None:
    """With the positive's share at 1 - 1e-12 float32 still has the gradient that float64 has."""
    q, k, n = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1]]), torch.tensor([[-1.0, 0.2]])
    grads = []
    for dtype in (torch.float32, torch.float64):
        x = q.to(dtype).requires_grad_()
        grads.append(torch.autograd.grad(info_nce(x, k.to(dtype), temperature=0.07, negatives=n.to(dtype)), x)[0])
    assert grads[1].norm() > 0
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    z1, z2 = two_views(16, 8, dtype)
    for loss in (nt_xent, info_nce):
        value = loss(z1, z2, temperature=0.05)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(z1.float(), z2.float(), temperature=0.05))
        assert all(g.isfinite().all() and g.dtype == dtype for g in torch.autograd.grad(value, [z1, z2]))
    assert nt_xent(z1.double(), z2.double(), temperature=0.05).dtype == torch.float64


def test_calls_that_cannot_be_meant() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match="only one of all1 and all2"):
        nt_xent(z, z, temperature=0.1, all1=z)
    with pytest.raises(ValueError, match="offset 2 for 4 rows among 4"):
        nt_xent(z, z, temperature=0.1, offset=2)
    with pytest.raises(ValueError, match="skip without negatives"):
        info_nce(z, z, temperature=0.1, skip=torch.zeros(4, 1, dtype=torch.long))
