r"""ConvMAE: a masked autoencoder whose encoder begins with convolutions, which never read what is hidden.

Gao, Ma, Li, Lin, Dai, Qiao, "ConvMAE: Masked Convolution Meets Masked Autoencoders", NeurIPS 2022 (there MCMAE), arXiv
2205.03892.

**Idea.** Convolutional stages in front of a transformer give features of several scales, but a convolution's window
carries pixels from hidden places into visible ones, and then there is little left to predict. So one mask is drawn on
the grid of the last stage and enlarged to the finer ones: what is hidden is hidden at every scale, and the
convolutions read zeros there. The decoder gets the sum of all stages' features, fine and coarse.

**Equations.** A convolutional block with visible places :math:`v` is

.. math:: x \leftarrow x + W_2 \, \mathrm{DW}\big(v \odot W_1 \mathrm{LN}(x)\big), \qquad
    x \leftarrow x + \mathrm{MLP}(\mathrm{LN}(x)),

with a depthwise convolution DW. With the stages' outputs :math:`E_1, E_2, E_3` the decoder's input is
:math:`\mathrm{LN}(E_3 + \mathrm{conv}_{4 \times 4 / 4}(E_1) + \mathrm{conv}_{2 \times 2 / 2}(E_2))` at visible places.
The loss is MAE's: with patches' normalised pixels :math:`t_i`, predictions :math:`\hat x_i` and hidden
places :math:`M`,

.. math:: L = \frac1{|M|} \sum_{i \in M} \frac1p \lVert \hat x_i - t_i \rVert^2 .

**Differences** between the paper, the official code (Alpha-VL/ConvMAE, 3f3aec9) and this file:

- Nothing else can carry hidden pixels along: patches do not overlap, at any stage or in the fusion, and norms and
  multilayer perceptrons look at one place. Biases fill hidden places all the same, which nobody reads.
- The encoder that is kept has no fusion: its feature is the mean of the last stage's tokens, normalised, as the code
  fine-tunes it. The norm of the sum stays with the fusion. There is no class token.
- The code has the grids of 224 px written into it; here they follow from the image and its patches.
- Its command line leaves the normalisation of targets off, its instructions for pretraining turn it on: on here.
- Masks come with the batch, drawn by each sample's key.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.protocol import StagedEncoder
from selfsight.losses.reconstruction import masked_mse
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.reconstruction import Reconstruction, pixel_targets, reconstructed


class ConvMAE(Method[MaskedImages]):
    """ConvMAE; ``fusion`` joins what the stages have at visible places, ``decoder`` is MAE's."""

    encoder: StagedEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do

    def __init__(
        self, encoder: StagedEncoder, fusion: nn.Module, decoder: nn.Module, *, normalise_target: bool = True
    ) -> None:
        super().__init__()
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.fusion, self.decoder = fusion, decoder
        self.normalise_target = normalise_target

    def step(self, batch: MaskedImages, clock: Clock) -> Steps:
        pooled, prediction = self.predict(batch.x, batch.visible)
        target = pixel_targets(batch.x, self.encoder.patch, normalise=self.normalise_target)
        yield Objective(masked_mse(prediction, target, batch.masked), watch={"feature": pooled.detach()})

    def predict(
        self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n p"]]:
        """The visible places' feature and a vector for every patch."""
        pooled, tokens, maps = self.encoder.stages(x, visible)
        return pooled, self.decoder(None, self.fusion(tokens, maps, visible), visible)

    @torch.no_grad()
    def reconstruct(self, batch: MaskedImages) -> Reconstruction:
        """Masked input, reconstruction and original."""
        _, prediction = self.predict(batch.x, batch.visible)
        patch = self.encoder.patch
        return reconstructed(batch.x, prediction, batch.masked, patch, normalised=self.normalise_target)
