"""LocalMIM: each layer's loss, what it reaches, its targets, and the pictures of pixel targets."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.losses.hog import hog
from selfsight.losses.reconstruction import normalise_patches, patchify
from selfsight.method import Clock, Objective, drive
from selfsight.methods.localmim import LocalMIM, shares
from selfsight.parts.cells import hidden_cells
from selfsight.parts.decoders import MaskedDecoder
from selfsight.parts.local_decoder import LocalDecoder
from selfsight.views.pipelines import partition

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


def vit(**options: Any) -> LocalMIM:
    """Layers after blocks 1, 2, 3 and 4 of a ViT with patches of 8 px: cells of 2, 4, 8 and 16."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2)
    cells, scales = (2, 4, 8, 16), (4, 2, 1, 0.5)
    lengths = [3 * (cell * cell if options.get("target") == "pixels" else 9) for cell in cells]
    decoders = [LocalDecoder(16, n, 4, scale=s, width=16, heads=2) for n, s in zip(lengths, scales, strict=True)]
    return LocalMIM(encoder, decoders, layers=(1, 2, 3, 4), cells=cells, **options)


def swin(**options: Any) -> LocalMIM:
    torch.manual_seed(0)
    windows: dict[str, Any] = {"patch_size": 2, "embed_dim": 8, "depths": (2, 2, 2), "num_heads": (2, 2, 2)}
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=32, window_size=4, **windows)
    cells, widths = (4, 8, 8), (16, 32, 32)
    decoders = [
        MaskedDecoder(w, 27, (32 // c,) * 2, width=16, depth=1, heads=2) for c, w in zip(cells, widths, strict=True)
    ]
    return LocalMIM(encoder, decoders, layers=(1, 2, 3), cells=cells, **options)


def batch(b: int = 3) -> MaskedImages:
    """16 units of 8 px, a quarter of them visible."""
    generator = torch.Generator().manual_seed(0)
    visible, masked = partition(torch.rand(b, 16, generator=generator), 4)
    return MaskedImages(torch.randn(b, 3, 32, 32, generator=generator), visible, masked, torch.arange(b))


def objective(made: LocalMIM, of: MaskedImages) -> Objective:
    seen: list[Objective] = []
    drive(made.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


@pytest.mark.parametrize("make", [vit, swin])
def test_the_loss_is_the_sum_over_layers_of_the_hidden_cells_errors(make: Any) -> None:
    made, images = make().eval(), batch()
    found = objective(made, images)
    layers = made.encoder.layers(images.x, images.visible, made.layers)
    total = 0.0
    for k, cell in enumerate(made.cells):
        prediction = made.read(k, layers[k]).detach().double()
        wanted, side = hog(images.x, cell=cell).double(), 32 // cell
        error, count = 0.0, 0.0
        for b in range(3):
            for row in range(side):
                for column in range(side):
                    units = {
                        (y // 8) * 4 + x // 8
                        for y in range(row * cell, row * cell + cell)
                        for x in range(column * cell, column * cell + cell)
                    }
                    share = len(units & set(images.masked[b].tolist())) / len(units)
                    place = row * side + column
                    error += share * float((prediction[b, place] - wanted[b, place]).square().mean())
                    count += share
        total += error / count
        assert float(found.log[f"cells_of_{cell}_{k + 1}"]) == pytest.approx(error / count, rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx(total, rel=1e-4)
    assert found.watch["feature"].shape == (3, made.encoder.width)


def test_shares_repeat_finely_and_average_coarsely() -> None:
    hidden = hidden_cells(batch().masked, 16)
    fine, same, coarse = (shares(hidden, side) for side in (16, 4, 2))
    assert torch.equal(same, hidden.flatten(1).float())
    assert torch.equal(fine.unflatten(1, (16, 16))[:, ::4, ::4].flatten(1), same)
    assert torch.equal(fine.unflatten(1, (16, 16))[:, 3::4, 3::4].flatten(1), same)
    torch.testing.assert_close(coarse.mean(1), same.mean(1))
    assert {0.0, 0.25, 0.5, 0.75, 1.0} >= set(coarse.flatten().tolist())


def test_a_layers_loss_reaches_what_stands_below_it_alone() -> None:
    made, images = vit(), batch()
    for k in range(4):
        made.zero_grad()
        made.losses(images)[0][k].backward()
        reached = {name for name, p in made.encoder.named_parameters() if p.grad is not None and p.grad.any()}
        blocks = {int(name.split(".")[2]) for name in reached if name.startswith("model.blocks.")}
        assert blocks == set(range(k + 1))
        assert "model.patch_embed.proj.weight" in reached
        decoders = {
            name.split(".")[1] for name, p in made.named_parameters() if p.grad is not None and "decoders" in name
        }
        assert decoders == {str(k)}


@pytest.mark.parametrize("make", [vit, swin])
def test_every_parameter_learns(make: Any) -> None:
    made = make()
    objective(made, batch()).loss.backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("make", [vit, swin])
def test_neither_predictions_nor_features_depend_on_hidden_pixels(make: Any) -> None:
    made, images = make().eval(), batch()
    hidden = hidden_cells(images.masked, 16).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    painted = torch.where(hidden, 9.0, images.x)
    layers = [made.encoder.layers(x, images.visible, made.layers) for x in (images.x, painted)]
    for k in range(len(made.cells)):
        assert torch.equal(made.read(k, layers[0][k]), made.read(k, layers[1][k]))


def test_a_zero_prediction_costs_one_in_so_many_bins() -> None:
    made = vit()
    for decoder in made.decoders:
        nn.init.zeros_(decoder.head[-1].weight)
        nn.init.zeros_(decoder.head[-1].bias)
    for loss in made.losses(batch())[0]:
        assert float(loss.detach()) == pytest.approx(1 / 9, rel=1e-4)


def test_offsets_are_drawn_once_and_saved() -> None:
    made = vit(offset=True)
    assert made.offset is not None
    assert made.offset.shape == (4, 2)
    assert made.offset.abs().max() <= 1 / 3
    assert "offset" in made.state_dict()
    assert "offset" not in vit().state_dict()
    x = batch().x
    torch.testing.assert_close(made.targets(x, 1), hog(x, cell=4, offset=made.offset[1]))
    assert not torch.allclose(made.targets(x, 1), hog(x, cell=4))


class Oracle(nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, token: Tensor, seen: Tensor, where: Tensor) -> Tensor:
        return self.answer


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstructions_of_pixels_lie_in_the_space_of_the_input(normalise: bool) -> None:
    made, images = vit(target="pixels", normalise_target=normalise), batch()
    answers = [patchify(images.x, cell) for cell in made.cells]
    if normalise:
        answers = [normalise_patches(answer).x for answer in answers]
    made.decoders = nn.ModuleList([Oracle(answer) for answer in answers])
    assert all(float(loss) < 1e-10 for loss in made.losses(images)[0])
    shown = made.reconstruct(images)
    assert torch.equal(shown.original, images.x)
    torch.testing.assert_close(shown.reconstruction, images.x)
    hidden = hidden_cells(images.masked, 16).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert torch.equal(shown.masked, torch.where(hidden, 0.0, images.x))


def test_a_picture_does_not_show_the_means_of_the_smallest_cells() -> None:
    """Predictions of nothing: with their means given back, cells of two pixels would be the image in small."""
    made, images = vit(target="pixels"), batch()
    made.decoders = nn.ModuleList([Oracle(torch.zeros_like(patchify(images.x, cell))) for cell in made.cells])
    hidden = hidden_cells(images.masked, 16).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    mean = images.x.mean(dim=1, keepdim=True).expand_as(images.x)
    flat = nn.functional.avg_pool2d(mean, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(made.reconstruct(images).reconstruction, torch.where(hidden, flat, images.x))


def test_the_last_layer_must_be_among_them() -> None:
    encoder = vit().encoder
    with pytest.raises(ValueError, match="the last must be among them"):
        LocalMIM(encoder, [nn.Identity()], layers=(3,), cells=(8,))


def test_histograms_make_no_picture() -> None:
    with pytest.raises(ValueError, match="--target pixels"):
        vit().reconstruct(batch())
