"""SimMIM: what is hidden stays hidden, each place predicts its own pixels, and the target is the image itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.method import Clock, Objective, drive
from selfsight.methods.simmim import SimMIM
from selfsight.parts.cells import enlarge, hidden_cells
from selfsight.views.pipelines import partition

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "beit": ("beit_base_patch16_224", {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
    ),
}


def method(kind: str, **more: Any) -> SimMIM:
    torch.manual_seed(0)
    name, options = ENCODERS[kind]
    return SimMIM(build_encoder(name, image_size=32, **options, **more), embedded=16, channels=3).eval()


def batch(cells: int = 16, b: int = 3) -> MaskedImages:
    """Images of 32 px in ``cells`` cells, six in ten of them hidden."""
    generator = torch.Generator().manual_seed(0)
    visible, masked = partition(torch.rand(b, cells, generator=generator), int(cells * 0.4))
    return MaskedImages(torch.randn(b, 3, 32, 32, generator=generator), visible, masked, torch.arange(b))


def hidden(of: MaskedImages) -> Tensor:
    """Each hidden pixel, ``b 1 h w``."""
    cells = of.visible.shape[1] + of.masked.shape[1]
    return enlarge(hidden_cells(of.masked, cells), 32 // int(cells**0.5))[:, None]


def objective(made: SimMIM, of: MaskedImages) -> Objective:
    seen: list[Objective] = []
    drive(made.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_predictions_do_not_depend_on_hidden_pixels(kind: str) -> None:
    made, images = method(kind), batch()
    painted = images._replace(x=torch.where(hidden(images), 9.0, images.x))
    shown = [made.predict(x.x, hidden_cells(x.masked, 16))[1] for x in (images, painted)]
    assert torch.equal(shown[0], shown[1])
    seen = images._replace(x=torch.where(hidden(images), images.x, 9.0))
    assert not torch.allclose(made.predict(seen.x, hidden_cells(seen.masked, 16))[1], shown[0])


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_token_stands_in_every_hidden_patch_and_nowhere_else(kind: str) -> None:
    made, images = method(kind), batch()
    given: list[Tensor] = []
    encode = made.encoder.encode
    made.encoder.encode = lambda patches: encode(given.append(patches) or patches)  # type: ignore[method-assign]
    made.predict(images.x, hidden_cells(images.masked, 16))
    side = 32 // made.encoder.patch
    where = enlarge(hidden_cells(images.masked, 16), side // 4)
    assert given[0].shape == (3, side, side, 16)
    assert torch.equal(given[0][where], made.mask_token.expand(3, side, side, 16)[where])
    assert torch.equal(given[0][~where], made.encoder.patches(images.x)[~where])


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_loss_is_the_equation(kind: str) -> None:
    made, images = method(kind), batch()
    found = objective(made, images)
    prediction = made.predict(images.x, hidden_cells(images.masked, 16))[1]
    where = hidden(images).expand_as(prediction)
    assert float(found.loss.detach()) == pytest.approx(
        float((prediction - images.x)[where].abs().mean().detach()), rel=1e-5
    )
    assert found.watch["feature"].shape == (3, made.encoder.width)


def test_a_place_predicts_its_own_pixels_alone() -> None:
    made = method("swin")
    z = torch.randn(1, 32, 8, 8)
    changed = z.clone()
    changed[0, :, 2, 5] += 1
    moved = (made.head(z) != made.head(changed)).any(1)[0]
    assert moved[8:12, 20:24].all()
    moved[8:12, 20:24] = False
    assert not moved.any()


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_parameter_learns(kind: str) -> None:
    made = method(kind).train()
    objective(made, batch()).loss.backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_reconstructions_keep_what_is_visible() -> None:
    made, images = method("swin"), batch()
    shown, where = made.reconstruct(images), hidden(images)
    prediction = made.predict(images.x, hidden_cells(images.masked, 16))[1]
    assert torch.equal(shown.original, images.x)
    assert torch.equal(shown.masked, torch.where(where, 0.0, images.x))
    assert torch.equal(shown.reconstruction, torch.where(where, prediction, images.x))
