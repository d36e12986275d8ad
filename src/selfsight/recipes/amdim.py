r"""The recipe of AMDIM (Bachman et al., 2019, arXiv 1906.00910). The method: ``selfsight.methods.amdim``.

The feature of a whole view tells the other view's local features from all other images':
:math:`\ell = -\log \big(e^{u_{b,b,l}} / (e^{u_{b,b,l}} + \sum_{b' \ne b, l'} e^{u_{b,b',l'}})\big)`, from one place to
5x5 and 7x7 and from 5x5 to 5x5.

**Large images**: the command of the official README (a bit over 62 % linear on ImageNet, online): images of 128 px, the
encoder of width 192/1536 and depth 8, Adam with betas 0.8 and 0.999, 2e-4 after 500 updates, a fifth of it at 30 and 45
of 50 epochs, decay 1e-5, batch 480. The paper's 68.1 % are ``--backbone amdim_large``, batch 1008 and 150 epochs.

**Small images** (up to 96 px): the code's CIFAR-10 and STL-10: width 128/1024 and depth 3, batch 200, 300 epochs with a
fifth of the rate at 250 and 280. Images of 32 px are translated, those of 64 px cropped.

**Differences**: the translation comes after the colours, of which contrast alone minds, by the mean of what it sees.
Batch norm is over all processes, the code's over one GPU's share. Images of up to 96 px are evaluated whole, where the
code cuts the centre of 64 out of 70 px (STL-10). The code gives its scheduler an epoch's number when the epoch is over,
so that its rate falls one epoch later than 30, 45, 250 and 280.
"""

from functools import partial

from torch.optim import Adam

from selfsight.batches import PlacedViews
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import LocalEncoder
from selfsight.methods.amdim import AMDIM
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.local_head import LocalHead
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, steps
from selfsight.views.placed import placed_views
from selfsight.views.view import IMAGENET, Jitter, Normalise, View

CARDS = {
    "amdim": {
        "family": "contrastive",
        "title": "AMDIM",
        "year": 2019,
        "arxiv": "1906.00910",
        "fact": "A whole view tells the other view's parts from all other images' parts.",
        "encoder": "amdim_small",
        "small_encoder": "amdim_tiny",
        "sizes": (32, 64, 128),
        "needs": "local",
    }
}

CIFAR10 = Normalise((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
STL10 = Normalise((0.43, 0.42, 0.39), (0.27, 0.26, 0.27))


def amdim(
    at: Setting, *, clip: float = 20.0, penalty: float = 0.05, smallest_crop: float = 0.3, shift: int | None = None
) -> Recipe[PlacedViews]:
    """AMDIM: a whole view tells the other view's parts from all other images' parts.

    Parameters
    ----------
    at
        What the run knows.
    clip
        The bound of the scores, approached by a hyperbolic tangent.
    penalty
        Weight of the squared scores, before they are clipped.
    smallest_crop
        The least share of an image's area that a view shows; for images of 32 px a view shows all of it.
    shift
        Pixels by which a view is translated at most. Default: 0, for images of 32 px 4.
    """
    positive(clip=clip, smallest_crop=smallest_crop)
    encoder = at.encoder
    if not isinstance(encoder, LocalEncoder):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(f"amdim needs an encoder with local features, not {name}; try --backbone amdim_small")
    heads = (LocalHead(encoder.local_width, encoder.width) for _ in range(2))
    method = AMDIM(encoder, *heads, clip=clip, penalty=penalty)
    set_scope_(method, "all")
    # train.py: 60 % and 90 % of the large images' epochs, 250 and 280 of the small ones' 300
    lr = steps(2e-4, at=(250 / 300, 280 / 300) if at.small else (0.6, 0.9), factor=0.2, warmup_updates=500)
    main = OptimiserSpec(
        build=partial(Adam, betas=(0.8, 0.999), eps=1e-8), lr=lr, weight_decay=constant(1e-5), groups=decay_all
    )
    translates = at.image_size <= 32
    shift = (4 if translates else 0) if shift is None else shift
    view = amdim_view(at.image_size, scale=None if translates else (smallest_crop, 1.0))
    return Recipe(
        method=method,
        views=placed_views(view, shift=shift),
        optimisers={"main": main},
        epochs=at.epochs or (300 if at.small else 50),
        batch_size=at.batch_size or (200 if at.small else 480),
    )


def amdim_view(size: int, *, scale: tuple[float, float] | None) -> View:
    """AMDIM's views (Philip-Bachman/amdim-public 8754ae1, datasets.py): CIFAR-10's at 32 px, STL-10's, ImageNet's."""
    return View(
        size=size,
        scale=scale,
        ratio=(0.7, 1.4),
        interpolation="bicubic",
        jitter=Jitter(0.4, 0.4, 0.4, 0.1 if size > 64 else 0.2, p=0.8),
        grey=0.25,
        normalise=CIFAR10 if size <= 32 else STL10 if size <= 64 else IMAGENET,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("amdim_nano", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=16)
    return {"amdim": on_the_world(amdim(at), peak=2e-3)}
