r"""Fine-tuning: encoder, the first layers of its head and a linear classifier learn from labelled images.

Chen, Kornblith, Swersky, Norouzi, Hinton, "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS
2020, arXiv 2006.10029, its second step.

**Idea.** A pretrained network needs few labels to become a classifier. The head that pretraining threw away knows
something of the task too: its first layer stays, as a part of the encoder, and all weights are trained. The fewer the
labels, the more that layer helps.

**Equations.** With the encoder :math:`f`, the head's first layers :math:`g_{1..j}` and a linear map :math:`W`,

.. math:: L = \frac1b \sum_b -\log \mathrm{softmax}\big(W g_{1..j}(f(x_b))\big)_{y_b}.

**Differences** between the paper, the official code (google-research/simclr, 383d414: ``ft_proj_selector``) and this
file: none that is known. The code builds the whole head and takes one of its layers; here the others are not there.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from selfsight.batches import Images
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps


class FineTuning(Method[Images]):
    """A classifier that is trained whole; called with images it gives their logits.

    ``projector`` is the head's first layers, perhaps none, of output ``width``; ``labels`` are those of the images that
    it is trained on, by their place in the source, and no part of the state. The classifier starts at zero.
    """

    by_index = True

    labels: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        *,
        width: int,
        classes: int,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.classifier = nn.Linear(width, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        known = torch.empty(0, dtype=torch.int64) if labels is None else labels
        self.register_buffer("labels", known, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return full(self.classifier(self.projector(self.encoder(x))))

    def step(self, batch: Images, clock: Clock) -> Steps:
        logits, y = self(batch.x), self.labels[batch.index]
        right = (logits.detach().argmax(dim=1) == y).float().mean()
        yield Objective(cross_entropy(logits, y), log={"accuracy": right})
