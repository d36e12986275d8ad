"""The probe of a run while it trains: weighted kNN within its own training images, whose labels it never learns from.

No image of a test split is looked at, so that the checkpoint with the best probe is not chosen on the test images.
"""

from collections.abc import Callable

import numpy as np
import torch

from selfsight.batches import Images
from selfsight.data.cache import cache_folder
from selfsight.data.protocol import NoneReadable, Source
from selfsight.data.splits import Chosen, with_labels
from selfsight.encoders.protocol import Encoder
from selfsight.evaluation.features import extract
from selfsight.evaluation.knn import knn_accuracy
from selfsight.keyed import permutation
from selfsight.views.protocol import Views

BANK, QUERIES = 5000, 2000
"""Images that answer and that ask, at most: keyed subsets, so that a probe costs a small share of an epoch."""


def online_probe(
    encoder: Encoder, plain: Views[Images], source: Source, *, device: torch.device, workers: int
) -> Callable[[], float | None] | None:
    """A function that scores ``encoder`` as it is (k=20, T=0.07): two of seven labelled images ask the other five.

    None where the labels tell no two classes apart. Images that cannot be read are left out, and end no run: where
    none is left to ask or to answer there is no score.
    """
    known = with_labels(source)
    if len(known) < 2 or known.labels is None or len(np.unique(known.labels)) < 2:
        return None
    drawn = permutation(len(known), seed=0, epoch=0, stream="probe")[: BANK + QUERIES]
    asking = max(2 * len(drawn) // 7, 1)
    parts = [Chosen(known, np.sort(drawn[part]), name=known.name) for part in (slice(asking, None), slice(asking))]
    place = {"device": device, "workers": workers, "cache_dir": cache_folder()}

    def score() -> float | None:
        try:
            bank, queries = (extract(encoder, part, plain, **place) for part in parts)
        except NoneReadable:
            return None
        return float(knn_accuracy(bank, queries, k=min(20, len(bank.positions))))

    return score
