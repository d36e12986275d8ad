r"""The recipe of jigsaw puzzles (Noroozi and Favaro, 2016, arXiv 1603.09246). The method: ``selfsight.methods.jigsaw``.

Say by which of many permutations nine tiles of an image were shuffled:
:math:`L = \mathrm{CE}(F([h(t_{\pi_k(1)}), \dots, h(t_{\pi_k(9)})]), k)`.

**How the paper's pixels scale.** The paper cuts the middle 255 of 256 pixels into cells of 85 px, and of each a tile of
64 px. Here the middle square of an image becomes the image size, cells are a third of it (74 px at 224, 21 at 64, 10 at
32), tiles 64/255 (56, 16 and 8 px), for a vision transformer the next smaller whole number of its patches. The code's 2
px between the colour channels are 2/255 of it: 2 px at 224, 1 at 96, none at 32.

**Large images**: the paper's puzzle (1000 permutations, 30 % of the puzzles grey) and its layers (1024 for a tile, the
code's, then 4096 with dropout 0.5), with the schedule that facebookresearch/vissl gives a ResNet-50: SGD with momentum
0.9, 0.1 x batch / 256 after a warm-up of 5 epochs, a tenth of it at epochs 30, 60, 90 and 100 of 105, decay 1e-4 but on
vectors, batch 256. The paper's own (0.01, a tenth of it every 100,000 of 350,000 updates, decay 5e-4) is a CaffeNet's.

**Small images** (up to 96 px): neither has any. The same with 300 epochs, 100 permutations (the set that the paper's
code ships besides) and layers of 128 and 1024: this file's choice.

**Differences**: vissl takes 2000 permutations, 66 % grey, mirrors images and has no layer of 4096. The code makes half
of the puzzles grey and projects half of the others' green against magenta out (``--grey 0.5 --project 0.5``). Batch
norm sees one process's tiles.
"""

from functools import partial

from torch import nn
from torch.optim import SGD

from selfsight.batches import Puzzles
from selfsight.encoders.build import build_encoder
from selfsight.methods.jigsaw import Jigsaw
from selfsight.parts.batchnorm import set_scope_
from selfsight.parts.permutations import maximal_hamming
from selfsight.recipes.quick import on_the_world
from selfsight.recipes.recipe import OptimiserSpec, Recipe, Setting, positive, skip_vectors
from selfsight.recipes.tiling import whole_patches, width_on
from selfsight.schedules import constant, steps
from selfsight.views.puzzles import puzzles as puzzles_of
from selfsight.views.view import View

CARDS = {
    "jigsaw": {
        "family": "pretext",
        "title": "Jigsaw puzzles",
        "year": 2016,
        "arxiv": "1603.09246",
        "fact": "Say by which of many permutations nine tiles of an image were shuffled.",
        "encoder": "resnet50",
    }
}


def jigsaw(
    at: Setting,
    *,
    permutations: int | None = None,
    grey: float = 0.3,
    project: float = 0.0,
    tile: int | None = None,
    spread: int | None = None,
    puzzles: int = 1,
    tile_width: int | None = None,
    hidden: int | None = None,
    dropout: float = 0.5,
) -> Recipe[Puzzles]:
    """Jigsaw puzzles: say by which of many permutations nine tiles of an image were shuffled.

    Parameters
    ----------
    at
        What the run knows.
    permutations
        How many there are: the classes. Default: 1000, for small images 100.
    grey
        The share of puzzles that are grey as a whole; 1 evaluates in grey too.
    project
        The share of the others whose green against magenta is projected out.
    tile
        Side of a tile in pixels. Default: 64/255 of the image's, in whole patches of a vision transformer.
    spread
        By how many pixels a tile's colour channels are moved apart at most. Default: 2/255 of the image's side.
    puzzles
        How many permutations of its tiles each image is seen in at a time.
    tile_width
        Width of the layer on each tile's feature. Default: 1024, for small images 128.
    hidden
        Width of the hidden layer on all tiles. Default: 4096, for small images 1024.
    dropout
        Of that layer.
    """
    positive(permutations=permutations, tile=tile, tile_width=tile_width, hidden=hidden)
    if not 0 <= dropout < 1:
        raise ValueError(f"--dropout is {dropout:g}; it is a share of the units, from 0 to less than 1")
    size = at.image_size
    tile = tile or whole_patches(at, round(size * 64 / 255))
    spread = round(size * 2 / 255) if spread is None else spread
    table = maximal_hamming(permutations or (100 if at.small else 1000))
    crop = View(size=size, scale=(1.0, 1.0), ratio=(1, 1), flip=0)
    views = puzzles_of(crop, table, tile=tile, spread=spread, grey=grey, project=project, count=puzzles)
    each, width = tile_width or (128 if at.small else 1024), hidden or (1024 if at.small else 4096)
    reduce = nn.Sequential(nn.Linear(width_on(at, tile), each), nn.BatchNorm1d(each), nn.ReLU(inplace=True))
    solve = nn.Sequential(
        nn.Linear(9 * each, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, len(table))
    )
    method = Jigsaw(at.encoder, reduce, solve, permutations=table)
    set_scope_(method, "rank")
    batch = at.batch_size or 256
    warmup = 5 * (at.samples // batch)
    main = OptimiserSpec(
        build=partial(SGD, momentum=0.9),
        lr=steps(0.1 * batch / 256, at=(30 / 105, 60 / 105, 90 / 105, 100 / 105), factor=0.1, warmup_updates=warmup),
        weight_decay=constant(1e-4),
        groups=skip_vectors,
    )
    return Recipe(
        method=method,
        views=views,
        optimisers={"main": main},
        epochs=at.epochs or (300 if at.small else 105),
        batch_size=batch,
    )


def tiny() -> dict[str, Recipe]:
    """The recipe at a size that a test can train."""
    encoder = build_encoder("tiny_cnn", image_size=32)
    at = Setting(encoder=encoder, image_size=32, samples=1000, epochs=5, batch_size=64)
    recipe = jigsaw(at, permutations=24, puzzles=4, tile_width=64, hidden=256, dropout=0.1)
    return {"jigsaw": on_the_world(recipe, peak=8e-3)}
