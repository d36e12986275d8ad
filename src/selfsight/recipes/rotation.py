r"""The recipe of RotNet (Gidaris et al., 2018, arXiv 1803.07728). The method: ``selfsight.methods.rotation``.

Turn each image by 0, 90, 180 and 270 degrees and say by which:
:math:`L = \frac1B \sum_i \frac14 \sum_k \mathrm{CE}(F(\mathrm{rot}(x_i, 90 k)), k)`.

**Large images**: the official ImageNet configuration: SGD with Nesterov momentum, 0.01, a tenth of it at 30 %, 60 % and
90 % of the training, decay 5e-4, batch 192 (768 turned images), 50 epochs. The configuration's learning rate of 0.1 is
never used, since a table overrides it from the first epoch on.

**Small images** (up to 96 px): the official CIFAR-10 configuration: 0.1, a fifth of it at 30 %, 60 % and 80 % of the
training, batch 128, 200 epochs, images padded by 4 and cropped back.

``--copies 4``, the default, is the paper's and the official code's form: each image stands in the batch in all four
rotations, and the ladder's row is measured so. ``--copies 1`` is the other form in use (VISSL): one rotation of each
image, drawn by key, at a quarter of the work. The batch counts images in both, and the rates are the same.

**Differences**: the rates scale with the batch where another one is asked for. The paper's encoders, an AlexNet and a
network in network, are not built: mmselfsup's ResNet-50 after 70 epochs has 47.0 % linear on ImageNet. Batch norm sees
one process's batch, which has all four turns of each of its images. Small images are normalised by ImageNet's mean and
deviation, as all others; the code's CIFAR-10 configuration takes CIFAR's. The ladder's row is measured so.
"""

from dataclasses import replace
from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import TurnedImages
from selfsight.encoders.build import build_encoder
from selfsight.methods.rotation import Rotation
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all
from selfsight.schedules import constant, steps
from selfsight.views import augment
from selfsight.views.turned import Copies, turned_view

CARDS = {
    "rotation": {
        "family": "pretext",
        "title": "RotNet",
        "year": 2018,
        "arxiv": "1803.07728",
        "fact": "Say by how many quarter turns an image was rotated.",
        "encoder": "resnet50",
    }
}


def rotation(at: Setting, *, copies: Copies = 4) -> Recipe[TurnedImages]:
    """RotNet: say by how many quarter turns an image was rotated.

    Parameters
    ----------
    at
        What the run knows.
    copies
        Rotations of each image in a batch: all 4, as the paper, or 1 by lot.
    """
    batch = at.batch_size or (128 if at.small else 192)
    if at.small:
        lr = steps(0.1 * batch / 128, at=(0.3, 0.6, 0.8), factor=0.2)
    else:
        lr = steps(0.01 * batch / 192, at=(0.3, 0.6, 0.9), factor=0.1)
    method = Rotation(at.encoder, nn.Linear(at.encoder.width, 4))
    set_scope_(method, "rank")
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9, nesterov=True), lr=lr, weight_decay=constant(5e-4), groups=decay_all
    )
    return Recipe(
        method=method,
        views=turned_view(augment.rotation(at.image_size), copies=copies),
        optimisers={"main": main},
        epochs=at.epochs or (200 if at.small else 50),
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    recipe = rotation(Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=32))
    main = recipe.optimisers["main"]
    short = replace(main, lr=main.lr.with_peak(0.1))  # that of the batch of 128: so few updates get nowhere with less
    return {"rotation": replace(recipe, optimisers={"main": short})}
