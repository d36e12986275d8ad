r"""MAE: hide three quarters of an image's patches and predict their pixels from the rest.

He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377.

**Idea.** With so much hidden, neighbouring pixels no longer suffice to fill the gaps: the network must understand what
it sees. The encoder gets visible patches only, without mask tokens, so it costs a quarter and learns on real patches
alone. A small decoder, thrown away later, gets the encoder's tokens and one shared mask token in every hidden place.

**Equations.** With targets :math:`t_i`, each patch's pixels normalised by their own mean and unbiased variance,
predictions :math:`\hat x_i` and hidden places :math:`M`,

.. math:: L = \frac1{|M|} \sum_{i \in M} \frac1p \lVert \hat x_i - t_i \rVert^2 .

**Differences** between the paper, the official code (facebookresearch/mae) and this file:

- The code's command line leaves the normalisation of targets off, all of its published models have it on: on here.
- The code draws masks on the device inside the forward pass; here they come with the batch, drawn by each sample's key,
  so that every process and every restart draws the same.
- The code's positions are parameters without gradient. The encoder's are here too; the decoder's are a buffer that is
  not saved, being a formula.
- The class token of an encoder that has none is its pooled feature.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.protocol import TokenEncoder
from selfsight.losses.precision import full
from selfsight.losses.reconstruction import masked_mse, normalise_patches, patchify, unpatchify
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.reconstruction import Reconstruction


class MAE(Method[MaskedImages]):
    """MAE; ``decoder`` takes (class token, visible tokens, their positions) and predicts a vector for every patch."""

    encoder: TokenEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do

    def __init__(self, encoder: TokenEncoder, decoder: nn.Module, *, normalise_target: bool = True) -> None:
        super().__init__()
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.decoder = decoder
        self.normalise_target = normalise_target

    def step(self, batch: MaskedImages, clock: Clock) -> Steps:
        token, prediction = self.predict(batch.x, batch.visible)
        target = patchify(full(batch.x), self.encoder.patch)
        if self.normalise_target:
            target = normalise_patches(target).x
        yield Objective(masked_mse(prediction, target, batch.masked), watch={"feature": token.detach()})

    def predict(
        self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n p"]]:
        """The class token and a vector for every patch, from the visible ones alone."""
        token, seen = self.encoder.tokens(self.encoder.embed(x), visible)
        return token, self.decoder(token, seen, visible)

    @torch.no_grad()
    def reconstruct(self, batch: MaskedImages) -> Reconstruction:
        """Masked input, reconstruction and original; with normalised targets the true patch's mean and scale undo them,
        since the network never learns these."""
        patch, (height, width) = self.encoder.patch, batch.x.shape[-2:]
        patches = patchify(full(batch.x), patch)
        _, prediction = self.predict(batch.x, batch.visible)
        prediction = full(prediction)
        if self.normalise_target:
            normal = normalise_patches(patches)
            prediction = prediction * normal.scale + normal.mean
        hidden = torch.zeros_like(patches[..., :1]).scatter_(1, batch.masked[..., None].long(), 1.0)
        masked = patches * (1 - hidden)
        whole = torch.where(hidden > 0, prediction, patches)
        return Reconstruction(*(unpatchify(part, patch, height, width) for part in (masked, whole, patches)))
