"""The normalising constant: learnt, fixed, or from the first batch."""

import math

import pytest
import torch

from selfsight.losses.nce import log_partition
from selfsight.parts.partition import Partition


def test_the_first_batch_sets_it_once() -> None:
    torch.manual_seed(0)
    partition = Partition(100, "estimated")
    first, later = ((torch.randn(4), torch.randn(4, 6)) for _ in range(2))
    assert partition.log_z.isnan()
    expected = log_partition(*first, samples=100)
    torch.testing.assert_close(partition(*first), expected)
    torch.testing.assert_close(partition(*later), expected)
    assert not list(partition.parameters())


def test_a_batch_that_is_not_finite_sets_nothing() -> None:
    partition, zeros = Partition(100, "estimated"), (torch.zeros(2), torch.zeros(2, 3))
    partition(torch.full((2,), torch.nan), zeros[1])
    assert partition(*zeros).item() == pytest.approx(math.log(100))


def test_a_checkpoint_has_the_estimate() -> None:
    """Sheet 21, check 3."""
    zeros = torch.zeros(2), torch.zeros(2, 3)
    partition, resumed = Partition(100, "estimated"), Partition(100, "estimated")
    partition(*zeros)
    resumed.load_state_dict(partition.state_dict())
    ones = torch.ones(2), torch.ones(2, 3)
    assert torch.equal(resumed(*ones), partition(*zeros))


def test_learnt_and_fixed() -> None:
    zeros = torch.zeros(2), torch.zeros(2, 3)
    learnt, fixed = Partition(50, "learnt"), Partition(50, "fixed", log_z=1.5)
    assert [name for name, _ in learnt.named_parameters()] == ["log_z"]
    assert learnt(*zeros).item() == pytest.approx(math.log(50))
    assert learnt(*zeros).requires_grad
    assert not list(fixed.parameters())
    assert fixed(*zeros).item() == 1.5
    with pytest.raises(ValueError, match=r"log Z is 1\.5 but it is to be estimated"):
        Partition(50, "estimated", log_z=1.5)
