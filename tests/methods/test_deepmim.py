"""DeepMIM: which block each level trains, and hybrid targets of a frozen model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.build import build_encoder
from selfsight.losses.reconstruction import masked_mse, normalise_patches, patchify
from selfsight.method import Clock, Objective, drive
from selfsight.methods.deepmim import DeepMIM
from selfsight.methods.mae import MAE
from selfsight.parts.decoders import MaskedDecoder

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


def batch(b: int = 3) -> MaskedImages:
    torch.manual_seed(0)
    order = torch.rand(b, 16).argsort(dim=1)
    return MaskedImages(torch.randn(b, 3, 16, 16), order[:, :4], order[:, 4:], torch.arange(b))


def encoder(depth: int = 4) -> Any:
    torch.manual_seed(0)
    return build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=32, depth=depth, num_heads=2)


def decoder() -> MaskedDecoder:
    return MaskedDecoder(32, 48, (4, 4), width=16, depth=1, heads=2)


def deepmim(blocks: tuple[int, ...] = (2, 3, 4), **options: Any) -> DeepMIM:
    made = encoder()
    return DeepMIM(made, {block: decoder() for block in blocks}, **options)


class Guide(nn.Module):
    """A frozen model that always says the same."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def predict(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), self.answer


def objective(method: Any, of: MaskedImages) -> Objective:
    seen: list[Objective] = []
    drive(method.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def moved(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_with_the_last_block_alone_it_is_mae() -> None:
    deep, images = deepmim((4,)), batch()
    mae = MAE(deep.encoder, deep.decoders[0])
    assert torch.equal(objective(deep, images).loss, objective(mae, images).loss)


def test_the_loss_is_the_sum_over_blocks_with_equal_weights() -> None:
    method, images = deepmim(), batch()
    found = objective(method, images)
    target = normalise_patches(patchify(images.x, 4)).x
    levels = method.encoder.levels(method.encoder.embed(images.x), images.visible, after=(2, 3))
    parts = [
        masked_mse(decode(*level, images.visible), target, images.masked)
        for decode, level in zip(method.decoders, levels, strict=True)
    ]
    torch.testing.assert_close(found.loss, parts[0] + parts[1] + parts[2])
    assert list(found.log) == ["block2", "block3", "block4"]
    torch.testing.assert_close(torch.stack(list(found.log.values())), torch.stack(parts).detach())
    assert found.watch["feature"].shape == (3, 32)


def test_a_blocks_loss_trains_what_comes_before_it_and_nothing_after() -> None:
    method, images = deepmim(), batch()
    _, predictions = method.predict(images.x, images.visible)
    masked_mse(predictions[0], method.targets(images)[0], images.masked).backward()
    blocks = list(method.encoder.model.blocks)
    assert [moved(block) for block in blocks] == [True, True, False, False]
    assert [moved(one) for one in method.decoders] == [True, False, False]
    assert moved(method.encoder.model.patch_embed)
    assert not moved(method.encoder.model.norm)


def test_every_parameter_learns() -> None:
    method = deepmim()
    objective(method, batch()).loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_is_hidden_cannot_be_seen() -> None:
    method, images = deepmim(), batch()
    x = images.x.clone()
    for image, places in zip(x, images.masked.tolist(), strict=True):
        for place in places:
            row, column = 4 * (place // 4), 4 * (place % 4)
            image[:, row : row + 4, column : column + 4] = 9.0
    before, after = (method.predict(pixels, images.visible)[1] for pixels in (images.x, x))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_hybrid_targets_are_blended_by_block() -> None:
    images, answer = batch(), torch.randn(3, 16, 48)
    method = deepmim(shares={2: 0.0, 3: 0.25, 4: 1.0}, guide=Guide(answer))
    pixels = normalise_patches(patchify(images.x, 4)).x
    coarse, middle, sharp = method.targets(images)
    assert torch.equal(coarse, answer)
    torch.testing.assert_close(middle, 0.25 * pixels + 0.75 * answer)
    assert torch.equal(sharp, pixels)


def test_shares_of_one_are_the_plain_targets() -> None:
    images = batch()
    hybrid = deepmim(shares=dict.fromkeys((2, 3, 4), 1.0), guide=Guide(torch.randn(3, 16, 48)))
    assert torch.equal(objective(hybrid, images).loss, objective(deepmim(), images).loss)


def test_the_guide_is_frozen_and_no_part_of_the_state() -> None:
    guide = MAE(encoder(2), decoder())
    method, images = deepmim(shares={2: 0.0, 3: 0.5, 4: 1.0}, guide=guide), batch()
    objective(method, images).loss.backward()
    assert not moved(guide)
    assert not guide.training
    assert method.train().state_dict().keys() == {*deepmim().state_dict(), "guide_sum"}
    assert not guide.training


def test_another_guide_is_refused_when_a_run_goes_on() -> None:
    images, shares, answer = batch(), dict.fromkeys((2, 3, 4), 0.5), torch.randn(3, 16, 48)
    method = deepmim(shares=shares, guide=Guide(answer))
    loss = objective(method, images).loss
    other, same = (deepmim(shares=shares, guide=Guide(guess)) for guess in (answer + 1e-3, answer.clone()))
    for resumed in (other, same, deepmim(shares=shares)):
        resumed.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="is not the one that this run was begun with: its weights differ"):
        objective(other, images)
    assert torch.equal(objective(same, images).loss, loss)


def test_a_run_that_is_opened_again_cannot_be_trained_without_its_guide() -> None:
    with pytest.raises(ValueError, match="opened without the one that its hybrid targets need"):
        objective(deepmim(shares=dict.fromkeys((2, 3, 4), 0.5)), batch())


@pytest.mark.parametrize("blocks", [(2, 3), (0, 4), (4, 5), ()])
def test_the_last_block_must_have_a_decoder(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of 4; the last must be among them"):
        deepmim(blocks)


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstructions_are_the_last_blocks(normalise: bool) -> None:
    method, images = deepmim(normalise_target=normalise), batch()
    shown = method.reconstruct(images)
    same = MAE(method.encoder, method.decoders[-1], normalise_target=normalise).reconstruct(images)
    assert all(torch.equal(a, b) for a, b in zip(shown, same, strict=True))
