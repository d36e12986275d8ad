r"""RotNet: say by how many quarter turns an image was rotated.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018,
arXiv 1803.07728.

**Idea.** Each image is turned by 0, 90, 180 and 270 degrees, and a classifier says by which. To know which way is up, a
network must recognise objects, their parts and their poses. Quarter turns leave no trace of interpolation behind, so
there is no shortcut in the pixels.

**Equation.** With the turned images :math:`x_i^k` and the network's four logits :math:`F`,

.. math:: L = \frac1B \sum_i \frac14 \sum_{k=0}^{3} \mathrm{CE}(F(x_i^k), k) .

**Differences** between the paper, the official code (gidariss/FeatureLearningRotNet) and this file:

- As in the code, the four rotations of one crop stand in one batch, on one process: batch norm over a single rotation
  hurts.
- Paper and code train an AlexNet (ImageNet) and a network in network (CIFAR), and evaluate their inner layers. Neither
  is built here: any encoder serves, and one linear layer classifies its pooled feature.
- The code normalises after turning, the views here before; with one mean and deviation a channel it is the same.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Images
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps


class Rotation(Method[Images]):
    """RotNet; ``head`` maps the pooled feature to four logits."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def step(self, batch: Images, clock: Clock) -> Steps:
        b = len(batch.x)
        turned = four_rotations(batch.x)
        labels = torch.arange(4, device=batch.x.device).repeat_interleave(b)
        h = self.encoder(turned)
        logits = full(self.head(h))
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        yield Objective(
            cross_entropy(logits, labels), log={"rotation_accuracy": accuracy}, watch={"feature": h[:b].detach()}
        )


def four_rotations(x: Float[Tensor, "b c s s"]) -> Float[Tensor, "n c s s"]:
    """The images as they are, then all of them turned by 90, 180 and 270 degrees counter-clockwise, bit for bit.

    >>> four_rotations(torch.arange(4.0).reshape(1, 1, 2, 2))[1, 0]
    tensor([[1., 3.],
            [0., 2.]])
    """
    return torch.cat([x, *(torch.rot90(x, k, (2, 3)) for k in (1, 2, 3))])
