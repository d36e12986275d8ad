"""A program, started once with RANK 0 and once with RANK 1: each recipe on its half of every batch.

Rank 0 also trains each on the joined batch, before the processes meet, and writes the greatest differences.
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

STEPS = 3


def trained(name: str, rank: int, world: int) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The losses, the state, and the last update's gradients, averaged over processes."""
    recipe = rig.exact(rig.build(name))
    size = recipe.batch_size // world
    joined = (doubled(rig.cast(batch, torch.float64)) for batch in rig.batches(recipe, STEPS))
    given = (rig.rows(batch, rank * size, (rank + 1) * size) for batch in joined)
    losses, _ = rig.train(recipe, given, start=4, place=rig.machine(rank, world))
    grads = {key: p.grad.to_dense() for key, p in recipe.method.named_parameters() if p.grad is not None}
    return losses, {key: value.clone() for key, value in recipe.method.state_dict().items()}, grads


def doubled(batch: Any) -> Any:
    """One image twice, on either process once: what stands in for an unreadable image may be any other."""
    index = batch.index.clone()
    index[0] = index[-1]
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


def main(rank: int, meeting: str, out: Path) -> None:
    torch.set_num_threads(1)
    names = list(catalogue.cards())
    alone = {name: trained(name, 0, 1) for name in names} if rank == 0 else {}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        losses, state, grads = trained(name, rank, 2)
        other = [None, None]
        dist.all_gather_object(other, (losses, state))
        if rank == 0:
            between = difference(other[0][1], other[1][1])
            joined = difference(state, alone[name][1])
            mean = [(a + b) / 2 for a, b in zip(other[0][0], other[1][0], strict=True)]
            apart = max(abs(a - b) for a, b in zip(mean, alone[name][0], strict=True))
            worst = max(joined, key=joined.__getitem__)
            found[name] = {
                "loss": apart,
                "state": joined[worst],
                "gradient": off(grads, alone[name][2]),
                "ranks": max(between.values()),
                "moved": moved(name, alone[name][1]),
                "worst": worst,
            }
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
