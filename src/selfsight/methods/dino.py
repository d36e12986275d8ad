r"""DINO: a student learns to say of each crop what its own moving average says of another.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021, arXiv 2104.14294.

**Idea.** A student sees all crops of an image, a teacher the large ones, and the student learns to give for each crop
the output that the teacher gives for another. The teacher is a moving average of the student. Two opposite nudges keep
it from collapsing: centring (subtracting the mean output) keeps one dimension from winning everywhere, and a low
temperature (sharpening) keeps the output from becoming uniform.

**Equations.** With student logits :math:`s_v` of :math:`V` crops, teacher logits :math:`t_u` of the :math:`U` large
ones, and the centre :math:`c`,

.. math:: P_u = \mathrm{softmax}((t_u - c) / \tau_t), \qquad
    L = \frac1{U(V-1)} \sum_u \sum_{v \ne u} \mathrm{CE}(P_u, \mathrm{softmax}(s_v / \tau_s)),

and after the update :math:`c \leftarrow m_c c + (1 - m_c) \overline{t}` and
:math:`\theta_t \leftarrow \lambda \theta_t + (1 - \lambda) \theta_s`.

**Differences** between the paper, the official code (facebookresearch/dino, 7c446df) and this file:

- ``encoder``, what is kept and evaluated, is the teacher's: the code evaluates the teacher, which the paper finds ahead
  of the student all through the training.
- The code moves the centre before the optimiser's step and whether or not that step was skipped. Here centre and
  teacher move together, once for each update, the centre by the mean over all of its micro-batches: so accumulated
  gradients equal the large batch where the encoder has no batch norm.
- The code changes the teacher's temperature once an epoch, this file with every update.
- As in the code, dropout and drop path act in the student only, while the teacher's batch norms stay in train mode.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from selfsight.batches import MultiCrop
from selfsight.encoders.protocol import Encoder
from selfsight.losses.distillation import self_distillation, teacher_probabilities
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.centre import Centre
from selfsight.parts.momentum import ema_, target_of, without_noise_
from selfsight.parts.prototypes import DistillationHead


class DINO(Method[MultiCrop]):
    """DINO; the first crops of a batch, its large ones, are those that the teacher sees.

    ``encoder`` and ``head`` become the student; the teacher starts as their copy. ``frozen_epochs`` is how long the
    head's last layer stands still at the start. Defaults: ``main_dino.py``.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: DistillationHead,
        *,
        teacher_temperature: Schedule,
        momentum: Schedule,
        student_temperature: float = 0.1,
        centre_momentum: float = 0.9,
        frozen_epochs: float = 1,
    ) -> None:
        super().__init__()
        self.student, self.student_head = encoder, head
        self.encoder, self.teacher_head = target_of(encoder), target_of(head)
        without_noise_(self.encoder)
        self.teacher_temperature, self.momentum = teacher_temperature, momentum
        self.student_temperature = student_temperature
        self.frozen_epochs = frozen_epochs
        self.centre = Centre(head.outputs, centre_momentum)

    def step(self, batch: MultiCrop, clock: Clock) -> Steps:
        b, large = len(batch.index), torch.cat(batch.large)
        t = self.teach(large).reshape(-1, b, self.student_head.outputs)
        p = teacher_probabilities(t, self.centre.value, temperature=self.teacher_temperature(clock))

        # one forward for each resolution, the head once over everything
        h = self.student(large)
        if batch.small:
            h = torch.cat([h, self.student(torch.cat(batch.small))])
        s = self.student_head(h).reshape(-1, b, self.student_head.outputs)
        loss = self_distillation(s, p, temperature=self.student_temperature)

        frozen = clock.step < self.frozen_epochs * clock.steps_per_epoch
        moved = yield Objective(
            loss,
            hold=self.student_head.last_layer if frozen else (),
            watch={"feature": h[:b].detach(), "projection": h[: 2 * b].detach(), "teacher": p.flatten(0, 1)},
        )

        self.centre.note_(t.mean(dim=(0, 1)))
        if moved:
            self.centre.move_()
            m = self.momentum(clock)
            ema_(self.encoder, self.student, m)
            ema_(self.teacher_head, self.student_head, m)

    @torch.no_grad()
    def teach(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The teacher's raw logits."""
        return full(self.teacher_head(self.encoder(x)))
