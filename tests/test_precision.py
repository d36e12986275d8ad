"""Training in bfloat16: on a CPU attention stays in float32, and what switches autocast off is left alone."""

from collections.abc import Iterator

import pytest
import torch
from timm.layers.attention import Attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from selfsight.precision import bf16_training


@pytest.fixture
def seen() -> Iterator[list[torch.dtype]]:
    """The types that torch's attention was called with."""
    types: list[torch.dtype] = []
    real = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
            if func is real:
                types.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with Watch():
        yield types


def test_attention_is_in_float32_and_all_else_in_bfloat16(seen: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    block, x = Attention(32, num_heads=2, qkv_bias=True), torch.randn(4, 9, 32, requires_grad=True)
    with bf16_training("cpu"):
        out = block(x)
    assert seen == [torch.float32]
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    ours, x.grad = x.grad, None
    block(x).square().sum().backward()
    torch.testing.assert_close(ours, x.grad, rtol=0.05, atol=0.05)


def test_masks_by_name_are_followed_and_booleans_stay() -> None:
    query, key, value = (torch.randn(2, 1, 5, 8) for _ in range(3))
    mask = torch.rand(5, 5) > 0.5
    mask[:, 0] = True
    for given in (mask, torch.where(mask, 0.0, -9.0)):
        with bf16_training("cpu"):
            out = scaled_dot_product_attention(query, key, value, attn_mask=given)
        torch.testing.assert_close(out, scaled_dot_product_attention(query, key, value, given).bfloat16())


def test_where_autocast_is_off_types_stay() -> None:
    layer, x = torch.nn.Conv2d(128, 8, 3, padding=1, bias=False), torch.randn(2, 128, 4, 4)
    query = torch.randn(2, 1, 5, 8)
    with bf16_training("cpu"), torch.autocast("cpu", enabled=False):
        assert layer(x).dtype == torch.float32
        assert scaled_dot_product_attention(query, query, query).dtype == torch.float32


def test_it_ends_with_its_block(seen: list[torch.dtype]) -> None:
    query = torch.randn(2, 1, 5, 8)
    with bf16_training("cpu"):
        pass
    with torch.autocast("cpu", torch.bfloat16):
        scaled_dot_product_attention(query, query, query)
    assert seen == [torch.bfloat16]
