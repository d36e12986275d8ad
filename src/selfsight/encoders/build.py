"""Encoders by name: any timm model, or one of our small nets; adapted to the images' size and channels."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selfsight.encoders import amdim, convvit, dalle
from selfsight.encoders.backbone import Backbone, Transformer
from selfsight.encoders.beit import BeitEncoder
from selfsight.encoders.norms import Norm, replace_batch_norms
from selfsight.encoders.small import SmallCNN
from selfsight.encoders.stem import adapt_stem
from selfsight.encoders.swin import Swin
from selfsight.errors import UserError
from selfsight.sizes import SMALL

OWN = {"small_cnn": (64, 128, 256), "tiny_cnn": (32, 64, 128)}
"""Our own small nets by name, with their widths: the ladder's, and the demo's and the tests'."""
_KINDS: Mapping[type[nn.Module], type[Backbone]] = {
    VisionTransformer: Transformer,
    Beit: BeitEncoder,
    SwinTransformer: Swin,
}
"""What reaches inside a timm model of exactly this class."""
_FOREIGN = ("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable", "exportable")
"""What timm's constructor takes beside the model's own options: with them, whoever writes an encoder.json or a config
would have it read another file, which an older timm executes."""
_GIVEN = ("num_classes", "img_size", "in_chans", "dynamic_img_size", "drop_path_rate")


def build_encoder(
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    pretrained: bool = False,
    drop_path: float = 0.0,
    small_stem: bool | None = None,
    norm: Norm | None = None,
    **timm_options: Any,
) -> Backbone:
    """An encoder from its name, for square images of ``image_size`` pixels.

    Args:
        name: a timm model (``resnet50``, ``vit_small_patch16_224``; with a tag to choose its weights), a folder or
            repository of one (``local-dir:PATH``, ``hf-hub:NAME``), ``small_cnn`` or ``tiny_cnn``, one of AMDIM's
            (``amdim_small``), of ConvMAE's (``convvit_base``) or of DALL-E's (``dalle``).
        image_size: a vision transformer gets as many positions as it has patches at this size.
        channels: of the images; pretrained weights are adapted to other numbers than 3 by timm's rule.
        pretrained: starts from timm's weights, which are downloaded once.
        drop_path: stochastic depth, 0 at the first block and this at the last.
        small_stem: convolutional stem and pooling give way to ``adapt_stem``'s; by default up to 96 px.
        norm: layer norm, or scale and shift alone (``none``), in the place of each batch norm, which stays by default.
        timm_options: go to timm's constructor (``patch_size``, ``depth``...).

    ResNets begin with timm's scale of zero in each block's last norm, as SimCLR, SimSiam and Barlow Twins have it.
    Elsewhere it is one (MoCo, SwAV, RotNet, BYOL's paper): ``zero_init_last=False``.

    >>> encoder = build_encoder("resnet18", image_size=32)
    >>> encoder.width, encoder.stride
    (512, 8)
    """
    adapts = image_size <= SMALL if small_stem is None else small_stem
    chosen = {} if norm is None else {"norm": norm}
    if name in amdim.NAMES:
        _only(name, pretrained, drop_path, chosen)
        return amdim.build(name, image_size=image_size, channels=channels, **timm_options)
    if name in dalle.NAMES:
        _only(name, pretrained, drop_path, chosen)
        return dalle.build(name, image_size=image_size, channels=channels, **timm_options)
    if name in convvit.NAMES:
        _only(name, pretrained, drop_path, chosen)
        return convvit.build(name, image_size=image_size, channels=channels, **timm_options)
    if name in OWN:
        _only(name, pretrained, drop_path, timm_options)
        own = SmallCNN(channels, OWN[name])
        if norm is not None:
            replace_batch_norms(own, norm)
        return Backbone(own, name=name, image_size=image_size, channels=channels, options=chosen, arguments=None)
    architecture, timm_options = _resolve(name, timm_options)
    foreign = sorted({*timm_options} & {*_FOREIGN})
    if foreign:
        raise UserError(f"{name} takes no option {', '.join(foreign)} here; only the architecture's own")
    arguments = {**_arguments(architecture, image_size, channels), **timm_options}
    flexible = {"dynamic_img_size": True} if _is_transformer(architecture) else {}
    droppable = {"drop_path_rate": drop_path} if drop_path else {}
    model = _create(name, pretrained, {**arguments, **flexible, **droppable})
    if isinstance(model, VisionTransformer | Beit):
        _check_patches(name, model, image_size)
    if adapts:
        adapt_stem(model)
    if norm is not None:
        replace_batch_norms(model, norm)
    options = {**chosen, **({} if small_stem is None else {"small_stem": small_stem}), **timm_options}
    kind = _KINDS.get(type(model), Backbone)
    if kind is Transformer and not isinstance(model.patch_embed, PatchEmbed):
        kind = Backbone  # patches of a convolutional net's map (hybrids, ViTamin) are laid out in another way
    facts = {"model_name": architecture.partition(".")[0], **arguments}
    try:
        return kind(
            model, name=architecture, image_size=image_size, channels=channels, options=options, arguments=facts
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} does not take images of {image_size} px: {_line(error)}") from error


