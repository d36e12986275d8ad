"""LARS against values of four official optimisers: four steps on a weight and a bias, at a rate that changes."""

from typing import Any

import pytest
import torch
from recorded import drawn, recorded, same
from torch import nn

from selfsight.engine.lars import LARS

OFFICIAL = recorded("optimisers")
BYOL: dict[str, Any] = {"variant": "byol", "eta": 1e-3}
VECTOR: dict[str, Any] = {"adapt": False, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("name", "options", "bias"),
    [
        ("simclr", {"variant": "simclr", "eta": 1e-3}, VECTOR),
        ("barlow_twins", BYOL, {**VECTOR, "share": 0.0048 / 0.2}),
        ("moco_v3", BYOL, VECTOR),
        ("larc", {"variant": "larc", "eta": 0.05}, {}),
        ("larc_clipped", {"variant": "larc", "eta": 0.05, "clip": True}, {}),
    ],
)
def test_lars(name: str, options: dict[str, Any], bias: dict[str, Any]) -> None:
    weights = [nn.Parameter(drawn(1, 3, 4)), nn.Parameter(drawn(2, 3))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], **bias}]
    optimiser = LARS(groups, momentum=0.9, weight_decay=0.01, **options)
    for k, lr in enumerate((0.1, 0.4, 0.3, 0.2)):
        weights[0].grad, weights[1].grad = drawn(10 + k, 3, 4), drawn(20 + k, 3)
        for group in optimiser.param_groups:
            group["lr"] = lr * group.get("share", 1)
        optimiser.step()
    same(torch.cat([w.detach().flatten() for w in weights]), OFFICIAL[name]["weights"])
