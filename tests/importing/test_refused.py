"""What is no checkpoint, or not wholly understood, is refused in one line; a hostile one is not executed."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from published import weights, written
from safetensors.torch import save_file

import selfsight
from selfsight.importing.layouts import LAYOUTS, find_layout
from selfsight.importing.reading import read_checkpoint


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluates:
    def __reduce__(self):
        return eval, ("open('executed', 'w')",)


def refused(path: Path, **options) -> str:
    """The one line; nothing is written."""
    with pytest.raises(selfsight.errors.UserError) as caught:
        selfsight.import_checkpoint(path, out=path.parent / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (path.parent / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["args", "model"])
def test_a_hostile_pickle_is_not_executed(place, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for hostile, name in ((Hostile("touch executed"), "system"), (Evaluates(), "eval")):
        content = {"model": weights("mae"), place: hostile}
        if place == "model":
            content["model"] = weights("mae") | {"norm.weight": hostile}
        torch.save(content, "hostile.pth", _use_new_zipfile_serialization=not legacy)
        assert name in refused(Path("hostile.pth"), layout="mae")
        assert "which loading would execute" in refused(Path("hostile.pth"))
    assert not Path("executed").exists()


def test_settings_are_not_made_either(tmp_path):
    content = read_checkpoint(written("mae", tmp_path))
    assert type(content["args"]).__module__ == "selfsight.importing.reading"
    assert not vars(content["args"])
    assert type(read_checkpoint(written("simmim_vit", tmp_path))["config"]).__name__ == "OrderedDict"


def test_a_program_is_told_apart(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/code/model.py", b"")
    assert "torch.jit.load('ViT-B-32.pt').state_dict()" in refused(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is no checkpoint"),
        (b"\x80\x02garbage", "is no checkpoint"),
        ([torch.zeros(2)], "holds a list"),
        ({}, "holds no state dict: it has nothing"),
        ({"epoch": 3, "loss": 0.5}, "it has epoch, loss"),
        ({"model": {"layer.weight": torch.zeros(2)}}, "holds no backbone that is known .* it holds layer"),
    ],
)
def test_what_is_no_checkpoint(content, line, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=line):
        selfsight.import_checkpoint(path, out=tmp_path / "run")


def test_what_is_no_file(tmp_path):
    assert "there is no file" in refused(tmp_path / "none.pth")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    assert "cannot read" in refused(tmp_path / "cut.safetensors")


def saved(state: dict, folder: Path) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def flat(case: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix("backbone."): v for k, v in weights(case).items() if k.startswith("backbone.")}


def test_a_plain_vit_does_not_tell_whose_it_is(tmp_path):
    path = saved(flat("dino"), tmp_path)
    line = refused(path)
    assert "mae and ibot and dino and mocov3 write a ViT so" in line
    assert "it holds blocks, cls_token, norm, patch_embed, pos_embed" in line
    assert "give --layout mae or ibot or dino or mocov3" in line
    assert selfsight.import_checkpoint(path, out=tmp_path / "run", layout="dino").imported["layout"] == "dino"


@pytest.mark.parametrize(
    ("case", "options", "line"),
    [
        ("mae", {}, "no tensor tells the heads of a ViT, and MAE has none of width 48"),
        ("mae", {"heads": 5}, "--heads is 5, which does not divide the width 48"),
        ("mae", {"heads": 0}, "--heads is 0; it must be at least 1"),
        ("mae", {"layout": "dino"}, "has not the layout dino: it holds decoder_embed.bias, which is mae's"),
        ("mae", {"which": "teacher", "heads": 4}, "holds one set of weights"),
        ("mae", {"activation": "gelu", "heads": 4}, "--activation is CLIP's"),
        ("beit", {"heads": 4}, "the table of relative positions has 3"),
        ("beit_tuned", {}, "simmim and beit write a BEiT's ViT so"),
        ("beit_tuned", {"layout": "beit", "pool": "token"}, "the checkpoint's last norm is of the mean"),
        ("simmim_swin", {"pool": "mean"}, "--heads and --pool are for vision transformers"),
        ("simmim_swin", {"layout": "beit"}, "has not the layout beit: it holds encoder."),
    ],
)
def test_what_cannot_be(case, options, line, tmp_path):
    assert line in refused(written(case, tmp_path), **options)


@pytest.mark.parametrize(
    ("case", "change", "line"),
    [
        ("mae", {"extra.weight": torch.ones(2)}, "holds 1 tensor that vit_small_patch8_224 has not: extra.weight"),
        ("mae", {"norm.weight": None}, "holds none for 1 tensor of vit_small_patch8_224: norm.weight"),
        ("mae", {"norm.weight": torch.ones(5)}, "norm.weight has the shape [5], but vit_small_patch8_224 takes [48]"),
        ("mae", {"norm.weight": torch.full((48,), torch.nan)}, "numbers that are not finite in 1 tensor: norm.weight"),
        ("mae", {"pos_embed": None}, "the checkpoint's pos_embed is missing"),
        ("mae", {"pos_embed": torch.ones(1, 7, 48)}, "6 positions, which are no square grid"),
        ("dino", {"other.weight": torch.ones(2)}, "1 tensor that layout dino does not know: other.weight"),
        ("clip", {"visual.class_embedding": None}, "vision transformers with a class token are read"),
        ("simmim_swin", {"encoder.layers.0.blocks.1.attn_mask": None}, "give --image-size"),
    ],
)
def test_every_tensor_must_have_its_place(case, change, line, tmp_path):
    state = {key: tensor for key, tensor in (weights(case) | change).items() if tensor is not None}
    heads = {"mae": 4, "clip": 2}.get(case)
    activation = "gelu" if case == "clip" else None
    assert line in refused(saved(state, tmp_path), heads=heads, activation=activation)


def test_a_layout_that_is_none():
    with pytest.raises(ValueError, match="unknown layout 'maee'; did you mean 'mae'"):
        find_layout({"cls_token"}, "maee", "file.pth")


def test_clip_does_not_tell_its_activation(tmp_path):
    assert "--activation quickgelu" in refused(saved(weights("clip"), tmp_path), heads=2)


def test_another_run_is_kept(tmp_path):
    path = written("mae", tmp_path)
    run = selfsight.import_checkpoint(path, out=tmp_path / "run", heads=4)
    before = (run.path / "encoder.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds another run; delete it by --overwrite"):
        selfsight.import_checkpoint(path, out=run.path, heads=3)
    with pytest.raises(ValueError, match="does not divide"):
        selfsight.import_checkpoint(path, out=run.path, heads=5, overwrite=True)
    assert (run.path / "encoder.safetensors").read_bytes() == before
    selfsight.import_checkpoint(path, out=run.path, heads=3, overwrite=True)
    assert (run.path / "encoder.json").exists()


def test_the_names_are_those_of_the_command() -> None:
    from typing import get_args  # noqa: PLC0415

    from selfsight.importing.layouts import SCALES, Name, Scale  # noqa: PLC0415

    assert set(get_args(Name)) == LAYOUTS.keys()
    assert set(get_args(Scale)) == SCALES.keys()
