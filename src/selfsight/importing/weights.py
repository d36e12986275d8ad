"""Official keys as timm's, by timm's own filters where it has one; loaded strictly."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfsight.encoders.backbone import Backbone
from selfsight.encoders.build import build_encoder
from selfsight.errors import UserError
from selfsight.importing.layouts import Kind
from selfsight.importing.parts import counted, few
from selfsight.importing.shapes import Shape

State = Mapping[str, Tensor]
SHARED = "rel_pos_bias.relative_position_bias_table"
"""The one table of all blocks that BEiT and SimMIM pretrain with."""
_HUGGING_FACE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
"""transformers' CLIPModel against OpenAI's."""


def official(kind: Kind, state: State) -> dict[str, Tensor]:
    """The state dict as the official code has it, in 32 bits: CLIP's is half, and Hugging Face renames it."""
    full = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    broken = [key for key, tensor in full.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"the checkpoint is broken: there are numbers that are not finite in {counted(broken)}: {few(broken)}"
        )
    return _of_openai(full) if kind == "clip" and any(key.startswith("vision_model.") for key in full) else full


def _of_openai(state: State) -> dict[str, Tensor]:
    """Hugging Face's CLIP under OpenAI's names, queries, keys and values in one matrix."""
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for theirs, ours in _HUGGING_FACE.items():
            key = key.replace(theirs, ours)  # noqa: PLW2901
        stem, middle, end = key.partition(".self_attn.q_proj.")
        if middle:
            parts = [state.get(_theirs(stem, f"{part}_proj.{end}")) for part in "qkv"]
            out[f"{stem}.attn.in_proj_{end}"] = torch.cat([part for part in parts if part is not None])
        elif ".self_attn.k_proj." not in key and ".self_attn.v_proj." not in key:
            out[key] = tensor
    return out


def _theirs(stem: str, end: str) -> str:
    return f"{stem.replace('visual.transformer.resblocks.', 'vision_model.encoder.layers.')}.self_attn.{end}"


def build(kind: Kind, shape: Shape, state: State) -> Backbone:
    """The encoder with the checkpoint's weights, in evaluation mode; random numbers elsewhere go on as they were."""
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(shape.name, image_size=shape.image_size, channels=shape.channels, **shape.options)
    model: Any = encoder.model
    weights = _as_timm(kind, state, model)
    wanted = model.state_dict()
    strange = [key for key in weights if key not in wanted]
    missing = [key for key in wanted if key not in weights]
    if strange or missing:
        told = [f"{counted(strange)} that {shape.name} has not: {few(strange)}"] * bool(strange)
        told += [f"none for {counted(missing)} of {shape.name}: {few(missing)}"] * bool(missing)
        raise UserError(f"the checkpoint holds {' and '.join(told)}")
    for key, tensor in weights.items():
        if tensor.shape != wanted[key].shape:
            shapes = f"{list(tensor.shape)}, but {shape.name} takes {list(wanted[key].shape)}"
            raise UserError(f"the checkpoint's {key} has the shape {shapes}")
    model.load_state_dict(weights, strict=True)
    return encoder.eval()


def _as_timm(kind: Kind, state: State, model: nn.Module) -> dict[str, Tensor]:
    state = dict(state)
    if kind == "resnet":  # timm's names are torchvision's
        return state
    if kind == "beit" and SHARED in state:  # one for each block, as both codes fine-tune
        if any(key.endswith(".attn.relative_position_bias_table") for key in state):
            raise UserError("the checkpoint has a table of positions for all blocks and one for each; no such is known")
        table = state.pop(SHARED)
        depth = len(model.get_submodule("blocks"))  # pyright: ignore[reportArgumentType]
        state |= {f"blocks.{i}.attn.relative_position_bias_table": table.clone() for i in range(depth)}
    rename = sys.modules[type(model).__module__].checkpoint_filter_fn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, of how it interpolates tables of positions
        return rename(state, model, **({"adapt_layer_scale": True} if kind == "vit" else {}))
