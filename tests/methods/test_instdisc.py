"""InstDisc and NCE in its bank: what is drawn, what is learnt from it, and what the bank remembers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from stand_ins import SmallEncoder, clock, two_views
from torch.nn.functional import cross_entropy, normalize

from selfsight.batches import Images
from selfsight.distributed import shared_generator
from selfsight.losses.nce import log_partition, nce
from selfsight.method import Objective, drive
from selfsight.methods.instdisc import InstDisc
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.memory import Bank
from selfsight.parts.partition import Partition

N = 40


def images(b: int, *, start: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Images:
    return Images(two_views(b, seed=seed, dtype=dtype).x1, torch.arange(start, start + b))


def instdisc(kind: str | None = "estimated", *, negatives: int = 6, **options: float) -> InstDisc:
    torch.manual_seed(0)
    partition = None if kind is None else Partition(N, kind)  # pyright: ignore[reportArgumentType]
    return InstDisc(
        SmallEncoder(),
        heads.mlp(6, 4),
        Bank(N, 4),
        temperature=0.2,
        negatives=negatives,
        partition=partition,
        **options,
    )


def step(method: InstDisc, batch: Images, *, lr: float = 0.1, moves: bool = True, seed: int = 7) -> Objective:
    """One step by plain gradient descent, its draws seeded."""
    seen: list[Objective] = []

    def update(objective: Objective) -> bool:
        seen.append(objective)
        method.zero_grad()
        objective.loss.backward()
        if moves:
            with torch.no_grad():
                for p in method.parameters():
                    if p.grad is not None:
                        p.sub_(lr * p.grad)
        return moves

    torch.manual_seed(seed)
    drive(method.step(batch, clock()), update)
    (objective,) = seen
    return objective


def embedded(method: InstDisc, batch: Images) -> torch.Tensor:
    return normalize(method.projector(method.encoder(batch.x)), dim=1).detach()


def drawn(b: int, m: int, seed: int = 7) -> torch.Tensor:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, (1,))))
    return torch.randint(N, (b, m), generator=generator)


@pytest.mark.parametrize("kind", ["estimated", "learnt", "fixed"])
def test_nce_of_the_bank_as_it_was(kind: str) -> None:
    method, batch = instdisc(kind), images(8, start=5)
    bank, f = method.bank.vectors.clone(), embedded(method, batch)
    scores = (bank[torch.cat([batch.index[:, None], drawn(8, 6)], dim=1)] @ f[:, :, None])[:, :, 0] / 0.2
    positive, negatives = scores[:, 0], scores[:, 1:]
    log_z = log_partition(positive, negatives, samples=N) if kind == "estimated" else math.log(N)
    objective = step(method, batch)
    torch.testing.assert_close(objective.loss, nce(positive, negatives, log_z=log_z, log_noise=-math.log(N)))
    moved = normalize(0.5 * bank[5:13] + 0.5 * f, dim=1)
    torch.testing.assert_close(method.bank.vectors[5:13], moved)
    assert torch.equal(method.bank.vectors[13:], bank[13:])
    assert (method.partition.log_z - math.log(N)).abs() > 1e-4 or kind == "fixed"


def test_the_constant_is_that_of_the_first_batch() -> None:
    """Sheet 17, check a: right after Z is set the loss is near that of a model that equals the noise."""
    method = instdisc(negatives=512)
    with torch.no_grad():
        method.bank.vectors.mul_(1e-3)  # all scores alike
    loss = step(method, images(8)).loss.item()
    assert loss == pytest.approx(math.log(513) + 512 * math.log(1 + 1 / 512), abs=0.02)
    constant = method.partition.log_z.clone()
    log = step(method, images(8, seed=3), seed=8).log
    assert torch.equal(method.partition.log_z, constant)
    assert torch.equal(log["log_z"], constant)


def test_without_negatives_it_is_the_softmax_over_the_bank() -> None:
    method, batch = instdisc(None, negatives=0), images(8, start=20)
    f = embedded(method, batch)
    expected = cross_entropy(f @ method.bank.vectors.T / 0.2, batch.index)
    torch.testing.assert_close(step(method, batch).loss, expected)


def test_a_sampled_softmax_leaves_out_what_is_the_image_itself() -> None:
    method, batch = instdisc(None, negatives=80), images(8)
    f, rows = embedded(method, batch), drawn(8, 80)
    own = rows == batch.index[:, None]
    assert own.any()
    scores = (method.bank.vectors[rows] @ f[:, :, None])[:, :, 0] / 0.2
    positive = (method.bank.vectors[batch.index] * f).sum(dim=1, keepdim=True) / 0.2
    logits = torch.cat([positive, scores.masked_fill(own, -torch.inf)], dim=1)
    expected = cross_entropy(logits, torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(step(method, batch).loss, expected)


def test_the_proximal_term_is_the_distance_to_the_row_before() -> None:
    batch = images(8)
    plain, near = step(instdisc(), batch, moves=False), instdisc(proximal=30.0)
    distance = (embedded(near, batch) - near.bank.vectors[:8]).square().sum(dim=1).mean()
    torch.testing.assert_close(step(near, batch, moves=False).loss, plain.loss + 30 * distance)


def test_without_a_move_embeddings_enter_all_the_same() -> None:
    method, batch = instdisc(), images(8)
    before, weight = method.bank.vectors.clone(), method.encoder.conv.weight.clone()
    step(method, batch, moves=False)
    assert torch.equal(method.encoder.conv.weight, weight)
    assert not torch.equal(method.bank.vectors[:8], before[:8])


def test_draws_follow_the_seed_and_cover_the_bank() -> None:
    method, index = instdisc(negatives=500), torch.arange(8)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(method.draw(index))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    counts = torch.bincount(draws[0].flatten(), minlength=N)
    assert counts.min() > 60  # 100 expected
    assert counts.max() < 150
    torch.manual_seed(1)
    one = torch.rand(3, generator=shared_generator(torch.device("cpu")))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, generator=shared_generator(torch.device("cpu"))), one)


def test_a_learnt_constant_goes_where_the_estimate_is() -> None:
    """The estimator's own way and the first batch's agree, once the constant has been learnt."""
    method = instdisc("learnt", negatives=512).double()
    method.encoder.requires_grad_(False)
    method.projector.requires_grad_(False)
    batch = images(32, dtype=torch.float64)
    with torch.no_grad():
        method.partition.log_z.add_(6.0)
    f, start = embedded(method, batch), method.bank.vectors.clone()
    exact = (f @ start.T / 0.2).logsumexp(dim=1).mean().item()
    for k in range(40):
        step(method, batch, lr=0.5, seed=k)
        method.bank.vectors.copy_(start)
    assert abs(method.partition.log_z.item() - exact) < 1.0
    assert abs(math.log(N) + 6.0 - exact) > 2.0


def test_it_hands_over_features_and_their_rows() -> None:
    method, batch = instdisc(), images(8)
    rows = method.bank.vectors[:8].clone()
    watch = step(method, batch).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (8, 6), "projection": (16, 4)}
    assert torch.equal(watch["projection"][8:], rows)
    assert not any(x.requires_grad for x in watch.values())


def test_noise_is_not_optional_for_nce() -> None:
    with pytest.raises(ValueError, match="0 negatives"):
        instdisc(negatives=0)


def together(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Three steps of one process's part, its own generator seeded by its rank as the engine's is."""
    method = set_scope_(instdisc().double(), "all")
    size = 16 // world
    for k in range(3):
        torch.manual_seed(100 * k + rank)
        batch = images(16, start=8 * k, seed=k, dtype=torch.float64)
        batch.index[3] = batch.index[12]  # a substitute, on another process than what it doubles
        mine = Images(*(x[rank * size : (rank + 1) * size] for x in batch))
        steps = method.step(mine, clock())
        loss = next(steps).loss
        parameters = [p for _, p in method.trainables()["main"]]
        grads = torch.autograd.grad(loss, parameters)
        for g in grads if dist.is_initialized() else ():
            dist.all_reduce(g)
            g.div_(world)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p.sub_(0.1 * g)
        with pytest.raises(StopIteration):
            steps.send(True)
    return method.state_dict()


@pytest.mark.slow
def test_two_processes_draw_and_remember_as_one_does(tmp_path: Path) -> None:
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
    alone = together(0, 1)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, x in alone.items():
            torch.testing.assert_close(state[name], x, rtol=1e-9, atol=1e-10, msg=f"{name} of rank {rank}")


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save(together(rank, 2), folder / f"{rank}.pt")
    dist.destroy_process_group()
