r"""Colorization: say the colour of every place of an image from its lightness.

Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016, arXiv 1603.08511.

**Idea.** Most things have few colours that they can have, so that who knows what stands where can colour it. Since a
shirt may be red or blue, the network answers with a distribution over bins of colour, whose mean would be grey. Dull
colours fill most of all photographs, so that rare ones are given more weight.

**Equations.** With the soft code :math:`Z` of the true colour over the nearest of :math:`Q = 313` bins and the softmax
:math:`\hat Z` of the network, at each place of a grid of every fourth pixel,

.. math:: L = - \frac1{HW} \sum_{h,w} v(Z_{hw}) \sum_q Z_{hwq} \log \hat Z_{hwq}, \qquad
          v(Z) = w_{\arg\max_q Z_q}, \qquad
          w_q \propto \Big((1 - \lambda) \tilde p_q + \frac{\lambda}{Q}\Big)^{-1}, \qquad \sum_q \tilde p_q w_q = 1,

where :math:`\tilde p` says how often a bin occurs. A picture's colour is the annealed mean
:math:`\sum_q c_q \hat Z_q^{1/T} / \sum_q \hat Z_q^{1/T}`.

**Differences** between the paper, the official code (richzhang/colorization) and this file:

- The code reads :math:`\tilde p` from a file that was counted on ImageNet; the paper smooths it. Here it is the mean
  soft code of what was seen so far, over all processes, and uniform before: it fits any data, and soft codes smooth.
- Five neighbours as in the paper; the code's layer has ten.
- The code weighs gradients and prints the loss without weights. Here the loss is weighed; ``cross_entropy`` in the log
  is not. Images without an a or b of more than 5 cost nothing, as in the code; the paper does not say so.
- Paper and code train a VGG with dilated convolutions, or AlexNet. Neither is built: any encoder serves, and the
  paper's last block, doubling as often as the encoder's stride needs, is the decoder. A transformer's class token is
  taught by nothing but what its patches take from it.
- Lightness is normalised to -1 to 1, and stands three times, so that encoders for colour images take it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from selfsight.batches import ColouredImages
from selfsight.distributed import mean
from selfsight.encoders.protocol import Encoder
from selfsight.lab import to_rgb
from selfsight.losses.colour import (
    annealed_mean,
    code_cross_entropy,
    frequencies,
    rarity,
    rebalanced_cross_entropy,
    soft_code,
)
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.colours import bins


class Recoloured(NamedTuple):
    """What a report shows, in the space of the encoder's input: values from -1 to 1."""

    masked: Float[Tensor, "b c h w"]
    """Lightness."""
    reconstruction: Float[Tensor, "b c h w"]
    """The network's colours at the image's lightness."""
    original: Float[Tensor, "b c h w"]


class Colorization(Method[ColouredImages]):
    """Colorization.

    Args:
        encoder: its map is what the decoder gets.
        decoder: takes (map, size) and gives a logit of each bin at so many places.
        stride: colours are asked for at every so-manieth pixel along each axis.
        neighbours: bins that a colour is shared among.
        sigma: the deviation of that sharing, in units of a and b.
        mix: the uniform share of the prior (the paper's lambda).
        temperature: of the annealed mean, for pictures only.
        grey: images whose a and b stay within this on the grid are left out.
    """

    centres: Float[Tensor, "q 2"]
    prior: Float[Tensor, " q"]
    seen: Int[Tensor, ""]
    counted: Float[Tensor, " q"]
    pending: Int[Tensor, ""]

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        *,
        stride: int = 4,
        neighbours: int = 5,
        sigma: float = 5.0,
        mix: float = 0.5,
        temperature: float = 0.38,
        grey: float = 5.0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.stride, self.neighbours, self.sigma = stride, neighbours, sigma
        self.mix, self.temperature, self.grey = mix, temperature, grey
        centres = bins()
        self.register_buffer("centres", centres, persistent=False)  # a formula
        self.register_buffer("prior", torch.full((len(centres),), 1 / len(centres)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("counted", torch.zeros(len(centres)))  # of micro-batches whose update is still to come
        self.register_buffer("pending", torch.zeros((), dtype=torch.long))

    def step(self, batch: ColouredImages, clock: Clock) -> Steps:
        target = full(batch.ab)[:, :, :: self.stride, :: self.stride]
        features, logits = self.predict(batch.x)
        code = soft_code(target, self.centres, neighbours=self.neighbours, sigma=self.sigma)
        coloured = (target.abs() > self.grey).flatten(1).any(dim=1).to(target.dtype)
        weights = rarity(self.prior, mix=self.mix)
        plain = code_cross_entropy(logits.detach(), code).mean()
        moved = yield Objective(
            rebalanced_cross_entropy(logits, code, weights, coloured),
            log={"cross_entropy": plain, "coloured": coloured.mean()},
            watch={"feature": features.detach().mean(dim=(2, 3))},
        )
        self.counted += mean(frequencies(code, len(self.prior))).to(self.prior.dtype)
        self.pending += 1
        if moved:  # so all micro-batches of an update are weighed alike
            self.seen += self.pending
            share = self.pending / self.seen
            self.prior.lerp_(self.counted / self.pending, share.to(self.prior.dtype))
            self.counted.zero_()
            self.pending.zero_()

    def predict(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d y x"], Float[Tensor, "b q i j"]]:
        """The encoder's map, and a logit of each bin at every place of the grid."""
        features = self.encoder.dense(x)
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        return features, self.decoder(features, (height, width))

    @torch.no_grad()
    def reconstruct(self, batch: ColouredImages) -> Recoloured:
        """Lightness, the image in the network's colours, and in its own."""
        _, logits = self.predict(batch.x)
        sparse = annealed_mean(logits, self.centres, temperature=self.temperature)
        ab = interpolate(sparse, batch.x.shape[2:], mode="bilinear", align_corners=False)
        x = full(batch.x)
        painted = (torch.stack(to_rgb(50 * x[:, 0] + 50, *of.to(x).unbind(1)), dim=1) for of in (ab, batch.ab))
        recoloured, original = (2 * rgb - 1 for rgb in painted)
        return Recoloured(x, recoloured, original)
