"""Momentum targets: a frozen copy that follows parameters and nothing else."""

import pytest
import torch
from torch import nn

from selfsight.parts.momentum import ema_, target_of


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_target_is_a_frozen_copy_of_its_own() -> None:
    online = network()
    online(torch.randn(8, 3) + 2)
    target = target_of(online)
    assert all(
        torch.equal(a, b) for a, b in zip(target.state_dict().values(), online.state_dict().values(), strict=True)
    )
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in online.parameters())
    with torch.no_grad():
        next(online.parameters()).add_(1)
    assert not torch.equal(next(target.parameters()), next(online.parameters()))


@pytest.mark.parametrize("m", [0.0, 0.9, 0.9995, 1.0])
def test_parameters_move_by_the_rule(m: float) -> None:
    online, target = network(), target_of(network())
    expected = [
        m * t.detach().double() + (1 - m) * o.detach().double()
        for t, o in zip(target.parameters(), online.parameters(), strict=True)
    ]
    ema_(target, online, m)
    for t, e in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(t.double(), e, rtol=0, atol=1e-7)


def test_statistics_do_not_move() -> None:
    online, target = network(), target_of(network())
    online(torch.randn(8, 3) + 5)
    ema_(target, online, 0.0)
    assert not target[1].running_mean.any()


def test_networks_of_other_shape_are_refused() -> None:
    with pytest.raises(ValueError):
        ema_(target_of(network()), nn.Sequential(nn.Linear(3, 4)), 0.5)
    with pytest.raises(TypeError, match=r"nn\.Module, not str"):
        target_of("encoder")
