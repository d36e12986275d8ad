"""RotNet: exact quarter turns, uniform labels, and the loss's floor."""

import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.method import Clock, Objective, drive
from selfsight.methods.rotation import Rotation, four_rotations

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


def objective(method: Rotation, x: Tensor) -> Objective:
    seen: list[Objective] = []
    drive(method.step(Images(x, torch.arange(len(x))), NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def test_turns_are_exact_and_counter_clockwise() -> None:
    x = torch.randn(2, 3, 5, 5)
    turned = four_rotations(x).reshape(4, 2, 3, 5, 5)
    assert torch.equal(turned[0], x)
    for k in (1, 2, 3):
        for row in range(5):
            for column in range(5):  # a quarter turn moves the right edge to the top
                assert torch.equal(turned[k][:, :, row, column], turned[k - 1][:, :, column, 4 - row])
    back = four_rotations(turned[3])[2:4]
    assert torch.equal(back, x)


def test_the_loss_is_the_mean_over_all_turned_images() -> None:
    torch.manual_seed(0)
    method, x = Rotation(Flat(), nn.Linear(16, 4)), torch.randn(3, 3, 6, 6)
    found = objective(method, x)
    total, right = 0.0, 0
    with torch.no_grad():
        for image in x:
            for k in range(4):
                logits = method.head(method.encoder(torch.rot90(image, k, (1, 2))[None]))[0].tolist()
                total += math.log(sum(math.exp(v) for v in logits)) - logits[k]
                right += logits.index(max(logits)) == k
    assert float(found.loss.detach()) == pytest.approx(total / 12, rel=1e-5)
    assert float(found.log["rotation_accuracy"]) == pytest.approx(right / 12)
    assert found.watch["feature"].shape == (3, 16)


def test_symmetric_images_cost_at_least_log_4_whatever_the_network() -> None:
    torch.manual_seed(0)
    method = Rotation(Flat(), nn.Linear(16, 4))
    x = four_rotations(torch.randn(8, 3, 6, 6)).reshape(4, 8, 3, 6, 6).sum(dim=0)
    for _ in range(30):
        method.zero_grad()
        loss = objective(method, x).loss
        assert float(loss.detach()) >= math.log(4) - 1e-5
        loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                p.sub_(0.05 * p.grad)


def test_a_zero_head_costs_log_4() -> None:
    head = nn.Linear(16, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    assert float(objective(Rotation(Flat(), head), torch.randn(2, 3, 6, 6)).loss.detach()) == pytest.approx(math.log(4))
