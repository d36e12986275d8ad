r"""QB-Heat: see a quarter of an image, carry its features on by linear maps, and predict the pixels of the rest.

Chen, Dai, Chen, Liu, Yuan, Liu, Lin, "Self-Supervised Learning based on Heat Equation", 2022, arXiv 2211.13228.

**Idea.** A classifier's heat maps look like heat that has spread until it came to rest. So features are asked to obey a
linear equation in space: what they are half an image further is a linear map of what they are here, the same map at
every place and in every image. The encoder sees one quarter, the maps carry its features over the other three, and a
small decoder turns them into pixels. What is seen is an image in itself, so any convolutional encoder will do.

**Equations.** The heat equation at rest, its two axes correlated by :math:`S`, follows from two of first order,

.. math:: \partial_{xx} z + S\, \partial_{yy} z = 0 \quad\Leftarrow\quad
    \partial_x z = A z, \quad \partial_y z = B z, \quad S = -A^2 (B^2)^{-1},

which over a finite distance become learnt matrices, one for each direction:

.. math:: z(x \pm w, y) = (I + P_\pm)\, z(x, y), \qquad z(x, y \pm h) = (I + Q_\pm)\, z(x, y) .

With the pixels :math:`t_i` of the places that were not seen, :math:`M`, and the decoder's :math:`\hat x_i`,

.. math:: L = \frac1{|M|} \sum_{i \in M} \frac1p \lVert \hat x_i - t_i \rVert^2 .

**Differences.** No code was published. From the paper come the equations, the quarter that is seen, the linear
extrapolation of its features, the small decoder and the pixels as the target. The rest is this file's choice:

- the quarter is one of the four corners, drawn for each image; the paper's figures have one in the middle, too;
- each place predicts the place half an image further, in one step, so that there are four matrices without bias, which
  begin at zero. The quarter opposite is the mean of both ways round, or has matrices of its own;
- the decoder has a few transformer blocks over the whole map, with sine-cosine positions;
- the target is MAE's, each patch normalised by its own mean and deviation, and the error counts the hidden quarters
  only.
- The paper's encoder, Mobile-Former, is not built here: any encoder that takes an image of half the side serves. Batch
  norm then learns the statistics of quarters, and sees whole images only in what comes afterwards.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import QuarterSeen
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.losses.reconstruction import masked_mse
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.reconstruction import Reconstruction, pixel_targets, reconstructed


class QBHeat(Method[QuarterSeen]):
    """QB-Heat; ``extrapolation`` takes a quarter's map and its number and gives the map of the whole image, from which
    ``decoder`` predicts a vector for every place, a patch of ``patch`` pixels. ``side`` is the number of places along
    each axis of the whole map.
    """

    hidden: Tensor

    def __init__(
        self,
        encoder: Encoder,
        extrapolation: nn.Module,
        decoder: nn.Module,
        *,
        side: int,
        patch: int,
        normalise_target: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.extrapolation = extrapolation
        self.decoder = decoder
        self.register_buffer("hidden", hidden_places(side), persistent=False)
        self.patch = patch
        self.normalise_target = normalise_target

    def step(self, batch: QuarterSeen, clock: Clock) -> Steps:
        z, prediction = self.predict(batch.x, batch.quarter)
        target = pixel_targets(batch.x, self.patch, normalise=self.normalise_target)
        loss = masked_mse(prediction, target, self.hidden[batch.quarter])
        yield Objective(loss, watch={"feature": full(z.detach()).mean(dim=(2, 3))})

    def predict(
        self, x: Float[Tensor, "b c h w"], quarter: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d m m"], Float[Tensor, "b n p"]]:
        """The map of the quarter that is seen, and from it alone a vector for every patch of the image."""
        z = self.encoder.dense(cut(x, quarter))
        return z, self.decoder(self.extrapolation(z, quarter))

    @torch.no_grad()
    def reconstruct(self, batch: QuarterSeen) -> Reconstruction:
        """Masked input, reconstruction and original."""
        prediction = self.predict(batch.x, batch.quarter)[1]
        hidden = self.hidden[batch.quarter]
        return reconstructed(batch.x, prediction, hidden, self.patch, normalised=self.normalise_target)


def cut(x: Float[Tensor, "b c h w"], quarter: Int[Tensor, " b"]) -> Float[Tensor, "b c h2 w2"]:
    """Each image's quarter.

    >>> cut(torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([1]))[0, 0]
    tensor([[2., 3.],
            [6., 7.]])
    """
    b, c, h, w = x.shape
    quarters = x.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return quarters[torch.arange(b, device=x.device), quarter]


def hidden_places(side: int) -> Int[Tensor, "4 m"]:
    """For each quarter that may be seen, the places of the others on a grid of ``side`` by ``side``, ascending.

    >>> hidden_places(2)
    tensor([[1, 2, 3],
            [0, 2, 3],
            [0, 1, 3],
            [0, 1, 2]])
    """
    half = torch.arange(side) // (side // 2)
    of = (2 * half[:, None] + half).flatten()
    return torch.stack([(of != quarter).nonzero()[:, 0] for quarter in range(4)])
