"""SimCLR: one forward for both views, and what it hands over."""

from functools import partial

import torch
from stand_ins import SmallEncoder, clock, take_step, two_views

from selfsight.losses.contrastive import nt_xent
from selfsight.losses.debiased import effective_negatives, hard_negatives
from selfsight.methods.simclr import SimCLR
from selfsight.parts import heads
from selfsight.schedules import linear


def simclr() -> SimCLR:
    torch.manual_seed(0)
    projector = heads.mlp(6, 6, 4, bias=False, out_bias=False, out_norm="scale")
    return SimCLR(SmallEncoder(), projector, loss=partial(nt_xent, temperature=0.5))


def test_the_loss_is_that_of_both_views_in_one_batch() -> None:
    method, batch = simclr(), two_views(8)
    objective = take_step(method, batch, moves=False)
    z = method.projector(method.encoder(torch.cat([batch.x1, batch.x2])))
    torch.testing.assert_close(objective.loss, nt_xent(z[:8], z[8:], temperature=0.5))
    apart = [method.projector(method.encoder(x)) for x in (batch.x1, batch.x2)]  # each view with its own statistics
    assert (objective.loss - nt_xent(*apart, temperature=0.5)).abs() > 1e-6


def test_what_it_hands_over_is_detached_and_stacked() -> None:
    method, batch = simclr(), two_views(8)
    watch = take_step(method, batch).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (16, 6), "projection": (16, 4)}
    assert not any(x.requires_grad for x in watch.values())


def test_it_pulls_views_together() -> None:
    method, batch = simclr(), two_views(16)
    losses = [take_step(method, batch, lr=0.5).loss.item() for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1


def test_the_loss_is_an_argument() -> None:
    method = SimCLR(SmallEncoder(), heads.mlp(6, 4), loss=lambda z1, z2, **everyone: (z1 - z2).square().mean())
    batch = two_views(4)
    z1, z2 = method.projector(method.encoder(torch.cat([batch.x1, batch.x2]))).chunk(2)
    torch.testing.assert_close(take_step(method, batch, moves=False).loss, (z1 - z2).square().mean())


def test_apart_gives_each_view_statistics_of_its_own() -> None:
    method, batch = simclr(), two_views(8)
    method.apart = True
    z1, z2 = (method.projector(method.encoder(x)) for x in (batch.x1, batch.x2))
    objective = take_step(method, batch, moves=False)
    torch.testing.assert_close(objective.loss, nt_xent(z1, z2, temperature=0.5))
    torch.testing.assert_close(objective.watch["projection"], torch.cat([z1, z2]))
    assert objective.watch["feature"].shape == (16, 6)


def test_what_changes_with_the_clock_reaches_the_loss_and_what_is_written_down() -> None:
    batch = two_views(8)
    torch.manual_seed(0)
    method = SimCLR(
        SmallEncoder(),
        heads.mlp(6, 4),
        loss=partial(hard_negatives, temperature=0.5, tau_plus=0.0, beta=9.0),
        log={"effective_negatives": partial(effective_negatives, temperature=0.5, beta=9.0)},
        scheduled={"beta": linear(4.0, 0.0)},
    )
    z1, z2 = method.projector(method.encoder(torch.cat([batch.x1, batch.x2]))).chunk(2)
    for step, beta in ((0, 4.0), (50, 2.0), (100, 0.0)):
        objective = take_step(method, batch, clock(step), moves=False)
        torch.testing.assert_close(objective.loss, hard_negatives(z1, z2, temperature=0.5, tau_plus=0.0, beta=beta))
        written = objective.log["effective_negatives"]
        torch.testing.assert_close(written, effective_negatives(z1, z2, temperature=0.5, beta=beta))
        assert not written.requires_grad
