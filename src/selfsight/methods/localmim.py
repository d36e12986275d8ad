r"""LocalMIM: several layers of the encoder reconstruct the hidden part, low ones finely, high ones coarsely.

Wang, Tang, Wang, Guo, Deng, Han, "Masked Image Modeling with Local Multi-Scale Reconstruction", CVPR 2023, arXiv
2303.05251.

**Idea.** What masked modelling teaches it teaches to the lower layers above all, which hear of it only through all that
stands above them. So each of four layers gets a small decoder and a loss of its own, and what it has to predict is as
fine as what it sees: gradients' histograms in cells of 4 pixels for a low layer, of 32 for the last. The encoder sees
visible patches only, as MAE's.

**Equations.** With layer :math:`k`'s cells :math:`i`, their targets :math:`y^{(k)}_i` (histograms of oriented
gradients, ``selfsight.losses.hog``, or normalised pixels), the predictions of its decoder and the hidden share
:math:`M^{(k)}_i` of each cell,

.. math:: L = \sum_k \frac{\sum_i M^{(k)}_i \frac1d \lVert \hat y^{(k)}_i - y^{(k)}_i \rVert^2}{\sum_i M^{(k)}_i} .

**Differences** between the paper, the official code (Haoqing-Wang/LocalMIM, 314a6e5) and this file:

- The code has a norm of its own for each layer that is tapped and none for the encoder, whose last norm is new when it
  is fine-tuned; here the last layer's norm is the encoder's.
- For Swin the code hides the same cells in all images of a batch, since it packs the visible tokens of several windows
  into one (GreenMIM). Here each image has its own. Linear layers see visible tokens only; attention runs over whole
  windows in which hidden tokens are left out, which gives the same numbers.
- With ``offset`` the gradients of histograms are shifted by two random numbers for each layer: the code's filters keep
  the bias that they were made with, in all published models but ViT-B.
- Pixels as a target, normalised cell by cell or not, the code has for Swin only; here for both.
- The paper also detaches layers from each other; neither the code nor this file does.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from selfsight.batches import MaskedImages
from selfsight.encoders.protocol import Layer, ScaledEncoder
from selfsight.losses.hog import hog
from selfsight.losses.reconstruction import weighted_mse
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.cells import enlarge, hidden_cells
from selfsight.parts.reconstruction import Reconstruction, pixel_targets, reconstructed

Target = Literal["hog", "pixels"]


class LocalMIM(Method[MaskedImages]):
    """LocalMIM; ``decoders`` read each of the encoder's ``layers``' cells' vectors off it, of ``cells`` pixels a side.

    A decoder takes (class token, visible tokens, their positions). The last layer must be the encoder's last, the first
    one's cells the finest. ``normalise_target`` is for pixels, ``bins`` and ``offset`` for histograms.
    """

    encoder: ScaledEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do
    offset: Tensor | None

    def __init__(
        self,
        encoder: ScaledEncoder,
        decoders: Sequence[nn.Module],
        *,
        layers: Sequence[int],
        cells: Sequence[int],
        target: Target = "hog",
        normalise_target: bool = True,
        bins: int = 9,
        offset: bool = False,
    ) -> None:
        super().__init__()
        if not len(decoders) == len(layers) == len(cells):
            raise ValueError(f"{len(decoders)} decoders for {len(layers)} layers and {len(cells)} sizes of cells")
        if not layers or layers[-1] != encoder.depth:
            raise ValueError(f"layers {list(layers)} of {encoder.depth} are tapped; the last must be among them")
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.decoders = nn.ModuleList(decoders)
        widths = [encoder.layer_width(layer) for layer in layers[:-1]]
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=1e-6) for width in widths])
        self.layers, self.cells = tuple(layers), tuple(cells)
        self.target: Target = target
        self.normalise_target = normalise_target
        self.bins = bins
        shifts = torch.empty(len(layers), 2).uniform_(-1 / 3, 1 / 3) if offset else None
        self.register_buffer("offset", shifts)  # saved: a run that goes on has the same targets

    def step(self, batch: MaskedImages, clock: Clock) -> Steps:
        losses, last = self.losses(batch)
        log = {f"cells_of_{self.cells[k]}_{k + 1}": loss.detach() for k, loss in enumerate(losses)}
        feature = last.seen.mean(dim=1) if last.token is None else last.token
        yield Objective(torch.stack(losses).sum(), log=log, watch={"feature": feature.detach()})

    def losses(self, batch: MaskedImages) -> tuple[list[Float[Tensor, ""]], Layer]:
        """Each layer's loss, and what the last layer saw."""
        hidden = hidden_cells(batch.masked, batch.visible.shape[1] + batch.masked.shape[1])
        found = self.encoder.layers(batch.x, batch.visible, self.layers)
        each = [
            weighted_mse(self.read(k, layer), self.targets(batch.x, k), shares(hidden, self.side(batch.x, k)))
            for k, layer in enumerate(found)
        ]
        return each, found[-1]

    def read(self, k: int, layer: Layer) -> Float[Tensor, "b n d"]:
        """The vectors that the ``k``-th decoder predicts."""
        token, seen, where = layer
        if k < len(self.norms):
            token, seen = None if token is None else self.norms[k](token), self.norms[k](seen)
        return self.decoders[k](token, seen, where)

    @torch.no_grad()
    def targets(self, x: Float[Tensor, "b c h w"], k: int) -> Float[Tensor, "b n d"]:
        """What the ``k``-th decoder has to predict."""
        if self.target == "hog":
            offset = None if self.offset is None else self.offset[k]
            return hog(x, cell=self.cells[k], bins=self.bins, offset=offset)
        return pixel_targets(x, self.cells[k], normalise=self.normalise_target)

    def side(self, x: Float[Tensor, "b c h w"], k: int) -> int:
        """Cells along the side of an image."""
        return x.shape[-1] // self.cells[k]

    @torch.no_grad()
    def reconstruct(self, batch: MaskedImages) -> Reconstruction:
        """Masked input, the finest layer's reconstruction and original; ValueError where the target is no pixels.

        Normalised cells get back their true mean and scale, which of cells of two pixels are nearly the image: then it
        is the layer whose cells are as large as the patches.
        """
        if self.target != "pixels":
            raise ValueError("histograms of gradients make no picture; train with --target pixels")
        hidden = hidden_cells(batch.masked, batch.visible.shape[1] + batch.masked.shape[1])
        k = self.cells.index(self.encoder.unit) if self.normalise_target else 0
        layer = self.encoder.layers(batch.x, batch.visible, self.layers)[k]
        cells = shares(hidden, self.side(batch.x, k))
        masked = cells.nonzero()[:, 1].view(len(cells), -1)  # equally many in all images
        return reconstructed(batch.x, self.read(k, layer), masked, self.cells[k], normalised=self.normalise_target)


def shares(hidden: Bool[Tensor, "b side side"], side: int) -> Float[Tensor, "b n"]:
    """The hidden share of each of ``side * side`` cells, in row-major order: 0 or 1 where these are no larger.

    >>> shares(torch.tensor([[[True, False], [True, True]]]), 1)
    tensor([[0.7500]])
    """
    own = hidden.shape[-1]
    if side >= own:
        return enlarge(hidden, side // own).flatten(1).float()
    return avg_pool2d(hidden[:, None].float(), math.ceil(own / side)).flatten(1)
