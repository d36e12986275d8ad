"""Which timm model a backbone is, read from its tensors: widths, depth, patch, positions, and heads where they tell."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from selfsight.errors import UserError
from selfsight.importing.layouts import Activation, Kind, Layout, Pool

State = Mapping[str, Tensor]


class Asked(NamedTuple):
    """What the call says of what tensors cannot tell; None where it says nothing."""

    heads: int | None = None
    image_size: int | None = None
    pool: Pool | None = None
    activation: Activation | None = None


class Shape(NamedTuple):
    """What ``build_encoder`` is told."""

    name: str
    image_size: int
    channels: int
    options: dict[str, Any]
    native_size: int
    """Of the images that the checkpoint was trained on, in pixels."""


VITS = {
    "vit_tiny_patch16_224": (16, 192, 12, 3),
    "vit_small_patch16_224": (16, 384, 12, 6),
    "vit_small_patch8_224": (8, 384, 12, 6),
    "vit_base_patch16_224": (16, 768, 12, 12),
    "vit_base_patch8_224": (8, 768, 12, 12),
    "vit_large_patch16_224": (16, 1024, 24, 16),
    "vit_huge_patch14_224": (14, 1280, 32, 16),
}
BEITS = {"beit_base_patch16_224": (16, 768, 12, 12), "beit_large_patch16_224": (16, 1024, 24, 16)}
CLIPS = {
    "vit_base_patch32_clip_224": (32, 768, 12, 12),
    "vit_base_patch16_clip_224": (16, 768, 12, 12),
    "vit_large_patch14_clip_224": (14, 1024, 24, 16),
    "vit_huge_patch14_clip_224": (14, 1280, 32, 16),
}
_FIELDS = ("patch_size", "embed_dim", "depth", "num_heads")
SWINS = {
    "swin_tiny_patch4_window7_224": (4, 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small_patch4_window7_224": (4, 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base_patch4_window7_224": (4, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_large_patch4_window7_224": (4, 192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
_STAGES = ("patch_size", "embed_dim", "depths", "num_heads")
RESNETS: Mapping[tuple[int, tuple[int, ...]], str] = {
    (2, (2, 2, 2, 2)): "resnet18",
    (2, (3, 4, 6, 3)): "resnet34",
    (3, (3, 4, 6, 3)): "resnet50",
    (3, (3, 4, 23, 3)): "resnet101",
    (3, (3, 8, 36, 3)): "resnet152",
}
"""By the convolutions of a block and the blocks of each stage."""


def shape_of(kind: Kind, state: State, layout: Layout, asked: Asked) -> Shape:
    """The timm model that fits; a ``UserError`` where a tensor is missing or no such model is."""
    if kind in ("swin", "resnet") and (asked.heads or asked.pool):
        raise UserError("--heads and --pool are for vision transformers; leave them out")
    if kind != "clip" and asked.activation:
        raise UserError("--activation is CLIP's; leave it out")
    return _SHAPES[kind](state, layout, asked)


def _vit(state: State, layout: Layout, asked: Asked) -> Shape:
    width, channels, patch = _patches(state, "patch_embed.proj.weight")
    native = patch * _grid(_need(state, "pos_embed", 3).shape[1] - 1)
    heads = _heads(width, layout, asked)
    name, options = _nearest(VITS, _FIELDS, (patch, width, _depth(state, "blocks"), heads))
    options |= _mlp(width, _need(state, "blocks.0.mlp.fc1.weight", 2))
    if "blocks.0.attn.qkv.bias" not in state:
        options["qkv_bias"] = False
    if "blocks.0.gamma_1" in state:
        options["init_values"] = 0.1
    after = "fc_norm.weight" in state
    if _pool("mean" if after else layout.pool, asked, after=after) == "mean":
        options |= {"global_pool": "avg", "fc_norm": after}
    return Shape(name, asked.image_size or native, channels, options, native)


def _beit(state: State, layout: Layout, asked: Asked) -> Shape:
    width, channels, patch = _patches(state, "patch_embed.proj.weight")
    tables = sorted(key for key in state if key.endswith("relative_position_bias_table"))
    if tables:  # of all distances between patches, and three to and from the class token
        distances, heads = _need(state, tables[0], 2).shape
        native = patch * (_grid(distances - 3) + 1) // 2
        if asked.heads and asked.heads != heads:
            raise UserError(f"--heads is {asked.heads}, but the table of relative positions has {heads}")
    else:
        heads, native = _heads(width, layout, asked), patch * _grid(_need(state, "pos_embed", 3).shape[1] - 1)
    name, options = _nearest(BEITS, _FIELDS, (patch, width, _depth(state, "blocks"), heads))
    options |= _mlp(width, _need(state, "blocks.0.mlp.fc1.weight", 2))
    for key, option, usual in (
        ("blocks.0.attn.q_bias", "qkv_bias", True),
        ("pos_embed", "use_abs_pos_emb", False),
        (tables[0] if tables else "", "use_rel_pos_bias", True),
    ):
        if (key in state) != usual:
            options[option] = key in state
    if "blocks.0.gamma_1" not in state:
        options["init_values"] = None
    after = "fc_norm.weight" in state
    if _pool("mean" if after else layout.pool, asked, after=after) == "token":
        options["global_pool"] = "token"
    if not after:
        options["use_fc_norm"] = False
    return Shape(name, asked.image_size or native, channels, options, native)


def _swin(state: State, layout: Layout, asked: Asked) -> Shape:
    width, channels, patch = _patches(state, "patch_embed.proj.weight")
    depths = tuple(_depth(state, f"layers.{i}.blocks") for i in range(_depth(state, "layers")))
    tables = [
        _need(state, f"layers.{i}.blocks.0.attn.relative_position_bias_table", 2).shape for i in range(len(depths))
    ]
    window = (_grid(tables[0][0]) + 1) // 2
    native = _swin_size(state, window, patch)
    if native is None and asked.image_size is None:
        raise UserError("the masks of shifted windows, which tell a Swin's image size, are missing; give --image-size")
    heads = tuple(heads for _, heads in tables)
    name, options = _nearest(SWINS, _STAGES, (patch, width, depths, heads))
    options |= _mlp(width, _need(state, "layers.0.blocks.0.mlp.fc1.weight", 2))
    if window != 7:
        options["window_size"] = window
    size = asked.image_size or native or 0
    return Shape(name, size, channels, options, native or size)


def _swin_size(state: State, window: int, patch: int) -> int | None:
    """From the masks of the first stage's shifted windows, of which there is one a window."""
    masks = state.get("layers.0.blocks.1.attn_mask")
    return None if masks is None else patch * window * _grid(masks.shape[0])


