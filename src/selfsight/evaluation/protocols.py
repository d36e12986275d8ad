"""Each protocol by its name: what it measures of one contender, and the settings that belong beside the number."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from selfsight import distributed
from selfsight.batches import Images, TwoViews
from selfsight.data.loader import Loader
from selfsight.data.protocol import Source
from selfsight.data.splits import limited
from selfsight.encoders.protocol import Encoder
from selfsight.evaluation import quality
from selfsight.evaluation.attentive import attentive
from selfsight.evaluation.features import Features, Precision, encode, extract, frozen
from selfsight.evaluation.finetune import by_tokens, finetune, labelled_fraction
from selfsight.evaluation.knn import knn_score
from selfsight.evaluation.layerwise import layerwise
from selfsight.evaluation.lesson import Lesson
from selfsight.evaluation.linear import linear_lbfgs
from selfsight.evaluation.linear_sgd import Paper, linear_sgd
from selfsight.evaluation.regularisation import MAE, Regularisation
from selfsight.evaluation.stream import Place, moved
from selfsight.evaluation.subject import LabelledData, chosen, crop_of, view_of
from selfsight.views.pipelines import two_views
from selfsight.views.protocol import Views

LAYER = "layer "
"""What the name of a stage's number begins with."""
RANKME_SAMPLES = 25_600
"""RankMe's paper: enough for its value to settle."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the protocols can be told; None leaves the choice to the paper."""

    k: int = 20
    temperature: float = 0.07
    paper: Paper = "moco"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    precision: Precision = "32"
    place: Place = field(default_factory=Place)
    layer_decay: float | None = None
    regularisation: Mapping[str, float] = field(default_factory=dict[str, float])
    """The parts of a fine-tuning that are not as its paper has them, by their names."""

    def lesson(self, who: "Contender", data: LabelledData) -> Lesson:
        """What a protocol that trains is given."""
        return Lesson(
            train=data.train,
            test=data.test,
            crop=crop_of(who.plain),
            plain=who.plain,
            classes=data.classes,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=self.seed,
            precision=self.precision,
            place=self.place,
        )


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One encoder in the comparison, with its evaluation view; features are extracted once and shared."""

    name: str
    encoder: Encoder
    plain: Views[Images]
    kept: dict[str, Features] = field(default_factory=dict[str, Features])

    def features(self, part: str, source: Source, how: Settings) -> Features:
        if part not in self.kept:
            place = vars(how.place)
            self.kept[part] = extract(self.encoder, source, self.plain, precision=how.precision, **place)
        return self.kept[part]


@dataclass(frozen=True)
class Finding:
    """A protocol's numbers for one contender, and the settings they were measured with."""

    numbers: Mapping[str, float | int | None]
    settings: Mapping[str, Any]


Measure = Callable[[Contender, LabelledData, Settings], Finding]


def knn(who: Contender, data: LabelledData, how: Settings) -> Finding:
    """Weighted nearest neighbours on pooled features."""
    train, test = who.features("train", data.train, how), who.features("test", data.test, how)
    found = knn_score(train, test, k=how.k, temperature=how.temperature, classes=data.classes)
    return Finding(found.row(), {"k": how.k, "temperature": how.temperature})


def linear_by_lbfgs(who: Contender, data: LabelledData, how: Settings) -> Finding:
    """Logistic regression on standardised pooled features."""
    train, test = who.features("train", data.train, how), who.features("test", data.test, how)
    found, strength = linear_lbfgs(train, test, classes=data.classes, seed=how.seed, device=how.place.device)
    return Finding(found.row(), {"lambda": strength, "lambda_from": "a fifth of train, held out by key"})


def instead_of_pixels(measure: Measure) -> Measure:
    """A protocol of an encoder's own features or stages; of raw pixels, ``linear-lbfgs``.

    They stand in no paper's probe: MoCo's rate of 30 would make them diverge, and they have neither stages nor tokens.
    Their number is that of the best linear classifier of them.
    """

    def measured(who: Contender, data: LabelledData, how: Settings) -> Finding:
        if who.name != "pixels":
            return measure(who, data, how)
        found = linear_by_lbfgs(who, data, how)
        return Finding(found.numbers, {"protocol": "linear-lbfgs", **found.settings})

    return measured


def linear_by_sgd(who: Contender, data: LabelledData, how: Settings) -> Finding:
    """A paper's probe under augmentation."""
    found, probe = linear_sgd(who.encoder, how.lesson(who, data), paper=how.paper)
    return Finding(found.row(), dataclasses.asdict(probe))


