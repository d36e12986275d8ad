"""MAE against values of its official code: patches, targets, positions, and the whole model over three steps."""

import pytest
import torch
from recorded import descend, drawn, fill_, recorded, same

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.losses.reconstruction import masked_mse, normalise_patches, patchify
from selfsight.methods.mae import MAE
from selfsight.parts.positions import sincos_2d
from selfsight.recipes.mae import mae
from selfsight.recipes.recipe import Setting

OFFICIAL = recorded("masked")


def test_patches_have_its_order() -> None:
    same(patchify(torch.arange(48.0).reshape(1, 3, 4, 4), 2)[0], OFFICIAL["patches"]["patches"])


def test_positions() -> None:
    same(sincos_2d(8, 3, 3), OFFICIAL["positions"]["table"], rtol=1e-7)  # a table of float32


@pytest.mark.parametrize("name", ["loss", "loss_normalised"])
def test_the_loss_of_hidden_patches(name: str) -> None:
    target, prediction = patchify(drawn(1, 2, 3, 8, 8), 4), drawn(2, 2, 4, 48).requires_grad_()
    if name == "loss_normalised":
        target = normalise_patches(target).x
    loss = masked_mse(prediction, target, torch.tensor([[0, 2, 3], [1, 2, 3]]))
    same(loss, OFFICIAL[name]["loss"])
    (gradient,) = torch.autograd.grad(loss, prediction)
    same(gradient[:, 1:3, :5], OFFICIAL[name]["gradient"])


def hidden(k: int) -> MaskedImages:
    """The code orders patches by random numbers and keeps the first quarter."""
    order = drawn(200 + k, 4, 16).argsort(dim=1)
    return MaskedImages(drawn(100 + k, 4, 3, 16, 16), order[:, :4], order[:, 4:], torch.arange(4))


@pytest.mark.parametrize(("name", "normalise"), [("mae", True), ("mae_pixels", False)])
def test_the_whole_model(name: str, normalise: bool) -> None:
    case = OFFICIAL[name]
    encoder = build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2)
    at = Setting(encoder=encoder, image_size=16, samples=100)
    method = mae(at, decoder_width=12, decoder_depth=1, normalise_target=normalise).method.double()
    assert isinstance(method, MAE)
    named = {n: p for n, p in method.named_parameters() if not n.endswith("pos_embed")}
    fill_([named[n] for n in sorted(named)], 1)
    first = descend(method, [hidden(0), hidden(1)], 0.1, steps=3, epochs=1)
    prediction = method.predict(hidden(2).x, hidden(2).visible)[1]
    same(prediction[0, :, 0], case["prediction"], rtol=1e-8)
    same(first + descend(method, [hidden(2)], 0.1, steps=3, epochs=1, start=2), case["losses"], rtol=1e-8)
    same(named["encoder.model.cls_token"].flatten(), case["token"], rtol=1e-8)
