"""NNCLR: neighbours, the queue's order, where no gradient goes, and what is left without neighbours."""

import pytest
import torch
from stand_ins import SmallEncoder, take_step, two_views
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from selfsight.losses.cross_view import cross_view_info_nce
from selfsight.methods.nnclr import NNCLR
from selfsight.parts import heads


def nnclr(size: int = 24) -> NNCLR:
    torch.manual_seed(0)
    projector = heads.mlp(6, 8, 4, bias=False, out_bias=False, out_norm="affine")
    predictor = heads.mlp(4, 8, 4, bias=False)
    return NNCLR(SmallEncoder(), projector, predictor, width=4, size=size, temperature=0.2).double()


def views(method: NNCLR, batch: object) -> list[Tensor]:
    return [method.projector(method.encoder(x)) for x in (batch.x1, batch.x2)]


def test_loss_and_gradient_equal_the_papers_pseudo_code() -> None:
    method, batch = nnclr(), two_views(8, dtype=torch.float64)
    queue = method.queue.keys.clone()
    objective = take_step(method, batch, moves=False)
    parameters = [p for _, p in method.trainables()["main"]]
    grads = [p.grad.clone() for p in parameters]
    z1, z2 = views(method, batch)
    loss, similarity = torch.zeros(()), []
    for z, p in ((z1, method.predictor(z2)), (z2, method.predictor(z1))):
        near = []
        for row in normalize(z, dim=1).detach():
            distances = [(row - key).norm() for key in queue]
            near.append(queue[distances.index(min(distances))])
            similarity.append((row * near[-1]).sum())
        logits = normalize(torch.stack(near), dim=1) @ normalize(p, dim=1).T / 0.2
        loss = loss + cross_entropy(logits, torch.arange(8)) / 2
    torch.testing.assert_close(objective.loss, loss)
    for mine, theirs in zip(grads, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(objective.log["neighbour"], torch.stack(similarity).mean())


def test_a_queue_of_the_embeddings_themselves_leaves_simclrs_way_with_a_predictor() -> None:
    method, batch = nnclr(16), two_views(8, dtype=torch.float64)
    z1, z2 = views(method, batch)
    with torch.no_grad():
        method.queue.keys.copy_(normalize(torch.cat([z1, z2]), dim=1)[torch.randperm(16)])
    p1, p2 = method.predictor(z1), method.predictor(z2)
    objective = take_step(method, batch, moves=False)
    expected = [cross_view_info_nce(z, p, temperature=0.2) for z, p in ((z1, p2), (z2, p1))]
    torch.testing.assert_close(objective.loss, sum(expected) / 2)
    assert objective.log["neighbour"].item() == pytest.approx(1)


def test_the_first_views_enter_after_the_step_in_their_order() -> None:
    method = nnclr()
    start = method.queue.keys.clone()
    for step in range(4):  # the fourth overwrites the first
        batch = two_views(8, seed=step, dtype=torch.float64)
        z1 = normalize(views(method, batch)[0], dim=1).detach()
        take_step(method, batch)
        slot = 8 * (step % 3)
        torch.testing.assert_close(method.queue.keys[slot : slot + 8], z1)
        if step == 0:
            assert torch.equal(method.queue.keys[8:], start[8:])
    assert int(method.queue.pointer) == 8


def test_embeddings_enter_whether_or_not_an_optimiser_moved() -> None:
    method = nnclr()
    take_step(method, two_views(8, dtype=torch.float64), moves=False)
    assert int(method.queue.pointer) == 8


def test_no_gradient_passes_the_neighbour() -> None:
    """With a prediction that does not depend on the view, only the neighbour's side could have one."""
    method = nnclr()
    nn.init.zeros_(method.predictor[-1].weight)
    take_step(method, two_views(8, dtype=torch.float64), moves=False)
    behind = [*method.encoder.parameters(), *method.projector.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in behind)
    assert not method.queue.keys.requires_grad


def test_the_queue_is_in_the_checkpoint() -> None:
    method, other = nnclr(), nnclr()
    take_step(method, two_views(8, dtype=torch.float64))
    other.load_state_dict(method.state_dict())
    batch = two_views(8, seed=1, dtype=torch.float64)
    assert torch.equal(take_step(other, batch).loss, take_step(method, batch).loss)
    assert torch.equal(other.queue.keys, method.queue.keys)
    assert int(other.queue.pointer) == 16


def test_what_it_hands_over() -> None:
    watch = take_step(nnclr(), two_views(8, dtype=torch.float64), moves=False).watch
    assert {name: x.shape for name, x in watch.items()} == {"feature": (16, 6), "projection": (16, 4)}
    torch.testing.assert_close(watch["projection"].norm(dim=1), torch.ones(16, dtype=torch.float64))
