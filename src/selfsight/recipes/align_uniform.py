r"""The recipe of alignment and uniformity (Wang and Isola, 2020, arXiv 2005.10242). The methods, with another loss:
``selfsight.methods.simclr``, and for large images ``selfsight.methods.moco``.

What contrastive losses do in the limit, said directly: views of one image lie near each other, and all images evenly on
the unit sphere. :math:`L = \lambda_{al} \overline{\lVert x_i - y_i \rVert^\alpha} + \lambda_{un} \tfrac12 (U(x) +
U(y))` with :math:`U(x) = \log \overline{e^{-t \lVert x_i - x_j \rVert^2}}` over the pairs of one view. Both terms are
metrics too, without labels: every run that hands over embeddings in pairs writes them down, for :math:`\alpha = t = 2`,
and ``--protocol quality`` has them. They compare at equal width only.

**Small images** (up to 96 px): the official STL-10 script (83.2 % linear with a small AlexNet at 64 px): both weights
1, α 2, t 2, SGD, 0.12 x batch / 256, a tenth of it each at epochs 155, 170 and 185 of 200, decay 1e-4, batch 768, 128
features behind one linear layer, as is the AlexNet's last.

**Large images**: the paper's variant of MoCo in v2's settings (67.7 % linear on ImageNet with ResNet-50, where MoCo v2
has 67.5 %): alignment of query and key with weight 3, uniformity at t 3 of the queries against the queue and one
another; 0.03 x batch / 256 on a cosine, decay 1e-4, batch 256, 200 epochs, queue 65536, momentum 0.999. For
ImageNet-100 the authors take 0.03 for a batch of 128.

**Differences** between the paper, the official codes (SsnL/align_uniform e256d47; SsnL/moco 4d690c3, branch
align_uniform) and this file: squared distances are 2 - 2 cos, whose gradient stays finite where points coincide.
Uniformity is over the batch of all processes, in MoCo's variant too, whose code takes each device's queries apart. The
small AlexNet is not rebuilt. Learning rates move with every update, the code's with every epoch.
"""

from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.losses import hypersphere
from selfsight.methods.moco import MoCo
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.moco import norm_group, queue_length
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.recipes.simclr import with_loss
from selfsight.schedules import constant, cosine, steps
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "align_uniform": {
        "family": "contrastive",
        "title": "Alignment and uniformity",
        "year": 2020,
        "arxiv": "2005.10242",
        "fact": "Views of an image lie near each other, and all images evenly on the sphere.",
        "encoder": "resnet50",
    }
}


def align_uniform(
    at: Setting,
    *,
    align: float | None = None,
    uniform: float = 1.0,
    align_alpha: float = 2.0,
    uniform_t: float | None = None,
    projection: int = 128,
    queue: int | None = None,
    momentum: float | None = None,
) -> Recipe[TwoViews]:
    """Alignment and uniformity: views of an image lie near each other, and all images evenly on the sphere.

    Parameters
    ----------
    at
        What the run knows.
    align
        Weight of alignment. Default: 3, for small images 1.
    uniform
        Weight of uniformity.
    align_alpha
        Power of the distance in alignment, at least 1.
    uniform_t
        Sharpness of the kernel in uniformity. Default: 3, for small images 2.
    projection
        Width of the features on the sphere.
    queue
        Keys in the queue, a multiple of the batch; large images only. Default: 65536, never more than images.
    momentum
        The key encoder's momentum; large images only. Default: 0.999.
    """
    positive(align=align, uniform=uniform, uniform_t=uniform_t, projection=projection)
    if align_alpha < 1:
        raise ValueError(f"--align-alpha must be at least 1, not {align_alpha:g}: equal views' gradient is infinite")
    if at.small and (queue is not None or momentum is not None):
        raise ValueError("--queue and --momentum are for images above 96 px, where there is a queue; leave them out")
    batch = at.batch_size or (768 if at.small else 256)
    sgd = partial(OptimiserSpec, build=partial(SGD, momentum=0.9), weight_decay=constant(1e-4), groups=decay_all)
    terms = {"align": align or (1.0 if at.small else 3.0), "uniform": uniform, "alpha": align_alpha}
    terms["t"] = uniform_t or (2.0 if at.small else 3.0)
    w = at.encoder.width
    if at.small:
        peak = 0.12 * batch / 256
        return with_loss(
            at,
            partial(hypersphere.align_uniform, **terms),
            projector=heads.mlp(w, projection, init=partial(nn.init.normal_, std=0.02)),
            view=augment.align_uniform(at.image_size),
            main=sgd(lr=steps(peak, at=(155 / 200, 170 / 200, 185 / 200), factor=0.1)),
            epochs=200,
            batch=batch,
        )
    method = MoCo(
        at.encoder,
        heads.mlp(w, w, projection, norm=False),
        width=projection,
        size=queue_length(queue, 65536, at.samples, batch),
        momentum=constant(0.999 if momentum is None else momentum),
        loss=partial(hypersphere.align_uniform_with_queue, **terms),
    )
    set_scope_(method, norm_group(batch))
    return Recipe(
        method=method,
        views=two_views(augment.moco_v2(at.image_size)),
        optimisers={"main": sgd(lr=cosine(0.03 * batch / 256, 0.0))},
        epochs=at.epochs or 200,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"align_uniform": on_the_world(align_uniform(at))}
