"""Recipes that draw an encoder's weights leave those it was begun with, whatever its norms are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfsight.encoders.build import build_encoder
from selfsight.engine.export import export
from selfsight.engine.run import open_run
from selfsight.flags import Flags
from selfsight.pretraining import pretrain
from selfsight.recipes.assembly import Start, assemble

METHODS = ("mae", "deepmim", "localmim", "moco_v3")
TINY: dict[str, Any] = {"backbone": "test_vit4", "patch_size": 8, "image_size": 32, "batch_size": 32}
"""A transformer with norms that have no bias (RMSNorm)."""
QUICK: dict[str, Any] = {
    **TINY,
    "data": "world:64",
    "epochs": 1,
    "lr": 1e-12,
    "weight_decay": 0.0,
    "precision": "32",
    "probe_every": 0,
    "report": False,
}


def flags(**other: Any) -> Flags:
    return Flags(**{**TINY, **other})


def weights(encoder: Any) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in encoder.state_dict().items()}


def other_start() -> dict[str, Tensor]:
    """Weights that no recipe would draw."""
    torch.manual_seed(1)
    encoder = build_encoder("test_vit4", image_size=32, patch_size=8)
    assert not any(isinstance(m, nn.LayerNorm) for m in encoder.modules())
    for x in encoder.parameters():
        nn.init.normal_(x)
    return weights(encoder)


def same(encoder: nn.Module, start: dict[str, Tensor]) -> bool:
    return all(torch.equal(x, start[name]) for name, x in encoder.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_to_begin_with_is_kept(method: str) -> None:
    start = Start(other_start(), 32)
    assert same(assemble(method, flags(), {}, samples=64, native=None, start=start).encoder, other_start())
    kept = assemble(method, flags(batch_size=None), {}, samples=64, native=None, start=start)
    assert kept.notes  # a smaller batch is taken: the recipe is made a second time
    assert same(kept.encoder, other_start())


@pytest.mark.parametrize("method", METHODS)
def test_published_weights_are_kept(method: str, tmp_path: Path) -> None:
    encoder = build_encoder("test_vit4", image_size=32, patch_size=8)
    encoder.load_state_dict(other_start())
    folder = export(encoder, "huggingface", tmp_path / "hub")
    published = flags(backbone=f"local-dir:{folder}", patch_size=None, pretrained=True)
    assert same(assemble(method, published, {}, samples=64, native=None).encoder, other_start())


@pytest.mark.parametrize("method", METHODS)
def test_a_new_encoder_is_drawn_by_the_recipe(method: str) -> None:
    torch.manual_seed(0)
    fresh = weights(build_encoder("test_vit4", image_size=32, patch_size=8))
    made = assemble(method, flags(), {}, samples=64, native=None).encoder
    assert not torch.equal(made.model.blocks[0].mlp.fc1.weight, fresh["model.blocks.0.mlp.fc1.weight"])
    assert not made.model.pos_embed.requires_grad


def test_fine_tuning_keeps_what_it_is_given() -> None:
    pretext = {"method": "mae", "hyper": {}, "epochs": 1, "batch_size": 32}
    start, labels = Start(other_start(), 32), np.arange(64) % 4
    how: dict[str, Any] = {"samples": 64, "native": None, "start": start, "labels": labels, "classes": 4}
    tuned = assemble("finetune", flags(), {"pretext": pretext, "head_layers": 0}, **how)
    assert same(tuned.recipe.method.encoder, other_start())  # type: ignore[arg-type]


def test_a_run_begun_with_another_ends_near_it(tmp_path: Path) -> None:
    first = pretrain("simclr", **QUICK, out=tmp_path / "first")
    second = pretrain("mae", **QUICK, out=tmp_path / "second", init_from=first.path)
    given = weights(open_run(first.path).encoder())
    for encoder in (open_run(second.path).encoder(), open_run(second.path).recipe().method.encoder):
        for name, x in weights(encoder).items():
            torch.testing.assert_close(x, given[name], atol=1e-6, rtol=0)
