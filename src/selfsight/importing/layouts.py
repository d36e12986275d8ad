"""The layouts of published checkpoints: how to know each, what of it is not the backbone, how its images are shown.

A layout is a method's official code: facebookresearch/mae, dino and moco-v3, bytedance/ibot, microsoft/SimMIM,
microsoft/unilm (BEiT), openai/CLIP. No torch here: the command line reads the names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from selfsight.errors import UserError, unknown

Which = Literal["teacher", "student"]
Pool = Literal["token", "mean"]
Activation = Literal["gelu", "quickgelu"]
Scale = Literal["imagenet", "half", "clip"]
Kind = Literal["vit", "beit", "swin", "resnet", "clip"]
Name = Literal["mae", "ibot", "dino", "mocov3", "simmim", "beit", "clip"]

SCALES: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of images in [0, 1]."""

KINDS: Mapping[Kind, tuple[str, str]] = {
    "clip": (r"(visual|vision_model)\..+", "CLIP"),
    "swin": (r"(encoder\.)?layers\.0\.blocks\.0\..+", "Swin"),
    "beit": (r"(encoder\.)?(blocks\.0\.attn\.(q_bias|relative_position_bias_table)|rel_pos_bias\..+)", "BEiT's ViT"),
    "vit": (r"((backbone|encoder|base_encoder|momentum_encoder)\.)?blocks\.0\.attn\.qkv\.weight", "ViT"),
    "resnet": (r"((backbone|base_encoder|momentum_encoder)\.)?layer1\.0\.conv1\.weight", "ResNet"),
}
"""The keys that a kind of backbone is known by, and its name; the first that is there."""

