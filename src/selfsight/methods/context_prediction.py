r"""Context prediction: say where one patch of an image lies, as seen from another.

Doersch, Gupta, Efros, "Unsupervised Visual Representation Learning by Context Prediction", ICCV 2015, arXiv 1505.05192.

**Idea.** Two patches are cut from an image, and a classifier says at which of eight places round the first the second
lies. To tell an ear that is above from a paw that is below, a network must recognise what the patches show parts of.
Each patch is encoded by itself, by one network, and only its feature meets the other's, so that the feature has to hold
what is needed.

**Equation.** With encodings :math:`h_i` of the patches, pairs :math:`(i, j)` of neighbours and the place
:math:`y_{ij} \in \{0, \dots, 7\}` of :math:`j` round :math:`i`, in reading order,

.. math:: L = \operatorname*{mean}_{(i,j)} \mathrm{CE}(F([h_i, h_j]),\, y_{ij}), \qquad y_{ij} + y_{ji} = 7 .

**Shortcuts** would answer without recognising anything, so the views (``selfsight.views.pairs``) take them away: a gap
of half a patch and a jitter for edges that go on; two colours of each patch dropped, or green against magenta projected
out, for the colour fringes by which a lens tells how far from the middle a patch was; each patch's own mean and scale
taken out for brightness and contrast, and a third of the patches made coarse, for the sharpness.

**Differences** between the paper, the official code (cdoersch/deepcontext 05b2e88), open-mmlab/mmselfsup and this file:

- The code sums the loss over a batch's pairs, here it is their mean.
- The code lays grids of any size over an image, four at a time, and pairs all patches that touch. Here a grid has three
  by three patches, as in mmselfsup, whose pairs of the centre with its eight neighbours are the default: all places are
  then equally frequent. All that touch are an option.
- Paper and code train a CaffeNet whose tower ends in a layer of 4096 units. Here any encoder's pooled feature takes its
  place. The layers after it are theirs: 4096 with batch norm without scale and shift, 4096, eight places.
- The code puts uniform noise of half a grey level in the place of dropped colours, the paper Gaussian noise of a
  hundredth of the remaining channel's deviation; here it is uniform, of the paper's deviation.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import PatchPairs
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps


class ContextPrediction(Method[PatchPairs]):
    """Context prediction; ``head`` maps the features of two patches, one behind the other, to eight logits."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def step(self, batch: PatchPairs, clock: Clock) -> Steps:
        h = self.encoder(batch.x.flatten(0, 1)).view(*batch.x.shape[:2], -1)
        logits = self.places(h, batch)
        label = batch.label.flatten()
        accuracy = (logits.detach().argmax(dim=1) == label).float().mean()
        loss = cross_entropy(logits, label)
        yield Objective(loss, log={"place_accuracy": accuracy}, watch={"feature": h.detach().mean(dim=1)})

    def places(self, h: Float[Tensor, "b n d"], batch: PatchPairs) -> Float[Tensor, "pairs 8"]:
        """The logits of each pair's place, image by image."""
        both = [torch.take_along_dim(h, which[..., None], dim=1) for which in (batch.first, batch.second)]
        return full(self.head(torch.cat(both, dim=-1).flatten(0, 1)))
