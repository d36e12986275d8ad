"""Published models at their real size, by shapes alone: which timm model they are."""

import pytest
import timm
import torch
from torch import Tensor

from selfsight.importing.layouts import LAYOUTS, kind_of
from selfsight.importing.shapes import Asked, shape_of

TABLE = "relative_position_bias_table"


def like(name: str, **options) -> dict[str, Tensor]:
    """Tensors without memory, of timm's shapes."""
    with torch.device("meta"):
        return dict(timm.create_model(name, num_classes=0, **options).state_dict())


def clip(width: int, depth: int, patch: int, size: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        out = {
            "visual.class_embedding": torch.empty(width),
            "visual.conv1.weight": torch.empty(width, 3, patch, patch),
            "visual.positional_embedding": torch.empty((size // patch) ** 2 + 1, width),
        }
        for i in range(depth):
            out[f"visual.transformer.resblocks.{i}.mlp.c_fc.weight"] = torch.empty(4 * width, width)
        return out


def shared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As BEiT is pretrained: one table for all blocks, a norm behind the last."""
    table = next(tensor for key, tensor in state.items() if key.endswith(TABLE))
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(TABLE)}
    return {**{key.replace("fc_norm", "norm"): x for key, x in kept.items()}, f"rel_pos_bias.{TABLE}": table}


def with_masks(state: dict[str, Tensor], windows: int) -> dict[str, Tensor]:
    return state | {"layers.0.blocks.1.attn_mask": torch.empty(windows**2, 36, 36, device="meta")}


PUBLISHED = [
    ("mae", like, ("vit_base_patch16_224",), "vit_base_patch16_224", 224, {}),
    ("mae", like, ("vit_large_patch16_224",), "vit_large_patch16_224", 224, {}),
    ("mae", like, ("vit_huge_patch14_224",), "vit_huge_patch14_224", 224, {}),
    ("dino", like, ("vit_small_patch16_224",), "vit_small_patch16_224", 224, {}),
    ("dino", like, ("vit_small_patch8_224",), "vit_small_patch8_224", 224, {}),
    ("dino", like, ("vit_base_patch8_224",), "vit_base_patch8_224", 224, {}),
    ("ibot", like, ("vit_large_patch16_224",), "vit_large_patch16_224", 224, {}),
    ("mocov3", like, ("vit_small_patch16_224",), "vit_small_patch16_224", 224, {"num_heads": 12}),
    ("mocov3", like, ("vit_base_patch16_224",), "vit_base_patch16_224", 224, {}),
    ("mocov3", like, ("resnet50",), "resnet50", 224, {}),
    ("dino", like, ("resnet50",), "resnet50", 224, {}),
    (
        "beit",
        lambda n: shared(like(n)),
        ("beit_base_patch16_224",),
        "beit_base_patch16_224",
        224,
        {"use_fc_norm": False},
    ),
    ("beit", like, ("beit_large_patch16_224",), "beit_large_patch16_224", 224, {}),
    ("beit", like, ("beit_large_patch16_512",), "beit_large_patch16_224", 512, {}),
    (
        "simmim",
        lambda n: with_masks(like(n, img_size=192, window_size=6), 8),
        ("swin_base_patch4_window7_224",),
        "swin_base_patch4_window7_224",
        192,
        {"window_size": 6},
    ),
    ("clip", clip, (768, 12, 32, 224), "vit_base_patch32_clip_224", 224, {"act_layer": "quick_gelu"}),
    ("clip", clip, (768, 12, 16, 224), "vit_base_patch16_clip_224", 224, {"act_layer": "quick_gelu"}),
    ("clip", clip, (1024, 24, 14, 336), "vit_large_patch14_clip_224", 336, {"act_layer": "quick_gelu"}),
]


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case[0]}-{case[3]}-{case[4]}")
def test_published_sizes(case):
    layout, make, given, name, size, options = case
    state, asked = make(*given), Asked(activation="quickgelu" if layout == "clip" else None)
    shape = shape_of(kind_of(state), state, LAYOUTS[layout], asked)
    assert (shape.name, shape.image_size, shape.channels, shape.options) == (name, size, 3, options)


def test_hidden_widths_that_no_float_times_gives():
    state = clip(1408, 2, 14, 224)
    key = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    state[key] = torch.empty(6144, 1408, device="meta")
    ratio = shape_of("clip", state, LAYOUTS["clip"], Asked(activation="gelu")).options["mlp_ratio"]
    assert int(1408 * ratio) == 6144
