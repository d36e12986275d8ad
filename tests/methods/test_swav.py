"""SwAV's order of events: one forward a resolution, assignments, frozen prototypes, queues."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from selfsight.batches import MultiCrop
from selfsight.losses.clustering import sinkhorn
from selfsight.method import Clock, Objective, drive
from selfsight.methods.swav import SwAV
from selfsight.parts.prototypes import Prototypes


class Grey(nn.Module):
    """An encoder of four numbers an image, at any size."""

    width, stride = 4, 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return self.dense(x).mean(dim=(2, 3))

    def dense(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()


def clock(step: int, steps: int = 100, epochs: int = 10) -> Clock:
    return Clock(step=step, steps=steps, epoch=step * epochs // steps, epochs=epochs)


def crops(b: int = 4, small: int = 2, seed: int = 0) -> MultiCrop:
    generator = torch.Generator().manual_seed(seed)
    large = tuple(torch.randn(b, 3, 8, 8, generator=generator) for _ in range(2))
    little = tuple(torch.randn(b, 3, 5, 5, generator=generator) for _ in range(small))
    return MultiCrop(large, little, torch.arange(b))


def swav(**options: float) -> SwAV:
    torch.manual_seed(0)
    return SwAV(Grey(), nn.Linear(4, 6), Prototypes(6, 5), **options)  # type: ignore[arg-type]


def run(method: SwAV, batch: MultiCrop, at: Clock, lr: float = 0.1) -> Objective:
    seen: list[Objective] = []

    def update(objective: Objective) -> bool:
        method.zero_grad()
        objective.loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                if not any(p is held for held in objective.hold):
                    p.sub_(lr * p.grad)
        seen.append(objective)
        return True

    drive(method.step(batch, at), update)
    (objective,) = seen
    return objective


def test_the_loss_is_the_papers_pseudo_code() -> None:
    """Naive: every crop by itself, every pair of an assigned and another crop."""
    method, batch = swav(epsilon=0.1, temperature=0.2), crops()
    with torch.no_grad():
        unit = normalize(method.prototypes.weight, dim=1)
        everything = (*batch.large, *batch.small)
        scores = [normalize(method.projector(method.encoder(x)), dim=1) @ unit.T for x in everything]
        expected = 0.0
        for s in (0, 1):
            q = sinkhorn(scores[s], epsilon=0.1)
            for v in (0, 1, 2, 3):
                if v != s:
                    expected -= float((q * (scores[v] / 0.2).log_softmax(dim=1)).sum(dim=1).mean()) / (2 * 3)
    method.encoder.seen.clear()
    objective = run(method, batch, clock(50))
    assert float(objective.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert method.encoder.seen == [(8, 3, 8, 8), (8, 3, 5, 5)]  # one forward for each resolution


def test_hard_assignments_are_the_likeliest_prototypes() -> None:
    soft, hard = swav(epsilon=0.1), swav(epsilon=0.1, hard=True)
    generator = torch.Generator().manual_seed(0)
    scores, z = torch.randn(2, 4, 5, generator=generator), torch.randn(2, 4, 6, generator=generator)
    q = hard.assign(z, scores)
    assert torch.equal(q.argmax(dim=2), soft.assign(z, scores).argmax(dim=2))
    assert torch.equal(q.max(dim=2).values, torch.ones(2, 4))
    assert torch.equal(q.sum(dim=2), torch.ones(2, 4))
    used = run(hard, crops(), clock(50)).watch["assignment"]
    assert set(used.unique().tolist()) == {0.0, 1.0}


def test_prototypes_stand_still_in_the_first_epoch_and_lie_on_the_sphere() -> None:
    method = swav(frozen_epochs=1)
    run(method, crops(), clock(0))
    start = method.prototypes.weight.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(5))
    assert run(method, crops(seed=1), clock(9)).hold == (method.prototypes.weight,)
    torch.testing.assert_close(method.prototypes.weight.detach(), start)
    assert run(method, crops(seed=2), clock(10)).hold == ()
    assert (method.prototypes.weight.detach() - start).abs().max() > 1e-4
    run(method, crops(seed=3), clock(11), lr=0.0)
    torch.testing.assert_close(method.prototypes.weight.detach().norm(dim=1), torch.ones(5))


def test_a_queue_is_filled_from_its_epoch_and_used_once_full() -> None:
    method = swav(queue=8, queue_epoch=3)
    z, own = normalize(torch.randn(2, 4, 6), dim=2), torch.rand(2, 4, 5)
    alone = torch.stack([sinkhorn(s) for s in own])
    run(method, crops(), clock(29))
    assert int(method.pushed) == 0
    run(method, crops(seed=1), clock(30))
    assert int(method.pushed) == 4
    torch.testing.assert_close(method.assign(z, own), alone)
    run(method, crops(seed=2), clock(31))
    method.prototypes.renormalise_()
    for crop, queue in enumerate(method.queues):
        joined = torch.cat([queue.keys @ method.prototypes.weight.T, own[crop]])
        torch.testing.assert_close(method.assign(z, own)[crop], sinkhorn(joined)[-4:])
    assert (method.assign(z, own) - alone).abs().max() > 1e-3


def test_the_queue_holds_features_of_before_the_update() -> None:
    method, batch = swav(queue=4, queue_epoch=0), crops(small=0)
    with torch.no_grad():
        expected = [normalize(method.projector(method.encoder(x)), dim=1) for x in batch.large]
    run(method, batch, clock(0))
    for queue, z in zip(method.queues, expected, strict=True):
        torch.testing.assert_close(queue.keys, z)


def test_what_the_monitors_see() -> None:
    watch = run(swav(), crops(), clock(0)).watch
    assert {name: tuple(x.shape) for name, x in watch.items()} == {
        "feature": (4, 4),
        "projection": (8, 6),
        "assignment": (8, 5),
    }
    assert not any(x.requires_grad for x in watch.values())


def test_a_batch_of_another_number_of_large_crops_is_refused() -> None:
    batch = crops()
    three = MultiCrop((*batch.large, batch.large[0]), (), batch.index)
    with pytest.raises(ValueError, match="queues for 2 large crops but the batch has 3"):
        run(swav(queue=8, queue_epoch=0), three, clock(0))
