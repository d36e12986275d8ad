r"""The recipe of iBOT (Zhou et al., 2021, arXiv 2111.07832). The method: ``selfsight.methods.ibot``.

A student predicts of hidden patches what its own moving average, which sees them, says of them, and of a crop what that
says of another: :math:`L = L_{cls} + \frac1U \sum_u \frac{1}{|M_u|} \sum_{i \in M_u} \mathrm{CE}(P_{u,i}, s_{u,i})`.

**Large images**: the README's command for ViT-S/16 (75.2 % kNN, 77.9 % linear on ImageNet after 800 epochs at batch
1024; the command line's own defaults have neither small crops nor a range of mask ratios): AdamW, 5e-4 x batch / 256
after a warm-up of 10 epochs, a cosine to 1e-6, decay from 0.04 to 0.4, momentum from 0.996 to 1, clipping of each
tensor at 3, drop path 0.1, both teacher's temperatures from 0.04 to 0.07 over 30 epochs, 8192 outputs for crops and
patches, the last layer still for one epoch, two crops of (0.25, 1) and ten of (0.05, 0.25) of the area. Half of the
large crops are masked, 10 to 50 % of their patches, in blocks. The last layer's rows have gains of their own up to
ViT-S, and unit gain above it, as the help of ``main_ibot.py`` advises. ``--mask-shape random`` is the run of ViT-B with
84.1 % fine-tuned.

**Small images** (up to 96 px): no source has a column for them. As for large images with patches of 4 pixels, 4096
outputs, 200 epochs and batch 256, for which the code advises a momentum of 0.9995; two crops of (0.14, 1) without small
ones, and without blur.

**Differences**: with two crops alone they take (0.14, 1) of the area, as the code advises.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW

from selfsight.batches import MaskedMultiCrop
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import PlacedEncoder
from selfsight.methods.ibot import IBOT
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.prototypes import DistillationHead
from selfsight.parts.stochastic_depth import drop_path_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.recipes.swav import small_size
from selfsight.schedules import cosine, linear, warmup_cosine
from selfsight.views import augment
from selfsight.views.masked_crops import CropMask, MaskShape, masked_crops
from selfsight.views.view import View

CARDS = {
    "ibot": {
        "family": "masked",
        "title": "iBOT",
        "year": 2021,
        "arxiv": "2111.07832",
        "fact": "Predict of hidden patches what the network's own moving average says of them.",
        "encoder": "vit_small_patch16_224",
        "small_encoder": "vit_tiny_patch16_224",
        "small_options": {"patch_size": 4},
        "needs": "tokens",
        "probe": "moco",
    }
}

WIDEST_WITH_GAINS = 384
"""Width of the widest encoder, a ViT-S, whose last layer's rows the code lets have gains of their own."""


