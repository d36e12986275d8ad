"""Convolutions of small maps in bfloat16 training on a CPU: the weight's gradient by one matrix product for each tap.

oneDNN's kernel for that gradient is slow on the last stages of a ResNet at 32 px, 4 x 4 and 8 x 8 places with 256 and
512 channels (``benchmarks/convolution.py`` measures both ways). With the samples' places as rows, the gradient of tap
(i, j) is ``dy' x_ij``, where ``x_ij`` is the padded input from (i, j) on. The result cannot be differentiated twice.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

PLACES, CHANNELS = 64, 128
"""Maps of at most so many places and inputs of at least so many channels are dealt with here."""

Pair = tuple[int, int]


def conv2d(*args: Any, **kwargs: Any) -> Tensor:
    """``torch.conv2d`` in autocast's type, with the quicker gradient where there is one."""
    plan = _plan(*args, **kwargs)
    if plan is None:
        return torch.conv2d(*args, **kwargs)
    x, weight, stride, padding = plan
    kind = torch.get_autocast_dtype("cpu")
    return _SmallMap.apply(x.to(kind), weight.to(kind), stride, padding)  # pyright: ignore[reportReturnType]


def _plan(  # noqa: PLR0917 - torch's own order
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Pair, Pair] | None:
    """What ``_SmallMap`` takes, or None where the usual way is as quick."""
    if not (weight.requires_grad and torch.is_grad_enabled() and input.device.type == "cpu" and input.ndim == 4):
        return None
    if isinstance(padding, str) or bias is not None or groups != 1 or _pair(dilation) != (1, 1):
        return None
    stride, padding = _pair(stride), _pair(padding)
    places = 1
    for side, taps, step, border in zip(input.shape[2:], weight.shape[2:], stride, padding, strict=True):
        places *= (side + 2 * border - taps) // step + 1
    small = 0 < places <= PLACES and weight.shape[1] >= CHANNELS and weight[0, 0].numel() > 1
    return (input, weight, stride, padding) if small else None


def _pair(x: int | Pair) -> Pair:
    return (x, x) if isinstance(x, int) else (x[0], x[1])


def weight_gradient(
    x: Float[Tensor, "b c h w"], dy: Float[Tensor, "b o _ _"], kernel: Pair, stride: Pair, padding: Pair
) -> Float[Tensor, "o c _ _"]:
    """The gradient of a convolution's weight, given its input and its output's gradient."""
    height, width = dy.shape[2:]
    rows = pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    back = dy.permute(0, 2, 3, 1).flatten(0, 2).T
    out = x.new_empty(dy.shape[1], *kernel, x.shape[1])
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            seen = rows[
                :, i : i + stride[0] * (height - 1) + 1 : stride[0], j : j + stride[1] * (width - 1) + 1 : stride[1]
            ]
            out[:, i, j] = back @ seen.flatten(0, 2)
    return out.permute(0, 3, 1, 2)


class _SmallMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx = None
        if ctx.needs_input_grad[0]:
            mask, ones, zeros = [True, False, False], [1, 1], [0, 0]
            dx = torch.ops.aten.convolution_backward(
                dy, x, weight, None, ctx.stride, ctx.padding, ones, False, zeros, 1, mask
            )[0]
        return dx, weight_gradient(x, dy, tuple(weight.shape[2:]), ctx.stride, ctx.padding), None, None
