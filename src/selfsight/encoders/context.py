"""Attention to a part of the tokens: every token asks, a context alone answers (MP3's masked attention)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def attend(block: nn.Module, x: Float[Tensor, "b n d"], context: Int[Tensor, "b k"]) -> Float[Tensor, "b n d"]:
    """One of timm's pre-norm blocks over all of ``x``, whose keys and values are those of the ``context`` alone.

    These are gathered, which costs n times k; a mask over all keys would cost the square of n. Raises ``ValueError``
    where the block is another than timm's plain one: a rotary or windowed one knows where its tokens lie.

    >>> block, x = Block(8, 2).eval(), torch.randn(1, 5, 8)
    >>> bool(torch.allclose(attend(block, x, torch.arange(5)[None]), block(x), atol=1e-6))
    True
    """
    part: Any = block
    if not is_plain(block):
        raise ValueError(f"attention to a context needs timm's plain Block, not {type(part).__name__}")
    normed = part.norm1(x)
    seen = normed.gather(1, context[..., None].expand(-1, -1, x.shape[-1]))
    x = x + part.drop_path1(part.ls1(_cross(part.attn, normed, seen)))
    return x + part.drop_path2(part.ls2(part.mlp(part.norm2(x))))


def is_plain(block: nn.Module) -> bool:
    """Whether ``attend`` knows the block: timm's pre-norm one with its usual attention."""
    return type(block) is Block and type(block.attn) is Attention


def _cross(attn: Any, asking: Float[Tensor, "b n d"], seen: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
    """timm's attention with queries and keys of different tokens, through its one query-key-value layer."""
    weight, bias = attn.qkv.weight, attn.qkv.bias
    width = len(weight) // 3
    query = linear(asking, weight[:width], None if bias is None else bias[:width])
    key, value = linear(seen, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    drop = attn.attn_drop.p if attn.training else 0.0
    y = scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=drop).transpose(1, 2).flatten(2)
    y = attn.norm(y)
    if getattr(attn, "gate", None) is not None:
        y = y * torch.sigmoid(attn.gate(asking))
    return attn.proj_drop(attn.proj(y))
