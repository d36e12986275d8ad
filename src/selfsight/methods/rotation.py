r"""RotNet: say by how many quarter turns an image was rotated.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018,
arXiv 1803.07728.

**Idea.** Each image is turned by 0, 90, 180 and 270 degrees, and a classifier says by which. To know which way is up, a
network must recognise objects, their parts and their poses. Quarter turns leave no trace of interpolation behind, so
there is no shortcut in the pixels.

**Equation.** With the turned images :math:`x_i^k` and the network's four logits :math:`F`,

.. math:: L = \frac1B \sum_i \frac14 \sum_{k=0}^{3} \mathrm{CE}(F(x_i^k), k) .

With one copy of each image the inner mean has one term, of a :math:`k` drawn by key.

**Differences** between the paper, the official code (gidariss/FeatureLearningRotNet) and this file:

- As in the code, the four rotations of one crop stand in one batch, on one process: batch norm over a single rotation
  hurts. The form with one rotation of each image (VISSL's) is ``copies=1``: a quarter of the work, and all rotations
  in a batch still, but not of the same image.
- The code turns while it loads, four pictures for one; here an image is rendered once and turned on the device.
- Paper and code train an AlexNet (ImageNet) and a network in network (CIFAR), and evaluate their inner layers. Neither
  is built here: any encoder serves, and one linear layer classifies its pooled feature.
- The code normalises after turning, the views here before; with one mean and deviation a channel it is the same.
"""

from torch import nn
from torch.nn.functional import cross_entropy

from selfsight.batches import TurnedImages
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.turns import turn


class Rotation(Method[TurnedImages]):
    """RotNet; ``head`` maps the pooled feature to four logits."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def step(self, batch: TurnedImages, clock: Clock) -> Steps:
        labels = batch.turns.T.flatten()
        h = self.encoder(turn(batch.x, batch.turns))
        logits = full(self.head(h))
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        yield Objective(
            cross_entropy(logits, labels),
            log={"rotation_accuracy": accuracy},
            watch={"feature": h[: len(batch.x)].detach()},
        )
