"""What MAE's encoder saves by leaving the hidden patches out: its forward pass on a quarter of them beside all.

    python benchmarks/mae_visible.py [--device cuda]

ViT-B/16 at 224 px, 49 of 196 patches visible. Both passes embed all patches, as MAE does; blocks and norm then see the
visible ones alone. They take turns, and what counts is the median over rounds of the share that one pass costs of the
other in the same round: a busy machine slows both. A quarter of the tokens is a quarter of the work, and less of
attention's; what comes on top are embedding and smaller matrices.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from _bench import bound, flags, in_turns, save
from selfsight.encoders.backbone import Transformer
from selfsight.encoders.build import build_encoder

SHARE = 0.3
"""What a pass over a quarter of the patches may cost of one over all."""


def encoder(given: argparse.Namespace) -> Transformer:
    torch.manual_seed(0)
    made = build_encoder("vit_base_patch16_224", image_size=given.size)
    assert isinstance(made, Transformer)
    return made.eval().to(given.device)


def pass_of(net: Transformer, x: Tensor, visible: Tensor | None, *, bf16: bool) -> Callable[[], int]:
    """One forward pass; counts images."""

    @torch.inference_mode()
    def run() -> int:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            net.tokens(net.embed(x), visible)
        return len(x)

    return run


def main() -> None:
    """Measures both passes in turns."""
    parser = flags(__doc__, "mae_visible")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; one waits for no other")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each pass in each round, at least")
    parser.add_argument("--bf16", action="store_true", help="in bfloat16, as MAE's code trains")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    net = encoder(given)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(given.batch, 3, given.size, given.size, generator=rng).to(given.device)
    patches = (given.size // net.patch) ** 2
    order = torch.rand(given.batch, patches, generator=rng).argsort(dim=1).to(given.device)
    visible = order[:, : patches // 4]
    contenders = {"visible": pass_of(net, x, visible, bf16=given.bf16), "all": pass_of(net, x, None, bf16=given.bf16)}
    rates = in_turns(contenders, rounds=given.rounds, seconds=given.seconds)
    costs = [whole / part for part, whole in zip(rates["visible"], rates["all"], strict=True)]
    precision, place = ("bf16" if given.bf16 else "float32"), "a GPU" if given.device == "cuda" else "a CPU"
    what = f"MAE ViT-B/16, {given.size} px, {place}, {precision}: pass on 1/4 of it"
    rows = [bound(what, "of full", statistics.median(costs), at_most=SHARE)]
    save("mae_visible", given, rows, rates=rates, costs=costs, batch=given.batch, threads=given.threads)


if __name__ == "__main__":
    main()
