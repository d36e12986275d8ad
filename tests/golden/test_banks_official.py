"""Methods with a memory against official code: several steps, what is learnt in each and what is remembered after."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import Given, drawn, flat, recorded, same
from stand_ins import clock, take_step
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import SGD

from selfsight.batches import MultiCrop, TwoViews
from selfsight.data.order import SlidingWindow
from selfsight.keyed import permutation
from selfsight.losses.nce import log_partition, nce, sampled_softmax
from selfsight.method import Objective, drive
from selfsight.methods.adco import AdCo
from selfsight.methods.instdisc import InstDisc
from selfsight.methods.nnclr import NNCLR
from selfsight.methods.pic import PIC
from selfsight.parts import heads
from selfsight.parts.memory import Bank
from selfsight.parts.partition import Kind, Partition
from selfsight.parts.rows import Rows
from selfsight.schedules import constant

OFFICIAL = recorded("banks")
ROWS, WIDTH, BATCH, DRAWN = 20, 4, 5, 6
INDEX = torch.tensor([3, 11, 0, 19, 7])

Case = dict[str, Any]


class Weighty(Given):
    """One that has a parameter, as encoders do."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.unused = nn.Parameter(torch.zeros(1))


def images(x: Tensor) -> Tensor:
    """Rows of features as images of one pixel."""
    return x[:, :, None, None]


def unit(seed: int, rows: int) -> Tensor:
    return normalize(drawn(seed, rows, WIDTH), dim=1)


def instdisc(kind: Kind | None, *, negatives: int = DRAWN) -> InstDisc:
    partition = None if kind is None else Partition(ROWS, kind)
    bank = Bank(ROWS, WIDTH)
    method = InstDisc(
        Given(WIDTH), nn.Identity(), bank, temperature=0.125, negatives=negatives, partition=partition
    ).double()
    bank.vectors.copy_(unit(0, ROWS))
    return method


def objectives(method: PIC | AdCo, batch: MultiCrop, update: Callable[[Objective], object]) -> list[Objective]:
    """One step, whose objectives ``update`` gets in their order; it returns whether it moved the network."""
    seen: list[Objective] = []

    def look(objective: Objective) -> bool:
        seen.append(objective)
        return bool(update(objective))

    drive(method.step(batch, clock()), look)
    return seen


