"""Convolutions of small maps, forward and backward in bfloat16 training on a CPU: ours beside autocast alone.

    python benchmarks/convolution.py

The shapes are those of ResNet-18's last two stages at 32 px, batch 256, on all cores.
"""

from collections.abc import Callable

import torch
from torch import nn

from _bench import flags, in_turns, row, save
from selfsight.precision import bf16_training

SHAPES = ((128, 256, 16, 2), (256, 256, 8, 1), (256, 512, 8, 2), (512, 512, 4, 1))
"""Channels in and out, side of the map, stride."""


def pass_of(shape: tuple[int, int, int, int], *, ours: bool) -> Callable[[], int]:
    """One forward and backward pass; counts samples."""
    inside, outside, side, stride = shape
    layer = nn.Conv2d(inside, outside, 3, stride, 1, bias=False).to(memory_format=torch.channels_last)  # pyright: ignore
    x = torch.randn(256, inside, side, side).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()

    def run() -> int:
        with bf16_training("cpu") if ours else torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.backward(torch.ones_like(y))
        return len(x)

    return run


def main() -> None:
    """Measures both in turns."""
    given = flags(__doc__, "convolution").parse_args()
    rows = []
    for shape in SHAPES:
        rates = in_turns({"ours": pass_of(shape, ours=True), "plain": pass_of(shape, ours=False)}, rounds=given.rounds)
        what = f"3x3 convolution, bf16 training, {shape[0]} to {shape[1]}, {shape[2]} px, stride {shape[3]}"
        rows.append(row(what, "samples/s", rates["ours"], "autocast", rates["plain"]))
    save("convolution", given, rows)


if __name__ == "__main__":
    main()
