"""BYOL, SimSiam, Barlow Twins and VICReg against values of their official code, in loss and gradient."""

import pytest
import torch
from recorded import Given, Pooled, descend, drawn, fill_, flat, recorded, same, two_views
from torch import nn

from selfsight.batches import TwoViews
from selfsight.losses.regression import cosine_regression
from selfsight.method import Clock
from selfsight.methods.barlow_twins import BarlowTwins
from selfsight.methods.simsiam import SimSiam
from selfsight.methods.vicreg import VICReg
from selfsight.parts import heads

OFFICIAL = recorded("siamese")
NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


def test_byol_is_the_mean_of_its_codes_losses() -> None:
    x, y, theirs = drawn(1, 8, 5), drawn(2, 8, 5), OFFICIAL["byol"]["losses"]
    same(torch.stack([cosine_regression(x[i : i + 1], y[i : i + 1]) for i in range(8)]), theirs)
    same(cosine_regression(x, y), sum(theirs) / 8)


def test_simsiam() -> None:
    """Four steps; the bias that the code has before the projector's last norm was not zero, and cancels."""
    case = OFFICIAL["simsiam"]
    projector = heads.mlp(5, 5, 5, 4, bias=False, out_bias=False, out_norm="plain")
    method = SimSiam(Pooled(), projector, heads.mlp(4, 3, 4, bias=False)).double()
    fill_(method.parameters(), 1)
    same(descend(method, [two_views(100 + 2 * k) for k in range(4)], 0.5, steps=4, epochs=1), case["losses"])
    same(flat(method), case["weights"])


def both(method: BarlowTwins | VICReg, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of two drawn embeddings, and its gradients."""
    views = [drawn(seed, n, d)[..., None, None].requires_grad_() for seed in (1, 2)]
    loss = next(method.step(TwoViews(views[0], views[1], torch.arange(n)), NOW)).loss
    return loss, torch.stack(torch.autograd.grad(loss, views)).flatten(2)


def test_barlow_twins() -> None:
    case = OFFICIAL["barlow_twins"]
    loss, gradients = both(BarlowTwins(Given(6), nn.Identity(), width=6).double(), 8, 6)
    same(loss, case["loss"])
    same(gradients, case["gradients"])


@pytest.mark.parametrize(("name", "n", "d"), [("vicreg_narrow", 8, 6), ("vicreg_wide", 5, 9)])
def test_vicreg(name: str, n: int, d: int) -> None:
    """More images than features, and more features than images: ours computes the covariances differently."""
    case = OFFICIAL[name]
    loss, gradients = both(VICReg(Given(d), nn.Identity()), n, d)
    same(loss, case["loss"])
    same(gradients, case["gradients"])