def ibot(
    at: Setting,
    *,
    outputs: int | None = None,
    hidden: int = 2048,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
    patch_temperature: float = 0.07,
    temperature_epochs: float = 30,
    momentum: float | None = None,
    centre_momentum: float = 0.9,
    image_weight: float = 1.0,
    patch_weight: float = 1.0,
    masked_share: float = 0.5,
    mask_ratio: float = 0.3,
    mask_spread: float = 0.2,
    mask_shape: MaskShape = "block",
    small_crops: int | None = None,
    crop_boundary: float | None = None,
    frozen_epochs: float = 1,
    fixed_gain: bool | None = None,
    head_norm: bool = False,
    drop_path: float = 0.1,
    clip: float = 3.0,
    end_lr: float = 1e-6,
) -> Recipe[MaskedMultiCrop]:
    """iBOT: masked patches and whole crops by self-distillation.

    Parameters
    ----------
    at
        What the run knows.
    outputs
        Width of the output, of crops and of patches. Default: 8192, for small images 4096.
    hidden
        Width of the head's two hidden layers.
    student_temperature
        The student's temperature.
    teacher_temperature
        The teacher's for crops; above 0.04 it rises to it from there. The authors found all above 0.07 unstable.
    patch_temperature
        The teacher's for patches, likewise.
    temperature_epochs
        How long both rise.
    momentum
        The teacher's momentum at the start, rising to 1. Default: 0.996, for small images 0.9995.
    centre_momentum
        The momentum of both centres.
    image_weight
        The weight of the loss of crops.
    patch_weight
        The weight of the loss of hidden patches.
    masked_share
        The share of large crops that are masked.
    mask_ratio
        The middle of the range of a masked crop's share of hidden patches.
    mask_spread
        How far that range goes to either side.
    mask_shape
        Hide patches in blocks, or each at random.
    small_crops
        Crops of about 3/7 of the image's size. Default: 10, for small images 0.
    crop_boundary
        The share of an image's area at which small crops end and large ones begin. Default: 0.25, without small crops
        0.14.
    frozen_epochs
        How long the last layer stands still.
    fixed_gain
        Keep the last layer's rows at unit length. Default: only for encoders wider than a ViT-S.
    head_norm
        Batch norm in the head (the code's ``--norm_in_head``), with which few updates get further.
    drop_path
        The student's stochastic depth.
    clip
        The norm to which each tensor's gradient is clipped, 0 for none.
    end_lr
        The learning rate at the end; with ``--lr`` it moves with the whole curve.
    """
    positive(outputs=outputs, student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    positive(hidden=hidden, patch_temperature=patch_temperature, crop_boundary=crop_boundary)
    for name, value in {"clip": clip, "end-lr": end_lr}.items():
        if value < 0:
            raise ValueError(f"--{name} must be 0 or greater, not {value:g}")
    encoder = at.encoder
    if not isinstance(encoder, PlacedEncoder):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(f"ibot needs a vision transformer, not {name}; try --backbone vit_small_patch16_224")
    batch = at.batch_size or (256 if at.small else 1024)
    crops = (0 if at.small else 10) if small_crops is None else small_crops
    start = (0.9995 if at.small else 0.996) if momentum is None else momentum
    temperatures = [
        linear(min(0.04, warm), warm, epochs=temperature_epochs) for warm in (teacher_temperature, patch_temperature)
    ]
    fixed = encoder.width > WIDEST_WITH_GAINS if fixed_gain is None else fixed_gain
    method = IBOT(
        encoder,
        _head(encoder.width, hidden, outputs or (4096 if at.small else 8192), fixed, head_norm),
        teacher_temperature=temperatures[0],
        patch_temperature=temperatures[1],
        momentum=cosine(start, 1.0),
        student_temperature=student_temperature,
        centre_momentum=centre_momentum,
        image_weight=image_weight,
        patch_weight=patch_weight,
        frozen_epochs=frozen_epochs,
    )
    drop_path_(method.student, drop_path)
    set_scope_(method, "all")
    main = OptimiserSpec(
        build=AdamW,
        lr=warmup_cosine(5e-4 * batch / 256, warmup_epochs=10, end=end_lr),
        weight_decay=cosine(0.04, 0.4),
        groups=skip_vectors,
        clip=clip or None,
        clip_each="tensor",
    )
    mask = CropMask(masked_share, mask_ratio, mask_spread, mask_shape)
    large, small = _views(at, crops, crop_boundary or (0.25 if crops else 0.14))
    return Recipe(
        method=method,
        views=masked_crops(large, small, patch=encoder.patch, mask=mask),
        optimisers={"main": main},
        epochs=at.epochs or (200 if at.small else 800),
        batch_size=batch,
    )


def _head(width: int, hidden: int, outputs: int, fixed_gain: bool, norm: bool) -> DistillationHead:
    init = partial(nn.init.trunc_normal_, std=0.02)
    trunk = heads.mlp(width, hidden, hidden, 256, bias=not norm, norm=norm, activation=nn.GELU, init=init)
    return DistillationHead(trunk, 256, outputs, fixed_gain=fixed_gain)


def _views(at: Setting, crops: int, boundary: float) -> tuple[list[View], list[View]]:
    """DINO's: two large crops that differ, and the small ones."""
    large = [augment.dino(at.image_size, scale=(boundary, 1.0), view=view) for view in ("global1", "global2")]
    local = augment.dino(small_size(at), scale=(min(0.05, boundary), boundary), view="local")
    views = large, [local] * crops
    if at.small:
        return [replace(view, blur=None) for view in views[0]], [replace(view, blur=None) for view in views[1]]
    return views


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train, with batch norm in the head.

    Without it a few hundred updates end where the teacher says the same of all images. The feature is the mean of the
    patches after their norm, which the code evaluates beside the class token: it learns sooner than that one.
    """
    small: Any = {"patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2, "global_pool": "avg", "fc_norm": False}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, **small)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    recipe = ibot(
        at,
        outputs=256,
        hidden=256,
        teacher_temperature=0.04,
        patch_temperature=0.04,
        momentum=0.95,
        small_crops=1,
        frozen_epochs=0.1,
        head_norm=True,
    )
    return {"ibot": on_the_world(recipe)}