SIZES = "sizes"
"""What only OpenAI's own weights of CLIP hold; LAION's, of another activation, do not."""
_CLASSIFIER = {"classifier": r"(head|fc)\..+"}
_PROJECTION = {"projection head": r"(head|fc)\..+"}
_MASK = {"mask token": r"mask_token|masked_embed"}
BUFFERS = "buffers, which are computed anew"
_BUFFERS = {BUFFERS: r"(.+\.)?(relative_position_index|attn_mask)"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known of a method's checkpoints beside their tensors."""

    title: str
    arxiv: str
    marks: str
    """Keys that only this layout has, of the file or of its state dict."""
    kinds: tuple[Kind, ...]
    left_out: Mapping[str, str]
    """Parts that are no backbone, and the pattern of their keys. What else is no backbone is an error."""
    pool: Pool = "token"
    """A transformer's feature, as the paper (or its code) evaluates frozen ones."""
    which: Which | None = None
    """Whose weights are taken where the file has both."""
    probe: Literal["mae", "moco"] = "moco"
    """The linear probe that ``evaluate --protocol linear-sgd`` takes."""
    heads: Mapping[int, int] = field(default_factory=lambda: {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16})
    """By width: no tensor of a ViT tells its heads."""
    scale: Scale = "imagenet"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    whole: bool = False
    """Whether the evaluation view shows the whole central square, not 7/8 of its side."""


LAYOUTS: Mapping[str, Layout] = {
    "mae": Layout(
        title="MAE",
        arxiv="2111.06377",
        marks=r"decoder_(embed|pred)\..+",
        kinds=("vit",),
        left_out={"decoder": r"decoder_.+", **_MASK, **_CLASSIFIER},
        probe="mae",
    ),
    "ibot": Layout(
        title="iBOT",
        arxiv="2111.07832",
        marks=r"ibot_loss|(backbone\.)?masked_embed|head\.(last_layer2|mlp2)\..+",
        kinds=("vit",),
        left_out={**_PROJECTION, **_MASK},
        which="teacher",
    ),
    "dino": Layout(
        title="DINO",
        arxiv="2104.14294",
        marks=r"dino_loss|head\.last_layer\..+",
        kinds=("vit", "resnet"),
        left_out=_PROJECTION,
        which="teacher",
    ),
    "mocov3": Layout(
        title="MoCo v3",
        arxiv="2104.02057",
        marks=r"(base|momentum)_encoder\..+",
        kinds=("vit", "resnet"),
        left_out={
            **_PROJECTION,
            "predictor": r"predictor\..+",
            "momentum encoder": r"momentum_encoder\..+",
            "base encoder": r"base_encoder\..+",
        },
        which="student",  # its linear probe takes the base encoder
        heads={384: 12, 768: 12, 1024: 16, 1280: 16},
        interpolation="bilinear",
    ),
    "simmim": Layout(
        title="SimMIM",
        arxiv="2111.09886",
        marks=r"encoder\..+",
        kinds=("beit", "swin"),
        left_out={"decoder": r"decoder\..+", **_MASK, **_CLASSIFIER, **_BUFFERS},
        pool="mean",
        probe="mae",
    ),
    "beit": Layout(
        title="BEiT",
        arxiv="2106.08254",
        marks=r"lm_head\..+|rel_pos_bias\..+",
        kinds=("beit",),
        left_out={"token predictor": r"lm_head\..+", **_MASK, **_CLASSIFIER, **_BUFFERS},
        pool="mean",
        probe="mae",
        scale="half",
    ),
    "clip": Layout(
        title="CLIP",
        arxiv="2103.00020",
        marks=r"(visual|vision_model)\..+",
        kinds=("clip",),
        left_out={
            "projection into the joint space": r"visual\.proj|visual_projection\..+",
            "text encoder": r"(transformer|text|text_model|token_embedding|ln_final|text_projection)(\..+)?"
            r"|positional_embedding",
            "temperature": r"logit_scale|logit_bias",
            SIZES: r"input_resolution|context_length|vocab_size",
            BUFFERS: r"(.+\.)?position_ids|attn_mask",
        },
        heads={768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16},
        scale="clip",
        whole=True,
    ),
}


def kind_of(keys: Iterable[str]) -> Kind | None:
    """The kind of backbone, by its keys."""
    return next((kind for kind, (pattern, _) in KINDS.items() if _any(pattern, keys)), None)


def find_layout(keys: set[str], asked: str | None, file: str) -> str:
    """The layout by the ``keys`` of a file, its state dicts' without ``module.``; a ``UserError`` where several fit.

    What is ``asked`` for is taken where nothing speaks against it.
    """
    if asked is not None and asked not in LAYOUTS:
        raise unknown("layout", asked, LAYOUTS)
    kind = kind_of(keys)
    if kind is None:
        raise UserError(
            f"{file} holds no backbone that is known ({', '.join(KINDS[k][1] for k in KINDS)}): it holds {some(keys)}"
        )
    marked = [name for name, layout in LAYOUTS.items() if _any(layout.marks, keys)]
    if "ibot" in marked and "dino" in marked:  # iBOT's head has DINO's layers and more
        marked.remove("dino")
    fitting = [name for name, layout in LAYOUTS.items() if kind in layout.kinds]
    known = [name for name in marked if name in fitting]
    if asked is not None:
        if asked not in fitting or (known and asked not in known):
            told = [key for name in known for key in sorted(keys) if re.fullmatch(LAYOUTS[name].marks, key)][:1]
            why = f"it holds {told[0]}, which is {' or '.join(known)}'s" if told else f"it holds a {KINDS[kind][1]}"
            raise UserError(f"{file} has not the layout {asked}: {why}; use --layout {' or '.join(known or fitting)}")
        return asked
    if len(known) != 1:
        raise UserError(
            f"{file} does not tell its layout: {' and '.join(known or fitting)} write a {KINDS[kind][1]} so (it holds "
            f"{some(keys)}); give --layout {' or '.join(known or fitting)}"
        )
    return known[0]


def part_of(key: str, layout: Layout) -> str | None:
    """The part of a checkpoint that ``key`` belongs to, where it is not the backbone."""
    return next((part for part, pattern in layout.left_out.items() if re.fullmatch(pattern, key)), None)


def some(keys: Iterable[str]) -> str:
    """What there is, in short: the first words of the keys.

    >>> some(["blocks.0.norm1.weight", "blocks.1.norm1.weight", "cls_token"])
    'blocks, cls_token'
    """
    words = sorted({key.partition(".")[0] for key in keys})
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")


def _any(pattern: str, keys: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, key) for key in keys)
