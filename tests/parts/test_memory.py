"""The queue: order, wrapping, and what it refuses."""

import pytest
import torch

from selfsight.parts.memory import Queue


def numbered(start: int, n: int, width: int = 3) -> torch.Tensor:
    return torch.arange(start, start + n).float()[:, None].expand(n, width)


def test_holds_the_last_keys_in_order_and_the_pointer_wraps() -> None:
    """Sheet 16, check 2."""
    queue = Queue(12, 3)
    pointers = []
    for k in range(3):
        queue.push_(numbered(4 * k, 4))
        pointers.append(int(queue.pointer))
    assert pointers == [4, 8, 0]
    assert torch.equal(queue.keys, numbered(0, 12))
    queue.push_(numbered(12, 4))
    assert torch.equal(queue.keys, torch.cat([numbered(12, 4), numbered(4, 8)]))


def test_starts_with_random_directions() -> None:
    keys = Queue(500, 16).keys
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(500))
    assert keys.mean(dim=0).norm() < 0.3
    assert (keys @ keys.T - torch.eye(500)).abs().max() < 0.99


def test_a_checkpoint_has_it_all() -> None:
    queue, other = Queue(6, 2), Queue(6, 2)
    queue.push_(torch.ones(2, 2))
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert int(other.pointer) == 2
    assert not list(queue.parameters())


def test_keys_that_are_not_finite_leave_the_old_ones() -> None:
    queue = Queue(4, 2)
    before = queue.keys.clone()
    queue.push_(torch.tensor([[1.0, torch.nan], [2.0, 3.0]]))
    assert torch.equal(queue.keys[0], before[0])
    assert queue.keys[1].tolist() == [2.0, 3.0]
    assert int(queue.pointer) == 2


def test_a_batch_that_does_not_divide_the_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="a queue of 10 keys cannot take 4 at a time"):
        Queue(10, 2).push_(torch.ones(4, 2))
    with pytest.raises(ValueError, match="at least 1"):
        Queue(0, 2)
