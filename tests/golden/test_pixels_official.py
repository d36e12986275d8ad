"""PixPro against its official code: which pixels match, the propagation, a whole step, the target's momentum.

Of PixContrast nothing was released.
"""

from typing import Any

import pytest
import torch
from recorded import Given, drawn, recorded, same
from torch import nn

from selfsight.batches import LocatedViews
from selfsight.losses.pixels import match, pixel_consistency
from selfsight.method import Clock, Objective, drive
from selfsight.methods.pixpro import Instance, PixPro
from selfsight.parts.pixels import PixelPropagation, as_rows, pixel_mlp
from selfsight.schedules import constant, cosine

OFFICIAL = recorded("pixels")
IMAGES, WIDTH = 6, 3
BOX1, BOX2 = torch.tensor(OFFICIAL["consistency"]["boxes"], dtype=torch.float64)
"""Where the two views of each image lie: mirrored in one, in the other, in both; the fourth image's do not meet."""

Case = dict[str, Any]


@pytest.mark.parametrize("case", OFFICIAL["consistency"]["cases"])
def test_consistency(case: Case) -> None:
    """The code adds 1e-6 to the number of an image's pairs: a millionth where there is one."""
    height, width = case["with"]["size"]
    y1, y2, t1, t2 = (drawn(seed, IMAGES, WIDTH, height, width) for seed in range(4))
    y1, y2 = y1.requires_grad_(), y2.requires_grad_()
    matches = match(BOX1, BOX2, size=(height, width), threshold=case["with"]["threshold"])
    loss = pixel_consistency(*map(as_rows, (y1, y2, t1, t2)), matches)
    same(loss, case["loss"], 1e-6)
    g1, g2 = torch.autograd.grad(loss, (y1, y2))
    same(torch.stack([g1.square().sum(), g2.square().sum()]), case["gradient_squares"], 3e-6)
    same(torch.stack([g1[:, :, 0, 0], g2[:, :, -1, -1]]), case["gradient"], 1e-6)


@pytest.mark.parametrize("case", OFFICIAL["pairs"]["cases"])
def test_the_same_pixels_match(case: Case) -> None:
    """Every single pair, found by the code's own loss between indicators of one pixel each."""
    height, width = case["with"]["size"]
    near = match(BOX1, BOX2, size=(height, width), threshold=case["with"]["threshold"]).near
    assert [image.nonzero().tolist() for image in near] == case["pairs"]


@pytest.mark.parametrize("case", OFFICIAL["propagation"]["cases"])
def test_propagation(case: Case) -> None:
    transform = nn.Identity()
    if case["with"]["transform"]:
        transform = pixel_mlp(WIDTH, WIDTH).double()
        with torch.no_grad():
            transform[0].weight.copy_(drawn(5, WIDTH, WIDTH, 1, 1))
            transform[0].bias.copy_(drawn(6, WIDTH))
    x = drawn(4, 2, WIDTH, 3, 4).requires_grad_()
    y = PixelPropagation(transform, gamma=case["with"]["gamma"])(x)
    same(y.flatten(2), case["value"])
    (gradient,) = torch.autograd.grad((y * drawn(7, *y.shape)).sum(), x)
    same(gradient.flatten(2), case["gradient"])


@torch.no_grad()
def filled(module: nn.Module, seed: int) -> nn.Module:
    """Halves of normal numbers; a norm's scale is 1 beside."""
    for i, p in enumerate(module.double().parameters()):
        p.copy_(0.5 * drawn(seed + i, *p.shape) + (1 if i == 2 else 0))
    return module


@pytest.mark.parametrize("case", OFFICIAL["pixpro"]["cases"])
def test_a_step(case: Case) -> None:
    """BYOL's distance is 2 - 2 cos here, -2 cos in the code: each direction of the instance branch has 2 more."""
    weight = case["with"]["instance_weight"]
    transform = pixel_mlp(3, 3).double()
    with torch.no_grad():
        transform[0].weight.copy_(drawn(40, 3, 3, 1, 1))
        transform[0].bias.copy_(drawn(41, 3))
    instance = Instance(filled(pixel_mlp(3, 4, 3), 50), filled(pixel_mlp(3, 4, 3), 70), weight) if weight else None
    method = PixPro(
        Given(WIDTH),
        filled(pixel_mlp(WIDTH, 4, 3), 20),
        PixelPropagation(transform, gamma=2.0),
        loss=pixel_consistency,
        momentum=constant(1.0),
        instance=instance,
    ).double()
    filled(method.target_projector, 30)
    if method.target_instance_projector is not None:
        filled(method.target_instance_projector, 60)
    maps = [drawn(seed, IMAGES, WIDTH, 7, 7) for seed in (10, 11)]
    (objective,) = one_step(method, LocatedViews(maps[0], maps[1], BOX1, BOX2, torch.arange(IMAGES)))
    objective.loss.backward()
    same(objective.loss, case["loss"] + 4 * weight, 1e-6)
    named = {"projector": method.projector[0], "transform": transform[0]}
    if instance is not None:
        named |= {"instance_projector": instance.projector[0], "instance_predictor": instance.predictor[3]}
    for name, layer in named.items():
        same(layer.weight.grad.flatten(1), case[name], 1e-6)


def one_step(method: PixPro, batch: LocatedViews) -> list[Objective]:
    seen: list[Objective] = []

    def look(objective: Objective) -> bool:
        seen.append(objective)
        return False

    drive(method.step(batch, Clock(0, 10, 0, 1)), look)
    return seen


@pytest.mark.parametrize("case", OFFICIAL["momentum"]["cases"])
def test_momentum(case: Case) -> None:
    """Of the step with the same number; the code moves the target with it at the step's start, ours at its end."""
    steps = case["with"]["steps"]
    schedule = cosine(case["with"]["momentum"], 1.0)
    same([schedule(Clock(step, steps, 0, 1)) for step in range(steps)], case["momentum"])
