r"""dVAE: a discrete autoencoder, whose codes are the words that masked image modelling predicts.

Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen, Sutskever, "Zero-Shot Text-to-Image Generation" (DALL-E), ICML 2021,
arXiv 2102.12092, section 2.1 and appendix A. BEiT's tokenizer.

**Idea.** An encoder says for each place of its map which of :math:`K` codes stands there, and a decoder paints the
image from the codes. A choice has no gradient, so while training the decoder gets a relaxed one: Gumbel noise on the
logits and a softmax whose temperature falls, until it is nearly a choice. A uniform prior keeps many codes in use.

**Equations.** With logits :math:`\ell`, noise :math:`g`, the decoder's location and scale :math:`\mu, b` of each pixel
(moved into [0.1, 0.9]), :math:`q = \mathrm{softmax}(\ell)` and :math:`P` numbers of the image for each code,

.. math::
    z = \mathrm{softmax}\frac{\ell + g}{\tau}, \qquad
    L = -\ln f(x \mid \mu(z), b(z)) + \frac{\beta}{P}\, \mathrm{KL}(q \,\|\, \mathrm{uniform}), \qquad
    f = \frac{e^{-|\mathrm{logit}(x) - \mu| / b}}{2 b\, x (1 - x)} ,

the first term a mean over pixels and channels, the second over places: the evidence bound over the count of pixels.
:math:`\tau` falls from 1 to 1/16 and :math:`\beta` rises from 0, each along a cosine. A moving average of all weights
is kept.

**Differences** between the paper, the official code (openai/DALL-E 5be4b23: the networks alone) and this file:

- The published code cannot train. Schedules and loss follow the paper's appendix; networks, initialisation and the
  mapping of pixels follow the code.
- The noise of a sample is a hash of its key, on whichever process and device it lies.
- The average of the weights begins as one of the last tenth of the updates, so that a short run is no average of its
  start. Batch norm's statistics, where an encoder has them, are the trained one's: the average is not run in training.
- Any encoder with a map can stand in the encoder's place; the convolution to codes and the decoder are DALL-E's.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from selfsight.batches import SeededImages
from selfsight.distributed import total
from selfsight.encoders.protocol import Encoder
from selfsight.losses.codes import divergence_from_uniform, logit_laplace, map_pixels, unmap_pixels
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.gumbel import gumbel_softmax
from selfsight.parts.momentum import ema_, target_of
from selfsight.parts.reconstruction import Reconstruction
from selfsight.parts.tokenizers import CodeHead, Tokenizer


class DVAE(Method[SeededImages]):
    """A dVAE of images in [0, 1]; ``decoder`` takes weights over codes and gives location and log scale of each pixel.

    ``encoder``, ``head`` and ``decoder`` are what is kept, the averages; the trained ones begin as their copies.
    """

    pictures = "In threes: the image, its codes, each in a colour of its own, and the decoder's picture of them."

    def __init__(
        self,
        encoder: Encoder,
        head: CodeHead,
        decoder: nn.Module,
        *,
        temperature: Schedule,
        kl_weight: Schedule,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        self.online, self.online_head, self.online_decoder = encoder, head, decoder
        self.encoder, self.head, self.decoder = target_of(encoder), target_of(head), target_of(decoder)
        self.temperature, self.kl_weight, self.momentum = temperature, kl_weight, momentum

    def step(self, batch: SeededImages, clock: Clock) -> Steps:
        h = self.online.dense(batch.x)
        logits = self.online_head(h)
        z = gumbel_softmax(logits, batch.seed, temperature=self.temperature(clock))
        mu, log_scale = self.online_decoder(z)
        error = logit_laplace(mu, log_scale, map_pixels(full(batch.x)))
        divergence = divergence_from_uniform(logits)
        numbers = batch.x[0].numel() / logits[0, 0].numel()
        moved = yield Objective(
            error + self.kl_weight(clock) / numbers * divergence,
            log={
                "error": (unmap_pixels(mu.detach().sigmoid()) - batch.x).square().mean(),
                "divergence": divergence.detach(),
                **usage(logits.detach()),
            },
            watch={"feature": h.detach().mean(dim=(2, 3))},
        )
        if moved:
            m = min(self.momentum, clock.step / (clock.step + 10))
            for kept, online in (
                (self.encoder, self.online),
                (self.head, self.online_head),
                (self.decoder, self.online_decoder),
            ):
                ema_(kept, online, m)
                _same_statistics_(kept, online)

    def tokenizer(self) -> Tokenizer:
        """What says the codes of images in [0, 1]: the averages, frozen."""
        return Tokenizer(self.encoder, self.head)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "b c h w"]) -> Int[Tensor, "b y x"]:
        """The most probable code of each place."""
        return self.head(self.encoder.dense(x)).argmax(dim=1)

    @torch.no_grad()
    def paint(self, codes: Int[Tensor, "b y x"]) -> Float[Tensor, "b c h w"]:
        """The decoder's picture of codes in [0, 1]: each pixel's location."""
        mu, _ = self.decoder(one_hot(codes, self.head.codes).movedim(-1, 1).to(self.head.weight.dtype))
        return unmap_pixels(mu.sigmoid())

    @torch.no_grad()
    def reconstruct(self, batch: SeededImages) -> Reconstruction:
        """The codes, the decoder's picture of them and the image: a true choice of codes, without noise."""
        codes = self.codes(batch.x)
        c, factor = batch.x.shape[1], batch.x.shape[-1] // codes.shape[-1]
        hues = torch.stack([codes * (37 + 57 * k) % 251 / 250 for k in range(c)], dim=1)
        painted = hues.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
        return Reconstruction(painted.to(batch.x), self.paint(codes).to(batch.x), batch.x)


@torch.no_grad()
def usage(logits: Float[Tensor, "b k h w"]) -> dict[str, Float[Tensor, ""]]:
    """The share of codes that the batch, on all processes, uses at all, and the perplexity of its codes."""
    chosen = logits.argmax(dim=1).flatten()
    one = torch.ones(len(chosen), device=logits.device)
    count = total(torch.zeros(logits.shape[1], device=logits.device).index_add_(0, chosen, one))
    p = count / count.sum()
    return {"codes_used": (count > 0).float().mean(), "perplexity": torch.exp(-torch.xlogy(p, p).sum())}


@torch.no_grad()
def _same_statistics_(kept: object, online: object) -> None:
    for mine, theirs in zip(cast(nn.Module, kept).buffers(), cast(nn.Module, online).buffers(), strict=True):
        mine.copy_(theirs)
