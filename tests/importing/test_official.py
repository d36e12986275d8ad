"""Imported encoders against the features of the official models, and what is said of what was left out."""

from pathlib import Path

import pytest
import torch
import torchvision
from published import CASES, images, mocov3, parallel, weights, written
from recorded import same
from safetensors.torch import save_file
from torch import Tensor

import selfsight
from selfsight.engine.run import OpenRun

HEADS = {"mae": 4, "ibot": 3, "ibot_scaled": 3, "clip": 2}
"""Of the small models, whose widths were never published."""
IMPORTS = [
    ("mae", "token", {}),
    ("mae", "mean", {"pool": "mean"}),
    ("dino", "token", {}),
    ("dino", "mean", {"pool": "mean"}),
    ("ibot", "token", {}),
    ("ibot_scaled", "token", {}),
    ("ibot_scaled", "mean", {"pool": "mean"}),
    ("simmim_vit", "mean", {}),
    ("simmim_tuned", "mean", {"layout": "simmim"}),
    ("simmim_swin", "mean", {}),
    ("beit", "mean", {}),
    ("beit", "token", {"pool": "token"}),
    ("beit_tuned", "mean", {"layout": "beit"}),
    ("clip", "token", {}),
]


def brought(path: Path, case: str = "", **options) -> OpenRun:
    """The run; what the small models need is told unless it is."""
    told = {"heads": HEADS.get(case)} | options
    return selfsight.import_checkpoint(path, out=path.parent / "run", **told)


def features(run: OpenRun, x: Tensor) -> Tensor:
    encoder = selfsight.load(run.path).double()
    assert not encoder.training
    with torch.no_grad():
        return encoder(x)


@pytest.mark.parametrize(("case", "what", "options"), IMPORTS)
def test_its_features_are_the_official_models(case, what, options, tmp_path):
    run = brought(written(case, tmp_path), case, **options)
    expected = torch.tensor(CASES[case][what])
    same(features(run, images(case))[:, : expected.shape[1]], CASES[case][what], rtol=1e-6)


def test_a_swins_map_lies_as_the_official_models(tmp_path):
    encoder = selfsight.load(brought(written("simmim_swin", tmp_path)).path).double()
    with torch.no_grad():
        same(encoder.dense(images("simmim_swin"))[:, :3].flatten(1)[:, :48], CASES["simmim_swin"]["map"], rtol=1e-6)


def test_moco_v3_has_two_encoders(tmp_path):
    path = written("mocov3", tmp_path)
    same(features(brought(path, heads=3), images("dino"))[:, :12], CASES["dino"]["token"], rtol=1e-6)
    momentum = features(brought(path, heads=3, which="teacher", overwrite=True), images("dino"))
    torch.testing.assert_close(
        momentum, features(brought(written("dino", tmp_path), which="student", overwrite=True), images("dino"))
    )


def test_the_student_is_there_too(tmp_path):
    path = written("dino", tmp_path)
    teacher = features(brought(path), images("dino"))
    student = features(brought(path, which="student", overwrite=True), images("dino"))
    assert (teacher - student).abs().max() > 0.1
    path = tmp_path / "alone.pth"
    torch.save({"teacher": weights("dino", 8)}, path)
    torch.testing.assert_close(features(brought(path, overwrite=True), images("dino")), student)


