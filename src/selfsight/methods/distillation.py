r"""Distillation: a student learns a fixed teacher's answers on images without labels.

Chen, Kornblith, Swersky, Norouzi, Hinton, "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS
2020, arXiv 2006.10029, its third step; Hinton, Vinyals, Dean, arXiv 1503.02531.

**Idea.** A fine-tuned teacher says for every unlabelled image how likely each class is, and a student learns to say the
same. So the unlabelled images are used a second time, now for the task. A student of the teacher's own architecture
comes to do better than it (self-distillation); a smaller one loses little.

**Equations.** With :math:`P(y | x; \tau) = \mathrm{softmax}_y(f(x) / \tau)`,

.. math:: L = -(1 - \alpha) \frac1{|L|} \sum_{(x, y) \in L} \log P^S(y | x; 1)
    - \alpha \frac{\tau^2}{b} \sum_x \sum_y P^T(y | x; \tau) \log P^S(y | x; \tau).

By default :math:`\alpha = 1`: no labels. Teacher and student see the same view, a crop and a flip.

**Differences** between the paper, the official notebook (google-research/simclr, 383d414,
``colabs/distillation_self_training.ipynb``) and this file:

- The factor :math:`\tau^2` is the notebook's; the paper's equation has none. At the paper's 0.1 the loss here is a
  hundredth of it, which LARS undoes but for the decay and the vectors.
- The notebook has no labels. Here the labelled images are those of the teacher, met among all others; their loss is the
  mean over those in the batch, and absent where there is none.
- The student has no layer of the head, as the paper's (the same architecture "excluding" what comes after the encoder).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.distributed import mean
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.losses.soft_targets import known_cross_entropy, soft_cross_entropy
from selfsight.method import Clock, Method, Objective, Steps


class Distillation(Method[Images]):
    """A student and its teacher; called with images it gives the student's logits.

    ``teacher`` gives logits of ``classes`` classes. It stays as it is, in evaluation mode, and is no part of the state:
    a run that is only opened again needs none. ``label_weight`` is :math:`1 - \\alpha`, ``labels`` those of all images
    by their place in the source, -1 where unknown.
    """

    by_index = True

    labels: Tensor

    def __init__(
        self,
        encoder: Encoder,
        teacher: nn.Module | None,
        *,
        classes: int,
        temperature: float = 1.0,
        label_weight: float = 0.0,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.width, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)  # the code's supervised head, model_util.py
        nn.init.zeros_(self.classifier.bias)
        self.temperature, self.label_weight = temperature, label_weight
        known = torch.empty(0, dtype=torch.int64) if labels is None else labels
        self.register_buffer("labels", known, persistent=False)
        # in a tuple, so that it is no submodule: neither saved, nor trained, nor ever in training mode
        self._teacher = (None if teacher is None else teacher.eval().requires_grad_(False),)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return full(self.classifier(self.encoder(x)))

    @torch.no_grad()
    def teach(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The teacher's logits."""
        (teacher,) = self._teacher
        if teacher is None:
            raise ValueError("this student was opened without its teacher, so it cannot be trained")
        return full(teacher.to(x.device)(x))

    def step(self, batch: Images, clock: Clock) -> Steps:
        s, t = self(batch.x), self.teach(batch.x)
        agree = (s.detach().argmax(dim=1) == t.argmax(dim=1)).float().mean()
        loss = soft_cross_entropy(s, t, temperature=self.temperature)
        if self.label_weight:
            y = self.labels[batch.index]
            labelled = known_cross_entropy(s, y, mean((y >= 0).sum().to(s.dtype)))
            loss = (1 - self.label_weight) * loss + self.label_weight * labelled
        yield Objective(loss, log={"agreement": agree})
