"""What discrete autoencoders are built of: the way from a feature map to codes, and DALL-E's decoder."""

# pyright: reportUnknownMemberType=false
# torch types its layers' constructors loosely

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full, no_autocast
from selfsight.parts.fingerprint import fingerprint


class CodeHead(nn.Conv2d):
    """A 1x1 convolution from a feature map to one number for each code, in full precision, as DALL-E's code has it."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__(width, codes, 1)
        nn.init.normal_(self.weight, std=width**-0.5)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @property
    def codes(self) -> int:
        """How many there are."""
        return self.out_channels

    def forward(self, input: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        with no_autocast(input):
            return super().forward(full(input))


class Tokenizer(nn.Module):
    """An encoder and a head that say, for each place of an image in [0, 1], which code stands there. It is frozen.

    It works in its own precision, whatever surrounds it: in a half type nearly equal codes would change places.
    """

    def __init__(self, encoder: Encoder, head: CodeHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.codes, self.factor = head.codes, encoder.stride
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Tokenizer":
        """Nothing: it stays in evaluation mode."""
        return super().train(False)

    def fingerprint(self) -> int:
        """A checksum of all weights: two tokenizers that set the same task have the same."""
        return fingerprint(self)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b y x"]:
        """The codes of a map."""
        with no_autocast(x):
            return self.head(self.encoder.dense(x.to(self.head.weight.dtype))).argmax(dim=1)


class Painter(NamedTuple):
    """What says the codes of an image, and what paints a picture of codes in the space of the encoder's input."""

    tokenizer: Tokenizer
    paint: Callable[[Int[Tensor, "b y x"]], Float[Tensor, "b c h w"]]


class CodeLogits(nn.Linear):
    """From a token to a logit for each code. Where nobody knows how many there are, the weights that it is given say.

    That is where a run is opened again to be looked at, and its tokenizer is elsewhere.
    """

    def __init__(self, width: int, codes: int | None) -> None:
        super().__init__(width, codes or 1)
        self.known = codes is not None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and not self.known:
            self.out_features = len(weight)
            self.weight = nn.Parameter(torch.empty_like(weight))
            self.bias = nn.Parameter(weight.new_empty(len(weight)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Block(nn.Module):
    """The encoder's block the other way round: the 1x1 convolution comes first."""

    def __init__(self, inside: int, outside: int, blocks: int) -> None:
        super().__init__()
        quarter, self.gain = outside // 4, 1 / blocks**2
        self.id_path = _conv(inside, outside, 1) if inside != outside else nn.Identity()
        steps = [(inside, quarter, 1), (quarter, quarter, 3), (quarter, quarter, 3), (quarter, outside, 3)]
        self.res_path = nn.Sequential(*(layer for step in steps for layer in (nn.ReLU(), _conv(*step))))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleDecoder(nn.Module):
    """DALL-E's decoder: from weights over codes to the location and the log scale of each pixel's distribution.

    Groups of residual blocks whose width halves, an upsampling by two between each two. Defaults: DALL-E 5be4b23.
    """

    def __init__(
        self, codes: int, channels: int, *, groups: int = 4, hidden: int = 256, blocks: int = 2, start: int = 128
    ) -> None:
        super().__init__()
        self.input = _conv(codes, start, 1)
        layers: list[nn.Module] = []
        inside = start
        for g in reversed(range(groups)):
            for _ in range(blocks):
                layers.append(_Block(inside, hidden * 2**g, groups * blocks))
                inside = hidden * 2**g
            if g:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.blocks = nn.Sequential(*layers, nn.ReLU())
        self.output = _conv(inside, 2 * channels, 1)

    def forward(self, weights: Float[Tensor, "b k y x"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Location and log scale, in full precision, of logits of pixels in [0.1, 0.9]."""
        with no_autocast(weights):  # a thousand weights near zero are summed here
            start = self.input(full(weights))
        mu, log_scale = full(self.output(self.blocks(start))).chunk(2, dim=1)
        return mu, log_scale


def _conv(inside: int, outside: int, side: int) -> nn.Conv2d:
    """A convolution that keeps the size and begins as DALL-E's: normal of unit gain, no bias."""
    layer = nn.Conv2d(inside, outside, side, padding=(side - 1) // 2)
    nn.init.normal_(layer.weight, std=(inside * side**2) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
