"""Losses of two views against official code: values and gradients by embeddings that were not normalised yet."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import drawn, recorded, same
from torch import Tensor
from torch.nn.functional import normalize

from selfsight.losses.contrastive import nt_xent
from selfsight.losses.debiased import debiased, hard_negatives
from selfsight.losses.decoupled import decoupled, flat_nce
from selfsight.losses.hypersphere import align_uniform, align_uniform_with_queue, alignment, uniformity
from selfsight.losses.spreading import invariance_and_spreading

OFFICIAL = recorded("negatives")
IMAGES, WIDTH = 6, 5

Case = dict[str, Any]


def views() -> tuple[Tensor, Tensor]:
    """Two views that share an image."""
    z1 = drawn(0, IMAGES, WIDTH)
    z2 = z1 + 0.7 * drawn(1, IMAGES, WIDTH)
    return z1.requires_grad_(), z2.requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.stack(torch.autograd.grad(loss, inputs))


def compare(case: Case, loss: Callable[..., Tensor], *, times: float = 1.0, **options: Any) -> None:
    """``times`` our loss is the recorded one, and so are its gradients by both views."""
    z1, z2 = views()
    mine = times * loss(z1, z2, **(case["with"] | options))
    same(mine, case["loss"])
    same(gradients(mine, z1, z2), case["gradient"])


@pytest.mark.parametrize("case", OFFICIAL["alignment"]["cases"])
def test_alignment(case: Case) -> None:
    compare(case, alignment)


@pytest.mark.parametrize("case", OFFICIAL["uniformity"]["cases"])
def test_uniformity(case: Case) -> None:
    z = views()[0]
    mine = uniformity(z, **case["with"])
    same(mine, case["loss"])
    same(gradients(mine, z), case["gradient"])


@pytest.mark.parametrize("case", OFFICIAL["align_uniform"]["cases"])
def test_alignment_and_uniformity(case: Case) -> None:
    compare(case, align_uniform)


@pytest.mark.parametrize("case", OFFICIAL["align_uniform_with_queue"]["cases"])
def test_alignment_and_uniformity_with_a_queue(case: Case) -> None:
    """Keys get no gradient there; here it is the caller who detaches them."""
    q, k = views()
    queue = normalize(drawn(2, 2 * IMAGES, WIDTH), dim=1)
    mine = align_uniform_with_queue(q, k, negatives=queue, **case["with"])
    same(mine, case["loss"])
    same(gradients(mine, q), case["gradient"])


@pytest.mark.parametrize("case", OFFICIAL["debiased"]["cases"])
def test_debiased(case: Case) -> None:
    compare(case, debiased)


@pytest.mark.parametrize("case", OFFICIAL["debiased_off"]["cases"])
def test_debiased_without_a_prior_is_the_codes_biased_loss(case: Case) -> None:
    compare(case, debiased, tau_plus=0.0)
    compare(case, nt_xent)


@pytest.mark.parametrize("case", OFFICIAL["hard_negatives"]["cases"])
def test_hard_negatives(case: Case) -> None:
    compare(case, hard_negatives)


@pytest.mark.parametrize("case", OFFICIAL["flat_nce"]["cases"])
def test_flat_nce(case: Case) -> None:
    """The code's value is InfoNCE's, without gradient, plus what has the gradient, less 1; ours is the 1."""
    z1, z2 = views()
    mine = flat_nce(z1, z2, **case["with"])
    assert mine.item() == pytest.approx(1)
    same(nt_xent(z1, z2, **case["with"]) + mine - 1, case["loss"])
    same(gradients(mine, z1, z2), case["gradient"])


@pytest.mark.parametrize("case", OFFICIAL["decoupled"]["cases"])
def test_decoupled(case: Case) -> None:
    """The code adds both directions, here it is their mean."""
    compare(case, decoupled, times=2)


@pytest.mark.parametrize("case", OFFICIAL["decoupled_weighted"]["cases"])
def test_decoupled_with_weights(case: Case) -> None:
    """The value is twice ours too; the code's weights pass gradient and ours do not."""
    z1, z2 = views()
    mine = 2 * decoupled(z1, z2, **case["with"])
    same(mine, case["loss"])
    c = (normalize(z1, dim=1) * normalize(z2, dim=1)).sum(dim=1)
    tau, sigma = case["with"]["temperature"], case["with"]["sigma"]
    through_weights = -((2 - IMAGES * (c / sigma).softmax(dim=0)) * c.detach() / tau).mean() * 2
    same(gradients(mine, z1, z2) + gradients(through_weights, z1, z2), case["gradient"])


@pytest.mark.parametrize("case", OFFICIAL["decoupled_weighted_library"]["cases"])
def test_decoupled_with_weights_as_a_library_has_it(case: Case) -> None:
    """lightly's weights get no gradient, as ours."""
    compare(case, decoupled)


@pytest.mark.parametrize("case", OFFICIAL["invariance_and_spreading"]["cases"])
def test_invariance_and_spreading(case: Case) -> None:
    """The code's gradient reaches one side of each inner product, as with ``detach_keys``."""
    compare(case, invariance_and_spreading, detach_keys=True)
