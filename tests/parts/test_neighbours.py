"""Nearest neighbours: against brute force, in blocks, and where half precision would not tell keys apart."""

import pytest
import torch
from torch.nn.functional import normalize

from selfsight.parts import neighbours
from selfsight.parts.neighbours import nearest


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("block", [1, 3, 11, 100])
def test_it_is_the_nearest_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    q, keys = normalize(torch.randn(7, 4), dim=1), normalize(torch.randn(11, 4), dim=1)
    similarity, place = nearest(q, keys)
    distances = (q[:, None] - keys[None]).norm(dim=2)
    assert torch.equal(place, distances.argmin(dim=1))
    torch.testing.assert_close(similarity, 1 - distances.min(dim=1).values.square() / 2)


def test_the_first_of_equal_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 2)
    assert nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))[1].item() == 1


def test_autocast_does_not_blur_it_and_no_gradient_passes() -> None:
    angles = torch.tensor([0.02, 0.01, 0.03])  # cosines that are all 1 in bfloat16
    keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    q = torch.tensor([[1.0, 0.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity, place = nearest(q, keys)
    assert place.item() == 1
    assert not similarity.requires_grad
    assert nearest(q.double(), keys.double())[0].dtype == torch.float64
