"""MAE: hidden pixels stay hidden, targets, and the reconstructions that a report shows."""

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.losses.reconstruction import normalise_patches, patchify
from selfsight.method import Clock, Objective, drive
from selfsight.methods.mae import MAE
from selfsight.parts.decoders import MaskedDecoder

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


class Tokens(nn.Module):
    """A transformer of one block with access to its tokens."""

    width, stride, patch = 8, 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.block = Block(8, 2)

    def embed(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2) + self.positions

    def tokens(self, embedded: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = embedded if visible is None else embedded.take_along_dim(visible[..., None], 1)
        out = self.block(torch.cat([torch.zeros_like(seen[:, :1]), seen], dim=1))
        return out[:, 0], out[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.embed(x))[0]

    def dense(self, x: Tensor) -> Tensor:
        return self.tokens(self.embed(x))[1].transpose(1, 2).reshape(len(x), 8, 4, 4)


class Oracle(nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, token: Tensor, seen: Tensor, visible: Tensor) -> Tensor:
        return self.answer


def batch(b: int = 3) -> MaskedImages:
    torch.manual_seed(0)
    order = torch.rand(b, 16).argsort(dim=1)
    return MaskedImages(torch.randn(b, 3, 16, 16), order[:, :4], order[:, 4:], torch.arange(b))


def mae(**options: bool) -> MAE:
    torch.manual_seed(0)
    return MAE(Tokens(), MaskedDecoder(8, 48, (4, 4), width=8, depth=1, heads=2), **options)


def objective(method: MAE, of: MaskedImages) -> Objective:
    seen: list[Objective] = []
    drive(method.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def paint_hidden(of: MaskedImages) -> MaskedImages:
    """Other pixels in every hidden patch."""
    x = of.x.clone()
    for image, places in zip(x, of.masked.tolist(), strict=True):
        for place in places:
            row, column = 4 * (place // 4), 4 * (place % 4)
            image[:, row : row + 4, column : column + 4] = 9.0
    return of._replace(x=x)


def test_what_is_hidden_cannot_be_seen() -> None:
    method, images = mae(), batch()
    token, prediction = method.predict(images.x, images.visible)
    painted_token, painted = method.predict(paint_hidden(images).x, images.visible)
    assert torch.equal(token, painted_token)
    assert torch.equal(prediction, painted)
    assert not torch.equal(method.predict(images.x + 1, images.visible)[1], prediction)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_error_on_hidden_patches(normalise: bool) -> None:
    method, images = mae(normalise_target=normalise), batch()
    found = objective(method, images)
    with torch.no_grad():
        prediction = method.predict(images.x, images.visible)[1]
    total = 0.0
    for b, places in enumerate(images.masked.tolist()):
        for place in places:
            row, column = 4 * (place // 4), 4 * (place % 4)
            target = images.x[b, :, row : row + 4, column : column + 4].permute(1, 2, 0).flatten().double()
            if normalise:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            total += float((prediction[b, place].double() - target).square().mean())
    assert float(found.loss.detach()) == pytest.approx(total / (3 * 12), rel=1e-5)
    assert found.watch["feature"].shape == (3, 8)


def test_every_parameter_learns() -> None:
    method = mae()
    objective(method, batch()).loss.backward()
    silent = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstructions_lie_in_the_space_of_the_input(normalise: bool) -> None:
    images = batch()
    patches = patchify(images.x, 4)
    answer = normalise_patches(patches).x if normalise else patches
    method = MAE(Tokens(), Oracle(answer), normalise_target=normalise)
    shown = method.reconstruct(images)
    assert torch.equal(shown.original, images.x)
    torch.testing.assert_close(shown.reconstruction, images.x)
    hidden = paint_hidden(images).x == 9.0
    assert torch.equal(shown.masked, torch.where(hidden, 0.0, images.x))


def test_visible_patches_are_shown_as_they_are() -> None:
    images = batch()
    shown = mae().reconstruct(images)
    hidden = paint_hidden(images).x == 9.0
    assert torch.equal(shown.reconstruction[~hidden], images.x[~hidden])
    assert not torch.allclose(shown.reconstruction[hidden], images.x[hidden])