def of_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's CLIP under the names of transformers' CLIPModel."""
    place = "vision_model."
    out = {
        f"{place}embeddings.class_embedding": state["visual.class_embedding"],
        f"{place}embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        f"{place}embeddings.position_embedding.weight": state["visual.positional_embedding"],
        f"{place}embeddings.position_ids": torch.arange(17)[None],
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "logit_scale": state["logit_scale"],
    }
    for end in ("weight", "bias"):
        out[f"{place}pre_layrnorm.{end}"] = state[f"visual.ln_pre.{end}"]
        out[f"{place}post_layernorm.{end}"] = state[f"visual.ln_post.{end}"]
        for i in range(2):
            old, new = f"visual.transformer.resblocks.{i}", f"{place}encoder.layers.{i}"
            for part, piece in zip("qkv", state[f"{old}.attn.in_proj_{end}"].chunk(3), strict=True):
                out[f"{new}.self_attn.{part}_proj.{end}"] = piece
            out[f"{new}.self_attn.out_proj.{end}"] = state[f"{old}.attn.out_proj.{end}"]
            for theirs, ours in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                out[f"{new}.{ours}.{end}"] = state[f"{old}.{theirs}.{end}"]
            for theirs, ours in (("c_fc", "fc1"), ("c_proj", "fc2")):
                out[f"{new}.mlp.{ours}.{end}"] = state[f"{old}.mlp.{theirs}.{end}"]
    return {key: tensor.contiguous() for key, tensor in out.items()}


def test_clip_by_hugging_face_is_openais(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(of_hugging_face(weights("clip")), path)
    quick = features(brought(path, "clip", activation="quickgelu"), images("clip"))
    same(quick[:, :12], [row[:12] for row in CASES["clip"]["token"]], rtol=1e-6)
    other = features(brought(path, "clip", activation="gelu", overwrite=True), images("clip"))
    assert (other - quick).abs().max() > 1e-3


def test_clip_in_half_precision(tmp_path):
    path = tmp_path / "clip.pth"
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights("clip").items()}
    torch.save(parallel(half), path)
    run = brought(path, "clip", activation="quickgelu")
    assert all(p.dtype == torch.float32 for p in selfsight.load(run.path).parameters())
    same(features(run, images("clip"))[:, :12], [row[:12] for row in CASES["clip"]["token"]], rtol=3e-2)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("resnet18", "dino"), pytest.param("resnet50", "mocov3", marks=pytest.mark.slow)],
)
def test_resnets_are_torchvisions(name, layout, tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    state, path = model.state_dict(), tmp_path / "checkpoint.pth.tar"
    if layout == "dino":
        content = {"teacher": parallel({f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")})}
        content["dino_loss"] = {"center": torch.zeros(1, 3)}
    else:
        base = {f"base_encoder.{k.replace('fc.', 'fc.0.')}": v for k, v in state.items()}
        content = {"state_dict": parallel({**base, "predictor.0.weight": torch.ones(2, 2)}), "arch": name}
    torch.save(content, path)
    run = brought(path, image_size=64)
    model.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        torch.testing.assert_close(selfsight.load(run.path)(x), expected, rtol=1e-5, atol=1e-5)
    assert run.settings["resolved"]["backbone"] == name
    assert run.plain.interpolation == ("bicubic" if layout == "dino" else "bilinear")


def test_what_is_left_out_is_named_and_counted(tmp_path):
    run = brought(written("mae", tmp_path), "mae")
    state, parts = weights("mae"), {left["part"]: left for left in run.imported["left_out"]}
    decoder = [tensor for key, tensor in state.items() if key.startswith("decoder_")]
    assert (parts["decoder"]["tensors"], parts["decoder"]["numbers"]) == (len(decoder), sum(x.numel() for x in decoder))
    assert parts["decoder"]["keys"] == [
        "decoder_blocks",
        "decoder_embed",
        "decoder_norm",
        "decoder_pos_embed",
        "decoder_pred",
    ]
    assert parts["mask token"]["tensors"] == parts["optimizer"]["tensors"] == 1
    assert {"args", "epoch"} <= parts.keys()
    kept = sum(p.numel() for p in selfsight.load(run.path).parameters())
    assert kept + sum(left["numbers"] for left in parts.values()) == sum(x.numel() for x in state.values()) + 3


def test_nothing_of_two_networks_is_lost(tmp_path):
    moco = brought(written("mocov3", tmp_path), heads=3)
    parts, state = {left["part"]: left["tensors"] for left in moco.imported["left_out"]}, mocov3()
    assert parts["momentum encoder"] == sum(key.startswith("module.momentum_encoder.") for key in state)
    assert parts["predictor"] == sum(key.startswith("module.predictor.") for key in state)
    other = brought(written("ibot", tmp_path), "ibot", overwrite=True)
    parts = {left["part"]: left["tensors"] for left in other.imported["left_out"]}
    assert parts["student"] == len(weights("ibot"))
    assert parts["mask token"] == 1
    assert "ibot_loss" in parts


def test_one_table_of_positions_becomes_every_blocks(tmp_path):
    encoder = selfsight.load(brought(written("beit", tmp_path)).path)
    table = weights("beit")["rel_pos_bias.relative_position_bias_table"]
    assert all(torch.equal(block.attn.relative_position_bias_table.detach(), table) for block in encoder.model.blocks)
