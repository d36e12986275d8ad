"""MoCo: keys, queue, shuffle and the order of events; in two processes as in one."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from stand_ins import SmallEncoder, clock, take_step, two_views
from torch.nn.functional import normalize

from selfsight.losses.contrastive import info_nce
from selfsight.losses.hypersphere import align_uniform_with_queue
from selfsight.methods.moco import MoCo
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.schedules import constant


def moco(m: float = 0.9, *, size: int = 24, symmetric: bool = False, norm: bool = True) -> MoCo:
    torch.manual_seed(0)
    return MoCo(
        SmallEncoder(norm=norm),
        heads.mlp(6, 4),
        width=4,
        size=size,
        temperature=0.1,
        momentum=constant(m),
        symmetric=symmetric,
    )


def plain(encoder: torch.nn.Module, projector: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return normalize(projector(encoder(x)), dim=1)


def test_loss_uses_the_queue_as_it_was() -> None:
    method, batch = moco(), two_views(8)
    queue = method.queues[0].keys.clone()
    q = plain(method.encoder, method.projector, batch.x1)
    k = plain(method.key_encoder, method.key_projector, batch.x2)
    objective = take_step(method, batch)
    torch.testing.assert_close(objective.loss, info_nce(q, k, temperature=0.1, negatives=queue))
    torch.testing.assert_close(method.queues[0].keys[:8], k)
    assert torch.equal(method.queues[0].keys[8:], queue[8:])


def test_key_encoder_moves_after_the_step_and_gets_no_gradient() -> None:
    """Sheet 16, check 4."""
    method = moco(0.9).double()
    keys = [*method.key_encoder.parameters(), *method.key_projector.parameters()]
    queries = [*method.encoder.parameters(), *method.projector.parameters()]
    before = [p.clone() for p in keys]
    take_step(method, two_views(8, dtype=torch.float64))
    for old, new, query in zip(before, keys, queries, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * query, rtol=0, atol=1e-12)
    assert all(p.grad is None for p in keys)
    assert not torch.equal(before[0], queries[0])


def test_without_a_move_keys_enter_and_the_encoder_stays() -> None:
    method = moco(0.0)
    before = method.key_encoder.conv.weight.clone()
    with torch.no_grad():
        method.encoder.conv.weight.add_(1)
    take_step(method, two_views(8), moves=False)
    assert torch.equal(method.key_encoder.conv.weight, before)
    assert int(method.queues[0].pointer) == 8


def test_symmetric_is_the_mean_of_both_and_each_key_goes_to_its_own_queue() -> None:
    method, batch = moco(symmetric=True, norm=False), two_views(8)
    with torch.no_grad():
        method.queues[1].keys.copy_(method.queues[0].keys)
    old = method.queues[0].keys.clone()
    q1, q2 = (plain(method.encoder, method.projector, x) for x in (batch.x1, batch.x2))
    k1, k2 = (plain(method.key_encoder, method.key_projector, x) for x in (batch.x1, batch.x2))
    objective = take_step(method, batch, moves=False)
    both = [info_nce(q, k, temperature=0.1, negatives=old) for q, k in ((q1, k2), (q2, k1))]
    torch.testing.assert_close(objective.loss, sum(both) / 2)
    torch.testing.assert_close(method.queues[0].keys[:8], k2)
    torch.testing.assert_close(method.queues[1].keys[:8], k1)

    swapped = moco(symmetric=True, norm=False)
    with torch.no_grad():
        for queue in swapped.queues:
            queue.keys.copy_(old)
    batch = batch._replace(x1=batch.x2, x2=batch.x1)
    torch.testing.assert_close(take_step(swapped, batch, moves=False).loss, objective.loss)


def test_shuffled_keys_come_back_in_their_places() -> None:
    """Sheet 16, check 3: with batch norm in evaluation the shuffle changes nothing."""
    method, batch = moco(), two_views(8)
    method.eval()
    torch.testing.assert_close(method.keys(batch.x2), plain(method.key_encoder, method.key_projector, batch.x2))


def test_groups_of_keys_are_drawn_by_lot_and_those_of_queries_are_not() -> None:
    method, batch = moco(), two_views(8)
    set_scope_(method, 4)
    torch.manual_seed(1)
    first = method.keys(batch.x2)
    torch.manual_seed(1)
    assert torch.equal(method.keys(batch.x2), first)
    torch.manual_seed(1)
    order = torch.randperm(8)
    expected = torch.empty(8, 4)
    for group in order.split(4):
        x = method.key_encoder.conv(batch.x2[group])
        deviation = x - x.mean(dim=(0, 2, 3), keepdim=True)
        x = deviation / (x.var(dim=(0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        expected[group] = normalize(method.key_projector(x.tanh().mean(dim=(2, 3))), dim=1)
    torch.testing.assert_close(first, expected)
    assert not torch.allclose(first, plain(method.key_encoder, method.key_projector, batch.x2), atol=1e-3)


def test_the_loss_is_an_argument() -> None:
    method, batch = moco(), two_views(8)
    method.loss = partial(align_uniform_with_queue, t=2.0)
    queue = method.queues[0].keys.clone()
    q = plain(method.encoder, method.projector, batch.x1)
    k = plain(method.key_encoder, method.key_projector, batch.x2)
    objective = take_step(method, batch)
    torch.testing.assert_close(objective.loss, align_uniform_with_queue(q, k, negatives=queue, t=2.0))
    torch.testing.assert_close(method.queues[0].keys[:8], k)


def test_what_it_hands_over() -> None:
    watch = take_step(moco(), two_views(8)).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (8, 6), "projection": (16, 4)}
    torch.testing.assert_close(watch["projection"].norm(dim=1), torch.ones(16))


LOSSES = (None, partial(align_uniform_with_queue, t=2.0))
"""MoCo's own, and that of alignment and uniformity, which pairs queries of all processes."""


