"""LARS against a naive loop written from the table of variants; groups, rates and clipping by their definitions."""

import copy
import math
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.optim import SGD, AdamW

from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import (
    LARS,
    build_optimiser,
    clip_,
    layer_decay,
    set_rates_,
    skip_vectors_and_tokens,
)
from selfsight.method import Clock
from selfsight.recipes.recipe import Group, OptimiserSpec, decay_all, skip_vectors
from selfsight.schedules import Curve, constant, linear

RATES = (0.5, 0.4, 0.1, 0.7)  # the variants differ only while the rate changes


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    with torch.no_grad():
        net[3].bias.zero_()  # a tensor of norm zero
    return net


def gradients(net: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in net.parameters()]


def oracle(start, every_gradient, variant, *, adapt, decay, eta, momentum, clip=False):
    """One tensor at a time, from the sheet's table."""
    w, v = start.clone(), torch.zeros_like(start)
    for lr, g in zip(RATES, every_gradient, strict=True):
        u = g + decay * w
        norm_w, norm_g, norm_u = (t.pow(2).sum().sqrt().item() for t in (w, g, u))
        ratio = 1.0
        if adapt and variant in ("simclr", "byol") and norm_w > 0 and norm_u > 0:
            ratio = eta * norm_w / norm_u
        if adapt and variant == "larc":
            if norm_w > 0 and norm_g > 0:
                ratio = eta * norm_w / (norm_g + decay * norm_w + 1e-8)
                ratio = min(ratio / lr, 1) if clip else ratio
            else:
                u = g
        if variant == "simclr":
            v = momentum * v + lr * ratio * u
            w = w - v
        else:
            v = momentum * v + ratio * u
            w = w - lr * v
    return w


@pytest.mark.parametrize("groups", [skip_vectors, decay_all])
@pytest.mark.parametrize(("variant", "clip"), [("simclr", False), ("byol", False), ("larc", False), ("larc", True)])
def test_lars_follows_the_table(variant, clip, groups):
    net, start = model(), [p.detach().clone() for p in model().parameters()]
    spec = OptimiserSpec(
        build=partial(LARS, variant=variant, momentum=0.8, eta=0.02, clip=clip),
        lr=Curve(lambda clock: RATES[clock.step], max(RATES), lambda scale: "test"),
        weight_decay=constant(0.3),
        groups=groups,
    )
    optimiser = build_optimiser(spec, net.named_parameters())
    every = [gradients(net, step) for step in range(len(RATES))]
    every[2][0].zero_()  # a tensor without gradient for one step
    for step in range(len(RATES)):
        set_rates_(optimiser, spec, Clock(step, len(RATES), 0, 1))
        for p, g in zip(net.parameters(), every[step], strict=True):
            p.grad = g.clone()
        optimiser.step()
    for i, (name, p) in enumerate(net.named_parameters()):
        how = groups(name, p)
        expected = oracle(
            start[i],
            [grads[i] for grads in every],
            variant,
            adapt=how.adapt,
            decay=0.3 if how.decay else 0.0,
            eta=0.02,
            momentum=0.8,
            clip=clip,
        )
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def test_momentum_outside_differs_from_inside_only_when_the_rate_changes():
    ends = {}
    for variant in ("simclr", "byol"):
        for rates in ((0.5, 0.5, 0.5), (0.5, 0.1, 0.9)):
            net = model()
            optimiser = LARS(net.parameters(), variant=variant)
            for step, lr in enumerate(rates):
                optimiser.param_groups[0]["lr"] = lr
                for p, g in zip(net.parameters(), gradients(net, step), strict=True):
                    p.grad = g
                optimiser.step()
            ends[variant, rates] = net[0].weight.detach()
    torch.testing.assert_close(ends["simclr", (0.5, 0.5, 0.5)], ends["byol", (0.5, 0.5, 0.5)])
    assert not torch.allclose(ends["simclr", (0.5, 0.1, 0.9)], ends["byol", (0.5, 0.1, 0.9)], rtol=1e-6)


def test_lars_skips_what_has_no_gradient_and_resumes_exactly():
    net, twin = model(), model()
    optimiser, other = (LARS(m.named_parameters(), lr=0.3, variant="byol") for m in (net, twin))
    for step in range(2):
        for p, g in zip(net.parameters(), gradients(net, step), strict=True):
            p.grad = g
        net[0].bias.grad = None
        before = net[0].bias.detach().clone()
        optimiser.step()
        assert torch.equal(net[0].bias.detach(), before)
    twin.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for m, o in ((net, optimiser), (twin, other)):
        for p, g in zip(m.parameters(), gradients(net, 9), strict=True):
            p.grad = g
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("bad", [{"variant": "apex"}, {"lr": -1.0}, {"momentum": 1.0}, {"eta": 0.0}])
def test_lars_refuses_nonsense(bad):
    with pytest.raises((ValueError, TypeError), match=str(next(iter(bad.values())))):
        LARS(model().parameters(), **bad)


