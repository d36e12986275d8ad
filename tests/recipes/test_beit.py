"""BEiT's recipe against its sheet, and how it comes by a tokenizer."""

import math
from pathlib import Path

import pytest
import torch
from paper_size import at, one_step, rendered
from timm.layers import DropPath
from torch import nn
from torch.optim import AdamW

import selfsight
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import build_optimiser
from selfsight.errors import UserError
from selfsight.loading import load_tokenizer
from selfsight.parts.tokenizers import CodeHead, Tokenizer
from selfsight.recipes.beit import CARDS, beit, wired
from selfsight.recipes.recipe import Setting
from selfsight.report.gather import gather_content

SHARED = CARDS["beit"]["options"]


def setting(size: int, patch: int, *, width: int = 64, depth: int = 3, **options: int | bool) -> Setting:
    torch.manual_seed(0)
    encoder = build_encoder(
        "beit_base_patch16_224",
        image_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=2,
        **SHARED,  # type: ignore[arg-type]
    )
    return Setting(encoder=encoder, image_size=size, samples=10**6, **options)  # type: ignore[arg-type]


def told(codes: int = 32, groups: int = 4) -> Tokenizer:
    return Tokenizer(
        build_encoder("dalle_nano", image_size=32, hidden=8, groups=groups), CodeHead(8 * 2 ** (groups - 1), codes)
    )


def test_the_papers_column() -> None:
    recipe = wired(setting(224, 16), told())
    spec, method = recipe.optimisers["main"], recipe.method
    optimiser = build_optimiser(spec, [("weight", nn.Parameter(torch.ones(2, 2)))])
    assert isinstance(optimiser, AdamW)
    assert (optimiser.param_groups[0]["betas"], optimiser.param_groups[0]["eps"]) == ((0.9, 0.999), 1e-8)
    assert (recipe.batch_size, recipe.epochs) == (2048, 800)
    rates = [spec.lr(at(epoch, 800, 2048)) for epoch in (0, 5, 10, 800)]
    assert rates == pytest.approx([0, 0.75e-3, 1.5e-3, 1e-5], rel=1e-3)
    assert (spec.weight_decay(at(400, 800, 2048)), spec.clip, spec.clip_each) == (0.05, 3.0, "all")
    assert "patches of 16 px hidden in blocks" in recipe.views.describe()
    assert (recipe.views.budget, recipe.views.smallest) == (75, 16)
    view, picture = recipe.views.views
    assert (view.size, picture.size) == (224, 112)
    assert (view.scale, view.interpolation, view.flip) == ((0.08, 1.0), "bicubic", 0.5)
    jitter = view.jitter
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p) == (0.4, 0.4, 0.4, 0, 1)
    assert picture.normalise is None
    batch = rendered(recipe)
    assert method.codes(batch.picture).shape == batch.masked.shape == (2, 196)


def test_it_begins_as_beit() -> None:
    encoder = setting(32, 4).encoder
    method = wired(Setting(encoder=encoder, image_size=32, samples=100), told(groups=3)).method
    model = encoder.model  # type: ignore[attr-defined]
    for depth, block in enumerate(model.blocks, start=1):
        largest = 0.02 / math.sqrt(2 * depth)
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert float(weight.detach().abs().max()) == pytest.approx(largest, rel=0.01)
            assert float(weight.detach().std()) == pytest.approx(0.54 * largest, rel=0.05)
        for weight in (block.attn.qkv.weight, block.mlp.fc1.weight):
            assert float(weight.detach().abs().max()) == pytest.approx(0.02, rel=0.01)
        assert float(block.gamma_1.detach()[0]) == pytest.approx(0.1)
        assert not block.attn.q_bias.any()
    assert 0 < float(method.mask_token.detach().abs().max()) <= 0.02
    assert float(method.head.weight.detach().abs().max()) <= 0.02
    assert not model.rel_pos_bias.relative_position_bias_table.any()
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.05, 0.05, 0.1, 0.1])


def test_an_encoder_that_was_trained_before_is_kept() -> None:
    encoder = setting(32, 4).encoder
    before = {name: x.clone() for name, x in encoder.state_dict().items()}  # type: ignore[attr-defined]
    wired(Setting(encoder=encoder, image_size=32, samples=100, begun=True), told(groups=3), drop_path=0.0)
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())  # type: ignore[attr-defined]


def test_a_plain_transformer_serves_as_well() -> None:
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=4, embed_dim=24, depth=1, num_heads=2)
    recipe = wired(Setting(encoder=encoder, image_size=32, samples=100, batch_size=4), told(groups=3))
    assert encoder.model.global_pool == "avg"  # type: ignore[union-attr]  # no loss reads the class token
    loss, moved = one_step(recipe, rendered(recipe))
    assert loss == pytest.approx(math.log(32), abs=0.2)
    assert moved > 0


def test_decay() -> None:
    """Mask token and table of positions decay, class token, layer scales and biases do not (optim_factory.py)."""
    recipe = wired(setting(32, 4), told(groups=3))
    groups = recipe.optimisers["main"].groups
    decayed = {name: groups(name, p).decay for name, p in recipe.method.trainables()["main"]}
    assert decayed["mask_token"]
    assert decayed["encoder.model.rel_pos_bias.relative_position_bias_table"]
    assert decayed["head.weight"]
    for name in ("cls_token", "blocks.0.gamma_1", "blocks.0.attn.q_bias", "fc_norm.weight"):
        assert not decayed[f"encoder.model.{name}"], name
    assert not decayed["head.bias"]


