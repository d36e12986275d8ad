"""AMDIM: three tasks in both directions, the drawn places, and what the penalty weighs."""

import pytest
import rig
import torch
from stand_ins import clock

from selfsight.batches import PlacedViews
from selfsight.encoders.build import build_encoder
from selfsight.losses.infomax import local_infomax
from selfsight.method import Objective, drive
from selfsight.methods.amdim import AMDIM, at_place
from selfsight.parts.local_head import LocalHead


def made(**options: float) -> AMDIM:
    torch.manual_seed(0)
    encoder = build_encoder("amdim_tiny", image_size=32, first=4, width=24, depth=1)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.2)
    return AMDIM(encoder, LocalHead(16, 24), LocalHead(16, 24), **options)


def views(b: int = 6) -> PlacedViews:
    generator = torch.Generator().manual_seed(0)
    x1, x2 = (torch.randn(b, 3, 32, 32, generator=generator) for _ in range(2))
    return PlacedViews(x1, x2, torch.rand(b, 2, generator=generator), torch.arange(b))


def objective(method: AMDIM, batch: PlacedViews) -> Objective:
    seen: list[Objective] = []
    drive(method.step(batch, clock()), lambda made: not seen.append(made))
    return seen[0]


def test_the_loss_is_the_sum_of_three_tasks_in_both_directions() -> None:
    method, batch = made(), views()
    one, five, seven = zip(method.embed(batch.x1), method.embed(batch.x2), strict=True)
    tasks, squares = [], []
    for pairs in (
        [(one[0], five[1]), (one[1], five[0])],
        [(one[0], seven[1]), (one[1], seven[0])],
        [(at_place(five[v], batch.place[:, v]), five[1 - v]) for v in (0, 1)],
    ):
        terms = [local_infomax(x, t) for x, t in pairs]
        tasks.append(sum(term.loss for term in terms) / 2)
        squares += [term.square for term in terms]
    penalty = 0.5 * sum(0.05 * square for square in squares)
    found = objective(method, batch)
    torch.testing.assert_close(found.loss, sum(tasks) + penalty)
    torch.testing.assert_close(found.log["penalty"], penalty.detach())
    for name, task in zip(("loss_1to5", "loss_1to7", "loss_5to5"), tasks, strict=True):
        torch.testing.assert_close(found.log[name], task.detach())
    assert found.watch["feature"].shape == (12, 24)


def test_the_penalty_and_the_bound_are_arguments() -> None:
    batch = views()
    losses = [objective(made(**options), batch).loss for options in ({}, {"penalty": 0.0}, {"clip": 0.5})]
    assert losses[0] > losses[1]
    assert (losses[0] - losses[2]).abs() > 1e-3


def test_places_are_chosen_by_the_batch() -> None:
    method, batch = made().eval(), views()
    x = torch.arange(50.0).view(1, 2, 25).expand(3, -1, -1)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert at_place(x, u).tolist() == [[0.0, 25.0], [12.0, 37.0], [24.0, 49.0]]
    assert at_place(x, u.bfloat16()).tolist()[2] == [24.0, 49.0]
    other = objective(method, batch._replace(place=1 - batch.place))
    same = objective(method, batch)
    assert other.log["loss_5to5"] != same.log["loss_5to5"]
    assert other.log["loss_1to5"] == same.log["loss_1to5"]


def test_views_have_batch_norms_of_their_own() -> None:
    """Each view is a forward of its own, as in the official code: statistics are not shared."""
    method, batch = made(), views()
    alone = method.embed(batch.x1)[0]
    together = method.embed(torch.cat([batch.x1, batch.x2 + 1]))[0][:6]
    assert (alone - together).abs().max() > 1e-3
    torch.testing.assert_close(objective(method, batch).watch["feature"][:6], alone.detach())


def test_with_other_views_swapped_nothing_changes() -> None:
    method, batch = made(), views()
    swapped = PlacedViews(batch.x2, batch.x1, batch.place.flip(1), batch.index)
    torch.testing.assert_close(objective(method, batch).loss, objective(method, swapped).loss)


@pytest.mark.parametrize("name", ["penalty", "loss_1to7"])
def test_it_logs_its_tasks(name: str) -> None:
    recipe = rig.build("amdim")
    batch = next(rig.batches(recipe, 1, size=8))
    logged = objective(recipe.method, batch).log[name]
    assert logged > 0
    assert not logged.requires_grad