def grouped(rank: int, world: int, which: int) -> tuple[dict[str, torch.Tensor], float]:
    """Three steps of one process's part, with batch norm over groups of 4; what it ends with, and the last loss."""
    method = moco(symmetric=True, size=32).double()
    method.loss = LOSSES[which] or method.loss
    set_scope_(method, 4)
    size, loss = 16 // world, 0.0
    for step in range(3):
        torch.manual_seed(100 * step + rank)  # the engine's seeds differ by rank
        batch = two_views(16, seed=step, dtype=torch.float64)
        mine = type(batch)(*(x[rank * size : (rank + 1) * size] for x in batch))
        loss = take_step_together(method, mine)
    return method.state_dict(), loss


def take_step_together(method: MoCo, batch: object) -> float:
    """As ``take_step``, with gradients averaged over processes as the engine does."""
    steps = method.step(batch, clock())
    objective = next(steps)
    parameters = [p for _, p in method.trainables()["main"]]
    grads = torch.autograd.grad(objective.loss, parameters)
    loss = objective.loss.detach().clone()
    for x in (*grads, loss):
        if dist.is_initialized():
            dist.all_reduce(x)
            x.div_(dist.get_world_size())
    with torch.no_grad():
        for p, g in zip(parameters, grads, strict=True):
            p.sub_(0.1 * g)
    with pytest.raises(StopIteration):
        steps.send(True)
    return loss.item()


@pytest.mark.slow
def test_two_processes_shuffle_as_one_does(tmp_path: Path) -> None:
    support = str(Path(__file__).parents[1] / "support")
    path = os.pathsep.join([support, *filter(None, [os.environ.get("PYTHONPATH")])])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()  # where one died, the other waits for it
    assert all(process.returncode == 0 for process in started), "\n".join(errors)[-3000:]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for which in range(len(LOSSES)):
        alone, loss = grouped(0, 1, which)
        for rank in range(2):
            state, its_loss = found[rank][which]
            assert its_loss == pytest.approx(loss, abs=1e-10)
            for name, x in alone.items():
                torch.testing.assert_close(state[name], x, rtol=1e-9, atol=1e-10, msg=f"{name} of rank {rank}")


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save([grouped(rank, 2, which) for which in range(len(LOSSES))], folder / f"{rank}.pt")
    dist.destroy_process_group()