def by_attention(who: Contender, data: LabelledData, how: Settings) -> Finding:
    """A probe that attends to the patch tokens."""
    found, probe = attentive(who.encoder, how.lesson(who, data))
    return Finding(found.row(), {"feature": "patches", **dataclasses.asdict(probe)})


def by_layer(who: Contender, data: LabelledData, how: Settings) -> Finding:
    """A probe behind each stage. The score is the last stage's: no layer is picked by its test accuracy."""
    found, probe = layerwise(who.encoder, how.lesson(who, data))
    stages = {f"{LAYER}{name}": each.top1 for name, each in found.items()}
    return Finding({**list(found.values())[-1].row(), **stages}, dataclasses.asdict(probe))


def finetune_on(fraction: float) -> Measure:
    """Fine-tuning on a fraction of the labels; a transformer on all of them has MAE's regularisation.

    On a few labels it has SimCLR's, crop and flip alone, as convolutional encoders do on all.
    """

    def measure(who: Contender, data: LabelledData, how: Settings) -> Finding:
        lesson, standard = how.lesson(who, data), Regularisation()
        if fraction < 1:
            positions = labelled_fraction(np.asarray(data.train.labels), fraction, seed=how.seed)
            lesson = dataclasses.replace(lesson, train=chosen(data.train, positions))
        elif by_tokens(who.encoder):
            standard = MAE
        found, tuning = finetune(
            who.encoder,
            lesson,
            fraction=fraction,
            scratch=who.name == "scratch",
            layer_decay=how.layer_decay,
            regularisation=dataclasses.replace(standard, **how.regularisation),
        )
        return Finding(found.row(), dataclasses.asdict(tuning))

    return measure


def label_free(who: Contender, source: Source, how: Settings) -> Finding:
    """RankMe, alpha-ReQ, uniformity and standard deviation of features, and the alignment of two crops of an image."""
    source = limited(source, RANKME_SAMPLES, seed=how.seed)
    x = who.features("quality", source, how).x
    rows, width = x.shape
    law = quality.alpha_req(x) if min(rows - 1, width) >= 10 else quality.PowerLaw(math.nan, math.nan)
    numbers = {
        "effective_rank": quality.effective_rank(x),
        "alpha_req": law.alpha,
        "alpha_req_r2": law.r2,
        "uniformity": quality.uniformity(x),
        "alignment": _alignment(who, source, how),
        "feature_std": quality.feature_std(x),
        "width": width,
        "samples": rows,
    }
    return Finding(
        {name: value if math.isfinite(value) else None for name, value in numbers.items()},
        {"feature": "pooled", "alignment_of": "two crops of 8-100 % with flip"},
    )


def _alignment(who: Contender, source: Source, how: Settings) -> float:
    pairs = cast(Views[TwoViews], two_views(view_of(who.plain)))
    world = distributed.world_size()
    batch = min(256, len(source)) // world * world
    loader = Loader(
        source,
        pairs,
        batch_size=batch,
        seed=how.seed,
        rank=distributed.rank(),
        world=world,
        workers=how.place.workers,
        cache_dir=how.place.cache_dir,
    )
    total, steps = torch.zeros(()), loader.steps_per_epoch
    try:
        with frozen(who.encoder), torch.inference_mode():
            for micro in loader.stream(0, steps):
                views = pairs.render(moved(micro.images, how.place.device), pairs.plan(micro.key), micro.key)
                one, two = (encode(who.encoder, x, precision=how.precision).cpu() for x in (views.x1, views.x2))
                total += quality.alignment(one, two)
    finally:
        loader.close()
    return distributed.mean(total.to(how.place.device) / steps).item()


MEASURES: dict[str, Measure] = {
    "knn": knn,
    "linear-lbfgs": linear_by_lbfgs,
    "linear-sgd": instead_of_pixels(linear_by_sgd),
    "attentive": instead_of_pixels(by_attention),
    "layerwise": instead_of_pixels(by_layer),
    "finetune-1": finetune_on(0.01),
    "finetune-10": finetune_on(0.1),
    "finetune-100": finetune_on(1.0),
}
"""The protocols that need labels; ``quality`` needs none."""

ALIASES = {"linear": ("linear-lbfgs",), "finetune": ("finetune-1", "finetune-10", "finetune-100")}
"""Short names; a result always carries the full one."""
