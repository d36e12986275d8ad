"""BEiT: hidden pixels stay hidden, the loss is of hidden patches alone, and the tokenizer stays what it was."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from selfsight.batches import MaskedPictures
from selfsight.encoders.build import build_encoder
from selfsight.method import Clock, Objective, drive
from selfsight.methods.beit import BEiT
from selfsight.parts.tokenizers import CodeHead, CodeLogits, Painter, Tokenizer

NOW = Clock(step=0, steps=1, epoch=0, epochs=1)


def tokenizer(seed: int = 0, codes: int = 16) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(build_encoder("dalle_nano", image_size=16, hidden=8), CodeHead(32, codes))


def beit(told: Tokenizer | None = None, **more: Any) -> BEiT:
    told = told or tokenizer()
    torch.manual_seed(0)
    encoder = build_encoder(
        "beit_base_patch16_224",
        image_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
    )
    return BEiT(encoder, CodeLogits(32, told.codes), told, width=32, **more)


def batch(b: int = 3) -> MaskedPictures:
    torch.manual_seed(1)
    masked = torch.zeros(b, 16, dtype=torch.bool)
    for k in range(b):
        masked[k, k : 5 + 2 * k] = True  # another number for each
    return MaskedPictures(torch.randn(b, 3, 32, 32), torch.rand(b, 3, 16, 16), masked, torch.arange(b))


def objective(method: BEiT, of: MaskedPictures) -> Objective:
    seen: list[Objective] = []
    drive(method.step(of, NOW), lambda o: bool(seen.append(o)))
    return seen[0]


def painted(of: MaskedPictures) -> MaskedPictures:
    """Other pixels in every hidden patch of what the encoder sees."""
    cover = of.masked.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return of._replace(x=torch.where(cover, 9.0, of.x))


def test_what_is_hidden_cannot_be_seen() -> None:
    method, images = beit(), batch()
    _, whole = method.predict(images.x, images.masked)
    assert torch.equal(method.predict(painted(images).x, images.masked)[1], whole)
    assert not torch.equal(method.predict(images.x + 1, images.masked)[1], whole)


def test_the_loss_is_the_mean_over_all_hidden_patches() -> None:
    method, images = beit(), batch()
    found = objective(method, images)
    with torch.no_grad():
        told = tokenizer()(images.picture).flatten(1)
        logits = method.head(method.predict(images.x, images.masked)[1]).double()
    total, count, right = 0.0, 0, 0
    for b, places in enumerate(images.masked.tolist()):
        for i, hidden in enumerate(places):
            if hidden:
                row = logits[b, i].tolist()
                total += math.log(sum(math.exp(v) for v in row)) - row[int(told[b, i])]
                count += 1
                right += row.index(max(row)) == int(told[b, i])
    assert count == 5 + 6 + 7
    assert float(found.loss.detach()) == pytest.approx(total / count, rel=1e-5)
    assert float(found.log["code_accuracy"]) == pytest.approx(right / count)


def test_visible_patches_carry_no_loss() -> None:
    method, images = beit(), batch()
    kept: list[Tensor] = []
    method.encoder.encode = lambda y, encode=method.encoder.encode: (  # type: ignore[method-assign]
        kept.append(out := encode(y).detach().requires_grad_()) or out
    )
    objective(method, images).loss.backward()
    assert kept[0].grad is not None
    silent = ~kept[0].grad.abs().sum(dim=1).flatten(1).bool()
    assert torch.equal(silent, ~images.masked)


def test_a_head_that_knows_nothing_costs_the_logarithm_of_the_codes() -> None:
    method = beit()
    torch.nn.init.normal_(method.head.weight, std=0.01)
    torch.nn.init.zeros_(method.head.bias)
    assert float(objective(method, batch()).loss.detach()) == pytest.approx(math.log(16), abs=0.05)


def test_every_parameter_learns_but_the_tokenizers() -> None:
    method = beit()
    torch.nn.init.normal_(method.mask_token)
    objective(method, batch()).loss.backward()
    silent = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert not any("tokenizer" in name for name, _ in method.named_parameters())
    assert [name for name in method.state_dict() if "tokenizer" in name] == ["tokenizer_sum"]


def test_another_tokenizer_is_refused() -> None:
    method, images = beit(), batch()
    objective(method, images)
    other = beit(tokenizer(seed=5))
    other.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="not the one that this run was begun with"):
        objective(other, images)
    same = beit(tokenizer())
    same.load_state_dict(method.state_dict())
    assert torch.equal(objective(same, images).loss, objective(method, images).loss)


def test_a_run_is_opened_without_its_tokenizer() -> None:
    method = beit()
    opened = BEiT(method.encoder, CodeLogits(32, None), None, width=32)
    opened.load_state_dict(method.state_dict())
    assert opened.head.out_features == 16
    with pytest.raises(ValueError, match="opened without its tokenizer"):
        objective(opened, batch())
    fixed = BEiT(method.encoder, CodeLogits(32, 8), tokenizer(codes=8), width=32)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fixed.load_state_dict(method.state_dict())


def test_a_picture_shows_predicted_codes_where_patches_are_hidden_and_the_image_elsewhere() -> None:
    def paint(codes: Tensor) -> Tensor:  # each code's number, in three channels and four by four pixels
        kept.append(codes)
        return codes[:, None].expand(-1, 3, -1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3).float()

    kept: list[Tensor] = []
    method, images = beit(painter=lambda: Painter(tokenizer(), paint)), batch()
    torch.nn.init.normal_(method.head.weight)
    made = method.reconstruct(images)
    with torch.no_grad():
        said = method.head(method.predict(images.x, images.masked)[1]).argmax(dim=2)
    told = tokenizer()(images.picture).flatten(1)
    assert torch.equal(kept[0].flatten(1), torch.where(images.masked, said, told))
    cover = images.masked.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(images.x)
    assert torch.equal(made.original, images.x)
    assert torch.equal(made.reconstruction[~cover], images.x[~cover])
    assert torch.equal(made.masked, images.x.masked_fill(cover, 0))
    middles = made.reconstruction[:, 0, 4::8, 4::8].flatten(1)  # of patches of 8 px
    inner = said.view(-1, 4, 4)
    for b, y, x in images.masked.view(-1, 4, 4).nonzero().tolist():
        around = kept[0][b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert around.min() <= middles[b, 4 * y + x] <= around.max()
        if around.unique().numel() == 1:
            assert middles[b, 4 * y + x] == inner[b, y, x]


def test_no_picture_by_another_tokenizer_or_without_a_decoder() -> None:
    def nothing(codes: Tensor) -> Tensor:
        raise AssertionError(f"{codes.shape} were painted")

    with pytest.raises(ValueError, match="not the one that this run was begun with"):
        beit(painter=lambda: Painter(tokenizer(seed=5), nothing)).reconstruct(batch())
    method = beit()
    with pytest.raises(ValueError, match="has no decoder"):
        method.reconstruct(batch())
