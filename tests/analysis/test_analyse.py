"""analyse: what it writes, for one encoder and for two side by side, and what a wrong call is told."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight import cli
from selfsight.analysis.analyse import analyse
from selfsight.analysis.pictures import coloured, principal
from selfsight.encoders.build import build_encoder
from selfsight.errors import UserError

GIVEN: dict[str, Any] = {"data": "world:100", "pictures": 4}


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
