r"""The recipe of SimCLR v2 (Chen et al., 2020, arXiv 2006.10029). The method: ``selfsight.methods.simclr``.

SimCLR with a deeper head, of which fine-tuning keeps the first layer, and with larger encoders:
:math:`L = \frac1{2B} \sum_i -\log \big(e^{s_{ij(i)} / \tau} / \sum_{k \ne i} e^{s_{ik} / \tau}\big)`.
Fine-tuning and distillation follow it: ``selfsight pipeline simclr_v2`` runs all three.

**Large images**: the paper's: LARS, 0.1 √batch (6.4 at 4096), warm-up for a twentieth of the training, decay 1e-4,
batch 4096, 800 epochs, τ 0.1, a head of three layers (linear evaluation: 71.7 % with ResNet-50, 79.8 % with the largest
encoder). The README's command has 0.075 √batch, ten epochs of warm-up and 100 epochs.

**Small images** (up to 96 px): the paper has none. The CIFAR-10 command of the repository's README, which builds this
head: 1.0 x batch / 256, decay 1e-4, batch 512, 1000 epochs, ten of them warm-up, τ 0.5, half the jitter, no blur. So
``simclr`` has the same there.

**Encoders**: the paper's gain is from wide and deep ResNets with selective kernels. timm's nearest are ``--backbone
skresnet50d`` (the deep stem, and selective kernels that share their input between the paths, so it is smaller than the
paper's), ``resnet101``, ``resnet152`` and ``wide_resnet50_2`` (twice as wide inside each block, where the paper's 2x is
wider everywhere).

**Differences**: the paper adds MoCo's memory, 65,536 negatives of a slow copy of the network, for about one point. The
official code has none, and neither has this recipe. The loss is half the code's, as with ``simclr``.
"""

from functools import partial

from torch import nn

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.losses.contrastive import nt_xent
from selfsight.methods.simclr import SimCLR
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "simclr_v2": {
        "family": "contrastive",
        "title": "SimCLR v2",
        "year": 2020,
        "arxiv": "2006.10029",
        "fact": "SimCLR with a deeper head, whose first layer fine-tuning keeps; then distillation.",
        "encoder": "resnet50",
    }
}


def simclr_v2(
    at: Setting,
    *,
    temperature: float | None = None,
    projection: int = 128,
    projection_layers: int = 3,
    strength: float | None = None,
) -> Recipe[TwoViews]:
    """SimCLR v2: SimCLR with a deeper head.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature. Default: 0.1, for small images 0.5.
    projection
        Width of the projection.
    projection_layers
        Layers of the head; all but the last are as wide as the encoder.
    strength
        Of the colour jitter, 0 for none. Default: 1, for small images 0.5.
    """
    positive(temperature=temperature, projection=projection, projection_layers=projection_layers)
    batch, epochs = at.batch_size or (512 if at.small else 4096), at.epochs or (1000 if at.small else 800)
    tau = temperature or (0.5 if at.small else 0.1)
    usual = 0.5 if at.small else 1.0
    projector = heads.mlp(
        *[at.encoder.width] * projection_layers,
        projection,
        bias=False,
        out_bias=False,
        out_norm="scale",
        init=partial(nn.init.normal_, std=0.01),  # the code's, model_util.py
    )
    method = SimCLR(at.encoder, projector, loss=partial(nt_xent, temperature=tau))
    set_scope_(method, "all")  # within one process's statistics the two views would recognise each other
    view = augment.simclr(at.image_size, strength=usual if strength is None else strength, blur=not at.small)
    peak = batch / 256 if at.small else 0.1 * batch**0.5
    main = OptimiserSpec(
        build=partial(LARS, momentum=0.9, eta=1e-3, variant="simclr"),
        lr=warmup_cosine(peak, warmup_epochs=10 if at.small else 0.05 * epochs),
        weight_decay=constant(1e-4),
        groups=skip_vectors,
    )
    return Recipe(method=method, views=two_views(view), optimisers={"main": main}, epochs=epochs, batch_size=batch)


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"simclr_v2": on_the_world(simclr_v2(at))}
