"""A call of each function in `selfsight.losses`, on features as extreme as asked for and at a temperature of 0.01."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

import selfsight.losses
from selfsight.losses import (
    adversarial,
    blockwise,
    clustering,
    codes,
    colour,
    contrastive,
    counting,
    cross_view,
    debiased,
    decoupled,
    deep,
    distillation,
    grouped,
    hypersphere,
    infomax,
    inpainting,
    instance,
    nce,
    pixels,
    position,
    precision,
    predictive,
    reconstruction,
    redundancy,
    regression,
    self_training,
    similarity,
    soft_targets,
    spreading,
    variance,
)

D, COLD = 16, 0.01


def _signs(x: Tensor) -> Tensor:
    return (1 - 2 * (torch.arange(len(x)) % 2)).view(-1, *[1] * (x.ndim - 1)) * torch.ones_like(x)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda x: x,
    "all equal": torch.ones_like,
    "zero": torch.zeros_like,
    "one zero": lambda x: x * (torch.arange(len(x)) > 0).view(-1, *[1] * (x.ndim - 1)),
    "opposed": _signs,
    "large": lambda x: 1000 * x,
}


class Make:
    """Makes what a loss takes: features of a kind, rounded to a half type, which get gradients; and the rest."""

    def __init__(self, b: int, kind: str, half: torch.dtype, *, double: bool = False) -> None:
        self.b, self.kind, self.half, self.double = b, kind, half, double
        self.random = torch.Generator().manual_seed(0)
        self.made: list[Tensor] = []

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = (scale * KINDS[self.kind](torch.randn(shape, generator=self.random))).to(self.half)
        self.made.append((x.double() if self.double else x).requires_grad_())
        return self.made[-1]

    def shares(self, *shape: int) -> Tensor:
        """Probabilities, in float32 as what makes them gives them."""
        return torch.randn(shape, generator=self.random).softmax(dim=-1)

    def ints(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.random)

    def pair(self) -> tuple[Tensor, Tensor]:
        return self(self.b, D), self(self.b, D)

    def boxes(self) -> Tensor:
        return torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(self.b, 1)

    def matches(self) -> pixels.Matches:
        return pixels.match(self.boxes(), self.boxes(), size=(2, 2), threshold=0.7)

    def code(self) -> colour.SoftCode:
        return colour.SoftCode(self.ints(7, self.b, 3, 2, 2), self.shares(self.b, 2, 2, 3).permute(0, 3, 1, 2))


CASES: dict[str, Callable[[Make], Any]] = {
    "adversarial.discriminator_loss": lambda x: adversarial.discriminator_loss(x(x.b), x(x.b)),
    "adversarial.generator_loss": lambda x: adversarial.generator_loss(x(x.b)),
    "blockwise.log_sum_exp": lambda x: blockwise.log_sum_exp(*x.pair()),
    "clustering.sinkhorn": lambda x: clustering.sinkhorn(x(x.b, D), epsilon=COLD),
    "clustering.swapped_prediction": lambda x: clustering.swapped_prediction(
        x(4, x.b, D), x.shares(2, x.b, D), temperature=COLD
    ),
    # its scale is a logarithm: e^1000 is no error of the loss
    "codes.logit_laplace": lambda x: codes.logit_laplace(
        x(x.b, 3, 2, 2), x(x.b, 3, 2, 2, scale=0.01), codes.map_pixels(x.shares(x.b, 3, 2, 2))
    ),
    "codes.divergence_from_uniform": lambda x: codes.divergence_from_uniform(x(x.b, 8, 2, 2)),
    "codes.code_loss": lambda x: codes.code_loss(x(x.b, D), x.ints(D, x.b)),
    "colour.code_cross_entropy": lambda x: colour.code_cross_entropy(x(x.b, 7, 2, 2), x.code()),
    "colour.rebalanced_cross_entropy": lambda x: colour.rebalanced_cross_entropy(
        x(x.b, 7, 2, 2), x.code(), torch.ones(7), torch.ones(x.b)
    ),
    "colour.annealed_mean": lambda x: colour.annealed_mean(x(x.b, 7, 2, 2), torch.ones(7, 2), temperature=COLD),
    "contrastive.nt_xent": lambda x: contrastive.nt_xent(*x.pair(), temperature=COLD),
    "contrastive.info_nce": lambda x: contrastive.info_nce(*x.pair(), temperature=COLD, negatives=x(5, D)),
    "counting.counting": lambda x: counting.counting(x(x.b, D), x(x.b, 4, D), x(x.b, D)),
    "cross_view.cross_view_info_nce": lambda x: cross_view.cross_view_info_nce(*x.pair(), temperature=COLD),
    "debiased.debiased": lambda x: debiased.debiased(*x.pair(), temperature=COLD, tau_plus=0.1),
    "debiased.hard_negatives": lambda x: debiased.hard_negatives(*x.pair(), temperature=COLD, tau_plus=0.1, beta=1.0),
    "debiased.share_at_the_floor": lambda x: debiased.share_at_the_floor(*x.pair(), temperature=COLD, tau_plus=0.1),
    "debiased.effective_negatives": lambda x: debiased.effective_negatives(*x.pair(), temperature=COLD, beta=1.0),
    "decoupled.decoupled": lambda x: decoupled.decoupled(*x.pair(), temperature=COLD, sigma=0.5),
    "decoupled.von_mises_fisher_weights": lambda x: decoupled.von_mises_fisher_weights(*x.pair(), sigma=COLD),
    "decoupled.flat_nce": lambda x: decoupled.flat_nce(*x.pair(), temperature=COLD),
    "deep.hybrid_target": lambda x: deep.hybrid_target(x(x.b, 4, D), x(x.b, 4, D), 0.5),
    "deep.deep_masked_mse": lambda x: deep.deep_masked_mse([x(x.b, 4, D)], [x(x.b, 4, D)], x.ints(4, x.b, 2)),
    "distillation.teacher_probabilities": lambda x: distillation.teacher_probabilities(
        x(2, x.b, D), torch.zeros(D), temperature=COLD
    ),
    "distillation.self_distillation": lambda x: distillation.self_distillation(
        x(4, x.b, D), x.shares(2, x.b, D), temperature=COLD
    ),
    "distillation.masked_distillation": lambda x: distillation.masked_distillation(
        x(x.b, D), x.shares(x.b, D), (torch.arange(2 * x.b) < x.b).view(2, x.b), temperature=COLD
    ),
    "grouped.grouped_contrast": lambda x: grouped.grouped_contrast(x(x.b, 4, D), temperature=COLD),
    "hypersphere.alignment": lambda x: hypersphere.alignment(*x.pair()),
    "hypersphere.uniformity": lambda x: hypersphere.uniformity(x(x.b, D), t=1 / COLD),
    "hypersphere.align_uniform": lambda x: hypersphere.align_uniform(*x.pair(), t=1 / COLD),
    "hypersphere.align_uniform_with_queue": lambda x: hypersphere.align_uniform_with_queue(
        *x.pair(), negatives=x(5, D), t=1 / COLD
    ),
    "infomax.local_infomax": lambda x: infomax.local_infomax(x(x.b, D), x(x.b, D, 9)),
    "inpainting.painted_error": lambda x: inpainting.painted_error(
        x(x.b, 3, 4, 4), x.shares(x.b, 3, 4, 4), torch.ones(x.b, 4, 4)
    ),
    "instance.instance_softmax": lambda x: instance.instance_softmax(
        x(x.b, D), x(5, D), x.ints(5, x.b), temperature=COLD
    ),
    "nce.nce": lambda x: nce.nce(x(x.b), x(x.b, 5), log_z=1.0, log_noise=-3.0),
    "nce.log_partition": lambda x: nce.log_partition(x(x.b), x(x.b, 5), samples=100),
    "nce.sampled_softmax": lambda x: nce.sampled_softmax(x(x.b), x(x.b, 5), skip=x.ints(2, x.b, 5).bool()),
    "pixels.pixel_consistency": lambda x: pixels.pixel_consistency(*(x(x.b, 4, D) for _ in range(4)), x.matches()),
    "pixels.pixel_contrast": lambda x: pixels.pixel_contrast(
        *(x(x.b, 4, D) for _ in range(4)), x.matches(), temperature=COLD
    ),
    "position.position_cross_entropy": lambda x: position.position_cross_entropy(x(x.b, 9, 9)),
    "predictive.future_nce": lambda x: predictive.future_nce(x(x.b, 2, 3, D), x(x.b, 3, 3, D), ahead=1),
    "reconstruction.normalise_patches": lambda x: reconstruction.normalise_patches(x(x.b, 4, D)),
    "reconstruction.masked_mse": lambda x: reconstruction.masked_mse(x(x.b, 4, D), x(x.b, 4, D), x.ints(4, x.b, 2)),
    "reconstruction.weighted_mse": lambda x: reconstruction.weighted_mse(
        x(x.b, 4, D), x(x.b, 4, D), torch.tensor([0.0, 0.25, 0.75, 1.0]).expand(x.b, 4)
    ),
    "reconstruction.masked_l1": lambda x: reconstruction.masked_l1(
        x(x.b, 3, 4, 4), x(x.b, 3, 4, 4), x.ints(2, x.b, 4, 4).bool()
    ),
    "precision.unit": lambda x: precision.unit(x(x.b, D), dim=1),
    "redundancy.cross_correlation": lambda x: redundancy.cross_correlation(*x.pair()),
    "redundancy.barlow_twins": lambda x: redundancy.barlow_twins(x(D, D)),
    "regression.cosine_regression": lambda x: regression.cosine_regression(*x.pair()),
    "similarity.negative_cosine": lambda x: similarity.negative_cosine(*x.pair()),
    "self_training.joint_cross_entropy": lambda x: self_training.joint_cross_entropy(
        x(x.b, D), x.shares(x.b, D), ratio=1.0
    ),
    "soft_targets.soft_cross_entropy": lambda x: soft_targets.soft_cross_entropy(*x.pair(), temperature=COLD),
    "soft_targets.known_cross_entropy": lambda x: soft_targets.known_cross_entropy(
        x(x.b, D), x.ints(D + 1, x.b) - 1, torch.tensor(float(x.b))
    ),
    "spreading.invariance_and_spreading": lambda x: spreading.invariance_and_spreading(
        *x.pair(), temperature=COLD, detach_keys=False
    ),
    "variance.invariance": lambda x: variance.invariance(*x.pair()),
    "variance.variance": lambda x: variance.variance(x(x.b, D)),
    "variance.covariance": lambda x: variance.covariance(x(x.b, D)),
}

NO_LOSSES: dict[str, str] = {
    **dict.fromkeys(("codes.map_pixels", "codes.unmap_pixels"), "of pixels, which views give in float32"),
    **dict.fromkeys(("colour.soft_code", "colour.rarity", "colour.frequencies"), "of labels, made outside autocast"),
    **dict.fromkeys(("contrastive.paired", "contrastive.everyone"), "what losses that are tested here begin with"),
    "hog.hog": "a target, made of pixels, which views give in float32",
    "infomax.soft_clip": "a step of local_infomax, whose scores are float32",
    **dict.fromkeys(("inpainting.rim", "pixels.centres", "pixels.match"), "of masks and boxes, not of features"),
    **dict.fromkeys(("reconstruction.patchify", "reconstruction.unpatchify"), "order of pixels, no arithmetic"),
    **dict.fromkeys(("self_training.smoothed", "self_training.tempered"), "targets, of labels and of stored float32"),
    **dict.fromkeys(("precision.full", "precision.no_autocast"), "make the precision that the others are tested for"),
}
"""Functions that get nothing extreme, and why."""


def functions() -> set[str]:
    """Every public function of the shelf, so that a new one cannot be forgotten."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(selfsight.losses.__path__):
        room = importlib.import_module(f"selfsight.losses.{module.name}")
        for name, value in vars(room).items():
            if inspect.isfunction(value) and value.__module__ == room.__name__ and not name.startswith("_"):
                found.add(f"{module.name}.{name}")
    return found


def tensors(x: Any) -> Iterator[Tensor]:
    """The tensors that a loss gives."""
    if isinstance(x, Tensor):
        yield x
    elif is_dataclass(x):
        yield from tensors([getattr(x, f.name) for f in fields(x)])
    else:
        for part in x:
            yield from tensors(part)
