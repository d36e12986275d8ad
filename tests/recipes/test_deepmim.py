"""DeepMIM's recipe against its sheet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paper_size import one_step, rendered
from torch import nn
from torch.optim import AdamW

from selfsight.encoders.build import build_encoder
from selfsight.method import Clock
from selfsight.recipes import deepmim as module
from selfsight.recipes.deepmim import deepmim, share, supervised
from selfsight.recipes.mae import mae
from selfsight.recipes.recipe import Setting


def vit(size: int, patch: int, depth: int = 12) -> nn.Module:
    return build_encoder(
        "vit_tiny_patch16_224", image_size=size, patch_size=patch, embed_dim=32, depth=depth, num_heads=2
    )


def setting(encoder: nn.Module, size: int, **options: Any) -> Setting:
    return Setting(encoder=encoder, image_size=size, samples=10**6, **options)  # type: ignore[arg-type]


def clock(epoch: int, epochs: int) -> Clock:
    return Clock(step=1000 * epoch, steps=1000 * epochs, epoch=min(epoch, epochs - 1), epochs=epochs)


def test_the_papers_column() -> None:
    recipe = deepmim(setting(vit(224, 16), 224))
    spec, method = recipe.optimisers["main"], recipe.method
    assert spec.build.func is AdamW
    assert spec.build.keywords == {"betas": (0.9, 0.95)}
    assert (recipe.batch_size, recipe.epochs) == (4096, 1600)
    assert [spec.lr(clock(epoch, 1600)) for epoch in (0, 40, 1600)] == pytest.approx([0, 2.4e-3, 0])
    assert spec.weight_decay(clock(800, 1600)) == 0.05
    assert spec.clip is None
    assert method.blocks == (6, 8, 10, 12)
    assert method.shares is None
    assert method.normalise_target
    assert len({id(p) for one in method.decoders for p in one.parameters()}) == 4 * len(
        list(method.decoders[0].parameters())
    )
    for one in method.decoders:
        assert (len(one.blocks), one.embed.out_features, one.blocks[0].attn.num_heads) == (4, 512, 16)
        assert one.predict.out_features == 768
        assert torch.equal(one.positions, method.decoders[0].positions)
    batch = rendered(recipe)
    assert (batch.visible.shape, batch.masked.shape) == ((2, 49), (2, 147))


def test_the_small_image_column() -> None:
    recipe = deepmim(setting(vit(32, 4), 32))
    assert (recipe.batch_size, recipe.epochs) == (256, 1000)
    assert recipe.optimisers["main"].lr(clock(10, 1000)) == pytest.approx(2e-4)
    assert [(len(one.blocks), one.embed.out_features) for one in recipe.method.decoders] == [(2, 32)] * 4


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, (1,)), (2, (1, 2)), (3, (2, 3)), (6, (3, 4, 5, 6)), (24, (12, 16, 20, 24))]
)
def test_other_depths_are_supervised_at_the_same_parts(depth: int, blocks: tuple[int, ...]) -> None:
    assert supervised(depth) == blocks
    assert share(blocks[-1], depth) == 1.0


def test_the_encoder_begins_as_maes() -> None:
    torch.manual_seed(0)
    one = vit(32, 4)
    torch.manual_seed(0)
    other = vit(32, 4)
    torch.manual_seed(1)
    mae(setting(one, 32))
    torch.manual_seed(1)
    deepmim(setting(other, 32))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not other.model.pos_embed.requires_grad  # type: ignore[union-attr]


class Opened(SimpleNamespace):
    """A run that was opened."""

    method = "mae"
    image_size = 32

    def __init__(self, trained: Any, **facts: Any) -> None:
        super().__init__(flags=SimpleNamespace(channels=3), trained=trained, **facts)

    def recipe(self) -> Any:
        return self.trained


def test_hybrid_targets_take_a_trained_mae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guide = mae(setting(vit(32, 4, depth=2), 32))
    monkeypatch.setattr(module, "open_run", lambda path: Opened(guide))
    method = deepmim(setting(vit(32, 4), 32), hybrid=str(tmp_path)).method
    assert method.shares == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert method._guide == (guide.method,)
    method = deepmim(setting(vit(32, 4), 32, training=False), hybrid="gone").method
    assert (method.shares, method._guide) == (pytest.approx((0, 1 / 3, 2 / 3, 1)), (None,))


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"method": "dino"}, "--hybrid takes a run of mae, and RUN is one of dino"),
        ({"image_size": 64}, "--hybrid RUN has another image size, 64, than this training, 32"),
        ({"patch": 8}, "--hybrid RUN has another patch, 8, than this training, 4"),
        ({"raw": True}, "--hybrid RUN has another normalise_target, False, than this training, True"),
    ],
)
def test_other_runs_are_refused(facts: dict[str, Any], complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = mae(setting(vit(32, facts.pop("patch", 4), depth=2), 32), normalise_target=not facts.pop("raw", False))
    monkeypatch.setattr(module, "open_run", lambda path: Opened(guide, **facts))
    with pytest.raises(ValueError, match=complaint):
        deepmim(setting(vit(32, 4), 32), hybrid="RUN")


def test_encoders_without_tokens_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="deepmim needs a vision transformer, not small_cnn"):
        deepmim(setting(build_encoder("small_cnn", image_size=32), 32))


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ViT-B/16 at 224 pixels with all four decoders, at batch 2."""
    torch.manual_seed(0)
    recipe = deepmim(
        Setting(encoder=build_encoder("vit_base_patch16_224", image_size=224), image_size=224, samples=1_281_167)
    )
    loss, moved = one_step(recipe, rendered(recipe), epoch=40.0)
    assert 4 * 0.9 < loss < 4 * 3.0  # a zero prediction costs 0.9987 at each of four levels
    assert moved > 0
