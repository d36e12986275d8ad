"""Prototypes on the sphere and DINO's head."""

import copy

import pytest
import torch
from torch import nn

from selfsight.parts.prototypes import DistillationHead, Prototypes


def test_scores_are_cosines_after_renormalising() -> None:
    prototypes = Prototypes(6, 10)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    prototypes.renormalise_()
    z = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    expected = torch.cosine_similarity(z[:, None], prototypes.weight[None], dim=-1)
    torch.testing.assert_close(prototypes(z), expected)
    prototypes(z).sum().backward()
    assert prototypes.weight.grad is not None


def test_scores_stay_float32_under_autocast() -> None:
    prototypes, z = Prototypes(6, 10), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = prototypes(z.bfloat16())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, z.bfloat16().float() @ prototypes.weight.T)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_head_is_its_equation(fixed: bool) -> None:
    head = DistillationHead(nn.Linear(5, 4), 4, 7, fixed_gain=fixed)
    h = torch.randn(3, 5)
    gain, rows = (p.detach() for p in head.last.parameters())
    assert torch.equal(gain, torch.ones(7, 1))
    torch.testing.assert_close(head.last.weight.norm(dim=1), torch.ones(7))
    with torch.no_grad():
        head.last.get_parameter("parametrizations.weight.original0").copy_(gain * 2.5)
    expected = 2.5 * torch.cosine_similarity(head.trunk(h)[:, None], rows[None], dim=-1)
    torch.testing.assert_close(head(h), expected)


def test_fixed_gains_are_not_trained() -> None:
    assert len(DistillationHead(nn.Linear(5, 4), 4, 7, fixed_gain=True).last_layer) == 1
    assert len(DistillationHead(nn.Linear(5, 4), 4, 7, fixed_gain=False).last_layer) == 2


def test_the_head_can_be_copied_and_saved() -> None:
    head, h = DistillationHead(nn.Linear(5, 4), 4, 7), torch.randn(3, 5)
    assert torch.equal(copy.deepcopy(head)(h), head(h))
    other = DistillationHead(nn.Linear(5, 4), 4, 7)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(h), head(h))