def has_small_stem(encoder: nn.Module) -> bool:
    """Whether the encoder's model went through ``adapt_stem`` and changed."""
    return bool(getattr(getattr(encoder, "model", encoder), "has_small_stem", False))


def _only(name: str, pretrained: bool, drop_path: float, options: Mapping[str, Any]) -> None:
    """Refuses what one of our own nets does not have."""
    if pretrained or drop_path or options:
        given = ", ".join(["drop_path"] * bool(drop_path) + sorted(options))
        wrong = "pretrained weights" if pretrained else f"option {given}"
        raise UserError(f"{name} has no {wrong}; leave that out or choose a timm model")


def _resolve(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The timm model behind a name, and its options: a folder's or a Hub repository's config brings its own."""
    source, _, place = name.partition(":")
    try:
        if source == "local-dir":
            config = json.loads((Path(place) / "config.json").read_text())
            architecture, own = config["architecture"], config.get("model_args", {})
        elif source == "hf-hub":
            _, architecture, own = timm.models.load_model_config_from_hf(place)
        else:
            architecture, own = name, {}
    except Exception as error:
        raise UserError(f"cannot read the config of {name} ({type(error).__name__}: {_line(error)})") from error
    if not timm.is_model(architecture):
        raise _unknown(architecture)
    return architecture, {**{k: v for k, v in own.items() if k not in _GIVEN}, **options}


def _arguments(name: str, image_size: int, channels: int) -> dict[str, Any]:
    """What ``timm.create_model`` is told about the images: nothing that it would assume anyway."""
    config = timm.get_pretrained_cfg(name)
    size = {}
    if config is not None and config.fixed_input_size and config.input_size[1:] != (image_size, image_size):
        size = {"img_size": image_size}
    return {**size, **({"in_chans": channels} if channels != 3 else {})}


def _unknown(name: str) -> UserError:
    near = difflib.get_close_matches(
        name.lower(), [*timm.list_models(), *OWN, *amdim.NAMES, *dalle.NAMES, *convvit.NAMES], n=1, cutoff=0.4
    )
    hint = f"did you mean '{near[0]}'?" if near else "timm.list_models() has all names"
    return UserError(f"unknown backbone '{name}'; {hint}")


def _is_transformer(name: str) -> bool:
    return name.partition(".")[0] in timm.list_models(module=["vision_transformer", "deit"])


def _create(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except TypeError as error:
        raise UserError(f"{name} does not take these options: {_line(error)}") from error
    except Exception as error:
        if not pretrained:
            raise UserError(f"timm cannot build {name} with {dict(arguments)}: {_line(error)}") from error
        raise UserError(
            f"no pretrained weights for {name} ({type(error).__name__}: {_line(error)}); "
            "check the network and the name's tag, or leave out --pretrained"
        ) from error


def _check_patches(name: str, model: VisionTransformer | Beit, image_size: int) -> None:
    patch = int(model.patch_embed.patch_size[0])
    if image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise UserError(
            f"{name} cuts images into patches of {patch} px, which do not divide {image_size} px; "
            f"use --image-size {near} or another --patch-size"
        )


def _line(error: Exception) -> str:
    """The first line of an error, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
