"""Learning to count: six branches of one network, pairs that do not cross, and what it hands over."""

import pytest
import torch
from stand_ins import SmallEncoder, clock
from torch import nn

from selfsight.batches import TiledImages
from selfsight.losses.counting import counting
from selfsight.method import Objective, drive
from selfsight.methods.counting import Counting


def made(*, margin: float = 10.0, gain: float = 1.0) -> Counting:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU())
    with torch.no_grad():
        head[2].weight.mul_(gain)
    return Counting(SmallEncoder(norm=False), head, margin=margin)


def batch(b: int = 6, seed: int = 0) -> TiledImages:
    generator = torch.Generator().manual_seed(seed)
    other = torch.tensor([1, -1]).repeat(b // 2)
    whole, tiles = (torch.randn(b, *n, 3, 8, 8, generator=generator) for n in ((), (4,)))
    return TiledImages(whole, tiles, other, torch.arange(b))


def objective(method: Counting, given: TiledImages) -> Objective:
    seen: list[Objective] = []
    drive(method.step(given, clock()), lambda found: not seen.append(found))
    return seen[0]


@pytest.mark.parametrize("gain", [1.0, 12.0])
def test_one_network_counts_in_all_six_images(gain: float) -> None:
    method, given = made(gain=gain), batch()

    def phi(x: torch.Tensor) -> torch.Tensor:
        return method.head(method.encoder(x[None]))[0]

    losses = []
    for x, y in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)):
        tiles = sum(phi(given.tiles[x, j]) for j in range(4))
        apart = (phi(given.whole[y]) - tiles).square().sum()
        losses.append((phi(given.whole[x]) - tiles).square().sum() + (10 - apart).clamp_min(0))
    found = objective(method, given).loss
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_every_branch() -> None:
    method, given = made(), batch(2)
    whole, tiles = given.whole.requires_grad_(), given.tiles.requires_grad_()
    grads = torch.autograd.grad(objective(method, given).loss, [whole, tiles])
    assert all((g.flatten(k).abs().sum(-1) > 0).all() for k, g in enumerate(grads, start=1))


def test_dead_units_cost_the_margin_and_learn_nothing() -> None:
    """A run that stays at the margin has collapsed."""
    method = made(margin=7.0)
    nn.init.constant_(method.head[2].bias, -100.0)
    found = objective(method, batch())
    assert found.loss.item() == 7.0
    assert found.log["counted"].item() == 0
    found.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


def test_pairs_do_not_cross_halves_of_the_batch() -> None:
    """So the mean over processes, or over micro-batches, is that of the joined batch."""
    method, given = made(), batch(8)
    halves = [TiledImages(*(x[rows] for x in given)) for rows in (slice(0, 4), slice(4, 8))]
    parts = [objective(method, half).loss for half in halves]
    torch.testing.assert_close(torch.stack(parts).mean(), objective(method, given).loss)


def test_a_substitute_that_is_its_partner_is_not_pushed_away() -> None:
    method, given = made(), batch(4)
    same = given._replace(index=torch.tensor([5, 5, 1, 2]))
    counts = method.head(method.encoder(given.whole))
    tiles = method.head(method.encoder(given.tiles.flatten(0, 1))).unflatten(0, (4, 4))
    expected = counting(counts, tiles, counts[[1, 0, 3, 2]], differs=torch.tensor([False, False, True, True]))
    torch.testing.assert_close(objective(method, same).loss, expected)
    assert expected < objective(method, given).loss


def test_what_it_hands_over() -> None:
    method, given = made(), batch()
    found = objective(method, given)
    h = method.encoder(given.whole).detach()
    torch.testing.assert_close(found.watch["feature"], h)
    torch.testing.assert_close(found.watch["projection"], method.head(h).detach())
    torch.testing.assert_close(found.log["total"], method.head(h).detach().sum(dim=1).mean())
    assert (found.watch["projection"] >= 0).all()
    assert not found.watch["feature"].requires_grad


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of one image, which has no other"):
        objective(made(), TiledImages(*(x[:1] for x in batch())))
