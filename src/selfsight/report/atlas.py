"""The encoder's view of the data: a map of its features and the nearest neighbours of a few images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from selfsight.batches import Images
from selfsight.data.protocol import DataError, Source
from selfsight.report.content import EmbeddingMap, Neighbour, Neighbours
from selfsight.report.grid import read_originals, render_batch, sample_positions
from selfsight.report.thumbnails import as_image, picture, sprite, thumbnail
from selfsight.sizes import SMALL
from selfsight.views.protocol import Views

MOST_SMALL, MOST_LARGE = 1500, 400
"""Images on the map: small ones, and ones over 96 px, whose features take longer."""
THUMBNAIL, CELL = 96, 48


class Gathered(NamedTuple):
    """Features of some images, where the images are, and what they look like."""

    x: Float[np.ndarray, "n d"]
    positions: Int[np.ndarray, " n"]
    images: list[Image.Image]


def atlas(
    encoder: Any, plain: Views[Images], source: Source, *, seed: int = 0, most: int | None = None
) -> tuple[EmbeddingMap, Neighbours]:
    """The map and the rows of neighbours, over up to ``most`` images chosen by key."""
    features, positions, images = gather_features(encoder, plain, source, seed=seed, most=most)
    if len(positions) < 3:
        raise DataError(f"{len(positions)} of the chosen images can be read; a map needs at least 3")
    labels = None if source.labels is None else np.asarray(source.labels)[positions]
    words = None if labels is None else [_label(source, int(label)) for label in labels]
    names = [source.where(int(at)) for at in positions]
    xy, how = project(features)
    cell = min(CELL, max(min(image.size) for image in images) if images else CELL)
    found = EmbeddingMap(xy[:, 0].tolist(), xy[:, 1].tolist(), names, words, sprite(images, max(32, cell)), how)
    return found, _neighbours(features, images, names, labels=labels, words=words)


@torch.no_grad()
def gather_features(
    encoder: Any, plain: Views[Images], source: Source, *, seed: int = 0, most: int | None = None
) -> Gathered:
    """Pooled features in evaluation mode, of up to ``most`` images that can be read, with a thumbnail each."""
    device = next(encoder.parameters()).device
    training = encoder.training
    encoder.eval()
    out: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    images: list[Image.Image] = []
    chosen = sample_positions(source, most or MOST_SMALL, seed=seed)
    start = 0
    while start < len(chosen):
        originals = read_originals(source, chosen[start : start + 50])
        start += 50
        if not originals.images:
            continue
        x = render_batch(plain, originals).x
        out.append(encoder(x.to(device)).float().cpu().numpy())
        kept.append(originals.positions)
        images += [thumbnail(as_image(image), min(THUMBNAIL, *image.shape[1:])) for image in originals.images]
        if most is None and x.shape[-1] > SMALL and device.type == "cpu":
            chosen = chosen[:MOST_LARGE]
    encoder.train(training)
    if not out:
        return Gathered(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), [])
    return Gathered(np.concatenate(out), np.concatenate(kept), images)


def project(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n 2"], str]:
    """The plane by t-SNE on the 50 leading components of unit-length features; by PCA alone under 50 images."""
    if not np.isfinite(x).all():
        raise DataError("the encoder's features are not finite; the run has diverged")
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    if np.ptp(unit, axis=0).max() < 1e-6:
        raise DataError("the encoder gives every image the same feature; the run has collapsed")
    reduced = PCA(min(50, *unit.shape), random_state=0).fit_transform(unit.astype(np.float64))
    if reduced.shape[1] < 2:
        reduced = np.concatenate([reduced, np.zeros_like(reduced)], axis=1)
    if len(x) < 50 or reduced.shape[1] < 3:
        return reduced[:, :2], "first two principal components of unit-length features"
    perplexity = min(30.0, (len(x) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init=reduced[:, :2] / reduced[:, 0].std() * 1e-4, random_state=0)
    return placed.fit_transform(reduced), f"t-SNE of unit-length features, perplexity {perplexity:.0f}"


def _label(source: Source, label: int) -> str:
    if label < 0:
        return "no label"
    return source.classes[label] if label < len(source.classes) else str(label)


def nearest(x: Float[np.ndarray, "n d"], most: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Each row's ``most`` nearest other rows by cosine, and the cosines; fewer where there are no more."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -math.inf)
    places = np.argsort(-alike, axis=1, kind="stable")[:, : min(most, len(x) - 1)]
    return places, np.take_along_axis(alike, places, axis=1)


def _neighbours(
    x: Float[np.ndarray, "n d"],
    images: Sequence[Image.Image],
    names: Sequence[str],
    *,
    labels: Int[np.ndarray, " n"] | None,
    words: Sequence[str] | None,
    rows: int = 8,
    columns: int = 8,
) -> Neighbours:
    """Cosine neighbours within the sample, and how many of them share the label."""
    places, alike = nearest(x, columns)

    def one(i: int, similarity: float) -> Neighbour:
        return Neighbour(picture(images[i]), names[i], words[i] if words else "", similarity)

    table = [
        [one(i, 1.0), *(one(int(j), float(cosine)) for j, cosine in zip(places[i], alike[i], strict=True))]
        for i in _askers(len(x), labels, rows)
    ]
    if labels is None or not (labels >= 0).any():
        return Neighbours(table, len(x), None)
    known = labels >= 0
    same = (labels[places] == labels[:, None])[known].mean()
    counts = np.bincount(labels[known])
    chance = float((counts * (counts - 1)).sum() / (known.sum() * max(len(x) - 1, 1)))
    return Neighbours(table, len(x), float(same), chance)


def _askers(n: int, labels: Int[np.ndarray, " n"] | None, rows: int) -> list[int]:
    """The images that begin a row: the first of each label in turn, else the first ones of the keyed order."""
    if labels is None:
        return list(range(min(n, rows)))
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    others = [i for i in range(n) if i not in set(firsts)]
    return (sorted(firsts) + others)[: min(n, rows)]
