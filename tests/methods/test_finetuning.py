"""Fine-tuning: whose labels it reads, where its gradients go, and how it starts."""

import math

import torch
from stand_ins import SmallEncoder, clock
from torch import nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Images
from selfsight.method import Objective, drive
from selfsight.methods.finetuning import FineTuning
from selfsight.parts import heads
from selfsight.parts.head_layers import first_layers

LABELS = torch.tensor([2, 0, 1, 1, 2, 0, 0, 1])


def tuned(layers: int = 1) -> FineTuning:
    torch.manual_seed(0)
    kept = first_layers(heads.mlp(6, 8, 8, 4, bias=False, out_bias=False, out_norm="scale"), layers)
    return FineTuning(SmallEncoder(), kept, width=8 if layers else 6, classes=3, labels=LABELS)


def batch() -> Images:
    generator = torch.Generator().manual_seed(1)
    return Images(torch.randn(4, 3, 6, 6, generator=generator), torch.tensor([5, 0, 3, 6]))


def objective(method: FineTuning) -> Objective:
    seen: list[Objective] = []

    def update(found: Objective) -> bool:
        seen.append(found)
        method.zero_grad()
        found.loss.backward()
        return True

    drive(method.step(batch(), clock()), update)
    return seen[0]


def test_a_classifier_from_zero_knows_nothing() -> None:
    assert objective(tuned()).loss.item() == torch.tensor(3.0).log().item()


def test_the_labels_are_those_of_the_batchs_images() -> None:
    method = tuned()
    nn.init.normal_(method.classifier.weight)
    found = objective(method)
    logits = method(batch().x)
    torch.testing.assert_close(found.loss, cross_entropy(logits, LABELS[[5, 0, 3, 6]]))
    right = (logits.argmax(1) == LABELS[[5, 0, 3, 6]]).float().mean()
    assert found.log["accuracy"] == right


def test_gradients_reach_all_that_it_has() -> None:
    method = tuned()
    nn.init.normal_(method.classifier.weight)
    objective(method)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in method.parameters())


def test_labels_are_no_part_of_the_state() -> None:
    state = tuned().state_dict()
    assert "labels" not in state
    opened = FineTuning(SmallEncoder(), first_layers(heads.mlp(6, 8, 4), 0), width=6, classes=3)
    opened.load_state_dict(tuned(0).state_dict())
    assert opened(torch.zeros(2, 3, 6, 6)).shape == (2, 3)


def test_it_learns_its_labels() -> None:
    method, losses = tuned(), []
    optimiser = torch.optim.SGD(method.parameters(), lr=0.5)

    def update(found: Objective) -> bool:
        losses.append(found.loss.item())
        optimiser.zero_grad()
        found.loss.backward()
        optimiser.step()
        return True

    for _ in range(20):
        drive(method.step(batch(), clock()), update)
    assert losses[0] > math.log(3) - 1e-6
    assert losses[-1] < 0.3
