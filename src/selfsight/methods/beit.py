r"""BEiT: hide blocks of patches and predict the codes that a tokenizer gives them.

Bao, Dong, Piao, Wei, "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, arXiv 2106.08254.

**Idea.** A discrete autoencoder, trained before and frozen, gives each patch one of some thousand codes, as words of
the image. The transformer sees the image with blocks of patches hidden, and says for each which code stands there. So
it learns what things look like and not each pixel; and blocks, unlike scattered patches, cannot be filled in from their
neighbours.

**Equation.** With the codes :math:`z_{b,i}` of the whole images, hidden patches :math:`M` of all images together and
the images :math:`\tilde x` that miss them,

.. math:: L = -\frac1{|M|} \sum_{(b,i) \in M} \log p(z_{b,i} \mid \tilde x_b) .

**Differences** between the paper, the official code (microsoft/unilm, ``beit``) and this file:

- The paper hides about 40 % of the patches, the code at most 75 of 196: the code's blocks are followed.
- The mean is over the hidden patches of all processes (of one micro-batch), as in the equation. The code takes each
  process's own, so there images with few hidden patches count more where their process has few.
- The code's tokenizers are DALL-E's published one and an own that is not published with its training. Here ``dvae``
  trains one, on the same images if one likes; the published weights can be read.
- The tokenizer works in full precision. Its weights are not saved with the run, but a checksum of them is: a run that
  goes on with another tokenizer is refused.
- The feature that is kept is the mean of the patch tokens, as the code's fine-tuning has it.
- Of a tokenizer that has its decoder, a run of ``dvae``, a report paints the codes that are predicted.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from selfsight.batches import MaskedPictures
from selfsight.distributed import mean
from selfsight.encoders.protocol import MaskableEncoder
from selfsight.losses.codes import code_loss
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.cells import behind
from selfsight.parts.reconstruction import Reconstruction
from selfsight.parts.tokenizers import CodeLogits, Painter, Tokenizer


class BEiT(Method[MaskedPictures]):
    """BEiT; ``tokenizer`` gives a code for each patch. It is no part of the state.

    ``tokenizer`` may be None where a run is only opened again: then it cannot be trained. ``painter`` finds tokenizer
    and decoder for ``reconstruct``, where there are any.
    """

    pictures = (
        "In threes: the image, what the encoder saw of it, and the codes that it predicts of what is hidden, as the "
        "tokenizer's decoder paints them."
    )

    encoder: MaskableEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do
    tokenizer_sum: Tensor

    def __init__(
        self,
        encoder: MaskableEncoder,
        head: CodeLogits,
        tokenizer: Tokenizer | None,
        *,
        width: int,
        painter: Callable[[], Painter] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.head = head
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, width))
        self._tokenizer = (tokenizer,)  # in a tuple, so that it is no part of the state
        self._same = False
        self._painter = painter
        self.register_buffer("tokenizer_sum", torch.tensor(0 if tokenizer is None else tokenizer.fingerprint()))

    def step(self, batch: MaskedPictures, clock: Clock) -> Steps:
        codes = self.codes(batch.picture)[batch.masked]
        token, patches = self.predict(batch.x, batch.masked)
        logits = full(self.head(patches[batch.masked]))
        hidden = mean(torch.tensor(float(len(codes)), device=logits.device, dtype=logits.dtype)).clamp_min(1)
        right = (logits.detach().argmax(dim=1) == codes).sum() / hidden
        yield Objective(
            code_loss(logits, codes) / hidden, log={"code_accuracy": right}, watch={"feature": token.detach()}
        )

    def predict(
        self, x: Float[Tensor, "b c h w"], masked: Tensor
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The mean of the patch tokens, and all of them, of images whose ``masked`` patches are hidden."""
        patches = self.encoder.patches(x)
        seen = behind(self.mask_token, patches, masked.view(patches.shape[:3]))
        tokens = self.encoder.encode(seen).flatten(2).transpose(1, 2)
        return tokens.mean(dim=1), tokens

    def codes(self, picture: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The tokenizer's code of each patch."""
        (tokenizer,) = self._tokenizer
        if tokenizer is None:
            raise ValueError("this run was opened without its tokenizer, so it cannot be trained")
        if not self._same:
            self._check(tokenizer)
            self._same = True
        return tokenizer.to(picture.device)(picture).flatten(1)

    @torch.no_grad()
    def reconstruct(self, batch: MaskedPictures) -> Reconstruction:
        """Masked input, the picture painted of the codes predicted where patches are hidden, and original.

        Visible patches are painted too, from the tokenizer's codes: a decoder looks at its neighbours. What is shown of
        them is the image. ValueError where the tokenizer's run is gone, or has other weights by now.
        """
        if self._painter is None:
            raise ValueError("this run's tokenizer has no decoder")
        tokenizer, paint = self._painter()
        self._check(tokenizer)
        side = math.isqrt(batch.masked.shape[1])
        told = tokenizer(interpolate(batch.picture, size=side * tokenizer.factor, mode="area"))
        said = self.head(self.predict(batch.x, batch.masked)[1]).argmax(dim=2).view_as(told)
        masked = batch.masked.view_as(told)
        painted = interpolate(paint(torch.where(masked, said, told)), size=batch.x.shape[2:], mode="bilinear")
        hidden = interpolate(masked[:, None].to(batch.x), size=batch.x.shape[2:]) > 0
        whole = torch.where(hidden, painted, batch.x)
        return Reconstruction(batch.x.masked_fill(hidden, 0.0), whole, batch.x, hidden[:, 0])

    def _check(self, tokenizer: Tokenizer) -> None:
        if int(self.tokenizer_sum) != tokenizer.fingerprint():
            raise ValueError("the tokenizer is not the one that this run was begun with: its weights differ")
