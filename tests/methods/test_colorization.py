"""Colorization: the loss of a batch, the prior that is counted meanwhile, grey images, and pictures in colour."""

import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import ColouredImages
from selfsight.lab import to_lab
from selfsight.losses.colour import frequencies, rarity, rebalanced_cross_entropy, soft_code
from selfsight.method import Clock, Objective
from selfsight.methods.colorization import Colorization
from selfsight.parts.colours import ColourDecoder, bins

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


class Patches(nn.Module):
    """An encoder whose map has a place for each eight pixels."""

    width, stride = 6, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, 8)

    def dense(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).mean((2, 3))


class Known(nn.Module):
    """A decoder that is certain of the bins it was given."""

    def __init__(self, ab: Tensor) -> None:
        super().__init__()
        code = soft_code(ab, bins(), neighbours=1)
        self.logits = 100 * nn.functional.one_hot(code.bins[:, 0], 313).permute(0, 3, 1, 2).float()

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        assert self.logits.shape[2:] == size
        return self.logits


def method() -> Colorization:
    torch.manual_seed(0)
    return Colorization(Patches(), ColourDecoder(6, 8, 313, width=8))


def batch(n: int = 4) -> ColouredImages:
    rgb = (
        torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    light, a, b = to_lab(*rgb.unbind(1))
    return ColouredImages((light / 50 - 1)[:, None].repeat(1, 3, 1, 1), torch.stack([a, b], dim=1), torch.arange(n))


def step(of: Colorization, given: ColouredImages) -> Objective:
    """One step, to its end."""
    events = of.step(given, NOW)
    found = next(events)
    found.loss.backward()
    with pytest.raises(StopIteration):
        events.send(True)
    return found


def test_the_loss_is_that_of_every_fourth_pixel_under_the_prior_so_far() -> None:
    learner, given = method(), batch()
    learner.prior.copy_(torch.rand(313).softmax(0))
    before = learner.prior.clone()
    found = step(learner, given)
    target = given.ab[:, :, ::4, ::4]
    code = soft_code(target, bins())
    logits = learner.predict(given.x)[1].detach()
    expected = rebalanced_cross_entropy(logits, code, rarity(before), torch.ones(4))
    assert float(found.loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(found.log["coloured"]) == 1
    assert found.watch["feature"].shape == (4, 6)


def test_a_network_that_knows_nothing_costs_log_313() -> None:
    learner = method()
    nn.init.zeros_(learner.decoder.predict.weight)
    nn.init.zeros_(learner.decoder.predict.bias)
    found = step(learner, batch())
    assert float(found.loss.detach()) == pytest.approx(math.log(313), rel=1e-5)
    assert float(found.log["cross_entropy"]) == pytest.approx(math.log(313), rel=1e-5)


def test_the_prior_is_the_mean_of_all_that_was_seen() -> None:
    learner, parts = method(), [batch(4), batch(2), batch(3)]
    found = []
    for k, part in enumerate(parts):
        given = part._replace(ab=part.ab * (0.2 + 0.4 * k))
        step(learner, given)
        found.append(frequencies(soft_code(given.ab[:, :, ::4, ::4], bins()), 313))
    torch.testing.assert_close(learner.prior, torch.stack(found).mean(0))
    assert float(learner.prior.sum()) == pytest.approx(1, rel=1e-5)
    assert int(learner.seen) == 3


def test_micro_batches_of_an_update_are_weighed_alike() -> None:
    learner, given = method(), batch()
    for moved in (False, True):
        before = learner.prior.clone()
        steps = learner.step(given, NOW)
        next(steps)
        with pytest.raises(StopIteration):
            steps.send(moved)
        assert torch.equal(learner.prior, before) is not moved
    assert int(learner.seen) == 2
    code = soft_code(given.ab[:, :, ::4, ::4], bins())
    torch.testing.assert_close(learner.prior, frequencies(code, 313))
    assert not learner.counted.any()


def test_grey_images_teach_nothing() -> None:
    learner, given = method(), batch()
    step(learner, given._replace(ab=given.ab.clamp(-5, 5)))
    assert all(p.grad is not None and not p.grad.any() for p in learner.parameters())
    learner.zero_grad()
    half = given._replace(ab=torch.cat([given.ab[:2].clamp(-5, 5), given.ab[2:]]))
    assert float(step(learner, half).log["coloured"]) == 0.5
    assert all(p.grad is not None and p.grad.any() for p in learner.decoder.parameters())


def test_pictures_lie_in_the_space_of_the_input() -> None:
    given = batch()
    learner = Colorization(Patches(), Known(given.ab[:, :, ::4, ::4]))
    shown = learner.reconstruct(given)
    assert torch.equal(shown.masked, given.x)
    light, a, b = to_lab(*((shown.original + 1) / 2).unbind(1))
    torch.testing.assert_close(torch.stack([a, b], dim=1), given.ab, atol=0.1, rtol=0)
    torch.testing.assert_close(light / 50 - 1, given.x[:, 0], atol=1e-3, rtol=0)
    assert float((shown.reconstruction - shown.original).abs().mean()) < 0.25
    grey = learner.reconstruct(given)._replace(reconstruction=given.x)
    assert float((grey.reconstruction - shown.original).abs().mean()) > 0.3


def test_every_parameter_learns() -> None:
    learner = method()
    step(learner, batch())
    assert [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.any()] == []