def test_the_small_image_column() -> None:
    recipe = wired(setting(32, 4), told(groups=3))
    view, picture = recipe.views.views
    assert (recipe.batch_size, recipe.epochs) == (256, 800)
    assert (view.size, picture.size, recipe.views.budget, recipe.views.smallest) == (32, 32, 26, 4)
    assert recipe.optimisers["main"].lr.peak == 1e-3


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beit needs a tokenizer; train one by 'selfsight pretrain dvae") as found:
        beit(setting(32, 4))
    assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"there is no tokenizer runs/nowhere; train one by"):
        beit(setting(32, 4), tokenizer="runs/nowhere")
    at_hand = Setting(encoder=build_encoder("small_cnn", image_size=32), image_size=32, samples=10)
    with pytest.raises(ValueError, match="not small_cnn; try --backbone beit_base_patch16_224"):
        beit(at_hand, tokenizer=str(tmp_path))
    windows = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    merging = build_encoder("swin_tiny_patch4_window7_224", image_size=32, **windows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keeps its patches apart, not swin_tiny_patch4_window7_224; try --backbone"):
        wired(Setting(encoder=merging, image_size=32, samples=10), told())
    nothing = tmp_path / "weights.pt"
    torch.save({"model": nn.Linear(1, 1)}, nothing)
    with pytest.raises(UserError, match="without executing it"):
        load_tokenizer(nothing, grid=8)
    torch.save({"conv.weight": torch.ones(1)}, nothing)
    with pytest.raises(UserError, match="is no parameter of DALL-E's encoder"):
        load_tokenizer(nothing, grid=8)


def test_published_weights_from_a_file(tmp_path: Path) -> None:
    """Names of the official state dict, made from a tokenizer of ours."""
    mine = told(codes=24)
    model: nn.Module = mine.encoder.model  # type: ignore[attr-defined]
    state = dict(model.state_dict())
    state |= {f"blocks.output.conv.{name}": x for name, x in mine.head.state_dict().items()}
    official = {name.removesuffix("eight").removesuffix("ias"): x for name, x in state.items()}
    torch.save(official, tmp_path / "encoder.pt")
    torch.manual_seed(3)
    here = torch.get_rng_state()
    tokenizer = load_tokenizer(tmp_path / "encoder.pt", grid=4)
    assert torch.equal(torch.get_rng_state(), here)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(tokenizer(x), mine(x))
    assert tokenizer.fingerprint() == mine.fingerprint()
    recipe = beit(setting(32, 8), tokenizer=str(tmp_path / "encoder.pt"))
    assert recipe.method.head.out_features == 24
    with pytest.raises(UserError, match="takes images of 3 channels, not 5"):
        load_tokenizer(tmp_path / "encoder.pt", grid=4, channels=5)


@pytest.mark.slow
def test_from_a_tokenizers_run_to_an_encoder(tmp_path: Path) -> None:
    """The whole way: a run of dvae, a run of beit on it, and the encoder, which does without the tokenizer."""
    common = {"data": "world", "image_size": 32, "limit": 64, "batch_size": 32, "epochs": 1, "report": False}
    common |= {"device": "cpu", "precision": "32", "logger": "none", "probe_every": 0, "workers": 0}
    first = selfsight.pretrain("dvae", backbone="dalle_nano", codes=16, out=tmp_path / "dvae", **common)
    run = selfsight.pretrain("beit", tokenizer=str(first.path), out=tmp_path / "beit", **common)
    assert run.settings["hyper"]["tokenizer"] == str(first.path.resolve())
    with pytest.raises(UserError, match="is a run of beit, no tokenizer"):
        load_tokenizer(run.path, grid=8)
    content = gather_content(run.path)
    assert content.reconstructions, content.missing
    assert "as the tokenizer's decoder paints them" in content.reconstructions.caption
    task = selfsight.evaluate(run, protocols=["pretext"], quiet=True)["pretext"]["task"]
    assert 0 < task["trained"]["loss"] < task["untrained"]["loss"] < 2 * math.log(16)
    first.path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"there is no tokenizer .*train one by"):
        selfsight.evaluate(run, protocols=["pretext"], quiet=True)
    content = gather_content(run.path)
    assert not content.reconstructions
    assert content.missing["reconstructions"] == f"Could not be drawn: there is no run at {first.path.resolve()}"
    opened = selfsight.load(run.path)
    assert opened(torch.zeros(1, 3, 32, 32)).shape == (1, 192)
    assert run.recipe().method.head.out_features == 16  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step() -> None:
    """ViT-B/16 at 224 pixels with 8192 codes of 112 pixels, at batch 2; the tokenizer's width is not the paper's."""
    torch.manual_seed(0)
    encoder = build_encoder("beit_base_patch16_224", image_size=224, **SHARED)  # type: ignore[arg-type]
    assert isinstance(encoder.model.rel_pos_bias.relative_position_bias_table, nn.Parameter)
    recipe = wired(Setting(encoder=encoder, image_size=224, samples=1_281_167), told(codes=8192))
    loss, moved = one_step(recipe, rendered(recipe), epoch=10.0)
    spread = 768 * (0.54 * 0.02) ** 2  # the variance of the logits at the start, which adds half of itself
    assert loss == pytest.approx(math.log(8192) + spread / 2, abs=0.1)
    assert moved > 0
