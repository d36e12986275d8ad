"""The probe of a run while it trains: weighted kNN, of images that the training doesn't see."""

from collections.abc import Callable

import torch

from selfsight.batches import Images
from selfsight.data.cache import cache_folder
from selfsight.data.opening import open_splits
from selfsight.data.protocol import DataError
from selfsight.data.splits import limited, with_labels
from selfsight.data.workers import default_workers
from selfsight.encoders.protocol import Encoder
from selfsight.errors import UserError
from selfsight.evaluation.features import extract
from selfsight.evaluation.knn import knn_accuracy
from selfsight.flags import Flags
from selfsight.views.protocol import Views

TRAIN, TEST = 5000, 2000
"""Images in the bank and queries, at most: keyed subsets, so that a probe costs a small share of an epoch."""


def online_probe(
    encoder: Encoder,
    plain: Views[Images],
    flags: Flags,
    *,
    samples: int,
    image_size: int,
    device: torch.device,
    world: int,
) -> Callable[[], float] | None:
    """A function that scores ``encoder`` as it is (k=20, T=0.07), or None where the labels don't tell classes apart.

    A run of few ``samples``, of a large data set even, has a probe of few: at most that many in the bank and two for
    each five of them as queries.
    """
    try:
        pair = open_splits(
            flags.data, image_size=image_size, labels=flags.labels, seed=flags.seed, channels=flags.channels
        )
    except (DataError, UserError):
        return None
    known = [with_labels(source) for source in pair]
    if not all(len(source) for source in known):
        return None
    most = min(TRAIN, samples), max(min(TEST, 2 * samples // 5), 1)
    parts = [limited(source, n, seed=0) for source, n in zip(known, most, strict=True)]
    workers = default_workers(world) if flags.workers is None else flags.workers
    place = {"device": device, "workers": workers, "cache_dir": cache_folder()}
    k = min(20, len(parts[0]))

    def score() -> float:
        return float(knn_accuracy(*(extract(encoder, part, plain, **place) for part in parts), k=k))

    return score
