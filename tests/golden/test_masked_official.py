"""MAE, ConvMAE and BEiT against values of their official code: parts of MAE, and whole models over three steps."""

import pytest
import torch
from recorded import descend, drawn, fill_, recorded, same
from torch import Tensor, nn

from selfsight.batches import MaskedImages, MaskedPictures
from selfsight.encoders.build import build_encoder
from selfsight.losses.reconstruction import masked_mse, normalise_patches, patchify
from selfsight.methods.beit import BEiT
from selfsight.methods.convmae import ConvMAE
from selfsight.methods.mae import MAE
from selfsight.parts.positions import sincos_2d
from selfsight.parts.tokenizers import CodeLogits, Tokenizer
from selfsight.recipes.convmae import convmae
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


def filled_(method: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter but fixed positions, drawn in the order of names."""
    named = {n: p for n, p in method.named_parameters() if p.requires_grad}
    fill_([named[n] for n in sorted(named)], 1)
    return named


def convmae_at_its_size(normalise: bool) -> ConvMAE:
    """Its code knows grids of 56, 28 and 14 alone, so images have 224 px."""
    encoder = build_encoder("convvit_base", image_size=224, widths=(3, 4, 8), depths=(1, 1, 2), heads=2)
    at = Setting(encoder=encoder, image_size=224, samples=100)
    method = convmae(at, decoder_width=8, decoder_depth=1, normalise_target=normalise).method.double()
    assert isinstance(method, ConvMAE)
    return method


def hidden_places(k: int) -> MaskedImages:
    order = drawn(400 + k, 2, 196).argsort(dim=1)
    return MaskedImages(drawn(300 + k, 2, 3, 224, 224), order[:, :49], order[:, 49:], torch.arange(2))


@pytest.mark.parametrize(("name", "normalise"), [("convmae", True), ("convmae_pixels", False)])
def test_the_whole_of_convmae(name: str, normalise: bool) -> None:
    case, method = OFFICIAL[name], convmae_at_its_size(normalise)
    named = filled_(method)
    losses = descend(method, [hidden_places(k) for k in range(3)], 0.1, steps=3, epochs=1)
    same(losses, case["losses"], rtol=1e-8)
    same(named["encoder.model.stage1.0.mix.weight"].flatten()[:20], case["mix"], rtol=1e-7)


class Told(Tokenizer):
    """Codes that are written into the picture."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def fingerprint(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].long()


def beit_of_two_blocks() -> BEiT:
    shared = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
    small = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    encoder = build_encoder("beit_base_patch16_224", **small, **shared)  # type: ignore[arg-type]
    return BEiT(encoder, CodeLogits(8, 6), Told(), width=8).double()  # type: ignore[arg-type]


def hidden_pictures(k: int) -> MaskedPictures:
    """Images that hide unequally many patches, with codes from 0 to 5."""
    codes = (drawn(600 + k, 4, 1, 4, 4) * 10).abs() % 6
    return MaskedPictures(drawn(500 + k, 4, 3, 16, 16), codes, drawn(700 + k, 4, 16) > 0.3, torch.arange(4))


def test_the_whole_of_beit() -> None:
    case, method = OFFICIAL["beit"], beit_of_two_blocks()
    named = filled_(method)
    losses = descend(method, [hidden_pictures(k) for k in range(3)], 0.1, steps=3, epochs=1)
    same(losses, case["losses"], rtol=1e-8)
    same(named["mask_token"].flatten(), case["token"], rtol=1e-7)
    same(named["encoder.model.rel_pos_bias.relative_position_bias_table"].flatten()[:20], case["table"], rtol=1e-7)
