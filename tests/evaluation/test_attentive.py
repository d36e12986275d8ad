"""The attentive probe: its block from the equations, V-JEPA's settings, and that it finds what a mean loses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selfsight.data.protocol import Source
from selfsight.encoders.build import build_encoder
from selfsight.evaluation import attentive as module
from selfsight.evaluation.attentive import Attentive, AttentiveHead, attentive
from selfsight.evaluation.evaluate import evaluate
from selfsight.evaluation.lesson import Lesson
from selfsight.method import Clock
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]
PLAIN = plain_view(16, None)


def test_the_head_is_the_papers_block() -> None:
    """Softmax over the tokens, head by head, written out."""
    head = AttentiveHead(128, 5, seed=3).double()
    assert head.attention.num_heads == 2
    with torch.no_grad():
        for p in head.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype), alpha=0.1)
    tokens = torch.randn(2, 7, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    weight, bias = head.attention.in_proj_weight, head.attention.in_proj_bias
    expected = []
    for image in tokens:
        given, query = normed(image, head.norm1), head.query[0, 0]
        q, k, v = (
            rows @ w.T + b for rows, w, b in zip((query, given, given), weight.chunk(3), bias.chunk(3), strict=True)
        )
        found = []
        for part in (slice(0, 64), slice(64, 128)):
            scores = k[:, part] @ q[part] / math.sqrt(64)
            found.append((scores.exp() / scores.exp().sum()) @ v[:, part])
        u = query + head.attention.out_proj(torch.cat(found))
        expected.append(head.linear(u + head.mlp(normed(u, head.norm2))))
    torch.testing.assert_close(head(tokens), torch.stack(expected))


def test_the_head_starts_small_and_by_its_seed() -> None:
    head = AttentiveHead(192, 10, seed=0)
    assert head.query.std().item() == pytest.approx(0.02, rel=0.2)
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.05)
    assert head.attention.out_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.05)
    assert all(not p.any() for name, p in head.named_parameters() if name.endswith("bias"))
    assert bool((head.norm1.weight == 1).all())
    state = torch.get_rng_state()
    again, other = AttentiveHead(192, 10, seed=0), AttentiveHead(192, 10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(head.query, again.query)
    assert not torch.equal(head.query, other.query)


def test_a_query_sees_every_token_and_no_order() -> None:
    head = AttentiveHead(64, 4, seed=0)
    tokens = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(head(tokens), head(tokens.flip(1)))
    (grad,) = torch.autograd.grad(head(tokens).square().sum(), tokens)
    assert bool(grad.abs().sum(-1).gt(0).all())


def test_the_settings_are_v_jepas(pictures: Make, encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    standard = Attentive(heads=1)
    assert (standard.epochs, standard.batch_size, standard.lr, standard.weight_decay) == (20, 1024, 1e-3, 1e-3)
    specs = []
    build = module.build_optimiser
    monkeypatch.setattr(module, "build_optimiser", lambda spec, given: specs.append(spec) or build(spec, given))
    lesson = Lesson(train=pictures(320), test=pictures(8, seed=1), crop=PLAIN, plain=PLAIN, classes=4, epochs=1)
    _, probe = attentive(encoder, lesson)
    assert probe.batch_size == 20  # sixteen updates an epoch
    (spec,) = specs
    ends = [Clock(step=step, steps=100, epoch=0, epochs=1) for step in (0, 100)]
    assert [spec.lr(clock) for clock in ends] == pytest.approx([1e-3, 0])
    assert [spec.weight_decay(clock) for clock in ends] == pytest.approx([1e-3, 1e-6])
    assert spec.clip == 1.0
    assert not spec.groups("norm1.weight", nn.Parameter(torch.ones(3))).decay


class Spread(nn.Module):
    """An encoder whose pooled feature says nothing, while each token has its place and how bright it is there."""

    width, stride, image_size = 17, 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("places", torch.eye(16))

    def dense(self, x: Tensor) -> Tensor:
        bright = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)
        tokens = torch.cat([self.places.expand(len(x), -1, -1), 5 * (bright[:, :, None] - 0.25)], dim=2)
        return (self.scale * tokens).transpose(1, 2).unflatten(2, (4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 17)


def test_it_finds_what_the_pooled_feature_lost_and_leaves_the_encoder_alone(pictures: Make) -> None:
    encoder = Spread().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    losses: list[float] = []
    lesson = Lesson(
        train=pictures(160),
        test=pictures(80, seed=1),
        crop=PLAIN,
        plain=PLAIN,
        classes=4,
        epochs=15,
        batch_size=32,
        lr=1e-2,
        progress=lambda clock, loss: losses.append(loss),
    )
    got, probe = attentive(encoder, lesson)
    assert losses[0] == pytest.approx(math.log(4), abs=0.05)
    assert got.top1 > 0.85
    assert (probe.epochs, probe.batch_size, probe.heads, len(losses)) == (15, 32, 1, 75)
    assert encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert attentive(encoder, lesson)[0] == got


def test_a_result_says_what_was_looked_at(pictures: Make) -> None:
    torch.manual_seed(0)
    vit = build_encoder("vit_tiny_patch16_224", image_size=16, patch_size=8, depth=1, embed_dim=24, num_heads=2)
    asked = {"protocols": ["attentive"], "epochs": 1, "batch_size": 32, "plain": PLAIN, "quiet": True}
    found = evaluate(vit, data=pictures(60), **asked)["attentive"]
    settings = found["settings"]
    assert (settings["feature"], settings["heads"], settings["epochs"], settings["batch_size"]) == ("patches", 1, 1, 32)
    assert set(found["baselines"]) == {"random", "pixels"}
    assert found["baselines"]["pixels"]["settings"]["protocol"] == "linear-lbfgs"
    assert "protocol" not in found["baselines"]["random"]["settings"]
