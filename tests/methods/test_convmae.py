"""ConvMAE: hidden pixels stay hidden up to the decoder, and the loss is MAE's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.losses.reconstruction import normalise_patches, patchify
from selfsight.method import Clock, Objective, drive
from selfsight.methods.convmae import ConvMAE
from selfsight.parts.decoders import MaskedDecoder
from selfsight.parts.fusion import StageFusion

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


def batch(b: int = 3) -> MaskedImages:
    torch.manual_seed(0)
    order = torch.rand(b, 16).argsort(dim=1)
    return MaskedImages(torch.randn(b, 3, 16, 16), order[:, :4], order[:, 4:], torch.arange(b))


def convmae(**options: bool) -> ConvMAE:
    torch.manual_seed(0)
    encoder: Any = build_encoder("convvit_tiny", image_size=16, widths=(8, 12, 16), depths=(1, 1, 1), heads=2)
    decoder = MaskedDecoder(16, 48, (4, 4), width=8, depth=1, heads=2)
    return ConvMAE(encoder, StageFusion((8, 12), 16), decoder, **options)


def objective(method: ConvMAE, of: MaskedImages) -> Objective:
    seen: list[Objective] = []
    drive(method.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def test_what_is_hidden_cannot_be_seen() -> None:
    method, images = convmae(), batch()
    x = images.x.clone()
    for image, places in zip(x, images.masked.tolist(), strict=True):
        for place in places:
            row, column = 4 * (place // 4), 4 * (place % 4)
            image[:, row : row + 4, column : column + 4] = 9.0
    before, after = (method.predict(pixels, images.visible) for pixels in (images.x, x))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(method.predict(images.x + torch.randn(3, 3, 16, 16), images.visible)[1], before[1])


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_error_on_hidden_patches(normalise: bool) -> None:
    method, images = convmae(normalise_target=normalise), batch()
    found = objective(method, images)
    target = patchify(images.x, 4)
    target = normalise_patches(target).x if normalise else target
    with torch.no_grad():
        error = (method.predict(images.x, images.visible)[1] - target).square().mean(2)
    assert float(found.loss.detach()) == pytest.approx(float(error.gather(1, images.masked).mean()), rel=1e-5)
    assert found.watch["feature"].shape == (3, 16)


def test_every_parameter_learns() -> None:
    method = convmae()
    method.encoder.model.pos_embed.requires_grad_(False)  # type: ignore[attr-defined]
    objective(method, batch()).loss.backward()
    learning = ((name, p) for name, p in method.named_parameters() if p.requires_grad)
    assert [name for name, p in learning if p.grad is None or not p.grad.any()] == []


def test_the_decoder_reads_all_three_stages() -> None:
    method, images = convmae(), batch()
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, token: None, tokens: Tensor, visible: Tensor) -> Tensor:
            assert token is None
            seen.append(tokens)
            return torch.zeros(3, 16, 48)

    method.decoder = Spy()
    method.predict(images.x, images.visible)
    pooled, tokens, maps = method.encoder.stages(images.x, images.visible)
    assert torch.equal(seen[0], method.fusion(tokens, maps, images.visible))
    assert torch.equal(pooled, method.predict(images.x, images.visible)[0])
    torch.testing.assert_close(pooled.mean(1), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_visible_patches_are_shown_as_they_are(normalise: bool) -> None:
    images = batch()
    shown = convmae(normalise_target=normalise).reconstruct(images)
    hidden = torch.zeros(3, 16, 1).scatter(1, images.masked[..., None], 1.0) > 0
    same = (patchify(shown.reconstruction, 4) == patchify(images.x, 4)).all(2, keepdim=True)
    assert torch.equal(same, ~hidden)
    assert torch.equal(shown.original, images.x)
