"""SwAV and DINO against values of their official training loops: assignments, queue, centre, frozen layers, teacher."""

import pytest
import torch
from recorded import Pooled, crops, descend, drawn, fill_, flat, recorded, same
from torch import nn

from selfsight.losses.clustering import sinkhorn
from selfsight.methods.dino import DINO
from selfsight.methods.swav import SwAV
from selfsight.parts import heads
from selfsight.parts.prototypes import DistillationHead, Prototypes
from selfsight.schedules import cosine

OFFICIAL = recorded("assigned")


def test_sinkhorn() -> None:
    same(sinkhorn(0.3 * drawn(1, 7, 5)), OFFICIAL["sinkhorn"]["assignments"])


def test_swav() -> None:
    """Three epochs of four steps: prototypes stand still in the first, a queue is filled in the second, then used."""
    case = OFFICIAL["swav"]
    method = SwAV(Pooled(), nn.Linear(5, 4), Prototypes(4, 5), queue=8, queue_epoch=1, frozen_epochs=1).double()
    fill_(method.parameters(), 1)
    same(descend(method, [crops(100 + 4 * k) for k in range(12)], 0.5, steps=12, epochs=3), case["losses"])
    same(flat(method), case["weights"])
    # the code shifts its queue and puts a batch in front; ours writes over the oldest of two batches, now the first
    assert [int(queue.pointer) for queue in method.queues] == [0, 0]
    same(torch.stack([torch.cat([queue.keys[4:], queue.keys[:4]]) for queue in method.queues]), case["queue"])


@pytest.mark.parametrize("name", ["dino", "dino_trained_gain"])
def test_dino(name: str) -> None:
    """Three epochs of three steps, the last layer frozen in the first; the code's temperature changes by the epoch."""
    case = OFFICIAL[name]
    trunk = heads.mlp(5, 7, 4, norm=False, activation=nn.GELU)
    head = DistillationHead(trunk, 4, 6, fixed_gain=name == "dino")
    method = DINO(
        Pooled(), head, teacher_temperature=lambda clock: case["temperatures"][clock.epoch], momentum=cosine(0.9, 1.0)
    ).double()
    gain, direction = method.student_head.last.parametrizations.weight.parameters()
    fill_([*method.student.parameters(), *method.student_head.trunk.parameters(), direction], 1)
    method.encoder.load_state_dict(method.student.state_dict())
    method.teacher_head.load_state_dict(method.student_head.state_dict())

    losses: list[float] = []
    for epoch in range(3):
        batches = [crops(100 + 4 * k) for k in range(3 * epoch, 3 * epoch + 3)]
        losses += descend(method, batches, 0.3, steps=9, epochs=3, start=3 * epoch)
        same(method.centre.value, case["centres"][epoch])
    same(losses, case["losses"])
    taught = method.teacher_head.last.parametrizations.weight.original1
    for networks, last, theirs in (
        ((method.student, method.student_head.trunk), direction, case["student"]),
        ((method.encoder, method.teacher_head.trunk), taught, case["teacher"]),
    ):
        same(torch.cat([flat(*networks), last.detach().flatten()]), theirs)
    same(gain.flatten(), case["gain"])
