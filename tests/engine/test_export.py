"""Exports come back to 1e-5 through each program's own front door, and refuse in one line what has no counterpart."""

import builtins
import json
import re
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from torch import nn

from selfsight.encoders.backbone import wrap
from selfsight.encoders.build import build_encoder
from selfsight.encoders.store import load_encoder, save_encoder
from selfsight.engine.export import _story, export
from selfsight.parts.batchnorm import set_scope_

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
NORMALISE = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}


def trained(name: str, **options: object) -> nn.Module:
    """An encoder with statistics that are not the initial ones."""
    torch.manual_seed(0)
    encoder = build_encoder(name, **{"image_size": 32, **options})
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm's residual branches begin at zero
    return encoder


def images(encoder: nn.Module, n: int = 3) -> torch.Tensor:
    shape = (n, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def features(encoder: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(images(encoder))


def agree(got: torch.Tensor, expected: torch.Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-5)


def readme_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Runs what the README tells a stranger to run."""
    monkeypatch.chdir(folder)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    names: dict[str, object] = {}
    exec(code.replace("PATH_OF_THIS_FOLDER", str(folder)), names)
    return names["model"].eval()


EXPORTS = [
    ("timm", "resnet10t", {"channels": 2}),
    ("timm", "resnet10t", {"image_size": 64, "small_stem": False}),
    ("timm", "vit_tiny_patch16_224", {"image_size": 48, **VIT}),
    ("torchvision", "resnet18", {}),
    ("torchvision", "resnet18", {"image_size": 64, "small_stem": False, "channels": 4}),
    ("huggingface", "resnet10t", {"image_size": 64, "small_stem": False, "channels": 2}),
    ("huggingface", "vit_tiny_patch16_224", {"image_size": 48, **VIT}),
]


@pytest.mark.parametrize(("form", "name", "options"), EXPORTS)
def test_the_readme_gives_the_encoder_back(form, name, options, tmp_path, monkeypatch):
    encoder = trained(name, **options)
    normalise = NORMALISE if encoder.channels == 3 else None
    save_encoder(encoder, tmp_path, method="simclr", normalise=normalise)
    folder = export(tmp_path, form)
    assert folder == tmp_path / "export" / form
    with torch.no_grad():
        agree(readme_model(folder, monkeypatch)(images(encoder)), features(encoder))
    text = (folder / "README.md").read_text()
    assert "simclr" in text
    assert ("[0.5, 0.4, 0.3]" in text) == (normalise is not None)
    assert ("adapt_stem" in text) == (options.get("small_stem") is None and name.startswith("resnet"))


def test_a_hub_folder_says_how_images_are_normalised(tmp_path):
    save_encoder(trained("vit_tiny_patch16_224", **VIT), tmp_path / "run", normalise=NORMALISE)
    folder = export(tmp_path / "run", "huggingface", tmp_path / "hub")
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert (list(config["mean"]), list(config["std"])) == (NORMALISE["mean"], NORMALISE["std"])
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_cnn", {"channels": 2}),
        pytest.param("vit_tiny_patch16_224", VIT, marks=pytest.mark.slow),
        pytest.param("resnet50", {"image_size": 64, "small_stem": False}, marks=pytest.mark.slow),
    ],
)
def test_onnx_takes_any_batch(name, options, tmp_path):
    encoder = trained(name, **options).train()
    set_scope_(encoder, "all")  # as a run leaves it
    path = export(encoder, "onnx", tmp_path / "net.onnx")
    assert path == tmp_path / "net.onnx"
    assert encoder.training
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = features(encoder)
    for n in (1, 3):
        (got,) = session.run(["features"], {"images": images(encoder)[:n].numpy()})
        agree(torch.from_numpy(got), expected[:n])


def test_an_export_is_a_backbone_to_begin_with(tmp_path):
    encoder = trained("vit_tiny_patch16_224", **VIT)
    folder = export(encoder, "huggingface", tmp_path / "hub")
    begun = build_encoder(f"local-dir:{folder}", image_size=32, pretrained=True)
    agree(features(begun), features(encoder))
    assert (begun.name, begun.arguments) == (encoder.name, encoder.arguments)
    save_encoder(begun, tmp_path / "run")
    (folder / "config.json").unlink()
    agree(features(load_encoder(tmp_path / "run")), features(encoder))


def test_own_files_keep_their_facts(tmp_path):
    encoder = trained("small_cnn")
    save_encoder(encoder, tmp_path / "run", method="byol")
    folder = export(tmp_path / "run", "safetensors", tmp_path / "copy")
    agree(features(load_encoder(folder)), features(encoder))
    read = [json.loads((tmp_path / place / "encoder.json").read_text()) for place in ("run", "copy")]
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("form", "name", "options", "line"),
    [
        ("timm", "small_cnn", {}, "small_cnn has no counterpart in timm; use --format onnx"),
        ("huggingface", "small_cnn", {}, "small_cnn has no counterpart"),
        ("torchvision", "vit_tiny_patch16_224", VIT, "no counterpart in torchvision"),
        ("torchvision", "resnet10t", {}, "no counterpart in torchvision"),
        ("huggingface", "resnet10t", {}, "stem for small images; use --format timm"),
        ("pickle", "small_cnn", {}, "pickle"),
    ],
)
def test_what_has_no_counterpart_is_refused(form, name, options, line, tmp_path):
    with pytest.raises((ValueError, TypeError), match=line):
        export(trained(name, **options), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_module_of_ones_own_does_not_say_its_image_size(tmp_path):
    with pytest.raises(ValueError, match="does not say its image size"):
        export(wrap(nn.Flatten(), 12), "onnx", tmp_path)


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name: str, *rest: object):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return real(name, *rest)

    encoder = trained("small_cnn")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs onnxruntime; pip install 'selfsight\[onnx\]'"):
        export(encoder, "onnx", tmp_path)


def test_an_export_that_computes_otherwise_is_caught(tmp_path):
    encoder = trained("resnet18")
    encoder.model.act1 = nn.Identity()  # what a state dict cannot tell
    with pytest.raises(RuntimeError, match="differs from the encoder"):
        export(encoder, "timm", tmp_path)


def test_the_story_says_what_grey_an_encoder_takes() -> None:
    encoder = build_encoder("resnet18", image_size=224)
    facts = {"method": "colorization", "grey": True, "greyscale": "lightness"}
    assert "Takes RGB images of 224 px, as CIE Lab lightness / 100, three times over, in [0, 1]" in _story(
        encoder, facts
    )
    assert ", as ITU-R 601's luma, three times over" in _story(encoder, {"grey": True})
    assert ", as" not in _story(encoder, {})
