r"""SimMIM: hide large cells of an image behind one learnt token and predict their pixels with a single linear layer.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu, "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022, arXiv
2111.09886.

**Idea.** Masked modelling needs neither tokenisers nor block-wise masks nor deep decoders: cells of 32 pixels hidden at
random make the task hard enough, and raw pixels are a good enough target. The encoder sees all places, the hidden ones
as a learnt token, so it may be any transformer, Swin with its windows too. A layer that predicts each place by itself
leaves all of the work to the encoder.

**Equations.** With the encoder's map :math:`z` of the patches :math:`(1 - m) \, e(x) + m \, t`, where the token
:math:`t` stands in each hidden place, a 1x1 convolution of :math:`z` that is shuffled to the pixels :math:`\hat x`, and
:math:`M` the hidden pixels,

.. math:: L = \frac1{C \, |M|} \sum_{u \in M} \lVert \hat x_u - x_u \rVert_1 .

**Differences** between the paper, the official code (microsoft/SimMIM, d3e29bc) and this file:

- The target is the image as the encoder sees it, normalised by the data set's mean and deviation, not patch by patch:
  the paper leaves this open, the code decides.
- The code adds :math:`10^{-5}` to :math:`|M|`, as here.
- Masks are drawn in the loader's workers by NumPy, whose state the workers may share; here by each sample's key.
- The code excepts mask token and position biases from decay for Swin, for ViT only the class token: here both, always.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.protocol import MaskableEncoder
from selfsight.losses.precision import full
from selfsight.losses.reconstruction import masked_l1
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.cells import behind, enlarge, hidden_cells
from selfsight.parts.reconstruction import Reconstruction


class SimMIM(Method[MaskedImages]):
    """SimMIM; the batch's positions are those of cells, each of which holds one patch or several."""

    encoder: MaskableEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do

    def __init__(self, encoder: MaskableEncoder, *, embedded: int, channels: int) -> None:
        """``embedded`` is the width of the encoder's patches, ``channels`` the number of colours to predict."""
        super().__init__()
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, embedded))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Sequential(
            nn.Conv2d(encoder.width, channels * encoder.stride**2, 1), nn.PixelShuffle(encoder.stride)
        )

    def step(self, batch: MaskedImages, clock: Clock) -> Steps:
        hidden = hidden_cells(batch.masked, batch.visible.shape[1] + batch.masked.shape[1])
        z, prediction = self.predict(batch.x, hidden)
        loss = masked_l1(prediction, batch.x, pixels(hidden, batch.x))
        yield Objective(loss, watch={"feature": z.mean(dim=(2, 3)).detach()})

    def predict(
        self, x: Float[Tensor, "b c h w"], hidden: Bool[Tensor, "b side side"]
    ) -> tuple[Float[Tensor, "b d rows columns"], Float[Tensor, "b c h w"]]:
        """The encoder's map of an image whose cells are partly hidden, and all pixels that are read off it."""
        patches = self.encoder.patches(x)
        here = enlarge(hidden, patches.shape[1] // hidden.shape[1])
        z = self.encoder.encode(behind(self.mask_token, patches, here))
        return z, self.head(z)

    @torch.no_grad()
    def reconstruct(self, batch: MaskedImages) -> Reconstruction:
        """Masked input, reconstruction and original."""
        hidden = hidden_cells(batch.masked, batch.visible.shape[1] + batch.masked.shape[1])
        here, x = pixels(hidden, batch.x)[:, None], full(batch.x)
        prediction = full(self.predict(batch.x, hidden)[1])
        return Reconstruction(torch.where(here, 0.0, x), torch.where(here, prediction, x), x, here[:, 0])


def pixels(hidden: Bool[Tensor, "b side side"], x: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"]:
    """Whether each pixel lies in a hidden cell."""
    return enlarge(hidden, x.shape[-1] // hidden.shape[-1])
