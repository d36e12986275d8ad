"""Context encoders: what is hidden cannot be seen, two players in their order, and what a report shows."""

from collections.abc import Callable

import pytest
import torch
from stand_ins import SmallEncoder, clock
from torch import Tensor, nn

from selfsight.batches import HiddenPixels
from selfsight.losses.inpainting import painted_error
from selfsight.method import Objective, drive
from selfsight.methods.context_encoder import ContextEncoder, middle
from selfsight.parts.inpainting import Discriminator, Painter

FILL = (0.25, -0.5, 0.75)


class Answer(nn.Module):
    """A decoder that knows what to paint."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor) -> Tensor:
        return self.answer


def batch(b: int = 4, size: int = 16) -> HiddenPixels:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.zeros(b, size, size, dtype=torch.bool)
    for k in range(b):
        hidden[k, 5 + k % 2 : 11, 5:9] = True
    x = torch.rand(b, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1
    return HiddenPixels(x, hidden, torch.arange(b))


def method(*, adversarial: float = 0.001, painted: int = 16, overlap: int = 0) -> ContextEncoder:
    torch.manual_seed(0)
    judge = Discriminator(3, painted, filters=2) if adversarial else None
    decoder = Painter(6, 14, 3, painted, filters=2)
    return ContextEncoder(SmallEncoder(), decoder, judge, fill=FILL, adversarial=adversarial, overlap=overlap).double()


def take(
    of: ContextEncoder, given: HiddenPixels, update: Callable[[Objective], bool] = lambda o: False
) -> list[Objective]:
    seen: list[Objective] = []

    def look(objective: Objective) -> bool:
        seen.append(objective)
        return update(objective)

    drive(of.step(given, clock()), look)
    return seen


def test_what_is_hidden_cannot_be_seen() -> None:
    net, images = method(), batch()
    other = torch.where(images.hidden[:, None], 9.0, images.x)
    z, picture = net.predict(images.x, images.hidden)
    painted_z, painted = net.predict(other, images.hidden)
    assert torch.equal(z, painted_z)
    assert torch.equal(picture, painted)
    assert not torch.equal(net.predict(images.x + 0.1, images.hidden)[1], picture)
    filled = net.filled(images.x, images.hidden)
    assert filled[1, :, 7, 6].tolist() == list(FILL)
    assert torch.equal(filled[:, :, 0], images.x[:, :, 0])


@pytest.mark.parametrize(("painted", "overlap"), [(16, 0), (16, 2), (8, 1)])
def test_the_error_is_that_of_the_hole_and_its_rim(painted: int, overlap: int) -> None:
    net, images = method(adversarial=0, painted=painted, overlap=overlap), batch()
    (found,) = take(net, images)
    picture = net.predict(images.x, images.hidden)[1]
    total = 0.0
    first = (16 - painted) // 2
    for b in range(4):
        error, count = 0.0, 0
        for i in range(first, first + painted):
            for j in range(first, first + painted):
                near = images.hidden[b, max(0, i - overlap) : i + overlap + 1, max(0, j - overlap) : j + overlap + 1]
                if not near.any():
                    continue
                weight = 1 if images.hidden[b, i, j] else 10
                off = picture[b, :, i - first, j - first] - images.x[b, :, i, j]
                error += weight * float(off.detach().square().mean())
                count += 1
        total += error / count
    assert float(found.loss.detach()) == pytest.approx(total / 4, rel=1e-5)
    assert found.by == ("main",)
    assert found.watch["feature"].shape == (4, 6)
    assert not found.watch["feature"].requires_grad


def test_the_discriminator_goes_first_and_the_painter_meets_it_after_its_step() -> None:
    net, images = method(adversarial=0.25), batch()
    judge = net.discriminator
    assert judge is not None
    picture = net.predict(images.x, images.hidden)[1].detach()
    real, fake = judge(images.x), judge(picture)
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))

    def update(objective: Objective) -> bool:
        if objective.by == ("adversary",):
            net.zero_grad()
            objective.loss.backward(retain_graph=True)
            outside = [p.grad for name, p in net.named_parameters() if not name.startswith("discriminator.")]
            assert outside == [None] * len(outside)  # what is painted is detached
            with torch.no_grad():
                for p in judge.parameters():
                    p.sub_(p.grad)
        return True

    adversary, main = take(net, images, update)
    assert (adversary.by, main.by) == (("adversary",), ("main",))
    torch.testing.assert_close(adversary.loss, expected)
    error = painted_error(picture, images.x, images.hidden.double())
    logits = judge(picture)
    assert not torch.allclose(logits, fake)
    torch.testing.assert_close(main.loss, 0.75 * error + 0.25 * bce(logits, torch.ones_like(logits)))
    torch.testing.assert_close(main.log["squared_error"], error)
    told = ((real > 0).double().mean() + (fake < 0).double().mean()) / 2
    torch.testing.assert_close(adversary.log["told_apart"].double(), told)


def test_without_weight_there_is_no_discriminator() -> None:
    """Sheet 11, check a: the painter's gradient is then that of the squared error alone."""
    net, images = method(adversarial=0), batch()
    assert set(net.trainables()) == {"main"}
    (found,) = take(net, images)
    found.loss.backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_each_player_has_its_own_parameters() -> None:
    named = method().trainables()
    mine = {player: {name for name, _ in pairs} for player, pairs in named.items()}
    assert mine["adversary"] == {name for name in mine["adversary"] if name.startswith("discriminator.")}
    assert mine["main"] | mine["adversary"] == set(dict(method().named_parameters()))
    assert not mine["main"] & mine["adversary"]


@pytest.mark.parametrize("painted", [16, 8])
def test_a_report_shows_the_painting_in_its_hole(painted: int) -> None:
    images = batch()
    answer = torch.full((4, 3, painted, painted), 0.5, dtype=torch.float64)
    net = ContextEncoder(SmallEncoder(), Answer(answer), fill=FILL, overlap=1).double()
    shown = net.reconstruct(images)
    assert torch.equal(shown.original, images.x)
    assert torch.equal(shown.masked, net.filled(images.x, images.hidden))
    inside = torch.zeros(1, 1, 16, 16)
    middle(inside, painted)[:] = 1
    expected = torch.where(images.hidden[:, None] & (inside > 0), 0.5, images.x)
    torch.testing.assert_close(shown.reconstruction, expected)
    knowing = ContextEncoder(SmallEncoder(), Answer(middle(images.x, painted)), fill=FILL).double()
    torch.testing.assert_close(knowing.reconstruct(images).reconstruction, images.x)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight from 0 to 1, not 2"):
        ContextEncoder(SmallEncoder(), nn.Identity(), fill=FILL, adversarial=2)
    with pytest.raises(ValueError, match="needs no discriminator"):
        ContextEncoder(SmallEncoder(), nn.Identity(), nn.Identity(), fill=FILL)
    with pytest.raises(ValueError, match="needs a discriminator"):
        ContextEncoder(SmallEncoder(), nn.Identity(), fill=FILL, adversarial=0.1)
