r"""PIC: classify each image as itself, with a trained weight for every image.

Cao, Xie, Liu, Lin, Zhang, Hu, "Parametric Instance Classification for Unsupervised Visual Feature Learning", NeurIPS
2020, arXiv 2006.14618.

**Idea.** One branch and one view: supervised classification, with the image's own index as its label. An image is
visited as a positive only once an epoch, which is too seldom for its weight to keep up, so data come in a window that
slides: an image is seen several times at a short distance, then not for long. And since only lately seen images make
good negatives, the softmax runs over the classes that were positives last; the others cost nothing until they return.

**Equations.** With :math:`z_i` the head's output, :math:`w_j` the weight of image :math:`j`, and :math:`R` the
:math:`K` images that were positives last, those of this batch among them,

.. math:: L = \frac1B \sum_{i} -\log \frac{e^{\cos(w_i, z_i) / \tau}}{\sum_{j \in R} e^{\cos(w_j, z_i) / \tau}} .

A weight outside of :math:`R` has no gradient, but momentum and decay move it all the same: for :math:`t` steps at a
rate :math:`\eta`, with momentum :math:`m` and decay :math:`\lambda`,

.. math:: \begin{pmatrix} w \\ u \end{pmatrix} \leftarrow
    \begin{pmatrix} 1 - \eta\lambda & -\eta m \\ \lambda & m \end{pmatrix}^{t} \begin{pmatrix} w \\ u \end{pmatrix},

which is done when it returns.

**Differences** between the paper, the official code (bl0/PIC, 21fa56a) and this file:

- The code has neither recent negatives nor the correction: its softmax runs over all images. Both are here; a
  ``recent`` of all images is the code's loss.
- The correction is the optimiser's (``engine.late_sgd``), for rates that change with every step. With another optimiser
  the gradient has zeros for the other classes, and what that optimiser makes of them happens at once.
- Before there have been :math:`K` positives, :math:`R` is filled up with the first images.
- The code's window takes its places modulo the window's own length, so without another flag most images are never seen.
  Here it slides over all of them (``data.order``).
- Small crops teach the encoder and not the weights, and each crop has a forward of its own, as in the code.
- With accumulated gradients each micro-batch has an :math:`R` of its own.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import MultiCrop
from selfsight.distributed import gather
from selfsight.encoders.protocol import Encoder
from selfsight.losses.instance import instance_softmax
from selfsight.losses.precision import unit
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.memory import latest
from selfsight.parts.rows import Rows


class PIC(Method[MultiCrop]):
    """Parametric instance classification.

    ``classes`` has a row for each image; its optimiser is ``classes``, that of all else ``main``. ``recent`` counts the
    classes that the softmax runs over, no fewer than the batch.

    ``watch`` has the encoder's output for the first crop as ``feature``, and as ``projection`` the head's for that crop
    before the weights of their classes.
    """

    by_index = True

    recent: Int[Tensor, " k"]

    def __init__(
        self, encoder: Encoder, projector: nn.Module, classes: Rows, *, temperature: float, recent: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.classes = classes
        self.temperature = temperature
        if not 1 <= recent <= len(classes.weight):
            raise ValueError(f"{recent} recent classes out of {len(classes.weight)} were asked for")
        self.register_buffer("recent", torch.arange(recent))

    def trainables(self) -> Mapping[str, Iterable[tuple[str, nn.Parameter]]]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        weight = self.classes.weight
        return {
            "main": [(name, p) for name, p in named if p is not weight],
            "classes": [(name, p) for name, p in named if p is weight],
        }

    def step(self, batch: MultiCrop, clock: Clock) -> Steps:
        recent = latest(gather(batch.index), self.recent)
        rows = recent.sort().values
        w = unit(self.classes(rows), dim=1)
        target = torch.searchsorted(rows, batch.index)

        h = [self.encoder(x) for x in (*batch.large, *batch.small)]
        z = [unit(self.projector(x), dim=1) for x in h]
        losses = [self.loss(x, w, target) for x in z[: len(batch.large)]]
        losses += [self.loss(x, w.detach(), target) for x in z[len(batch.large) :]]

        yield Objective(
            torch.stack(losses).mean(),
            by=("main", "classes"),
            watch={"feature": h[0].detach(), "projection": torch.cat([z[0], w[target]]).detach()},
        )
        self.recent.copy_(recent)

    def loss(self, z: Float[Tensor, "b d"], w: Float[Tensor, "k d"], target: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """The cross-entropy of each feature's own class among ``w``."""
        return instance_softmax(z, w, target, temperature=self.temperature)
