r"""Jigsaw clustering: in pictures put together of pieces of four images, find which belong together, and where.

Chen, Liu, Jia, "Jigsaw Clustering for Unsupervised Visual Representation Learning", CVPR 2021, arXiv 2104.00323.

**Idea.** Each image of a batch is cut into four overlapping pieces, all pieces are shuffled, and four of different
images make up a montage. The network sees montages only, so it must keep apart what stands side by side; the features
of a montage's quarters then have to find the pieces of their own image among all pieces of the batch, and to say which
quarter of it they were. That takes what is within an image and what is between images, at the price of one forward
pass of one batch, where two views cost two.

**Equations.** With the normalised vectors :math:`f_i` of the :math:`4n` pieces, :math:`P_i` the three other pieces of
:math:`i`'s image, places :math:`\ell_i`, and features :math:`h_i` of the quarters,

.. math:: L_{clu} = -\frac\tau{\tau_b} \frac1{4n} \sum_i \frac13 \sum_{p \in P_i}
    \log \frac{e^{f_i^\top f_p / \tau}}{\sum_{k \ne i} e^{f_i^\top f_k / \tau}}, \qquad
    L_{loc} = \frac1{4n} \sum_i \mathrm{CE}(W h_i, \ell_i), \qquad L = \alpha L_{clu} + \beta L_{loc} .

Three positives share a denominator: without its factor :math:`L_{clu}` never falls below :math:`\log 3`.

**Shortcuts**: pieces that stand side by side never belong together, so edges that go on tell nothing; where a piece
stands in its montage says nothing of where it was, so the padding at the border does not either; and each piece has
colours, crop and blur of its own. Of a lens's coloured fringes the flip hides left and right, nothing hides top and
bottom: of images with strong ones the rows of pieces can be told by them.

**Differences** between the paper, the official code (dvlab-research/JigsawClustering, 5d64a43) and this file:

- The code multiplies the clustering loss by :math:`\tau / \tau_b` with :math:`\tau_b = 0.07`, inherited from supervised
  contrast: at its script's :math:`\tau = 0.3` the two losses are weighed 4.3 to 1 where the paper says equally. Here it
  is an argument of the loss, and the recipe follows the code.
- The code's permutation may put two pieces of one image into a montage, rarely in a large batch. Here the four images
  always differ, as the paper describes it.
- The permutation comes from numbers that each image's key draws, so that any number of processes makes the same
  montages. As in the code pieces are gathered from all processes, and vectors are with gradients.
- Places count in row-major order; in the code they count down the columns, by its reading of an image's size.
- The code brings ResNet-50's map of 7x7 to 8x8 before it is split, as here; maps of an even side stay as they are.
- The paper's network is a convolutional one. In a vision transformer every quarter sees the whole montage.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Pieces
from selfsight.distributed import gather, rank, world_size
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.montage import PIECES, arrangement, montage, quarters


@runtime_checkable
class GroupLoss(Protocol):
    """A loss of groups of pieces; ``everyone`` has those of all processes, where these begin at ``offset``."""

    def __call__(
        self, z: Float[Tensor, "b v d"], *, everyone: Float[Tensor, "n v d"] | None = None, offset: int = 0
    ) -> Float[Tensor, ""]: ...


class JigsawClustering(Method[Pieces]):
    """Jigsaw clustering; ``projector`` maps the feature of a montage's quarter to what is clustered, ``locator`` to the
    logits of the four places.

    ``watch`` has both of each of this process's quarters, four rows to a montage.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        locator: nn.Module,
        *,
        loss: GroupLoss,
        cluster_weight: float = 1.0,
        location_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.locator = locator
        self.loss = loss
        self.cluster_weight = cluster_weight
        self.location_weight = location_weight

    def step(self, batch: Pieces, clock: Clock) -> Steps:
        b, first = len(batch.x), rank() * len(batch.x)
        mine = slice(first, first + b)
        shown = arrangement(gather(batch.shuffle))
        x = montage(gather(batch.x).flatten(0, 1)[shown[mine]])

        h = quarters(full(self.encoder.dense(x))).flatten(0, 1)
        z = full(self.projector(h))
        logits = full(self.locator(h))

        back = shown.flatten().argsort()  # where each piece went
        groups = gather(z)[back].view(-1, PIECES, z.shape[1])
        clustering = self.loss(groups[mine], everyone=groups if world_size() > 1 else None, offset=first)
        places = shown[mine].flatten() % PIECES
        location = cross_entropy(logits, places)
        accuracy = (logits.detach().argmax(dim=1) == places).to(logits.dtype).mean()
        yield Objective(
            self.cluster_weight * clustering + self.location_weight * location,
            log={"clustering": clustering.detach(), "location": location.detach(), "location_accuracy": accuracy},
            watch={"feature": h.detach(), "projection": z.detach()},
        )