@pytest.mark.parametrize("build", [partial(SGD, momentum=0.9), partial(AdamW, betas=(0.9, 0.95)), LARS])
def test_groups_carry_their_treatment_and_names(build):
    net = model(torch.float32)

    def treat(name: str, p: nn.Parameter) -> Group:
        return Group(decay=p.ndim > 1, lr_scale=0.5 if name.startswith("3") else 1.0, fixed_lr=name == "0.weight")

    spec = OptimiserSpec(build=build, lr=linear(0.8, 0.0), weight_decay=constant(0.1), groups=treat)
    optimiser = build_optimiser(spec, net.named_parameters())
    set_rates_(optimiser, spec, Clock(50, 100, 0, 1))
    seen = {n: (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for n in g["param_names"]}
    assert seen == {
        "0.weight": (0.8, 0.1),
        "0.bias": (0.4, 0.0),
        "1.weight": (0.4, 0.0),
        "1.bias": (0.4, 0.0),
        "3.weight": (0.2, 0.1),
        "3.bias": (0.2, 0.0),
    }
    named = dict(net.named_parameters())
    for group in optimiser.param_groups:
        assert all(named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
    assert optimiser.state_dict()["param_groups"][0]["param_names"] == ["0.weight"]


def test_fused_where_there_is_one_unless_chosen_otherwise():
    def flag(build) -> object:
        spec = OptimiserSpec(build=build, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all)
        return build_optimiser(spec, model().named_parameters()).param_groups[0].get("fused")

    assert flag(AdamW) is True
    assert flag(partial(SGD, momentum=0.9)) is True
    assert flag(partial(AdamW, fused=False)) is False
    assert flag(LARS) is None


def test_an_optimiser_needs_parameters():
    spec = OptimiserSpec(build=SGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all)
    with pytest.raises(ValueError, match="at least one parameter"):
        build_optimiser(spec, [])


def clipped(clip, each):
    net = model()
    for p, g in zip(net.parameters(), gradients(net, 3), strict=True):
        p.grad = g
    net[0].bias.grad = None
    spec = OptimiserSpec(
        build=SGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all, clip=clip, clip_each=each
    )
    total = clip_(net.parameters(), spec)
    before = [g for g, p in zip(gradients(net, 3), net.parameters(), strict=True) if p.grad is not None]
    return total, before, [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("clip", [None, 1.5, 100.0])
@pytest.mark.parametrize("each", ["all", "tensor"])
def test_clip(clip, each):
    total, before, after = clipped(clip, each)
    norm = sum(g.pow(2).sum() for g in before).sqrt()
    torch.testing.assert_close(total, norm)
    for g, got in zip(before, after, strict=True):
        own = norm if each == "all" else g.pow(2).sum().sqrt()
        scale = 1.0 if clip is None else min(1.0, clip / (own.item() + 1e-6))
        torch.testing.assert_close(got, g * scale)


def test_clip_without_gradients_is_zero():
    spec = OptimiserSpec(build=SGD, lr=constant(0.1), weight_decay=constant(0.0), groups=decay_all, clip=1.0)
    assert clip_(model().parameters(), spec).item() == 0.0


def test_tokens_and_positions_do_not_decay():
    def decays(name: str, *shape: int) -> bool:
        return skip_vectors_and_tokens(name, nn.Parameter(torch.zeros(shape))).decay

    assert not decays("encoder.model.pos_embed", 1, 5, 8)
    assert not decays("cls_token", 1, 1, 8)
    assert not decays("head.bias", 8)
    assert decays("encoder.model.blocks.0.attn.qkv.weight", 24, 8)


def test_layer_decay_of_a_transformer_is_maes():
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, embed_dim=24, depth=3, num_heads=2)
    head = nn.Linear(24, 5)
    groups = layer_decay(vit, 0.5)
    named = {**dict(vit.named_parameters(prefix="encoder.model")), **dict(head.named_parameters(prefix="head"))}
    scales = {name.removeprefix("encoder.model."): groups(name, p).lr_scale for name, p in named.items()}
    expected = {"cls_token": 4, "pos_embed": 4, "patch_embed": 4, "blocks.0": 3, "blocks.2": 1, "norm": 0, "head": 0}
    for name, scale in scales.items():
        depth = [d for start, d in expected.items() if name.startswith(start)]
        assert scale == 0.5 ** (depth[0] if depth else 2), name  # the rest is block 1
    assert not groups("pos_embed", vit.pos_embed).decay
    assert groups("head.weight", head.weight) == Group()


def from_head(model: nn.Module) -> dict[str, float]:
    """Each parameter's distance from the head, in layers."""
    groups = layer_decay(model, 0.5)
    return {name: -math.log2(groups(name, p).lr_scale) for name, p in model.named_parameters()}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_layer_decay_of_beit_is_its_own(shared: bool, mean: bool) -> None:
    """unilm, ``beit/optim_factory.py``: embeddings 0, block i + 1, all else with the head; SimMIM's ViT is the same."""
    beit = timm.create_model(
        "beit_base_patch16_224",
        num_classes=0,
        img_size=32,
        embed_dim=24,
        depth=3,
        num_heads=2,
        use_abs_pos_emb=True,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        global_pool="avg" if mean else "token",
    )
    distances = from_head(beit)
    last = {"fc_norm" if mean else "norm"} | ({"rel_pos_bias"} if shared else set())
    expected = {"cls_token": 4, "pos_embed": 4, "patch_embed": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1}
    expected |= dict.fromkeys(last, 0)
    assert {next(start for start in expected if name.startswith(start)) for name in distances} == expected.keys()
    for name, distance in distances.items():
        assert distance == next(d for start, d in expected.items() if name.startswith(start)), name
    tables = [name for name in distances if name.endswith("relative_position_bias_table")]
    assert len(tables) == (1 if shared else 3)


@pytest.mark.parametrize("version", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_layer_decay_of_swin_is_simmims(version: str) -> None:
    """SimMIM, ``optimizer.py``: blocks count through the stages, merging goes with the last block before it.

    timm keeps that merging in the next stage, as ``layers.N.downsample``.
    """
    swin = timm.create_model(
        version, num_classes=0, img_size=64, window_size=4, embed_dim=8, depths=(1, 2, 3), num_heads=(1, 2, 4)
    )
    distances = from_head(swin)
    expected = {
        "patch_embed.": 7,
        "layers.0.blocks.0.": 6,
        "layers.1.downsample.": 6,
        "layers.1.blocks.0.": 5,
        "layers.1.blocks.1.": 4,
        "layers.2.downsample.": 4,
        "layers.2.blocks.0.": 3,
        "layers.2.blocks.1.": 2,
        "layers.2.blocks.2.": 1,
        "norm.": 0,
    }
    assert {next(start for start in expected if name.startswith(start)) for name in distances} == expected.keys()
    for name, distance in distances.items():
        assert distance == next(d for start, d in expected.items() if name.startswith(start)), name


def test_layer_decay_knows_no_late_layer_as_an_embedding() -> None:
    """CaiT's last class attention is as near to the head as its last block; EVA's blocks are as any ViT's."""
    cait = timm.create_model("cait_xxs24_224", num_classes=0, img_size=32, embed_dim=24, depth=2, num_heads=2)
    distances = from_head(cait)
    assert distances["blocks_token_only.1.attn.q.weight"] == distances["blocks.1.attn.qkv.weight"]
    assert distances["blocks.1.attn.qkv.weight"] < distances["blocks.0.attn.qkv.weight"] < distances["pos_embed"]
    eva = timm.create_model(
        "eva02_tiny_patch14_224", num_classes=0, img_size=28, embed_dim=24, depth=2, num_heads=2, global_pool="avg"
    )
    distances = from_head(eva)
    order = ["cls_token", "blocks.0.mlp.fc2.weight", "blocks.1.mlp.fc2.weight", "fc_norm.weight"]
    assert [distances[name] for name in order] == [3, 2, 1, 0]


def test_layer_decay_of_a_convolutional_net_rises_with_depth():
    net = timm.create_model("resnet18", num_classes=0)
    groups = layer_decay(net, 0.8)
    order = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.bn2.weight", "layer3.0.conv1.weight"]
    named = dict(net.named_parameters())
    rates = [groups(name, named[name]).lr_scale for name in order]
    assert rates == sorted(rates)
    assert len(set(rates)) == len(rates)
    assert max(groups(n, p).lr_scale for n, p in named.items()) == pytest.approx(0.8)
    assert all(layer_decay(net, 1.0)(n, p).lr_scale == 1.0 for n, p in named.items())


def test_layer_decay_of_an_encoder_is_its_models():
    encoder = build_encoder("small_cnn", image_size=32)
    groups = layer_decay(encoder, 0.5)
    named = dict(encoder.named_parameters())
    rates = [
        groups(n, named[f"model.{n}"]).lr_scale for n in ("stem.0.weight", "blocks.0.bn1.bias", "blocks.1.bn2.weight")
    ]
    assert rates == [0.5**3, 0.5**2, 0.5**1]


def test_layer_decay_says_what_it_lacks():
    with pytest.raises(ValueError, match="Linear does not say"):
        layer_decay(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        layer_decay(timm.create_model("resnet18", num_classes=0), 1.5)