def gradient(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.stack(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("case", OFFICIAL["nce"]["cases"])
def test_nce_in_a_bank(case: Case) -> None:
    """Two steps: the first sets Z and moves the bank. The code's 1e-7 beside m / n is within a millionth here."""
    rtol = 1e-9 if case["with"]["eps"] == 0 else 1e-6
    method = instdisc("estimated")
    for step, rows in enumerate(case["drawn"]):
        x = drawn(step + 1, BATCH, WIDTH).requires_grad_()
        f = normalize(x, dim=1)
        loss = method.loss(f, INDEX, torch.tensor(rows))
        same(loss, case["loss"][step], rtol)
        same(gradient(loss, x)[0], case["gradient"][step], rtol)
        assert method.partition is not None
        same(method.partition.log_z.exp(), case["z"][step])
        method.bank.update_(INDEX, f.detach(), momentum=method.momentum)
        same(method.bank.vectors[INDEX], case["moved"][step])


@pytest.mark.parametrize("case", OFFICIAL["whole_bank"]["cases"])
def test_softmax_over_the_whole_bank(case: Case) -> None:
    method = instdisc(None, negatives=0)
    x = drawn(1, BATCH, WIDTH).requires_grad_()
    f = normalize(x, dim=1)
    loss = method.loss(f, INDEX, None)
    same(loss, case["loss"])
    same(gradient(loss, x)[0], case["gradient"])
    method.bank.update_(INDEX, f.detach(), momentum=0.5)
    same(method.bank.vectors[INDEX], case["moved"])


@pytest.mark.parametrize("case", OFFICIAL["bank_softmax"]["cases"])
def test_softmax_over_drawn_rows(case: Case) -> None:
    """CMC keeps drawn rows that are the image's own, which the method leaves out."""
    method, rows = instdisc(None), torch.tensor(case["drawn"])
    x = drawn(1, BATCH, WIDTH).requires_grad_()
    f = normalize(x, dim=1)
    scores = method.bank.scores(f / method.temperature, torch.cat([INDEX[:, None], rows], dim=1))
    loss = sampled_softmax(scores[:, 0], scores[:, 1:])
    same(loss, case["loss"])
    same(gradient(loss, x)[0], case["gradient"])
    ours = method.loss(f, INDEX, rows)
    assert (ours < loss - 1e-3) if (rows == INDEX[:, None]).any() else torch.equal(ours, loss)


@pytest.mark.parametrize("case", OFFICIAL["cmc"]["cases"])
def test_each_view_against_the_other_ones_bank(case: Case) -> None:
    """CMC's two terms: each has a constant of its own, from the same scores as the loss."""
    banks = [unit(3, ROWS), unit(0, ROWS)]  # the other view's
    for side, vectors in enumerate(banks):
        x, bank = drawn(side + 1, BATCH, WIDTH).requires_grad_(), Bank(ROWS, WIDTH).double()
        bank.vectors.copy_(vectors)
        rows = torch.cat([INDEX[:, None], torch.tensor(case["drawn"])], dim=1)
        scores = bank.scores(normalize(x, dim=1) / 0.125, rows)
        positive, negatives = scores[:, 0], scores[:, 1:]
        log_z = log_partition(positive, negatives, samples=ROWS)
        loss = nce(positive, negatives, log_z=log_z, log_noise=-torch.tensor(ROWS).double().log().item())
        same(log_z.exp(), case["z"][side])
        same(loss, case["loss"][side])
        same(gradient(loss, x)[0], case["gradient"][side])


@pytest.mark.parametrize("case", OFFICIAL["pic"]["cases"])
def test_pic(case: Case) -> None:
    """The code's softmax runs over all classes: ``recent`` is all of them."""
    large, small = case["with"]["large"], case["with"]["small"]
    method = PIC(Given(WIDTH), nn.Identity(), Rows(ROWS, WIDTH), temperature=0.2, recent=ROWS).double()
    with torch.no_grad():
        method.classes.weight.copy_(0.1 * drawn(0, ROWS, WIDTH))
    x, x_small = (drawn(seed + 1, BATCH, n, WIDTH).requires_grad_() for seed, n in enumerate((large, small)))
    crops = [tuple(images(part[:, i]) for i in range(part.shape[1])) for part in (x, x_small)]
    (objective,) = objectives(method, MultiCrop(crops[0], crops[1], INDEX), lambda o: o.loss.backward())
    same(objective.loss, case["loss"])
    assert method.classes.weight.grad is not None
    same(method.classes.weight.grad, case["classes"])
    for part, theirs in zip((x, x_small), case["gradient"], strict=True):
        if theirs:
            assert part.grad is not None
            same(part.grad, theirs)


@pytest.mark.parametrize("case", OFFICIAL["window_of_all_data"]["cases"])
def test_the_window_slides_as_the_codes_would_over_all_data(case: Case) -> None:
    n, size, stride = (case["with"][key] for key in ("images", "size", "stride"))
    order, rounds = SlidingWindow(size, stride), -(-n // stride)
    for r, places in enumerate(case["places"]):
        array = permutation(n, seed=5, epoch=r // rounds, stream="lap")
        assert sorted(order(n, seed=5, round=r)) == sorted(array[places])


@pytest.mark.parametrize("case", OFFICIAL["window"]["cases"])
def test_the_codes_own_window_stays_in_its_place(case: Case) -> None:
    """Its places are taken modulo the window's length; ours comes by all images."""
    n, size, stride = (case["with"][key] for key in ("images", "size", "stride"))
    assert {p for places in case["places"] for p in places} == set(range(size))
    order = SlidingWindow(size, stride)
    assert {int(p) for r in range(len(case["places"])) for p in order(n, seed=5, round=r)} == set(range(n))


@pytest.mark.parametrize("case", OFFICIAL["adco"]["cases"])
def test_adco(case: Case) -> None:
    """Three steps of both players; the adversaries' momentum, decay and rate are an SGD's, as in the engine.

    Where the positive's share is below 2e-9, torch's softplus is linear: hence one digit less for the adversaries.
    """
    kind = case["with"]["kind"]
    method = AdCo(
        Given(WIDTH),
        nn.Identity(),
        width=WIDTH,
        size=7,
        temperature=case["with"]["temperature"],
        adversary_temperature=case["with"]["adversary_temperature"],
        momentum=constant(0.9),
        symmetric=kind == "sym",
        fill=False,
    ).double()
    with torch.no_grad():
        method.adversaries.copy_(1.5 * drawn(0, 7, WIDTH))
    sgd = SGD([method.adversaries], lr=0.5, momentum=0.9, weight_decay=1e-2)

    def update(objective: Objective) -> None:
        sgd.zero_grad()
        objective.loss.backward()
        if objective.by == ("adversary",):
            sgd.step()

    for step in range(3):
        x = [drawn(10 * step + v + 1, BATCH, WIDTH).requires_grad_() for v in range(4 if kind == "multi" else 2)]
        # in the code's multi-crop the first view is the key's, else the second
        query, key, *small = [images(part) for part in ([x[1], x[0], *x[2:]] if kind == "multi" else x)]

        network, adversary = objectives(method, MultiCrop((query, key), tuple(small), torch.arange(BATCH)), update)
        same(network.loss, case["loss"][step])
        same(torch.stack([part.grad for part in x if part.grad is not None]), case["gradient"][step])
        same(method.adversaries, case["adversaries"][step], 1e-8)
        if kind != "sym":  # there the code logs the mean of both directions, here it is the first's
            same(adversary.log["key_share"], case["key_share"][step])


@pytest.mark.parametrize("case", OFFICIAL["adco_training"]["cases"])
def test_adco_from_the_start(case: Case) -> None:
    """Batches that fill the bank and batches after them, the network at a rate of 0.1."""
    size, filling = case["with"]["size"], case["with"]["filling"]
    projector = heads.mlp(WIDTH, WIDTH, WIDTH, norm=False)
    method = AdCo(
        Weighty(WIDTH),
        projector,
        width=WIDTH,
        size=size,
        temperature=0.2,
        adversary_temperature=0.05,
        momentum=constant(0.9),
    ).double()
    with torch.no_grad():
        method.adversaries.copy_(1.5 * drawn(0, size, WIDTH))
        for i, (q, k) in enumerate(zip(projector.parameters(), method.key_projector.parameters(), strict=True)):
            q.copy_(drawn(50 + i, *q.shape))
            k.copy_(q)
    sgd = SGD([method.adversaries], lr=0.5, momentum=0.9, weight_decay=1e-2)
    descent = SGD(projector.parameters(), lr=0.1)

    def update(objective: Objective) -> bool:
        optimiser = sgd if objective.by == ("adversary",) else descent
        optimiser.zero_grad()
        objective.loss.backward()
        optimiser.step()
        return True

    for step, loss in enumerate(case["loss"]):
        if step == filling:
            same(method.adversaries, case["filled"])
        if step == len(case["loss"]) - 1:  # the code moves its key encoder when the next step begins
            same(flat(method.key_projector), case["key"])
        crops = tuple(images(drawn(2 * step + v + 1, BATCH, WIDTH)) for v in range(2))
        same(objectives(method, MultiCrop(crops, (), torch.arange(BATCH)), update)[0].loss, loss)
    same(method.adversaries, case["adversaries"], 1e-8)
    same(flat(projector), case["query"])


@pytest.mark.parametrize("case", OFFICIAL["nnclr"]["cases"])
def test_nnclr_as_a_library_has_it(case: Case) -> None:
    """There is no official code; solo-learn's steps in one process: neighbours, loss and queue."""
    predictor = nn.Linear(WIDTH, WIDTH, bias=False)
    size = case["with"]["size"]
    method = NNCLR(
        Given(WIDTH), nn.Identity(), predictor, width=WIDTH, size=size, temperature=case["with"]["temperature"]
    ).double()
    with torch.no_grad():
        method.queue.keys.copy_(unit(0, size))
        predictor.weight.copy_(drawn(100, WIDTH, WIDTH))
    for step, loss in enumerate(case["loss"]):
        x1 = drawn(2 * step + 1, BATCH, WIDTH)
        x2 = x1 + 0.5 * drawn(2 * step + 2, BATCH, WIDTH)
        queue = method.queue.keys.clone()
        objective = take_step(method, TwoViews(images(x1), images(x2), torch.arange(BATCH)), moves=False)
        same(objective.loss, loss)
        assert predictor.weight.grad is not None
        same(predictor.weight.grad, case["gradient"][step])
        near = queue[torch.tensor(case["neighbours"][step]).flatten()]
        own = normalize(torch.cat([x1, x2]), dim=1)
        torch.testing.assert_close(objective.log["neighbour"], (near * own).sum(dim=1).mean())
    same(method.queue.keys, case["queue"])
