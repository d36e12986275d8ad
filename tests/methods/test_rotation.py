"""RotNet: labels in their order and the loss's floor, with four copies of an image and with one."""

import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import TurnedImages
from selfsight.method import Clock, Objective, drive
from selfsight.methods.rotation import Rotation

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


class Flat(nn.Module):
    """An encoder that sees every pixel."""

    width, stride = 16, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 36, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).relu()

    def dense(self, x: Tensor) -> Tensor:
        return self(x)[..., None, None]


def in_four(x: Tensor) -> TurnedImages:
    return TurnedImages(x, torch.arange(4).expand(len(x), 4), torch.arange(len(x)))


def objective(method: Rotation, batch: TurnedImages) -> Objective:
    seen: list[Objective] = []
    drive(method.step(batch, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


@pytest.mark.parametrize("turns", [[[0, 1, 2, 3]] * 3, [[2], [0], [3]]], ids=["four copies", "one copy"])
def test_the_loss_is_the_mean_over_all_turned_images(turns: list[list[int]]) -> None:
    """Value and gradient against the equation, image by image, in double precision."""
    torch.manual_seed(0)
    method, x = Rotation(Flat(), nn.Linear(16, 4)).double(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    found = objective(method, TurnedImages(x, torch.tensor(turns), torch.arange(3)))
    found.loss.backward()
    gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    method.zero_grad()
    total, right, n = torch.zeros((), dtype=torch.float64), 0, 0
    for image, quarters in zip(x, turns, strict=True):
        for k in quarters:
            logits = method.head(method.encoder(torch.rot90(image, k, (1, 2))[None]))[0]
            total = total + logits.exp().sum().log() - logits[k]
            right += int(logits.argmax()) == k
            n += 1
    (total / n).backward()
    assert float(found.loss.detach()) == pytest.approx(float(total.detach()) / n, rel=1e-12)
    assert float(found.log["rotation_accuracy"]) == pytest.approx(right / n)
    assert found.watch["feature"].shape == (3, 16)
    for p, gradient in zip(method.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)


def test_the_four_copies_stand_as_they_always_did() -> None:
    """All images upright, then all by 90, 180 and 270 degrees, labels alike: what the committed ladder row was."""
    seen: list[Tensor] = []

    class Looking(Flat):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    x = torch.randn(3, 3, 6, 6)
    method = Rotation(Looking(), nn.Linear(16, 4))
    nn.init.zeros_(method.head.weight)
    with torch.no_grad():
        method.head.bias.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    found = objective(method, in_four(x))
    assert torch.equal(seen[0], torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)]))
    assert float(found.log["rotation_accuracy"]) == 0.25  # every answer is "upright"
    torch.testing.assert_close(found.watch["feature"], method.encoder(x).detach())


def test_symmetric_images_cost_at_least_log_4_whatever_the_network() -> None:
    torch.manual_seed(0)
    method = Rotation(Flat(), nn.Linear(16, 4))
    x = torch.randn(8, 3, 6, 6)
    x = torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)]).sum(dim=0)
    for _ in range(30):
        method.zero_grad()
        loss = objective(method, in_four(x)).loss
        assert float(loss.detach()) >= math.log(4) - 1e-5
        loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                p.sub_(0.05 * p.grad)


def test_a_zero_head_costs_log_4() -> None:
    head = nn.Linear(16, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    x = torch.randn(2, 3, 6, 6)
    one = TurnedImages(x, torch.tensor([[3], [1]]), torch.arange(2))
    for batch in (in_four(x), one):
        assert float(objective(Rotation(Flat(), head), batch).loss.detach()) == pytest.approx(math.log(4))
