r"""CPC: predict the patches further down, in a learnt representation, from those above.

van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018, arXiv 1807.03748 (v1);
Hénaff, Srinivas, De Fauw, Razavi, Doersch, Eslami, van den Oord, "Data-Efficient Image Recognition with Contrastive
Predictive Coding", ICML 2020, arXiv 1905.09272 (v2: another encoder, context, patches and heads, and four directions:
another recipe).

**Idea.** What far parts of an image share is what it shows, not its texture. So an image is cut into overlapping
patches, each encoded by itself, and a context that has seen the upper rows must tell, several rows further down, the
true patch's encoding from those of all other patches. This is InfoNCE, a lower bound on the information that context
and patch share.

**Equations.** With encodings :math:`z_{b,r,c}` of the patches, contexts :math:`c_{b,r,c}` that see no row below
:math:`r`, predictors :math:`P_k` (v1: :math:`P_k c = W_k c`), targets :math:`y = t(z)` (v1: :math:`y = z`), and
:math:`N` candidates, all patches of the batch,

.. math:: L_k = \operatorname*{mean}_{b,\,r + k < H,\,c} -\log
    \frac{\exp(s P_k(c_{b,r,c})^\top y_{b,r+k,c})}{\sum_{b',r',c'} \exp(s P_k(c_{b,r,c})^\top y_{b',r',c'})},
    \qquad I \ge \log N - L_k .

Version 1 averages over the steps :math:`k` and reads downwards, with :math:`s = 1`; version 2 sums over steps and four
directions, each with a context and heads of its own, with :math:`s = 0.1`.

**Differences** between the papers, other code (there is no official one; loeweX/Greedy_InfoMax, 22d17e4, and
Lightning-AI/lightning-bolts, 2c4602a, were read) and this file:

- Version 1's paper draws negatives from its 16 images a GPU, version 2's from the batch; Greedy_InfoMax samples 16
  patches, among which the positive may be. Here they are all patches of all processes (``everywhere``) or of each
  process, and the positive is counted once.
- Greedy_InfoMax takes the logarithm of a softmax and 1e-11, whose gradient vanishes where the loss is large; here all
  is computed in log space.
- Version 2's pseudo-code, read literally, predicts a single row, three below; here the rows are listed.
- What is kept is the encoder. It was trained on patches and is evaluated on whole images, as the second paper's
  classifiers with few labels are; the linear probes of both papers average over an image's patches.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfsight.batches import Patches
from selfsight.distributed import gather, rank
from selfsight.encoders.protocol import Encoder
from selfsight.losses.predictive import future_nce
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.forecast import Direction, Forecast, turned


class CPC(Method[Patches]):
    """Contrastive predictive coding of images, v1 and v2.

    ``forecasts`` reads the grid in each of its directions; ``ahead`` are the rows that are predicted, one for each of
    a forecast's predictors; ``scale`` multiplies predictions; ``average`` takes the mean over directions and steps
    (v1) instead of the sum (v2).

    ``watch`` has as ``feature`` each image's mean over its patches, which the papers' probes look at.
    """

    def __init__(
        self,
        encoder: Encoder,
        forecasts: Mapping[Direction, Forecast],
        *,
        ahead: Sequence[int],
        scale: float = 1.0,
        average: bool = True,
        everywhere: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.forecasts = nn.ModuleDict({str(direction): forecast for direction, forecast in forecasts.items()})
        self.directions = tuple(forecasts)
        self.ahead = tuple(ahead)
        self.scale = scale
        self.average = average
        self.everywhere = everywhere

    def step(self, batch: Patches, clock: Clock) -> Steps:
        z = self.encode(batch.x)
        losses = [loss for direction in self.directions for loss in self.losses(z, direction)]
        loss = torch.stack(losses).mean() if self.average else torch.stack(losses).sum()
        yield Objective(loss, watch={"feature": z.detach().mean(dim=(1, 2))})

    def encode(self, x: Float[Tensor, "b h w c p p"]) -> Float[Tensor, "b h w d"]:
        """Each patch's encoding: the encoder's map of it, averaged over its places."""
        return self.encoder(x.flatten(0, 2)).view(*x.shape[:3], -1)

    def losses(self, z: Float[Tensor, "b h w d"], direction: Direction) -> list[Tensor]:
        """The loss of each step ahead, in one direction."""
        forecast: Forecast = self.forecasts[direction]  # pyright: ignore[reportAssignmentType]
        grid = turned(z, direction)
        context, targets = forecast.context(grid), forecast.target(grid)
        everyone = gather(targets) if self.everywhere else targets
        offset = rank() * len(z) if self.everywhere else 0
        return [
            future_nce(self.scale * predictor(context[:, :-k]), targets, ahead=k, everyone=everyone, offset=offset)
            for k, predictor in zip(self.ahead, forecast.predictors, strict=True)
        ]
