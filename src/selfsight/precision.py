"""Training in bfloat16: autocast, with attention in float32 on a CPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@contextmanager
def bf16_training(device_type: str) -> Iterator[None]:
    """Where the forward pass of a training step runs in bfloat16."""
    with torch.autocast(device_type, torch.bfloat16), FloatAttention() if device_type == "cpu" else nullcontext():
        yield


class FloatAttention(TorchFunctionMode):
    """``scaled_dot_product_attention`` in float32; its result has autocast's type.

    On a CPU, the backward pass of torch's attention takes several times as long in bfloat16 as in float32 up to about
    200 tokens, and about as long at 800, while the forward pass is hardly faster (``benchmarks/attention.py``).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            out = func(*map(_float, args), **{name: _float(x) for name, x in kwargs.items()})
        return out.to(torch.get_autocast_dtype("cpu"))


def _float(x: object) -> object:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x
