"""MP3: no position is told, the context alone is seen, and every patch counts."""

import math

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.method import Clock, Objective, drive
from selfsight.methods.mp3 import MP3
from selfsight.recipes.mp3 import without_order_

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


def mp3(**options: object) -> MP3:
    torch.manual_seed(0)
    shape = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=16, **{**shape, **options})  # type: ignore[arg-type]
    without_order_(encoder)
    head = nn.Linear(16, 16)
    for p in [p for p in encoder.parameters() if p.requires_grad]:
        nn.init.normal_(p, std=0.3)
    return MP3(encoder, head)


def batch(b: int = 3) -> MaskedImages:
    torch.manual_seed(1)
    order = torch.rand(b, 16).argsort(dim=1)
    return MaskedImages(torch.randn(b, 3, 16, 16), order[:, :4], order[:, 4:], torch.arange(b))


def objective(method: MP3, of: MaskedImages) -> Objective:
    seen: list[Objective] = []
    drive(method.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def patches(x: Tensor) -> Tensor:
    return x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)


def image(cut: Tensor) -> Tensor:
    return cut.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def test_moved_patches_move_their_logits_exactly() -> None:
    """Any position that leaks in, from a table or from a padded convolution, would show."""
    method, given = mp3(), batch()
    order = torch.randperm(16)
    place = order.argsort()  # where each patch went
    moved = image(patches(given.x)[:, :, order])
    assert torch.equal(patches(moved), patches(given.x)[:, :, order])
    with torch.no_grad():
        feature, logits = method.predict(given.x, given.visible)
        other, turned = method.predict(moved, place[given.visible])
        torch.testing.assert_close(turned, logits[:, order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other, feature, rtol=1e-4, atol=1e-5)
        plain = method.encoder(given.x)
        torch.testing.assert_close(method.encoder(moved), plain, rtol=1e-4, atol=1e-5)
        method.encoder.model.pos_embed.normal_()
        assert not torch.allclose(method.predict(moved, place[given.visible])[1], logits[:, order], atol=1e-2)


def test_the_loss_counts_every_patch_of_the_context_and_the_others() -> None:
    method, given = mp3(), batch()
    found = objective(method, given)
    with torch.no_grad():
        logits = method.predict(given.x, given.visible)[1].double()
        terms = [-logits[k, i].log_softmax(0)[i] for k in range(3) for i in range(16)]
        right = [float(logits[k, i].argmax() == i) for k in range(3) for i in range(16)]
    assert float(found.loss.detach()) == pytest.approx(float(sum(terms)) / 48, rel=1e-5)
    assert float(found.log["position_accuracy"]) == pytest.approx(sum(right) / 48)
    assert found.watch["feature"].shape == (3, 16)
    assert not found.watch["feature"].requires_grad


def test_what_is_not_in_the_context_changes_no_other_patch() -> None:
    method, given = mp3(), batch()
    cut = patches(given.x).clone()
    for k, places in enumerate(given.masked.tolist()):
        cut[k, :, places[0]] = 5.0
    with torch.no_grad():
        before = method.predict(given.x, given.visible)[1]
        after = method.predict(image(cut), given.visible)[1]
    for k, places in enumerate(given.masked.tolist()):
        moved = ((after - before)[k].abs().amax(dim=1) > 1e-6).nonzero().flatten().tolist()
        assert moved == places[:1]


def test_alike_patches_cost_log_n_at_least() -> None:
    method, given = mp3(), batch()
    alike = given._replace(x=torch.full_like(given.x, 0.7))
    assert float(objective(method, alike).loss.detach()) >= math.log(16) - 1e-5


@pytest.mark.parametrize("options", [{}, {"class_token": True, "global_pool": "token"}], ids=str)
def test_every_parameter_learns(options: dict[str, object]) -> None:
    method = mp3(**options)
    objective(method, batch()).loss.backward()
    silent = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["encoder.model.pos_embed"]


def test_a_picture_has_each_patch_where_it_says_that_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    method, given = mp3(), batch()
    truth = torch.eye(16).expand(3, -1, -1)
    logits = 9 * truth

    def says(self: MP3, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, 16), logits

    monkeypatch.setattr(MP3, "predict", says)
    made = method.reconstruct(given)
    assert torch.equal(made.original, given.x)
    assert torch.equal(made.reconstruction, given.x)
    seen = patches(made.masked).abs().sum(dim=(1, 3, 4)) > 0
    assert [row.nonzero().flatten().tolist() for row in seen] == [sorted(row) for row in given.visible.tolist()]

    logits = 9 * truth.roll(1, dims=2)  # each says the next place
    assert torch.equal(patches(method.reconstruct(given).reconstruction), patches(given.x).roll(1, dims=2))

    logits = torch.zeros(3, 16, 16)
    logits[:, :, 5] = 1 + torch.arange(16.0)  # all say place 5, the last one most surely
    placed = patches(method.reconstruct(given).reconstruction)
    assert torch.equal(placed[:, :, 5], patches(given.x)[:, :, 15])
    assert not placed[:, :, [i for i in range(16) if i != 5]].any()
