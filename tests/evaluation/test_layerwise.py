"""A probe behind every stage: which stages there are, what a probe is given, and that each learns by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from selfsight.data.protocol import Source
from selfsight.encoders.backbone import Backbone
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import Encoder
from selfsight.evaluation import layerwise as module
from selfsight.evaluation.evaluate import evaluate
from selfsight.evaluation.layerwise import Layerwise, classifier, layerwise, maps_of, pooled, stages, watched
from selfsight.evaluation.lesson import Lesson
from selfsight.views.pipelines import plain_view

Make = Callable[..., Source]
PLAIN = plain_view(16, None)
CONVVIT: dict[str, Any] = {"widths": (8, 12, 16), "heads": 2}


@pytest.fixture
def net() -> Backbone:
    torch.manual_seed(0)
    return build_encoder("tiny_cnn", image_size=16)


def test_stages_are_those_that_the_encoder_names(net: Backbone, encoder: Encoder) -> None:
    assert list(stages(net)) == ["stem", "blocks.0", "blocks.1"]
    resnet = build_encoder("resnet18", image_size=32)
    assert list(stages(resnet)) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    vit = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=3)
    assert list(stages(vit)) == ["blocks.0", "blocks.1", "blocks.2"]
    convvit = build_encoder("convvit_tiny", image_size=32, depths=(2, 1, 2), **CONVVIT)
    assert list(stages(convvit)) == ["stage1.1", "stage2.0", "blocks.0", "blocks.1"]
    dalle = build_encoder("dalle_nano", image_size=32)
    assert list(stages(dalle)) == ["blocks.input", "blocks.group_1", "blocks.group_2", "blocks.group_3"]
    amdim = build_encoder("amdim_nano", image_size=32)
    assert list(stages(amdim)) == ["stem", "blocks.0", "blocks.1", "blocks.2", "middle", "top"]
    assert list(stages(encoder)) == ["conv", "norm", "output"]  # it names none


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("dalle_nano", [64, 32, 16, 16]),
        ("mvitv2_tiny", [16, 8, 4, 2, 1]),  # feature_info names modules that are not there; stages give pairs
        ("twins_svt_small", [16] * 2 + [8] * 2 + [4] * 10 + [2] * 4 + [1]),  # lists in lists, no feature_info
        ("convit_tiny", [4] * 12),  # its class token is there in the last two blocks only
    ],
)
def test_any_network_has_maps(name: str, sides: list[int]) -> None:
    made, found = build_encoder(name, image_size=64).eval(), dict[str, int]()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), maps_of(made, stages(made), lambda stage, y: found.update({stage: y.shape[-1]})):
        made(x)
    assert list(found) == list(stages(made))
    assert list(found.values()) == sides


def test_of_several_tensors_that_of_the_images_is_taken() -> None:
    made, shapes = build_encoder("tnt_s_patch16_224", image_size=64, depth=1).eval(), list[torch.Size]()
    with torch.no_grad(), maps_of(made, stages(made), lambda stage, y: shapes.append(y.shape)):
        made(torch.randn(2, 3, 64, 64))
    assert shapes == [(2, 384, 4, 4)]  # and not the pixels of 32 patches


def test_a_convmaes_stages_learn(pictures: Make) -> None:
    torch.manual_seed(0)
    made = build_encoder("convvit_tiny", image_size=16, depths=(1, 1, 2), **CONVVIT)
    data = pictures(120)
    found = evaluate(made, data=data, protocols=["layerwise"], epochs=2, batch_size=32, plain=PLAIN)["layerwise"]
    names = {key for key in found["scores"] if key.startswith("layer ")}
    assert names == {"layer stage1.0", "layer stage2.0", "layer blocks.0", "layer blocks.1"}


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_probe_is_given_its_stages_map(name: str) -> None:
    torch.manual_seed(0)
    made = build_encoder(name, image_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), watched(made) as rows:
        made(x)
        wanted = made.model.forward_intermediates(x, norm=False, intermediates_only=True)
        made(x)
    assert len(rows) == len(wanted) > 3
    for row, image in zip(rows.values(), wanted, strict=True):
        assert row.shape[1] <= 9_600
        torch.testing.assert_close(row, pooled(image))
    kept = {key: value.clone() for key, value in rows.items()}
    made(torch.zeros_like(x))  # nothing listens any more
    assert all(torch.equal(kept[key], rows[key]) for key in kept)


def test_pooling_keeps_the_greatest_of_each_cell() -> None:
    x = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    assert torch.equal(pooled(x, 3 * 4 * 4), x[:, :, 1::2, 1::2].flatten(1))
    assert torch.equal(pooled(x, 10**6), x.flatten(1))
    assert pooled(x, 1).shape == (2, 3)


def test_the_classifier_is_the_papers() -> None:
    norm, linear = classifier(512, 100)
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.affine
    assert linear.weight.abs().max().item() == pytest.approx((6 / 612) ** 0.5, rel=0.01)
    assert linear.bias.abs().max() == 0
    assert Layerwise() == Layerwise(epochs=36, batch_size=192, lr=0.01, most=9_600)


def test_every_stage_learns_and_the_encoder_stands_still(net: Backbone, pictures: Make) -> None:
    before = {key: value.clone() for key, value in net.state_dict().items()}
    given = Lesson(
        train=pictures(160), test=pictures(80, seed=1), crop=PLAIN, plain=PLAIN, classes=4, epochs=12, batch_size=32
    )
    found, probe = layerwise(net, given)
    assert list(found) == ["stem", "blocks.0", "blocks.1"]
    assert min(each.top1 for each in found.values()) > 0.5  # of four classes
    assert (probe.epochs, probe.batch_size) == (12, 32)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert found == layerwise(net, given)[0]


def test_a_probe_alone_learns_as_beside_the_others(
    net: Backbone, pictures: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Lesson(
        train=pictures(96), test=pictures(80, seed=1), crop=PLAIN, plain=PLAIN, classes=4, epochs=3, batch_size=32
    )
    both, _ = layerwise(net, given)
    first = stages(net)["stem"]
    monkeypatch.setattr(module, "stages", lambda encoder: {"stem": first})
    alone, _ = layerwise(net, given)
    assert alone["stem"] == both["stem"]


def test_the_table_has_a_row_for_each_stage(net: Backbone, pictures: Make, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(120)
    found = evaluate(net, data=data, protocols=["layerwise"], epochs=2, batch_size=32, plain=PLAIN)["layerwise"]
    scores = found["scores"]
    assert {key for key in scores if key.startswith("layer ")} == {"layer stem", "layer blocks.0", "layer blocks.1"}
    assert scores["layer blocks.1"] == scores["top1"]
    assert found["settings"]["epochs"] == 2
    assert "layer stem" in found["baselines"]["random"]
    assert "layer stem" not in found["baselines"]["pixels"]
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if line.startswith("top-1 behind")]
    assert head.split() == ["top-1", "behind", "trained", "random", "encoder"]
    (row,) = [line for line in lines if line.startswith("layer stem")]
    assert f"{100 * scores['layer stem']:.1f} %" in row
