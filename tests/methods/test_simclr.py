"""SimCLR: one forward for both views, and what it hands over."""

from functools import partial

import torch
from stand_ins import SmallEncoder, take_step, two_views

from selfsight.losses.contrastive import nt_xent
from selfsight.methods.simclr import SimCLR
from selfsight.parts import heads


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
