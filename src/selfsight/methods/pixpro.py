r"""PixPro and PixContrast: pixels of two crops agree where they show the same place of the image.

Xie, Lin, Zhang, Cao, Lin, Hu, "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual
Representation Learning", CVPR 2021, arXiv 2011.10043.

**Idea.** A detector or a segmenter needs features that tell one place of an image from another, and learning from whole
images does not ask for them. Here the geometry of two crops says which of their pixels (positions of the last feature
map) show the same place. PixContrast lets a pixel pick those pixels out of all others of the other crop; PixPro has no
negatives: it smooths one side by propagating features between similar pixels, and the result predicts the other side's
pixels of the same place.

**Equations.** With :math:`A_{ij} = 1` where the centres of pixel :math:`i` of one view and pixel :math:`j` of the other
are closer in the original image than :math:`T` times the diagonal of a pixel's bin, :math:`x` the online network's
projected pixels and :math:`x'` the slowly moving target's, PixContrast's loss and PixPro's are

.. math:: \ell_i = -\log \frac{\sum_{j : A_{ij} = 1} e^{\cos(x_i, x'_j) / \tau}}{\sum_j e^{\cos(x_i, x'_j) / \tau}},
    \qquad L = -2 \frac1b \sum_b \frac{\sum_{ij} A_{ij} \cos(y_i, x'_j)}{\sum_{ij} A_{ij}},
    \qquad y_i = \sum_j \max(\cos(x_i, x_j), 0)^\gamma\, \bar g(x_j),

each in both directions (PixContrast averages them, PixPro adds them). The target moves after the optimiser's step:
:math:`\xi \leftarrow m_k \xi + (1 - m_k) \theta` with :math:`m_k = 1 - (1 - m_0)(1 + \cos(\pi k / K)) / 2`.

**Differences** between the paper, the official code (zdaxie/PixPro, e390d6b) and this file, which follows the code:

- The code holds PixPro alone; of PixContrast two unused flags are left. Here PixContrast is the same class with another
  loss and without propagation, as the paper describes it.
- The code's loss is twice the paper's, and :math:`g` is normalised for each pixel, which the paper does not say.
- Distances are measured in shares of the image's width and height, as in the code: in an image that is not square they
  are stretched. The code's corners are a crop's first and last pixel, here they are its edges.
- Images whose crops have no pixel in common count as 0 in the mean over the batch: as in the code.
- The code moves the target at the start of the next step, with that step's momentum; and its step counter is not in the
  checkpoint, so that a resumed run begins again at :math:`m_0`. Here the clock is.
- Pixels match below T, as in the code; in the paper also at T.
- The instance branch (``instance``) is the code's: BYOL's loss of a projector and a predictor of its own, averaged over
  pixels. The paper combines PixPro with a SimCLR whose keys come from the target. Its variant that trains a feature
  pyramid is left out, as in the code.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfsight.batches import LocatedViews
from selfsight.encoders.protocol import Encoder
from selfsight.losses.pixels import PixelLoss, match
from selfsight.losses.regression import cosine_regression
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.momentum import ema_, target_of
from selfsight.parts.pixels import as_rows, spread


class Instance(NamedTuple):
    """The optional branch for whole images: its own heads for pixels, and its loss's weight α."""

    projector: nn.Module
    predictor: nn.Module
    weight: float = 1.0


class PixPro(Method[LocatedViews]):
    """Pixel-level consistency (PixPro) or contrast (PixContrast).

    ``projector`` and ``propagation`` map feature maps to feature maps; ``propagation`` is on the online side alone, and
    the identity for PixContrast. ``threshold`` is the distance in bins' diagonals below which pixels match,
    ``momentum`` the target's, by the clock.

    ``watch`` has the pooled feature maps as ``feature`` and the pooled projections as ``projection``, each with the
    rows of the first view before those of the second. ``pairs`` in the log counts an image's matching pairs of pixels,
    ``pixel_std`` is the spread of the target's pixels, which is 0 once they have collapsed.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        propagation: nn.Module,
        *,
        loss: PixelLoss,
        momentum: Schedule,
        threshold: float = 0.7,
        instance: Instance | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.propagation = propagation
        self.target_encoder = target_of(encoder)
        self.target_projector = target_of(projector)
        self.instance_projector = instance.projector if instance else None
        self.instance_predictor = instance.predictor if instance else None
        self.target_instance_projector = target_of(instance.projector) if instance else None
        self.instance_weight = instance.weight if instance else 0.0
        self.loss = loss
        self.momentum = momentum
        self.threshold = threshold

    def step(self, batch: LocatedViews, clock: Clock) -> Steps:
        h1, h2 = self.encoder.dense(batch.x1), self.encoder.dense(batch.x2)
        z1, z2 = self.projector(h1), self.projector(h2)
        y1, y2 = self.propagation(z1), self.propagation(z2)
        with torch.no_grad():
            g1, g2 = self.target_encoder.dense(batch.x1), self.target_encoder.dense(batch.x2)
            t1, t2 = self.target_projector(g1), self.target_projector(g2)

        matches = match(batch.box1, batch.box2, size=(h1.shape[2], h1.shape[3]), threshold=self.threshold)
        loss = self.loss(as_rows(y1), as_rows(y2), as_rows(t1), as_rows(t2), matches)
        if self.instance_weight:
            loss = loss + self.instance_weight * (self._instance(h1, g2) + self._instance(h2, g1))

        moved = yield Objective(
            loss,
            log={"pairs": matches.near.sum(dim=(1, 2)).to(loss.dtype).mean(), "pixel_std": spread(t1)},
            watch={"feature": _pooled(h1, h2), "projection": _of_one_place(as_rows(z1), as_rows(z2), matches.near)},
        )
        if moved:
            m = self.momentum(clock)
            ema_(self.target_encoder, self.encoder, m)
            ema_(self.target_projector, self.projector, m)
            if self.instance_projector is not None:
                ema_(self.target_instance_projector, self.instance_projector, m)

    def _instance(self, h: Float[Tensor, "b d y x"], g: Float[Tensor, "b d y x"]) -> Float[Tensor, ""]:
        """BYOL's loss of one view's prediction and the other view's target, each averaged over its pixels."""
        assert self.instance_projector is not None
        assert self.instance_predictor is not None
        assert self.target_instance_projector is not None
        p = self.instance_predictor(self.instance_projector(h)).mean(dim=(2, 3))
        with torch.no_grad():
            z = self.target_instance_projector(g).mean(dim=(2, 3))
        return cosine_regression(p, z)


@torch.no_grad()
def _pooled(first: Float[Tensor, "b d y x"], second: Float[Tensor, "b d y x"]) -> Float[Tensor, "n d"]:
    return torch.cat([first, second]).detach().mean(dim=(2, 3))


@torch.no_grad()
def _of_one_place(
    first: Float[Tensor, "b n d"], second: Float[Tensor, "b m d"], near: Bool[Tensor, "b n m"]
) -> Float[Tensor, "k d"]:
    """A place of each image as both views see it: pooled, images look alike that no pixel of theirs does.

    Where the views share none, it is the first pixel of each.
    """
    pair = near.flatten(1).to(first.dtype).argmax(dim=1)
    one = torch.arange(len(near), device=near.device)
    return torch.cat([first[one, pair // near.shape[2]], second[one, pair % near.shape[2]]]).detach()
