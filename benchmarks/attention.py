"""Attention forward and backward in bfloat16 training on a CPU: ours beside autocast alone, on one core.

    python benchmarks/attention.py

The shapes are those of ViTs: tokens of MAE's encoder and decoder at 32 px, of a ViT/16 at 224 px and of a ViT/8 there.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from _bench import flags, in_turns, row, save
from selfsight.precision import bf16_training

SHAPES = ((128, 3, 17, 64), (128, 3, 65, 64), (32, 3, 197, 64), (16, 3, 785, 64))
"""Images, heads, tokens, width of a head."""


def pass_of(shape: tuple[int, ...], *, ours: bool) -> Callable[[], int]:
    """One forward and backward pass; counts images."""
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def run() -> int:
        if ours:
            with bf16_training("cpu"):
                out = scaled_dot_product_attention(query, key, value)
        else:
            out = scaled_dot_product_attention(query, key, value)
        out.backward(torch.ones_like(out))
        return shape[0]

    return run


def main() -> None:
    given = flags(__doc__, "attention").parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        rates = in_turns({"ours": pass_of(shape, ours=True), "plain": pass_of(shape, ours=False)}, rounds=given.rounds)
        what = f"attention, bf16 training, {shape[2]} tokens"
        rows.append(row(what, "images/s", rates["ours"], "autocast", rates["plain"]))
    save("attention", given, rows)


if __name__ == "__main__":
    main()
