"""What a score stands beside: raw pixels, and the same encoder at random initialisation.

Neither is a straw man. A random encoder's batch norm would divide by statistics of nothing, so they are calibrated on
the data. Pixels are centred by ImageNet's normalisation: cosines of what is never negative hardly differ (of 10,000
images of CIFAR-10, kNN gets 31 % right on pixels as they are, 38 % on normalised ones).
"""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.data.loader import plain_batches
from selfsight.data.protocol import Source
from selfsight.data.splits import limited
from selfsight.encoders.build import build_encoder
from selfsight.encoders.protocol import Encoder
from selfsight.evaluation.stream import Place, moved
from selfsight.parts.batchnorm import calibrate_
from selfsight.parts.head_layers import WithHead
from selfsight.views.pipelines import plain_view
from selfsight.views.protocol import Views
from selfsight.views.view import IMAGENET

M = TypeVar("M", bound=nn.Module)
PIXELS = 32
"""Raw pixels are compared at this many pixels a side, whatever the images' own size."""
PIXEL_VIEW = plain_view(PIXELS, IMAGENET)
CALIBRATION = 2048
"""Images, chosen by key, that a random encoder's batch norm is calibrated on."""


class RawPixels(nn.Module):
    """Pixels, flattened: the encoder that has learnt nothing and lost nothing.

    >>> RawPixels(channels=3, size=4)(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    """

    stride = 1

    def __init__(self, *, channels: int, size: int = PIXELS) -> None:
        super().__init__()
        self.width = channels * size * size

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return x.flatten(1)

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x


def fresh(encoder: Encoder, *, seed: int) -> Encoder:
    """The same architecture at random initialisation by ``seed``; the process's own random numbers go on as they were.

    An encoder that ``build_encoder`` made is built again. Another module is copied and each part that knows how is
    reset; one that holds a parameter of its own without a way to reset it is refused.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(encoder, WithHead):
            return cast(Encoder, WithHead(fresh(encoder.backbone, seed=seed), _reset(encoder.head)))
        built: Any = encoder
        if all(getattr(built, name, None) is not None for name in ("name", "image_size", "channels", "options")):
            return build_encoder(built.name, image_size=built.image_size, channels=built.channels, **built.options)
        return cast(Encoder, _reset(cast(nn.Module, encoder)))


def _reset(module: M) -> M:
    other = copy.deepcopy(module)
    for name, part in other.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in part.parameters(recurse=False)):
            raise ValueError(
                f"no random start for {type(part).__name__} '{name}': it has parameters and no reset_parameters(); "
                "give it one"
            )
    return other


def random_encoder(
    encoder: Encoder, source: Source, plain: Views[Images], *, seed: int = 0, place: Place | None = None
) -> Encoder:
    """``fresh(encoder)`` with its batch norm calibrated on keyed images of ``source``; every process gets the same."""
    place = place or Place()
    chosen = limited(source, CALIBRATION, seed=seed)
    other = cast(nn.Module, fresh(encoder, seed=seed)).to(place.device)

    def batches() -> Iterator[Tensor]:
        for images, key in plain_batches(
            chosen, plain, batch_size=256, workers=place.workers, cache_dir=place.cache_dir
        ):
            yield plain.render(moved(images, place.device), plain.plan(key), key).x

    return cast(Encoder, calibrate_(other, batches()).eval())
