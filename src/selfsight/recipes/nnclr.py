r"""The recipe of NNCLR (Dwibedi et al., 2021, arXiv 2104.14548). The method: ``selfsight.methods.nnclr``.

A view's nearest neighbour among earlier images is the positive of the other view's prediction:
:math:`L = \frac12 \ell(z_1, p_2) + \frac12 \ell(z_2, p_1)`, :math:`\ell(z, p) = \frac1B \sum_b
-\log \big(e^{\mathrm{NN}(z_b)^\top \hat p_b / \tau} / \sum_j e^{\mathrm{NN}(z_b)^\top \hat p_j / \tau}\big)`.

**Large images**: the paper's (75.6 % linear on ImageNet with ResNet-50, in its abstract): LARS with SimCLR's learning
rate, 0.3 x batch / 256 after a warm-up of 10 epochs, and decay, 1e-6; batch 4096, 1000 epochs, a queue of 98,304, τ
0.1, a projector of 2048, 2048 and 256 with a batch norm behind every layer, a predictor of 4096 and 256.

**Small images** (up to 96 px): solo-learn's CIFAR-10 settings (91.9 % linear with ResNet-18, online): its own LARS (η
0.02, clipped), 0.4 x batch / 256, decay 1e-5, batch 256, 1000 epochs, a queue of 65,536, τ 0.2, the same heads, BYOL's
pair of views without blur.

**Differences**: the paper has no code. Its LARS is taken to be SimCLR's and its views BYOL's pair, as solo-learn's are;
lightly takes SimCLR's. A queue is never longer than the data, and its default is rounded down to a multiple of the
batch; at that length every other image finds its own embedding of the last epoch there, which a shorter one avoids:
``--queue 4096`` is lightly's for CIFAR-10. solo-learn's linear layers before a batch norm have biases, which cancel
there.
"""

from functools import partial

from selfsight.batches import TwoViews
from selfsight.encoders.build import build_encoder
from selfsight.engine.optimisers import LARS
from selfsight.methods.nnclr import NNCLR
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.recipes.swav import queue_length
from selfsight.schedules import constant, warmup_cosine
from selfsight.views import augment
from selfsight.views.pipelines import two_views

CARDS = {
    "nnclr": {
        "family": "contrastive",
        "title": "NNCLR",
        "year": 2021,
        "arxiv": "2104.14548",
        "fact": "A view's nearest neighbour among earlier images stands in for it as the positive.",
        "encoder": "resnet50",
    }
}


def nnclr(
    at: Setting,
    *,
    temperature: float | None = None,
    queue: int | None = None,
    projection: int = 256,
    hidden: int = 2048,
    predictor_hidden: int = 4096,
) -> Recipe[TwoViews]:
    """NNCLR: the positive is the nearest neighbour of the other view.

    Parameters
    ----------
    at
        What the run knows.
    temperature
        The loss's temperature. Default: 0.1, for small images 0.2.
    queue
        Embeddings among which neighbours are sought, a multiple of the batch. Default: 98304, for small images 65536,
        never more than images.
    projection
        Width of projection and prediction.
    hidden
        Width of the projector's two hidden layers.
    predictor_hidden
        Width of the predictor's hidden layer.
    """
    positive(temperature=temperature, queue=queue)
    positive(projection=projection, hidden=hidden, predictor_hidden=predictor_hidden)
    batch = at.batch_size or (256 if at.small else 4096)
    paper = min(65536 if at.small else 98304, at.samples)
    method = NNCLR(
        at.encoder,
        heads.mlp(at.encoder.width, hidden, hidden, projection, bias=False, out_bias=False, out_norm="affine"),
        heads.mlp(projection, predictor_hidden, projection, bias=False),
        width=projection,
        size=max(queue_length(queue, paper, batch), batch),
        temperature=temperature or (0.2 if at.small else 0.1),
    )
    set_scope_(method, "all")
    if at.small:
        build = partial(LARS, momentum=0.9, eta=0.02, variant="larc", clip=True)
        lr = warmup_cosine(0.4 * batch / 256, warmup_epochs=10, start=3e-5)
        first, second = (augment.small(at.image_size, kind="asymmetric", view=view) for view in (1, 2))
    else:
        build = partial(LARS, momentum=0.9, eta=1e-3, variant="simclr")
        lr = warmup_cosine(0.3 * batch / 256, warmup_epochs=10)
        first, second = (augment.byol(at.image_size, view=view) for view in (1, 2))
    decay = constant(1e-5 if at.small else 1e-6)
    return Recipe(
        method=method,
        views=two_views(first, second),
        optimisers={"main": OptimiserSpec(build=build, lr=lr, weight_decay=decay, groups=skip_vectors)},
        epochs=at.epochs or 1000,
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    at = Setting(encoder=build_encoder("tiny_cnn", image_size=32), image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"nnclr": on_the_world(nnclr(at, queue=512, projection=64, hidden=128, predictor_hidden=256))}
