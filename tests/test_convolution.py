"""The convolution of small maps: torch's values and gradients, and only where it is quicker."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsight import convolution
from selfsight.convolution import weight_gradient
from selfsight.precision import bf16_training


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        ((4, 4), (3, 3), (1, 1), (1, 1)),
        ((8, 8), (3, 3), (2, 2), (1, 1)),
        ((7, 5), (3, 1), (2, 1), (0, 2)),
        ((6, 9), (2, 5), (3, 2), (1, 0)),
    ],
)
def test_the_gradient_is_torchs(side: Any, kernel: Any, stride: Any, padding: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, *side, dtype=torch.float64)
    weight = torch.randn(4, 6, *kernel, dtype=torch.float64, requires_grad=True)
    y = torch.conv2d(x, weight, None, stride, padding)
    dy = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, weight, dy)
    torch.testing.assert_close(weight_gradient(x, dy, kernel, stride, padding), expected)


def gradients(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with bf16_training("cpu"):
        y = layer(x)
    y.float().square().mean().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    grad, layer.weight.grad = layer.weight.grad, None
    return y, x.grad, grad


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the matrix products were asked for."""
    seen: list[Any] = []

    def watched(*args: Any) -> Tensor:
        seen.append(args[2:])
        return weight_gradient(*args)

    monkeypatch.setattr(convolution, "weight_gradient", watched)
    return seen


@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_trains_as_without_it(stride: int, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(128, 16, 3, stride=stride, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(5, 128, 8, 8)
    ours = gradients(layer, x)
    assert calls == [((3, 3), (stride, stride), (1, 1))]
    monkeypatch.setattr(convolution, "PLACES", 0)
    theirs = gradients(layer, x)
    assert len(calls) == 1
    assert ours[0].dtype == torch.bfloat16
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= 0.01 * b.norm()  # bfloat16 has 8 bits
    assert ours[2].stride() == layer.weight.stride()  # else every optimiser's step would turn it


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(128, 16, 3, padding=1, bias=False), 9),  # 81 places
        (nn.Conv2d(64, 16, 3, padding=1, bias=False), 4),  # few channels
        (nn.Conv2d(128, 16, 1, bias=False), 4),  # one tap is a matrix product already
        (nn.Conv2d(128, 16, 3, padding=1), 4),
        (nn.Conv2d(256, 16, 3, padding=1, bias=False, groups=2), 4),
        (nn.Conv2d(128, 16, 3, padding=2, dilation=2, bias=False), 4),
        (nn.Conv2d(128, 16, 3, padding="same", bias=False), 4),
    ],
)
def test_other_layers_are_left_alone(layer: nn.Conv2d, side: int, calls: list[Any]) -> None:
    gradients(layer, torch.randn(2, layer.in_channels, side, side))
    assert not calls


def test_without_gradients_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    real = convolution._SmallMap.apply
    layer, x = nn.Conv2d(128, 16, 3, padding=1, bias=False), torch.randn(2, 128, 4, 4)

    def run(name: str) -> None:
        monkeypatch.setattr(convolution._SmallMap, "apply", lambda *args: (taken.append(name), real(*args))[1])
        layer(x)

    with bf16_training("cpu"):
        run("training")
        with torch.no_grad():
            run("no gradient")
        layer.requires_grad_(False)
        run("frozen")
    layer.requires_grad_()
    run("float32")
    assert taken == ["training"]