def _resnet(state: State, layout: Layout, asked: Asked) -> Shape:
    first = _need(state, "conv1.weight", 4)
    convolutions = sum(f"layer1.0.conv{i}.weight" in state for i in (1, 2, 3))
    blocks = tuple(_depth(state, f"layer{stage}") for stage in (1, 2, 3, 4))
    name = RESNETS.get((convolutions, blocks))
    if name is None or tuple(first.shape[0::2]) != (64, 7) or state["layer1.0.conv1.weight"].shape[0] != 64:
        raise UserError(
            f"no ResNet is known with blocks {blocks} of {convolutions} convolutions and a first one of "
            f"{list(first.shape)}; ResNet-18 to 152 are, in torchvision's form"
        )
    size = asked.image_size or 224
    return Shape(name, size, first.shape[1], {"small_stem": False} if size < 224 else {}, 224)


def _clip(state: State, layout: Layout, asked: Asked) -> Shape:
    if "visual.class_embedding" not in state:
        raise UserError("of CLIP's image encoders vision transformers with a class token are read, and this is none")
    width, channels, patch = _patches(state, "visual.conv1.weight")
    native = patch * _grid(_need(state, "visual.positional_embedding", 2).shape[0] - 1)
    heads = _heads(width, layout, asked)
    depth = _depth(state, "visual.transformer.resblocks")
    name, options = _nearest(CLIPS, _FIELDS, (patch, width, depth, heads))
    options |= _mlp(width, _need(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2))
    if asked.activation is None:
        raise UserError(
            "no tensor tells CLIP's activation: OpenAI's weights and those of DFN and MetaCLIP need --activation "
            "quickgelu, LAION's --activation gelu"
        )
    if asked.activation == "quickgelu":
        options["act_layer"] = "quick_gelu"
    if _pool(layout.pool, asked, after=False) == "mean":
        options |= {"global_pool": "avg", "fc_norm": False}
    return Shape(name, asked.image_size or native, channels, options, native)


_SHAPES: Mapping[Kind, Callable[[State, Layout, Asked], Shape]] = {
    "vit": _vit,
    "beit": _beit,
    "swin": _swin,
    "resnet": _resnet,
    "clip": _clip,
}


def _need(state: State, key: str, axes: int) -> Tensor:
    if key not in state or state[key].ndim != axes:
        found = f"has the shape {list(state[key].shape)}" if key in state else "is missing"
        raise UserError(f"the checkpoint's {key} {found}: such a backbone is not known")
    return state[key]


def _patches(state: State, key: str) -> tuple[int, int, int]:
    """Width, channels and the side of a patch."""
    width, channels, rows, columns = _need(state, key, 4).shape
    if rows != columns:
        raise UserError(f"the checkpoint's patches of {rows} x {columns} px are not square")
    return width, channels, rows


def _grid(places: int) -> int:
    """The side of a square grid."""
    side = math.isqrt(max(places, 0))
    if side * side != places or not places:
        raise UserError(f"the checkpoint has {places} positions, which are no square grid")
    return side


def _depth(state: State, stem: str) -> int:
    """How many there are of ``stem.0``, ``stem.1``..."""
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)\..+")
    return 1 + max((int(found[1]) for key in state if (found := pattern.fullmatch(key))), default=-1)


def _heads(width: int, layout: Layout, asked: Asked) -> int:
    heads = asked.heads or layout.heads.get(width)
    if heads is None:
        known = ", ".join(f"{heads} for {width}" for width, heads in layout.heads.items())
        raise UserError(
            f"no tensor tells the heads of a ViT, and {layout.title} has none of width {width} ({known}); give --heads"
        )
    if width % heads:
        raise UserError(f"--heads is {heads}, which does not divide the width {width}")
    return heads


def _mlp(width: int, weight: Tensor) -> dict[str, float]:
    """The ratio by which timm gets the hidden width, where it is not 4."""
    hidden = weight.shape[0]
    ratio = hidden / width
    return (
        {} if hidden == 4 * width else {"mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width}
    )


def _pool(standard: Pool, asked: Asked, *, after: bool) -> Pool:
    if after and asked.pool == "token":
        raise UserError("--pool is token, but the checkpoint's last norm is of the mean (fc_norm); leave out --pool")
    return asked.pool or standard


def _nearest(known: Mapping[str, tuple[Any, ...]], fields: tuple[str, ...], own: tuple[Any, ...]) -> tuple[str, dict]:
    """The known model that agrees in most, and the options in which it does not."""
    name = max(
        known, key=lambda name: [sum(a == b for a, b in zip(known[name], own, strict=True)), known[name][1] == own[1]]
    )
    different = {f: b for f, a, b in zip(fields, known[name], own, strict=True) if a != b}
    return name, {f: list(b) if isinstance(b, tuple) else b for f, b in different.items()}
