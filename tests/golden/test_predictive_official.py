"""AMDIM against its official code, and CPC, which has none, against others': a step's terms and gradients."""

from typing import Any

import pytest
import torch
from recorded import Given, drawn, recorded, same
from stand_ins import clock
from torch import Tensor, nn

from selfsight.batches import PlacedViews
from selfsight.losses.predictive import future_nce
from selfsight.method import Objective, drive
from selfsight.methods.amdim import AMDIM

OFFICIAL = recorded("predictive")

Case = dict[str, Any]


class Scales(Given):
    """An encoder whose images are its features: one place, 5x5 and 7x7 of them, one after the other."""

    local_width = 3

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one, five, seven = x[..., 0].split([1, 25, 49], dim=2)
        return one[:, :, 0], five.unflatten(2, (5, 5)), seven.unflatten(2, (7, 7))


@pytest.mark.parametrize("case", OFFICIAL["amdim"]["cases"])
def test_amdim(case: Case) -> None:
    """With and without scores that are far beyond the clip; the drawn places of the 5x5 are given to both."""
    clip, scale, places = (case["with"][key] for key in ("clip", "scale", "places"))
    maps = [[scale * drawn(3 * v + s, 4, 3, k, k).flatten(2) for s, k in enumerate((1, 5, 7))] for v in range(2)]
    x1, x2 = (torch.cat(view, dim=2)[..., None].requires_grad_() for view in maps)
    place = ((torch.tensor(places) + 0.5) / 25).T.double()
    method = AMDIM(Scales(3), nn.Identity(), nn.Identity(), clip=clip, penalty=0.05)
    seen: list[Objective] = []

    def look(objective: Objective) -> bool:
        seen.append(objective)
        return False

    drive(method.step(PlacedViews(x1, x2, place, torch.arange(4)), clock()), look)
    (objective,) = seen
    for name in ("loss_1to5", "loss_1to7", "loss_5to5", "penalty"):
        same(objective.log[name], case[name])
    same(objective.loss, sum(case[name] for name in ("loss_1to5", "loss_1to7", "loss_5to5", "penalty")))
    parts = [x.split([1, 25, 49], dim=2) for x in torch.autograd.grad(objective.loss, (x1, x2))]
    same(torch.stack([ones[:, :, 0, 0] for ones, _, _ in parts]), case["gradient"])
    norms = [part[k].norm() for k in (1, 2) for part in parts]
    same(torch.stack(norms), case["gradient_norms"])


@pytest.mark.parametrize("case", OFFICIAL["cpc_v2"]["cases"])
def test_a_step_of_cpc_as_a_library_has_it(case: Case) -> None:
    """lightning-bolts' candidates are all patches of the batch, the positive among them, as here."""
    k, scale = case["with"]["ahead"], case["with"]["scale"]
    predicted, targets = (drawn(seed, 3, 5, 4, 3).requires_grad_() for seed in range(2))
    rows = [x.permute(0, 2, 3, 1) for x in (predicted, targets)]
    loss = future_nce(scale * rows[0][:, :-k], rows[1], ahead=k)
    same(loss, case["loss"])
    gradients = torch.autograd.grad(loss, (predicted, targets))
    same(torch.stack([g[0].flatten(1) for g in gradients]), case["gradient"])


@pytest.mark.parametrize("case", OFFICIAL["greedy"]["cases"])
def test_cpc_with_candidates_of_the_predicted_rows_alone(case: Case) -> None:
    """Greedy InfoMax's, whose map W is on the patch's side and whose draws were every other candidate once.

    Its logarithm is of a probability and 1e-11, which the worst anchors feel in the sixth digit.
    """
    z, context = (drawn(seed, 2, 3, 5, 2).requires_grad_() for seed in range(2))
    losses: list[Tensor] = []
    for step, k in enumerate(case["with"]["ahead"], 1):
        mapped = torch.einsum("bdhw,ed->bhwe", z[:, :, k:], drawn(10 + step, 3, 3, 1, 1).flatten(1))
        losses.append(future_nce(context[:, :, :-k].permute(0, 2, 3, 1), mapped, ahead=0))
    same(torch.stack(losses), case["loss"], 1e-6)
    gradients = torch.autograd.grad(torch.stack(losses).sum(), (z, context))
    same(torch.stack([g.flatten(2) for g in gradients]), case["gradient"], 1e-5)
