"""Jigsaw clustering: the loss piece by piece, montages that change nothing but company, and several processes."""

import math
from functools import partial

import pytest
import torch
from stand_ins import clock
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Pieces
from selfsight.losses.grouped import grouped_contrast
from selfsight.method import Objective, drive
from selfsight.methods.jigsaw_clustering import JigsawClustering


class Pointwise(nn.Module):
    """An encoder in which no place sees another."""

    width, stride = 6, 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)

    def dense(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).mean(dim=(2, 3))


def made(**options: float) -> JigsawClustering:
    torch.manual_seed(0)
    loss = partial(grouped_contrast, temperature=0.3, base_temperature=0.07)
    return JigsawClustering(Pointwise(), nn.Linear(6, 5), nn.Linear(6, 4), loss=loss, **options)


def batch(b: int = 6, seed: int = 0) -> Pieces:
    generator = torch.Generator().manual_seed(seed)
    return Pieces(
        torch.randn(b, 4, 3, 4, 4, generator=generator), torch.rand(b, 10, generator=generator), torch.arange(b)
    )


def objective(method: JigsawClustering, given: Pieces) -> Objective:
    seen: list[Objective] = []
    drive(method.step(given, clock()), lambda found: not seen.append(found))
    return seen[0]


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
def test_the_loss_is_that_of_pieces_seen_one_by_one(alpha: float, beta: float) -> None:
    """Images' numbers and places come back from the montages as they went in."""
    method, given = made(cluster_weight=alpha, location_weight=beta), batch()
    h = method.encoder(given.x.flatten(0, 1))
    clustering = method.loss(method.projector(h).unflatten(0, (6, 4)))
    location = cross_entropy(method.locator(h), torch.arange(4).repeat(6))
    found = objective(method, given)
    torch.testing.assert_close(found.loss, alpha * clustering + beta * location, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log["clustering"], clustering.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log["location"], location.detach(), rtol=1e-5, atol=1e-5)


def test_the_shuffle_changes_nothing_where_no_place_sees_another() -> None:
    """Sheet 7, check c."""
    method, given = made(), batch()
    again = given._replace(shuffle=batch(seed=7).shuffle)
    torch.testing.assert_close(objective(method, again).loss, objective(method, given).loss)


def test_the_encoder_sees_montages_of_four_images(monkeypatch: pytest.MonkeyPatch) -> None:
    method, given = made(), batch()
    marked = given._replace(x=torch.arange(24.0).view(6, 4, 1, 1, 1).expand(6, 4, 3, 4, 4))
    seen: list[Tensor] = []
    dense = method.encoder.dense
    monkeypatch.setattr(method.encoder, "dense", lambda x: dense(seen.append(x) or x))
    objective(method, marked)
    (x,) = seen
    assert x.shape == (6, 3, 8, 8)
    quarter = x[:, 0, ::4, ::4].flatten(1).long()
    assert all(len(set(row)) == 4 for row in (quarter // 4).tolist())
    assert quarter.flatten().sort().values.tolist() == list(range(24))


def test_a_locator_that_knows_is_right() -> None:
    method, given = made(), batch()
    places = torch.eye(4)[:, :3].view(1, 4, 3, 1, 1).expand(6, 4, 3, 4, 4)  # the last place is black
    with torch.no_grad():
        method.encoder.conv.weight.copy_(torch.eye(6, 3)[..., None, None])
        method.encoder.conv.bias.zero_()
        method.locator.weight.copy_(20 * torch.eye(4, 6))
        method.locator.bias.copy_(torch.tensor([0, 0, 0, 5.0]))
    found = objective(method, given._replace(x=places))
    assert found.log["location_accuracy"].item() == 1
    assert found.log["location"].item() < 0.05


def test_nothing_known_costs_log_4_and_the_log_of_all_others() -> None:
    method, given = made(), batch()
    for head in (method.projector, method.locator):
        nn.init.zeros_(head.weight)
        nn.init.ones_(head.bias)
    found = objective(method, given)
    assert found.log["location"].item() == pytest.approx(math.log(4), rel=1e-6)
    assert found.log["clustering"].item() == pytest.approx(0.3 / 0.07 * math.log(23), rel=1e-5)


def test_the_mean_over_processes_is_the_joined_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process makes its share of the very same montages; gathers are answered from a first pass over all."""
    method, given = made(), batch(8)
    gathered: list[Tensor] = []
    monkeypatch.setattr("selfsight.methods.jigsaw_clustering.gather", lambda x: gathered.append(x) or x)
    whole = objective(method, given)
    parts = []
    for process in range(2):
        answers = iter(list(gathered[:3]))
        monkeypatch.setattr("selfsight.methods.jigsaw_clustering.gather", lambda x, a=answers: next(a))
        monkeypatch.setattr("selfsight.methods.jigsaw_clustering.rank", lambda p=process: p)
        monkeypatch.setattr("selfsight.methods.jigsaw_clustering.world_size", lambda: 2)
        half = Pieces(*(part[4 * process : 4 * process + 4] for part in given))
        parts.append(objective(method, half))
    torch.testing.assert_close(torch.stack([p.loss for p in parts]).mean(), whole.loss)
    features = torch.cat([p.watch["feature"] for p in parts])
    torch.testing.assert_close(features, whole.watch["feature"])


def test_what_it_hands_over() -> None:
    method, given = made(), batch()
    watch = objective(method, given).watch
    assert watch["feature"].shape == (24, 6)
    assert watch["projection"].shape == (24, 5)
    assert not watch["feature"].requires_grad
    objective(method, given).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
