r"""The recipe of Exemplar-CNN (Dosovitskiy et al., 2014, arXiv 1406.6909). The method: ``selfsight.methods.exemplar``.

Say which of some thousands of patches a transformed one came from:
:math:`L = \frac1N \sum_i \mathbb{E}_T\, \mathrm{CE}(W g(T x_i), i)`.

**The paper's numbers**, for any size: 8000 seeds, each from an image of its own; patches moved by up to a fifth
of their side, scaled by 0.7 to 1.4, turned by up to 20 degrees; contrast along principal components times 0.5 to 2,
saturation and value to a power of 0.25 to 4, times 0.7 to 1.4, plus up to 0.1, hue plus up to 0.1; SGD with
momentum 0.9 at 0.01, which is divided by 3 when the validation error rests; dropout on the last hidden layer. The large
network's layer has 1024 units. The paper's patches are of 32 px in STL-10's images of 96: ``--image-size 32``. Other
sizes follow: sides are shares of the image's short side, so in a photograph of 400 px a patch has 133 to 267, and the
network's once it is resized.

**Our choices**, where the paper is silent or a run cannot look: the sides' range (a third to two thirds); factors and
powers log-uniform; batch 128 and decay 5e-4, which are Caffe's; 1500 epochs, ten times the paper's 150 transforms of a
seed; the rate's divisions at a half, three quarters and nine tenths of them. A patch that its transform would carry out
of the image is moved back, and shrunk where it has to be, so none is padded. The paper resizes nothing when it
evaluates and pools a map; here the plain view is the whole image at the network's size.

**Differences**: with fewer images than classes each is one. Images beyond are left out, chosen by key, the same for any
seed of the run. The rate is 0.01 at a batch of 128 and scales with it. Batch norm, which the paper's networks lack,
sees one process's batch.
"""

from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import Exemplars
from selfsight.encoders.build import build_encoder
from selfsight.keyed import subset
from selfsight.methods.exemplar import Exemplar
from selfsight.parts.batchnorm import set_scope_
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, steps
from selfsight.views.augment import CIFAR10
from selfsight.views.exemplars import exemplars
from selfsight.views.view import IMAGENET

CARDS = {
    "exemplar": {
        "family": "pretext",
        "title": "Exemplar-CNN",
        "year": 2014,
        "arxiv": "1406.6909",
        "fact": "Say which of thousands of patches a transformed one came from.",
        "encoder": "resnet50",
    }
}


def exemplar(
    at: Setting,
    *,
    surrogates: int = 8000,
    hidden: int = 1024,
    dropout: float = 0.5,
    smallest: float = 1 / 3,
    largest: float = 2 / 3,
) -> Recipe[Exemplars]:
    """Exemplar-CNN: say which of thousands of patches a transformed one came from.

    Parameters
    ----------
    at
        What the run knows.
    surrogates
        Surrogate classes: seed patches, each from an image of its own. Never more than images; the others are left out.
    hidden
        Width of the head's hidden layer.
    dropout
        Of that layer.
    smallest
        Least side of a seed patch, in shares of its image's short side.
    largest
        Greatest side of one.
    """
    positive(surrogates=surrogates, hidden=hidden)
    if not 0 <= dropout < 1:
        raise ValueError(f"--dropout is {dropout:g}; it is a share of the units, from 0 to below 1")
    if not 0 < smallest <= largest <= 1:
        raise ValueError(f"--smallest {smallest:g} and --largest {largest:g} must be in (0, 1], in that order")
    count = min(surrogates, at.samples)
    head = nn.Sequential(nn.Linear(at.encoder.width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, count))
    method = Exemplar(at.encoder, head)
    set_scope_(method, "rank")
    batch = at.batch_size or 128
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=steps(0.01 * batch / 128, at=(0.5, 0.75, 0.9), factor=1 / 3),
        weight_decay=constant(5e-4),
        groups=decay_all,
    )
    return Recipe(
        method=method,
        views=exemplars(at.image_size, sides=(smallest, largest), normalise=CIFAR10 if at.small else IMAGENET),
        optimisers={"main": main},
        epochs=at.epochs or 1500,
        batch_size=batch,
        images=subset(at.samples, count, seed=0) if count < at.samples else None,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train; 2048 are the images of the tests' world, whose objects fill them.

    With a class for each of them the loss would rest at the logarithm of their number for longer than a test.
    """
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=2048, epochs=5, batch_size=64)
    recipe = exemplar(at, surrogates=128, hidden=128, dropout=0.1, smallest=0.6, largest=0.8)
    return {"exemplar": on_the_world(recipe, peak=2e-3)}
