"""What keeps fine-tuning from learning by heart: mixup, CutMix, label smoothing and stochastic depth, all timm's.

The values are those of MAE's fine-tuning (He et al., 2022, arXiv 2111.06377, table 9) and BEiT's (arXiv 2106.08254):
mixup (1710.09412) 0.8, CutMix (1905.04899) 1.0, one of the two for each batch, label smoothing 0.1, drop path 0.1.
What is random is drawn by key for each update and process, so that a seed gives one result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.nn.functional import cross_entropy

from selfsight import distributed, keyed
from selfsight.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Which parts are on, and how strongly: 0 is off."""

    mixup: float = 0.0
    """The beta distribution's parameter, of which an image's share in a blend of two is drawn."""
    cutmix: float = 0.0
    """The same for the share that stays of an image when a box of another is put into it."""
    smoothing: float = 0.0
    """The share of a label's probability that all classes get alike."""
    drop_path: float = 0.0
    """The last block's probability to be left out; the first one's is 0."""

    def __post_init__(self) -> None:
        for name, most in {"mixup": None, "cutmix": None, "smoothing": 1, "drop_path": 1}.items():
            value = getattr(self, name)
            if value < 0 or (most and value >= most):
                below = f" and below {most}" if most else ""
                raise UserError(f"--{name.replace('_', '-')} is {value:g}; it must be at least 0{below}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, which takes an even number of them."""
        return self.mixup > 0 or self.cutmix > 0

    def for_batch(self, batch: int) -> "tuple[Regularisation, int]":
        """What is possible with ``batch`` images an update, and how many it then has: pairs on every process."""
        each, world = batch // distributed.world_size(), distributed.world_size()
        if not self.mixes or each % 2 == 0:
            return self, batch
        return (self, (each - 1) * world) if each > 1 else (replace(self, mixup=0.0, cutmix=0.0), batch)


PARTS = tuple(field.name for field in fields(Regularisation))
"""Their names."""

MAE = Regularisation(mixup=0.8, cutmix=1.0, smoothing=0.1, drop_path=0.1)
"""Fine-tuning of ViT-B on all labels."""


class Loss:
    """A classifier's loss on images that it may mix before they are seen."""

    def __init__(self, parts: Regularisation, classes: int) -> None:
        self.smoothing = parts.smoothing
        self.mixup = Mixup(parts.mixup, parts.cutmix, label_smoothing=parts.smoothing, num_classes=classes)
        self.mixes = parts.mixes

    def mixed(
        self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"] | Float[Tensor, "b k"]]:
        """Images and targets: mixed, in place, with a probability for each class; or as they are."""
        return self.mixup(x, labels) if self.mixes else (x, labels)

    def __call__(
        self, logits: Float[Tensor, "b k"], target: Int[Tensor, " b"] | Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        if self.mixes:
            return SoftTargetCrossEntropy()(logits, target)
        return (
            LabelSmoothingCrossEntropy(self.smoothing)(logits, target)
            if self.smoothing
            else cross_entropy(logits, target)
        )


@contextmanager
def by_key(seed: int, step: int, device: str | torch.device) -> Iterator[None]:
    """Where numpy's and torch's own random numbers depend on (seed, step, process) alone; they go on as they were."""
    row = np.array([distributed.rank()])
    first, second = keyed.words(seed, np.array([step]), row, "finetune", 2)[0].tolist()
    where = torch.device(device)
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[] if where.type == "cpu" else [where.index or 0]):
        torch.manual_seed(first)
        np.random.seed(second)  # timm's mixup draws from it
        try:
            yield
        finally:
            np.random.set_state(before)
