r"""The recipe of jigsaw clustering (Chen et al., 2021, arXiv 2104.00323). The method:
``selfsight.methods.jigsaw_clustering``.

Find, in montages of four images' pieces, which pieces belong together and where they were:
:math:`L = \alpha L_{clu} + \beta L_{loc}`.

**Large images**: the official code's (66.4 % linear on ImageNet with ResNet-50): quadrants of 0.8 of each side, of each
a crop of (0.2, 1) at 112 pixels with jitter (0.4, 0.4, 0.4, 0.1) 0.8, grey 0.2 and blur 0.5; a projector of the
encoder's width and then 128, one linear layer for the place; temperature 0.3, and the clustering loss times 0.3 / 0.07;
SGD with momentum 0.9, 0.03 x batch / 256 and half a cosine to 0, decay 1e-4 on all parameters, batch 256, 200 epochs;
batch norm over all processes. ``--base-temperature 0.3`` gives the equal weights that the paper states.

**Other sizes** scale: a piece is half of the image size, in each direction. **Small images** (up to 96 px), for which
neither gives numbers: the same without blur, whose two pixels are much of a piece of 16; so MoCo's authors do it on
CIFAR-10, with this learning rate.

**Differences**: the code's rate falls at each epoch, here at each update; it scales with the batch, which the code
leaves to the user. A ViT's class token, which no loss reads, is not the feature: the mean of the patches is.
"""

from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import Pieces
from selfsight.encoders.build import build_encoder
from selfsight.encoders.pooling import pool_patches_
from selfsight.losses.grouped import grouped_contrast
from selfsight.methods.jigsaw_clustering import JigsawClustering
from selfsight.parts import heads
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.montage import DRAWS, PIECES
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, decay_all, positive
from selfsight.schedules import constant, cosine
from selfsight.views import augment
from selfsight.views.quadrants import pieces_of

CARDS = {
    "jigsaw_clustering": {
        "family": "pretext",
        "title": "Jigsaw Clustering",
        "year": 2021,
        "arxiv": "2104.00323",
        "fact": "Find which pieces of shuffled montages belong to one image, and where they were.",
        "encoder": "resnet50",
        "options": {"zero_init_last": False},
        "small_options": {"zero_init_last": False},
    }
}


def jigsaw_clustering(
    at: Setting,
    *,
    projection: int = 128,
    temperature: float = 0.3,
    base_temperature: float = 0.07,
    cluster_weight: float = 1.0,
    location_weight: float = 1.0,
    cross: float = 0.3,
) -> Recipe[Pieces]:
    """Jigsaw clustering: which pieces of shuffled montages belong to one image, and where they were.

    Parameters
    ----------
    at
        What the run knows.
    projection
        Width of the vectors that are clustered.
    temperature
        Divides their cosines.
    base_temperature
        The clustering loss is multiplied by the temperature over this.
    cluster_weight
        Weight of the clustering loss.
    location_weight
        Weight of the location loss.
    cross
        How far a quadrant reaches beyond the middle of the image, in shares of its side.
    """
    positive(projection=projection, temperature=temperature, base_temperature=base_temperature)
    positive(cluster_weight=cluster_weight, location_weight=location_weight)
    size, width, patch = at.image_size, at.encoder.width, getattr(at.encoder, "patch", 1)
    if size % (2 * patch) or size < 2 * at.encoder.stride:
        raise ValueError(
            f"a montage of {size} px has no four quarters of whole pixels, patches or places of the encoder's map; "
            f"take a multiple of {2 * patch} from {2 * at.encoder.stride} on as --image-size"
        )
    pool_patches_(at.encoder)
    method = JigsawClustering(
        at.encoder,
        heads.mlp(width, width, projection, norm=False),
        nn.Linear(width, PIECES),
        loss=partial(grouped_contrast, temperature=temperature, base_temperature=base_temperature),
        cluster_weight=cluster_weight,
        location_weight=location_weight,
    )
    set_scope_(method, "all")
    batch = at.batch_size or 256
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=cosine(0.03 * batch / 256, 0.0),
        weight_decay=constant(1e-4),
        groups=decay_all,
    )
    return Recipe(
        method=method,
        views=pieces_of(augment.moco_v2(size // 2, blur=not at.small), cross=cross, shuffle=DRAWS),
        optimisers={"main": main},
        epochs=at.epochs or 200,
        batch_size=batch,
        least=4,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    return {"jigsaw_clustering": on_the_world(jigsaw_clustering(at, projection=64))}
