"""The memory bank: where rows begin, which ones move, and scores that hold few rows at a time."""

import pytest
import torch
from torch.nn.functional import normalize

from selfsight.parts import memory
from selfsight.parts.memory import Bank, latest


def test_rows_begin_near_unit_length() -> None:
    torch.manual_seed(0)
    vectors = Bank(4000, 128).vectors
    assert vectors.abs().max() <= (3 / 128) ** 0.5
    assert vectors.square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.01)


def test_rows_of_the_batch_move_to_unit_length_and_others_stay() -> None:
    """Sheet 17, check b."""
    torch.manual_seed(0)
    bank = Bank(10, 4).double()
    index, f = torch.tensor([7, 2, 5]), normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    before = bank.vectors.clone()
    bank.update_(index, f, momentum=0.7)
    for row, x in zip(index.tolist(), f, strict=True):
        moved = 0.7 * before[row] + 0.3 * x
        torch.testing.assert_close(bank.vectors[row], moved / moved.norm())
    others = [row for row in range(10) if row not in (2, 5, 7)]
    assert torch.equal(bank.vectors[others], before[others])


def test_the_last_of_equal_indices_counts() -> None:
    torch.manual_seed(0)
    bank, once = Bank(6, 3), Bank(6, 3)
    once.load_state_dict(bank.state_dict())
    f = torch.randn(5, 3)
    bank.update_(torch.tensor([4, 1, 4, 0, 1]), f, momentum=0.5)
    once.update_(torch.tensor([4, 0, 1]), f[2:], momentum=0.5)
    assert torch.equal(bank.vectors, once.vectors)


def test_what_is_not_finite_leaves_the_row() -> None:
    bank = Bank(4, 2)
    before = bank.vectors.clone()
    bank.update_(torch.tensor([0, 3]), torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]), momentum=0.0)
    assert torch.equal(bank.vectors[:3], before[:3])
    assert bank.vectors[3].tolist() == [0, 1]


@pytest.mark.parametrize("pieces", [False, True])
def test_scores_are_inner_products_with_each_ones_own_rows(pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bank, rows = Bank(9, 4).double(), torch.randint(9, (5, 7))
    if pieces:
        monkeypatch.setattr(memory, "_ROOM", {"cpu": 60})
    f = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    scores = bank.scores(f, rows)
    expected = torch.stack([bank.vectors[own] @ x for own, x in zip(rows, f, strict=True)])
    torch.testing.assert_close(scores, expected)
    g = torch.randn_like(scores)
    torch.testing.assert_close(torch.autograd.grad(scores, f, g), torch.autograd.grad(expected, f, g))
    assert torch.autograd.gradcheck(lambda x: bank.scores(x, rows), f)
    assert not bank.vectors.requires_grad


def test_a_checkpoint_has_the_bank_and_an_optimiser_has_not() -> None:
    bank = Bank(3, 2)
    assert list(bank.state_dict()) == ["vectors"]
    assert not list(bank.parameters())
    with pytest.raises(ValueError, match="for 0 images"):
        Bank(0, 2)


def test_the_latest_are_distinct_and_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    kept, history = torch.arange(8), list(range(8))
    for _ in range(50):
        new = torch.randint(30, (5,), generator=generator)
        kept = latest(new, kept)
        fresh = list(dict.fromkeys(new.tolist()))
        history = [*fresh, *(i for i in history if i not in fresh)][:8]
        assert kept.tolist() == history
    with pytest.raises(ValueError, match="9 new indices do not fit among the last 8"):
        latest(torch.arange(9), kept)
