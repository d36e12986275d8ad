"""A program, started once with each RANK of a WORLD: each recipe on its part of every batch.

Rank 0 also trains each on the joined batch, before the processes meet, and writes the greatest differences. With
micro-batches, each is a batch of its own that the processes share.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import rig
import torch
import torch.distributed as dist

from selfsight.recipes import catalogue

Trained = tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]


def trained(name: str, rank: int, world: int, *, steps: int = 3, micro: int = 1) -> Trained:
    """The losses, the state, and the last update's gradients, averaged over processes."""
    recipe = rig.exact(rig.build(name))
    size = recipe.batch_size // (world * micro)
    joined = (doubled(rig.cast(batch, torch.float64), micro) for batch in rig.batches(recipe, steps))
    starts = [(k * world + rank) * size for k in range(micro)]
    given = (rig.rows(batch, start, start + size) for batch in joined for start in starts)
    losses, _ = rig.train(recipe, given, start=4, place=rig.machine(rank, world), micro=micro)
    grads = {key: p.grad.to_dense() for key, p in recipe.method.named_parameters() if p.grad is not None}
    return losses, {key: value.clone() for key, value in recipe.method.state_dict().items()}, grads


def doubled(batch: Any, micro: int = 1) -> Any:
    """One image twice, on two processes once: what stands in for an unreadable image may be any other."""
    index = batch.index.clone()
    for part in index.chunk(micro):
        part[0] = part[-1]
    return batch._replace(index=index)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: float((a[key].double() - b[key].double()).abs().max()) if a[key].numel() else 0.0 for key in a}


def off(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """How far the gradients are apart, as a part of the greatest: the adaptive optimisers hide a common factor."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    return max(difference(a, b).values()) / max(float(x.abs().max()) for x in b.values())


def moved(name: str, state: dict[str, torch.Tensor]) -> float:
    """How far the encoder's parameters went: running statistics and queues move without any training."""
    start = rig.exact(rig.build(name)).method
    steps = [float((state[f"encoder.{key}"] - p.detach()).abs().max()) for key, p in start.encoder.named_parameters()]
    return max(steps)


def main(rank: int, meeting: str, out: Path, size: tuple[int, int, int], only: list[str]) -> None:
    """``size``: processes, updates, and micro-batches an update; ``only``: these recipes, else all."""
    (world, steps, micro), names = size, only or list(catalogue.cards())
    torch.set_num_threads(1)

    alone = {name: trained(name, 0, 1, steps=steps, micro=micro) for name in names} if rank == 0 else {}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        losses, state, grads = trained(name, rank, world, steps=steps, micro=micro)
        every: list[Any] = [None] * world
        dist.all_gather_object(every, (losses, state))
        if rank == 0:
            between = [max(difference(state, other).values()) for _, other in every]
            joined = difference(state, alone[name][1])
            mean = [sum(each) / world for each in zip(*(losses for losses, _ in every), strict=True)]
            apart = max(abs(a - b) for a, b in zip(mean, alone[name][0], strict=True))
            worst = max(joined, key=joined.__getitem__)
            found[name] = {
                "loss": apart,
                "state": joined[worst],
                "gradient": off(grads, alone[name][2]),
                "ranks": max(between),
                "moved": moved(name, alone[name][1]),
                "worst": worst,
            }
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    world, steps, micro = map(int, sys.argv[4:7])
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), (world, steps, micro), sys.argv[7:])
