"""analyse: what it writes, for one encoder and for two side by side, and what a wrong call is told."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import beit, swin_transformer, vision_transformer

from selfsight import cli
from selfsight.analysis.analyse import analyse, summary
from selfsight.analysis.pictures import coloured, principal
from selfsight.encoders.backbone import wrap
from selfsight.encoders.build import build_encoder
from selfsight.errors import UserError
from selfsight.recipes import catalogue

GIVEN: dict[str, Any] = {"data": "world:100", "pictures": 4}
ATTENTION = (vision_transformer.Attention, beit.Attention, swin_transformer.WindowAttention)


def vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)


def table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_one_encoder(tmp_path: Path) -> None:
    found = analyse([vit()], limit=18, out=tmp_path, batch_size=8, **GIVEN)
    assert found.images == 18
    names, *rows = table(tmp_path / "attention.csv")
    assert names == ["run", "layer", "head", "distance_pixels", "entropy_nats", "divergence_nats"]
    assert [row[1:3] for row in rows] == [[f"blocks.{i}.attn", str(h)] for i in range(2) for h in range(3)]
    heads = found.subjects[0].heads()["blocks.1.attn"]
    assert float(rows[4][3]) == pytest.approx(float(heads.distance[1]), rel=1e-5)
    assert [layer for _, layer in found.layers] == ["embedding", "blocks.0", "blocks.1"]
    square = table(tmp_path / "cka.csv")
    assert square[0][1:] == [f"vit_tiny_patch16_224/{layer}" for _, layer in found.layers]
    assert [float(square[i + 1][i + 1]) for i in range(3)] == [1, 1, 1]
    # 18 images in batches of 8, 8 and 2, or all at once: heads are counted by image, whatever the batch
    again = analyse([vit()], limit=18, out=tmp_path / "again", batch_size=18, **GIVEN)
    torch.testing.assert_close(again.subjects[0].heads()["blocks.1.attn"].entropy, heads.entropy)
    page = (tmp_path / "analysis.html").read_text()
    assert "18 images of world" in page
    assert "<script src" not in page
    for name in ("attention", "patches"):
        with Image.open(tmp_path / f"{name}-vit_tiny_patch16_224.png") as picture:
            assert min(picture.size) > 96


def test_two_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(1)
    swin = build_encoder("swin_tiny_patch4_window7_224", image_size=32, window_size=2)
    found = analyse([vit(), swin], limit=16, out=tmp_path, **GIVEN)
    runs = {row[0] for row in table(tmp_path / "attention.csv")[1:]}
    assert runs == {"vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"}
    assert found.alike.shape == (3 + 13, 3 + 13)
    assert not (tmp_path / "attention-swin_tiny_patch4_window7_224.png").exists()  # it has no class token

    same = analyse([vit(), vit()], limit=16, out=tmp_path / "same", **GIVEN)
    assert [s.name for s in same.subjects] == ["vit_tiny_patch16_224 (1)", "vit_tiny_patch16_224 (2)"]
    assert same.alike[:3, 3:].diagonal().tolist() == pytest.approx([1, 1, 1])
    other = analyse([vit(), vit(1)], limit=16, out=tmp_path / "other", **GIVEN)
    assert other.alike[:3, 3:].diagonal().max() < 0.999


def test_a_network_without_attention(tmp_path: Path) -> None:
    found = analyse([build_encoder("tiny_cnn", image_size=32)], limit=16, out=tmp_path, **GIVEN)
    assert [layer for _, layer in found.layers] == ["stem", "blocks.0", "blocks.1"]
    assert not (tmp_path / "attention.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"cka.csv", "analysis.html", "patches-tiny_cnn.png"}


@pytest.mark.parametrize("name", sorted(catalogue.cards()))
def test_every_recipes_encoder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder: Any = catalogue.tiny(name).method.encoder
    found = analyse([encoder], limit=8, out=tmp_path, **GIVEN)
    (studied,) = found.subjects
    assert len(found.layers) >= 2
    assert found.alike.isfinite().all()
    assert found.alike.diagonal().tolist() == pytest.approx([1] * len(found.layers))
    transformer = any(isinstance(module, ATTENTION) for module in encoder.modules())
    assert bool(studied.heads()) == transformer == (tmp_path / "attention.csv").exists()
    assert "patches" in studied.pictures


def test_a_convmae(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("convvit_tiny", image_size=32, widths=(8, 12, 16), depths=(1, 1, 2), heads=2)
    found = analyse([encoder], limit=8, out=tmp_path, batch_size=8, **GIVEN)
    assert [layer for _, layer in found.layers] == ["stage1.0", "stage2.0", "embedding", "blocks.0", "blocks.1"]
    inputs: list[torch.Tensor] = []
    block: Any = encoder.model.blocks[0]
    block.norm1.register_forward_hook(lambda module, given, y: inputs.append(y))
    analyse([encoder], limit=8, out=tmp_path / "again", batch_size=8, **{**GIVEN, "pictures": 0})
    q, k, _ = block.attn.qkv(inputs[-1].clone()).detach().view(8, 64, 3, 2, 8).permute(2, 0, 3, 1, 4).double()
    rows = (torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5).softmax(-1)
    at = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), -1).flatten(0, 1).double() * 4
    apart = (at[:, None] - at[None]).square().sum(-1).sqrt()
    heads = found.subjects[0].heads()["blocks.0.attn"]
    torch.testing.assert_close(heads.distance, (rows * apart).sum(-1).mean((0, 2)), rtol=1e-5, atol=0)
    torch.testing.assert_close(heads.entropy, -(rows * rows.log()).sum(-1).mean((0, 2)), rtol=1e-5, atol=0)
    between = (rows * (rows.log() - rows.flip(1).log())).sum(-1).mean((0, 2))
    torch.testing.assert_close(heads.divergence, between, rtol=1e-3, atol=1e-8)


def test_a_network_that_names_no_stages(tmp_path: Path) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    encoder: Any = wrap(net, 8, dense=net[:2], stride=4)
    encoder.image_size = 32
    found = analyse([encoder], limit=8, out=tmp_path, **GIVEN)
    assert [layer for _, layer in found.layers] == ["0", "1", "2", "3", "output"]
    (line,) = summary(found)
    assert line == "Sequential: no attention to look at; layers compared: 0, 1, 2, 3, output"


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    """Transformers in transformers: the inner ones are over pixels of one patch."""
    found = analyse(["timm:tnt_s_patch16_224"], limit=4, out=tmp_path, image_size=64, **GIVEN)
    first, *rest = summary(found)
    assert first == "tnt_s_patch16_224: 12 more layers of attention, not of patches to patches, are left out"
    assert len(rest) == 12


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["timm:vit_tiny_patch16_224", "--image-size", "32", "--data", "world:100", "--limit", "8"]
    monkeypatch.setattr(sys, "argv", ["selfsight", "analyse", *words, "--out", str(tmp_path), "--device", "cpu"])
    cli.main()
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("vit_tiny_patch16_224  blocks.0.attn")
    assert last == str(tmp_path / "analysis.html")


def test_wrong_calls_get_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one run or two side by side, not 3"):
        analyse([vit()] * 3, out=tmp_path)
    with pytest.raises(UserError, match="4 images or more; --limit is 2"):
        analyse([vit()], limit=2, out=tmp_path)
    with pytest.raises(UserError, match="vit_tiny_patch17"):
        analyse(["timm:vit_tiny_patch17"], out=tmp_path, **GIVEN)
    for name, size in (("coat_tiny", 64), ("crossvit_tiny_240", 240)):
        with pytest.raises(
            UserError, match=f"^{name} gives no feature map: forward_features gives no tensor but a list$"
        ):
            analyse([f"timm:{name}"], out=tmp_path, image_size=size, **GIVEN)


def test_colours() -> None:
    heat = coloured(torch.tensor([[[0.0, 1.0]]]))
    assert heat[0, :, 0, 0].tolist() == [0, 0, 4]
    assert heat[0, :, 0, 1].tolist() == [252, 255, 164]
    rng = np.random.default_rng(0)
    plane = torch.from_numpy(rng.normal(size=(2, 3, 16, 16)))
    wide = torch.einsum("bdyx,dk->bkyx", plane * torch.tensor([9.0, 3, 1])[:, None, None], torch.eye(3, 8).double())
    colours = principal(wide).double()
    for k in range(3):  # red is the strongest direction, green the next
        assert abs(np.corrcoef(colours[:, k].flatten(), plane[:, k].flatten())[0, 1]) > 0.95
