"""From a recipe's ``OptimiserSpec`` to an optimiser: groups, rates by the clock, clipping, decay rules."""

# pyright: reportPrivateImportUsage=false
# torch._foreach_* is what torch's own optimisers are built of

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models import group_parameters
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from selfsight.engine.lars import LARS
from selfsight.engine.late_sgd import LateSGD
from selfsight.method import Clock
from selfsight.recipes.recipe import Group, OptimiserSpec, skip_vectors

__all__ = [
    "LARS",
    "LateSGD",
    "build_optimiser",
    "clip_",
    "gradient",
    "layer_decay",
    "set_rates_",
    "skip_vectors_and_tokens",
]

_FUSED = (SGD, Adam, AdamW)
_TOKENS = ("pos_embed", "cls_token", "reg_token", "dist_token", "mask_token")
_EMBEDDINGS = (*_TOKENS, "pos_embed_window", "patch_embed", "norm_pre", "rope")
_WITH_HEAD = ("norm", "fc_norm", "head", "attn_pool", "rel_pos_bias")


def build_optimiser(spec: OptimiserSpec, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
    """The optimiser of ``spec`` over the parameters, one group for each way in which they are treated.

    Each group carries ``decay``, ``lr_scale``, ``fixed_lr`` and ``adapt`` of its ``Group``, and its parameters' names
    (``param_names``, which the state dict holds too). The rates are 0 until ``set_rates_`` sets them.
    """
    groups: dict[Group, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        groups.setdefault(spec.groups(name, parameter), []).append((name, parameter))
    if not groups:
        raise ValueError("an optimiser needs at least one parameter that requires a gradient; got none")
    entries: list[dict[str, Any]] = [
        {
            "params": members,
            "decay": group.decay,
            "lr_scale": group.lr_scale,
            "fixed_lr": group.fixed_lr,
            "adapt": group.adapt,
        }
        for group, members in groups.items()
    ]
    return spec.build(entries, lr=0.0, weight_decay=0.0, **_fused(spec.build, groups.values()))


def _fused(build: Callable[..., Optimizer], groups: Iterable[list[tuple[str, nn.Parameter]]]) -> dict[str, bool]:
    """``fused=True`` where the optimiser has it for these parameters and nobody chose otherwise."""
    chosen: dict[str, Any] = build.keywords if isinstance(build, functools.partial) else {}
    kind = build.func if isinstance(build, functools.partial) else build
    if kind not in _FUSED or {"fused", "foreach"} & chosen.keys():
        return {}
    every = (p for members in groups for _, p in members)
    return {"fused": True} if all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in every) else {}


def set_rates_(optimiser: Optimizer, spec: OptimiserSpec, clock: Clock) -> None:
    """Sets each group's learning rate and weight decay for the update at ``clock``.

    A group with ``fixed_lr`` keeps the schedule's peak for all time (SimSiam's predictor); one without ``decay`` is
    not decayed.
    """
    lr, weight_decay = spec.lr(clock), spec.weight_decay(clock)
    for group in optimiser.param_groups:
        group["lr"] = group["lr_scale"] * (spec.lr.peak if group["fixed_lr"] else lr)
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


def gradient(parameter: Tensor) -> Tensor | None:
    """The gradient, or of a sparse one the rows that it has, in memory shared with it."""
    grad = parameter.grad
    if grad is None or not grad.is_sparse:
        return grad
    if not grad.is_coalesced():  # micro-batches have been added to it
        parameter.grad = grad = grad.coalesce()
    return grad.values()


def clip_(parameters: Iterable[Tensor], spec: OptimiserSpec) -> Tensor:
    """Clips the gradients as ``spec`` says and returns the norm of all of them before, a tensor of no dimension.

    With ``clip_each="all"`` the norm of all gradients together is brought down to ``spec.clip``, with ``"tensor"`` that
    of each tensor by itself (DINO). Without ``spec.clip`` nothing changes.
    """
    grads = [grad for grad in map(gradient, parameters) if grad is not None]
    if not grads:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(grads))
    total = norms.norm()
    if spec.clip is not None:
        above = norms if spec.clip_each == "tensor" else total.expand_as(norms)
        # the 1e-6 is torch.nn.utils.clip_grad_norm_'s and DINO's
        torch._foreach_mul_(grads, list((spec.clip / (above + 1e-6)).clamp(max=1.0).unbind()))
    return total


Groups = Callable[[str, nn.Parameter], Group]


def skip_vectors_and_tokens(name: str, parameter: nn.Parameter) -> Group:
    """As ``skip_vectors``; position embeddings and learnt tokens do not decay either (BEiT's and MAE's fine-tuning)."""
    if name.rsplit(".", 1)[-1] in _TOKENS:
        return Group(decay=False, adapt=False)
    return skip_vectors(name, parameter)


def layer_decay(encoder: nn.Module, rate: float, rule: Groups = skip_vectors_and_tokens) -> Groups:
    r"""A groups function that trains early layers slower: $\gamma^{D - i}$ times the rate in layer $i$ of $D$.

    A vision transformer with $L$ blocks has the embeddings as layer 0, block $i$ as $i$ (from 1) and its last norm as
    layer $D = L + 1$, which is the head's (BEiT and MAE, fine-tuning), as is BEiT's table of relative positions where
    all blocks share one. Swin's blocks are counted through all stages, and the merging of patches belongs to the last
    block before it (SimMIM). Other timm models follow their own ``group_matcher``, with the head one layer above the
    last. Every parameter that is not the encoder's counts as head.

    Args:
        encoder: what ``build_encoder`` made, or a timm model.
        rate: $\gamma$, 1.0 for none; 0.65 for ViT-B in MAE, 0.75 for ViT-L.
        rule: decides on everything but the rate's factor.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the layer decay must lie in (0, 1]; got {rate}")
    depths, last = _depths(getattr(encoder, "model", encoder))

    def groups(name: str, parameter: nn.Parameter) -> Group:
        scale = rate ** (last - depths.get(parameter, last))
        plain = rule(name, parameter)
        return replace(plain, lr_scale=plain.lr_scale * scale)

    return groups


def _depths(model: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """Each parameter's layer from 0, and the head's."""
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"{type(model).__name__} does not say which layers it has (no group_matcher as timm's models)")
    named = dict(model.named_parameters())
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        stages: Any = model.layers
        depths = [len(stage.blocks) for stage in stages]
        return {p: _swin_layer(name, depths) for name, p in named.items()}, sum(depths) + 1
    blocks = getattr(model, "blocks", None)
    parts = {name.partition(".")[0] for name in named}
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and parts <= {"blocks", *_EMBEDDINGS, *_WITH_HEAD}:
        last = len(blocks) + 1
        return {p: _transformer_layer(name, last) for name, p in named.items()}, last
    layers: Any = group_parameters(model, matcher(coarse=False), reverse=True)
    return {named[name]: depth for name, depth in layers.items()}, 1 + max(layers.values())


def _transformer_layer(name: str, last: int) -> int:
    """BEiT's ``get_num_layer_for_vit``: a table of positions that all blocks share is trained as fast as the head."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0]) + 1
    return last if first in _WITH_HEAD else 0


def _swin_layer(name: str, depths: Sequence[int]) -> int:
    """SimMIM's ``get_swin_layer``; timm has the merging that ends a stage at the beginning of the next."""
    first, *rest = name.split(".")
    if first != "layers":
        return 0 if first == "patch_embed" else sum(depths) + 1
    before = sum(depths[: int(rest[0])])
    return before + int(rest[2]) + 1 if rest[1] == "blocks" else before
