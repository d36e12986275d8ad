"""What is evaluated or embedded: an encoder with its evaluation view, and labelled data to measure it on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from selfsight.batches import Images
from selfsight.data.opening import open_splits
from selfsight.data.protocol import Source
from selfsight.data.splits import Chosen
from selfsight.encoders.protocol import Encoder
from selfsight.engine.run import OpenRun, open_run
from selfsight.errors import UserError
from selfsight.evaluation.linear_sgd import Paper
from selfsight.parts.head_layers import WithHead, first_layers
from selfsight.recipes import catalogue
from selfsight.views.pipelines import one_view, plain_view
from selfsight.views.protocol import Views
from selfsight.views.view import IMAGENET, View


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder as it is measured: with the view that shows it an image, and where it comes from."""

    encoder: Encoder
    plain: Views[Images]
    run: OpenRun | None = None
    which: Literal["last", "best"] = "last"
    head_layers: int = 0
    """So many layers of the run's head belong to the encoder."""

    @property
    def probe(self) -> Paper:
        """Whose linear probe the run's paper takes, ``mae``'s or ``moco``'s."""
        if self.run is None:
            return "moco"
        if self.run.imported:
            said = self.run.imported.get("probe")
        else:
            card = catalogue.entry(self.run.method)
            said = card.probe or ("mae" if card.family == "masked" else "moco")
        return "mae" if said == "mae" else "moco"

    def facts(self) -> dict[str, Any]:
        """What a saved result says of the encoder."""
        about: dict[str, Any] = {"encoder": getattr(self.encoder, "name", type(self.encoder).__name__)}
        if self.run is not None:
            epochs = self.run.settings["resolved"].get("epochs")
            about = {"method": self.run.method, **about, "epochs": epochs, "weights": self.which}
        return about | ({"head_layers": self.head_layers} if self.head_layers else {})


def open_subject(
    run: Path | str | OpenRun | Encoder,
    *,
    plain: Views[Images] | None = None,
    which: Literal["last", "best"] = "last",
    head_layers: int = 0,
) -> Subject:
    """A run's trained encoder, or one that is at hand, with its evaluation view (``plain`` overrides it).

    ``head_layers`` of the run's head are taken into the encoder (SimCLR v2 fine-tunes from the first).
    """
    if isinstance(run, nn.Module):
        if head_layers:
            raise UserError(f"--head-layers is {head_layers}, but an encoder alone has no head; give its run")
        size = getattr(run, "image_size", None)
        if plain is None and size is None:
            raise UserError(f"{type(run).__name__} does not say its image_size; give the evaluation view as plain=")
        return Subject(encoder=cast(Encoder, run), plain=plain or plain_view(cast(int, size), IMAGENET))
    opened = run if isinstance(run, OpenRun) else open_run(cast(Path, run))
    plain = plain or opened.plain
    encoder = _with_head(opened, which, head_layers) if head_layers else opened.encoder(which)
    return Subject(encoder=encoder, plain=plain, run=opened, which=which, head_layers=head_layers)


def _with_head(run: OpenRun, which: Literal["last", "best"], layers: int) -> Encoder:
    method: Any = run.recipe(which).method
    if not hasattr(method, "projector"):
        raise UserError(f"{run.path} is a run of {run.method}, which has no head; leave out --head-layers")
    try:
        return WithHead(method.encoder, first_layers(method.projector, layers)).eval()  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise UserError(str(error)) from error


def channels_of(encoder: Encoder) -> int:
    """How many channels the encoder takes: what it says, else its first layer's."""
    said = getattr(encoder, "channels", None)
    layers = cast(nn.Module, encoder).modules()
    return said or next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), 3)


def view_of(plain: Views[Images]) -> View:
    """The training view of the papers' probes and fine-tuning: 8 to 100 % of the area and a flip, as ``plain`` else.

    What is tested in grey is trained in grey.
    """
    facts: dict[str, Any] = {name: getattr(plain, name) for name in ("size", "interpolation", "normalise")}
    facts |= {"grey": float(getattr(plain, "grey", False)), "greyscale": getattr(plain, "greyscale", "luma")}
    return View(scale=(0.08, 1.0), flip=0.5, **facts)


def crop_of(plain: Views[Images]) -> Views[Images]:
    """``view_of`` as a pipeline."""
    return one_view(view_of(plain))


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Train and test, every label known."""

    train: Source
    test: Source
    classes: int

    def facts(self) -> dict[str, Any]:
        """What a saved result says of the data."""
        return {
            "name": self.train.name,
            "train": len(self.train),
            "test": len(self.test),
            "classes": self.classes,
            "fingerprint": self.train.fingerprint,
            "test_fingerprint": self.test.fingerprint,
        }

    def recorded(self, results: dict[str, Any], path: Path) -> None:
        """Writes the facts into ``results``; refuses to add to a file that was measured on other data."""
        before, now = results.get("data"), self.facts()
        if before and before != now:
            differing = [
                f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value
            ]
            raise UserError(
                f"{path} was measured on other data ({', '.join(differing)}); give another --out or delete it"
            )
        results["data"] = now


def open_pair(
    subject: Subject, data: Any, *, limit: int | None, labels: Path | None, seed: int
) -> tuple[Source, Source]:
    """Train and test of ``data``, or of the run's own data where that is None."""
    if data is None:
        data = subject.run.data() if subject.run else "world"
        labels = labels or (subject.run.flags.labels if subject.run else None)
    size = getattr(subject.plain, "size", None)
    channels = channels_of(subject.encoder)
    return open_splits(data, image_size=size, limit=limit, labels=labels, seed=seed, channels=channels)


def labelled(pair: tuple[Source, Source], protocol: str, instead: str = "use --protocol quality") -> LabelledData:
    """The images whose label is known; a ``UserError`` that says what to do (or ``instead``) where there are none."""
    otherwise = f", or {instead}" if instead else ""
    if len(pair[0]) and not len(pair[1]):
        raise UserError(
            f"{pair[0].name} has no class of five images or more, so none was held back for a test, which {protocol} "
            f"needs; give --data with a test split{otherwise}"
        )
    train, test = (_known(source, protocol, otherwise) for source in pair)
    classes = max(len(train.classes), *(int(np.max(cast(np.ndarray, s.labels))) + 1 for s in (train, test)))
    if classes < 2:
        raise UserError(
            f"{train.name} has one class only, so {protocol} has nothing to tell apart"
            + (f"; {instead}" if instead else "")
        )
    return LabelledData(train=train, test=test, classes=classes)


def _known(source: Source, protocol: str, otherwise: str) -> Source:
    labels = source.labels
    known = np.flatnonzero(labels >= 0) if labels is not None else np.empty(0, dtype=np.int64)
    if not len(known):
        raise UserError(
            f"{source.name} has no labels, which {protocol} needs; give --labels FILE.csv (path,label), "
            f"or sort the images into one folder a class{otherwise}"
        )
    return source if len(known) == len(source) else chosen(source, known)


def chosen(source: Source, positions: np.ndarray) -> Source:
    """The images of ``source`` at ``positions``."""
    return cast(Source, Chosen(source, positions, name=source.name))
