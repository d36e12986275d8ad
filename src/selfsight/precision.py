"""Training in bfloat16: autocast, and on a CPU other ways to what torch's kernels are slow at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from selfsight import convolution


@contextmanager
def bf16_training(device_type: str) -> Iterator[None]:
    """Where the forward pass of a training step runs in bfloat16."""
    with torch.autocast(device_type, torch.bfloat16), OnCpu() if device_type == "cpu" else nullcontext():
        yield


class OnCpu(TorchFunctionMode):
    """Attention in float32, and the gradient of small maps' convolutions by matrix products, where autocast is on."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        way = _WAYS.get(func)
        if way is None or not torch.is_autocast_enabled("cpu"):
            way = func
        return way(*args, **kwargs or {})


def float_attention(*args: Any, **kwargs: Any) -> Tensor:
    """``scaled_dot_product_attention`` in float32; its result has autocast's type.

    On a CPU, the backward pass of torch's attention takes several times as long in bfloat16 as in float32 up to about
    200 tokens, and about as long at 800, while the forward pass is hardly faster (``benchmarks/attention.py``).
    """
    with torch.autocast("cpu", enabled=False):
        out = scaled_dot_product_attention(*map(_float, args), **{name: _float(x) for name, x in kwargs.items()})
    return out.to(torch.get_autocast_dtype("cpu"))


def _float(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


_WAYS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    scaled_dot_product_attention: float_attention,
    torch.conv2d: convolution.conv2d,
}
