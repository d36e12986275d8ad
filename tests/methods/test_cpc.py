"""CPC: what reaches the loss, what does not see what, and how v1 and v2 add up."""

import math

import pytest
import rig
import torch
from stand_ins import clock
from torch import Tensor, nn

from selfsight.batches import Patches
from selfsight.losses.predictive import future_nce
from selfsight.method import Objective, drive
from selfsight.methods.cpc import CPC
from selfsight.parts.forecast import DIRECTIONS, Forecast, MaskedConvolutions, turned


class Mean(nn.Module):
    """Encodes a patch as its channels' means, by a linear map."""

    width, stride = 6, 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def dense(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, 3)).movedim(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=(2, 3)))


def made(*, ways: tuple[str, ...] = ("down",), ahead: tuple[int, ...] = (1, 3), **options: object) -> CPC:
    torch.manual_seed(0)
    forecasts = {
        way: Forecast(
            MaskedConvolutions(6, hidden=5, blocks=2), [nn.Linear(6, 4) for _ in ahead], nn.Linear(6, 4, bias=False)
        )
        for way in ways
    }
    return CPC(Mean(), forecasts, ahead=ahead, **options)


def patches(b: int = 4, side: int = 5, seed: int = 0) -> Patches:
    generator = torch.Generator().manual_seed(seed)
    return Patches(torch.randn(b, side, side, 3, 8, 8, generator=generator), torch.arange(b))


def objective(method: CPC, batch: Patches) -> Objective:
    seen: list[Objective] = []
    drive(method.step(batch, clock()), lambda made: not seen.append(made))
    return seen[0]


@pytest.mark.parametrize(("average", "scale"), [(True, 1.0), (False, 0.1)])
def test_steps_and_directions_add_up(average: bool, scale: float) -> None:
    method, batch = made(ways=DIRECTIONS, average=average, scale=scale), patches()
    z = method.encode(batch.x)
    terms = []
    for way in DIRECTIONS:
        forecast, grid = method.forecasts[way], turned(z, way)
        c, y = forecast.context(grid), forecast.target(grid)
        for k, predictor in zip((1, 3), forecast.predictors, strict=True):
            terms.append(future_nce(scale * predictor(c[:, : 5 - k]), y, ahead=k))
    assert len(terms) == 8
    expected = sum(terms) / (8 if average else 1)
    torch.testing.assert_close(objective(method, batch).loss, expected)


def test_zero_predictors_cost_the_log_of_the_batchs_patches() -> None:
    """Sheet 2, check 1; sheet 3, check 1."""
    method, batch = made(ways=DIRECTIONS), patches()
    for forecast in method.forecasts.values():
        for predictor in forecast.predictors:
            nn.init.zeros_(predictor.weight)
            nn.init.zeros_(predictor.bias)
    assert objective(method, batch).loss.item() == pytest.approx(math.log(4 * 25), rel=1e-6)


def test_each_patch_is_encoded_by_itself() -> None:
    method, batch = made(), patches()
    z = method.encode(batch.x)
    assert z.shape == (4, 5, 5, 6)
    torch.testing.assert_close(z[2, 3, 1], method.encoder(batch.x[2, 3, 1][None])[0])


@pytest.mark.parametrize("way", DIRECTIONS)
def test_pixels_that_lie_ahead_change_no_context(way: str) -> None:
    """Sheet 3, check 2: from the pixels on."""
    method, batch = made(ways=(way,)), patches()
    other = batch.x.clone()
    where = {"down": other[:, 3:], "up": other[:, :2], "right": other[:, :, 3:], "left": other[:, :, :2]}[way]
    where += 1.0
    a, b = (method.forecasts[way].context(turned(method.encode(x), way)) for x in (batch.x, other))
    assert torch.equal(a[:, :3], b[:, :3])
    assert not torch.equal(a[:, 3:], b[:, 3:])


def test_gradients_reach_both_sides_of_the_score() -> None:
    method, batch = made(), patches()
    z = method.encode(batch.x).detach().requires_grad_()
    (first,) = torch.autograd.grad(method.losses(z, "down")[1], z)  # three rows ahead, on five rows
    assert first[:, :2].abs().sum() > 0  # the contexts that predict
    assert first[:, 3:].abs().sum() > 0  # their targets
    objective(method, batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_candidates_of_all_processes_are_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = made(), patches()
    alone = objective(method, batch).loss
    others = torch.randn(4, 5, 5, 4)
    monkeypatch.setattr("selfsight.methods.cpc.gather", lambda y: torch.cat([others, y]))
    monkeypatch.setattr("selfsight.methods.cpc.rank", lambda: 1)
    assert objective(method, batch).loss > alone  # more candidates
    method.everywhere = False
    torch.testing.assert_close(objective(method, batch).loss, alone)


def test_what_it_hands_over() -> None:
    method, batch = made(), patches()
    watch = objective(method, batch).watch
    torch.testing.assert_close(watch["feature"], method.encode(batch.x).mean(dim=(1, 2)).detach())
    assert not watch["feature"].requires_grad


@pytest.mark.parametrize("name", ["cpc", "cpc_v2"])
def test_a_sample_tells_others_nothing_before_the_loss(name: str) -> None:
    """No norm lets patches communicate: another image's pixels change no bit of an image's encodings."""
    recipe = rig.build(name)
    batch = next(rig.batches(recipe, 1, size=4))
    other = batch.x.clone()
    other[1:] += 1.0
    torch.testing.assert_close(recipe.method.encode(batch.x)[0], recipe.method.encode(other)[0], rtol=0, atol=1e-6)


def test_it_learns_which_patch_comes() -> None:
    """Images of one colour each: after some updates the loss is far below the log of the patches."""
    method = made(ahead=(1,))
    batch = patches(8)
    colours = torch.randn(8, 1, 1, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    batch = Patches(0.1 * batch.x + 3 * colours, batch.index)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = objective(method, batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < math.log(25) + 0.4  # the image is known, the place in it is not
    assert losses[-1] < losses[0] - 1
