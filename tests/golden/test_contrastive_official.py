"""SimCLR, MoCo and MoCo v3 against values of their official code: losses, queue and weights over several steps."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from recorded import Pooled, descend, drawn, fill_, flat, recorded, same, two_views
from torch.nn.functional import normalize

from selfsight.losses.contrastive import nt_xent
from selfsight.method import Clock
from selfsight.methods.moco import MoCo
from selfsight.methods.moco_v3 import MoCoV3
from selfsight.parts import heads
from selfsight.parts.momentum import ema_
from selfsight.parts.positions import sincos_2d
from selfsight.schedules import constant, cosine, warmup_cosine

OFFICIAL = recorded("contrastive")


def test_the_inputs_are_those_the_values_were_recorded_with() -> None:
    same(drawn(1, 3), [0.345584183931351, 0.821618139743805, 0.330437064170837], rtol=1e-7)


def test_simclr_returns_half_of_its_code() -> None:
    """The code adds the mean losses of the two views' anchors, ours is the mean over all anchors."""
    case = OFFICIAL["simclr"]
    loss = nt_xent(drawn(1, 8, 5), drawn(2, 8, 5), temperature=case["temperature"])
    same(2 * loss, case["loss"])


def moco(version: str) -> MoCo:
    v2 = version == "moco_v2"
    projector = heads.mlp(5, 5, 4, norm=False) if v2 else heads.mlp(5, 4)
    tau = 0.2 if v2 else 0.07
    method = MoCo(Pooled(), projector, width=4, size=24, temperature=tau, momentum=constant(0.9)).double()
    start_(method, [method.encoder, method.projector])
    with torch.no_grad():
        method.queues[0].keys.copy_(normalize(drawn(2, 24, 4), dim=1))
    return method


def start_(method: MoCo | MoCoV3, online: list[Any]) -> None:
    """Fills the networks in the order of their parameters and copies the momentum branch."""
    fill_([p for module in online for p in module.parameters()], 1)
    ema_(method.key_encoder, method.encoder, 0.0)
    ema_(method.key_projector, method.projector, 0.0)


@pytest.mark.parametrize("version", ["moco_v1", "moco_v2"])
def test_moco(version: str) -> None:
    case, method = OFFICIAL[version], moco(version)
    batches = [two_views(100 + 2 * k) for k in range(4)]
    with torch.no_grad():
        q, k = normalize(method.projector(method.encoder(batches[0].x1)), dim=1)[0], method.keys(batches[0].x2)[0]
    same(torch.cat([k[None], method.queues[0].keys]) @ q / method.temperature, case["first_logits"])

    first = descend(method, batches[:3], 0.1, steps=4, epochs=1)
    # the code moves its key encoder when the next step begins, ours has moved it by then
    same(flat(method.key_encoder, method.key_projector), case["key"])
    same(first + descend(method, batches[3:], 0.1, steps=4, epochs=1, start=3), case["losses"])
    same(flat(method.encoder, method.projector), case["query"])
    same(method.queues[0].keys, case["queue"])
    assert int(method.queues[0].pointer) == case["pointer"] == 8  # 4 x 8 keys in 24 slots


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_moco_v3(kind: str) -> None:
    """With its schedules of learning rate and momentum, five steps and one more."""
    case, vit = OFFICIAL[f"moco_v3_{kind}"], kind == "vit"
    head = partial(heads.mlp, bias=False, out_bias=False)
    projector = head(5, *[7] * (2 if vit else 1), 4, out_norm="plain")
    predictor = head(4, 7, 4, out_norm="plain" if vit else "none")

    def momentum(clock: Clock) -> float:
        return cosine(0.9, 1.0)(replace(clock, step=clock.step + 1))  # the code reads it one update later

    method = MoCoV3(Pooled(), projector, predictor, temperature=0.2, momentum=momentum).double()
    start_(method, [method.encoder, method.projector, method.predictor])
    rate = warmup_cosine(0.5, warmup_epochs=1, parts=4)
    same([rate(Clock(step=k, steps=12, epoch=k // 3, epochs=4)) for k in range(6)], case["rates"])
    batches = [two_views(100 + 2 * k) for k in range(6)]
    first = descend(method, batches[:5], rate, steps=12, epochs=4)
    same(flat(method.key_encoder, method.key_projector), case["key"])
    same(first + descend(method, batches[5:], rate, steps=12, epochs=4, start=5), case["losses"])
    same(flat(method.encoder, method.projector, method.predictor), case["query"])


def test_positions_of_moco_v3_have_row_and_column_exchanged() -> None:
    theirs = torch.tensor(OFFICIAL["moco_v3_positions"]["table"])
    assert torch.equal(theirs[0], torch.zeros(8))  # the class token's
    ours = sincos_2d(8, 3, 3)
    torch.testing.assert_close(torch.cat([ours[:, 4:], ours[:, :4]], dim=1), theirs[1:], rtol=1e-6, atol=1e-6)
