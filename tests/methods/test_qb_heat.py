"""QB-Heat: the hidden quarters stay hidden, the loss is theirs alone, and what a report shows."""

import pytest
import torch
from stand_ins import clock
from torch import Tensor, nn

from selfsight.batches import QuarterSeen
from selfsight.losses.reconstruction import normalise_patches, patchify
from selfsight.method import Objective, drive
from selfsight.methods.qb_heat import QBHeat, cut, hidden_places
from selfsight.parts.extrapolation import Extrapolation, MapDecoder


class Strided(nn.Module):
    """An encoder of stride 4."""

    width, stride = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)

    def dense(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).mean(dim=(2, 3))


class Oracle(nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor) -> Tensor:
        return self.answer


def batch() -> QuarterSeen:
    generator = torch.Generator().manual_seed(0)
    return QuarterSeen(torch.randn(5, 3, 16, 16, generator=generator), torch.tensor([0, 3, 1, 2, 1]), torch.arange(5))


def method(**options: bool) -> QBHeat:
    torch.manual_seed(0)
    decoder = MapDecoder(6, 48, (4, 4), width=8, depth=1, heads=2)
    return QBHeat(Strided(), Extrapolation(6), decoder, side=4, patch=4, **options)


def objective(of: QBHeat, given: QuarterSeen) -> Objective:
    seen: list[Objective] = []
    drive(of.step(given, clock()), lambda o: bool(seen.append(o)))
    (found,) = seen
    return found


def is_hidden(given: QuarterSeen) -> Tensor:
    """Which pixels lie outside of the quarter that is seen."""
    hidden = torch.ones(len(given.x), 1, 16, 16, dtype=torch.bool)
    for b, quarter in enumerate(given.quarter.tolist()):
        top, left = 8 * (quarter // 2), 8 * (quarter % 2)
        hidden[b, :, top : top + 8, left : left + 8] = False
    return hidden


def test_a_quarter_is_cut_where_it_lies() -> None:
    images = batch()
    for b, quarter in enumerate(images.quarter.tolist()):
        top, left = 8 * (quarter // 2), 8 * (quarter % 2)
        assert torch.equal(cut(images.x, images.quarter)[b], images.x[b, :, top : top + 8, left : left + 8])


def test_what_is_hidden_cannot_be_seen() -> None:
    net, images = method(), batch()
    x = images.x.clone().requires_grad_()
    z, prediction = net.predict(x, images.quarter)
    (grad,) = torch.autograd.grad(prediction.sum() + z.sum(), x)
    hidden = is_hidden(images).expand_as(grad)
    assert (grad[hidden] == 0).all()
    assert (grad[~hidden] != 0).float().mean() > 0.9
    painted = torch.where(is_hidden(images), 9.0, images.x)
    assert torch.equal(net.predict(painted, images.quarter)[1], prediction)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_error_on_the_three_hidden_quarters(normalise: bool) -> None:
    net, images = method(normalise_target=normalise), batch()
    found = objective(net, images)
    with torch.no_grad():
        prediction = net.predict(images.x, images.quarter)[1]
    hidden, total, count = is_hidden(images), 0.0, 0
    for b in range(5):
        for place in range(16):
            row, column = 4 * (place // 4), 4 * (place % 4)
            if not hidden[b, 0, row, column]:
                continue
            target = images.x[b, :, row : row + 4, column : column + 4].permute(1, 2, 0).flatten().double()
            if normalise:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            total += float((prediction[b, place].double() - target).square().mean())
            count += 1
    assert count == 5 * 12
    assert float(found.loss.detach()) == pytest.approx(total / count, rel=1e-5)
    assert found.watch["feature"].shape == (5, 6)
    assert not found.watch["feature"].requires_grad


def test_every_parameter_learns() -> None:
    net = method()
    objective(net, batch()).loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(bool(m.any()) for m in (*net.extrapolation.across.grad, *net.extrapolation.down.grad))


def test_hidden_places_are_those_of_the_other_quarters() -> None:
    table = hidden_places(6)
    assert table.shape == (4, 27)
    for quarter in range(4):
        expected = [k for k in range(36) if 2 * (k // 18) + (k % 6) // 3 != quarter]
        assert table[quarter].tolist() == expected
    assert "hidden" not in method().state_dict()


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstructions_lie_in_the_space_of_the_input(normalise: bool) -> None:
    images = batch()
    patches = patchify(images.x, 4)
    answer = normalise_patches(patches).x if normalise else patches
    net = QBHeat(Strided(), Extrapolation(6), Oracle(answer), side=4, patch=4, normalise_target=normalise)
    shown = net.reconstruct(images)
    assert torch.equal(shown.original, images.x)
    torch.testing.assert_close(shown.reconstruction, images.x)
    assert torch.equal(shown.masked, torch.where(is_hidden(images), 0.0, images.x))
    hidden = is_hidden(images).expand_as(images.x)
    guessed = method(normalise_target=normalise).reconstruct(images).reconstruction
    assert torch.equal(guessed[~hidden], images.x[~hidden])
    assert not torch.allclose(guessed[hidden], images.x[hidden])
