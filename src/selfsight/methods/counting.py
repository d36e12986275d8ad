r"""Learning to count: what an image's tiles hold adds up to what the whole image holds.

Noroozi, Pirsiavash, Favaro, "Representation Learning by Learning to Count", ICCV 2017, arXiv 1708.06734.

**Idea.** A network turns an image into a vector of counts. Nobody says what it counts, but the number of eyes or
wheels in an image is the sum of those in its four tiles, and does not change when the image is made smaller; so the
counts of the tiles must add up to those of the downsampled image. That alone would be satisfied by counting nothing,
hence the tiles of one image must not add up to the counts of another.

**Equation.** With counts :math:`\phi \ge 0`, a downsampling :math:`D` by two, tiles :math:`T_j x` of the size of
:math:`D x`, another image :math:`y` and a margin :math:`M = 10`,

.. math:: L = \frac1b \sum_x \Big\lVert \phi(D x) - \sum_{j=1}^{4} \phi(T_j x) \Big\rVert^2
    + \max\Big\{0,\; M - \Big\lVert \phi(D y) - \sum_{j=1}^{4} \phi(T_j x) \Big\rVert^2\Big\} .

A network that counts nothing costs :math:`M`, and so does one whose units have all died: a loss that stays at 10 has
collapsed. Gradients flow through all six branches.

**Shortcuts**, and what stands against them: the traces of a downsampling kernel, a power of whose energy would count
(four kernels, drawn for each pair, have none in common); coloured fringes of the lens (most pairs are grey, and images
are square crops of the middle); borders of the network's padding (tiles and whole have one size). What looks the same
in a whole as in its tiles, mean colour for instance, cannot be counted at all: it costs 9/17 of the margin at least.

**Differences** between the paper, other code (there is no official one; gitlimlab's TensorFlow version takes the margin
by unit, and neither mixes kernels nor drops colours) and this file, which follows the paper:

- The paper's counts are AlexNet's three fully connected layers on its last map, 3x3x256 for an image of 114 pixels.
  Here they stand on any encoder's pooled feature, and images have the encoder's own size. AlexNet has no norm. Batch
  norm would tell downsampled images from tiles, and a batch's images of each other: other norms take its place.
- The other image is the partner in a pair of neighbouring rows of the batch, both ways round: its counts are needed
  anyway, so five branches do the work of six. The paper draws the kernel for each update; here it is drawn for each
  pair. Grey or colour is one choice for all six images, in both.
- The paper subtracts an image's mean and divides by its deviation. Here all images are normalised by the same numbers,
  as evaluation does it.
- Its kernels' names are OpenCV's, whose bilinear kernel is the area's where images are halved. Here they are
  antialiased (Pillow's), which are four.
"""

import torch
from torch import Tensor, nn

from selfsight.batches import TiledImages
from selfsight.encoders.protocol import Encoder
from selfsight.losses.counting import counting
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps


class Counting(Method[TiledImages]):
    """Learning to count; ``head`` maps the pooled feature to counts, which must not be negative.

    ``counted`` in the log is the share of units that count anything in this batch, ``total`` an image's counts added
    up.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, *, margin: float = 10.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.margin = margin

    def step(self, batch: TiledImages, clock: Clock) -> Steps:
        b = len(batch.whole)
        if b < 2:
            raise ValueError("counting got a batch of one image, which has no other to differ from; give at least two")
        h = self.encoder(torch.cat([batch.whole, batch.tiles.flatten(0, 1)]))
        counts: Tensor = full(self.head(h))
        whole, tiles = counts[:b], counts[b:].view(b, 4, -1)
        other = torch.arange(b, device=batch.other.device) + batch.other
        differs = batch.index != batch.index[other]  # what stands in for an unreadable image may be its partner
        loss = counting(whole, tiles, whole[other], margin=self.margin, differs=differs)
        found = whole.detach()
        yield Objective(
            loss,
            log={"counted": (found > 0).any(dim=0).to(found.dtype).mean(), "total": found.sum(dim=1).mean()},
            watch={"feature": h[:b].detach(), "projection": found},
        )
