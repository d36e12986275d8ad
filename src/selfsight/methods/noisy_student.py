r"""Noisy Student: under noise, a student learns labels and what its teacher said of other images without noise.

Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves ImageNet Classification", CVPR 2020, arXiv 1911.04252.

**Idea.** A teacher that was trained on labelled images answers for many that have no label. Confident answers, balanced
by class, are the labels of a student that is no smaller, and whose images, units and layers are disturbed while it
learns. So it must be as sure of a distorted image as its teacher was of the clean one, and comes to do better; then it
is the next teacher.

**Equations.** With the student's :math:`p`, a teacher's stored answers :math:`a` at temperature :math:`T`, one-hot
labels :math:`e_y` smoothed by :math:`\epsilon`, and :math:`r` unlabelled images to each labelled one,

.. math:: L = \frac1B \sum_{b \le B} H\big((1 - \epsilon) e_{y_b} + \tfrac\epsilon K, p_b\big)
    + r \cdot \frac1{rB} \sum_{u \le rB} H(q_u, p_u),
    \qquad q_u = \mathrm{softmax}\big(\tfrac1T \log a_u\big).

Hard answers are :math:`e_{\arg\max a}`, smoothed as labels are. What is kept is the moving average of the weights, at
:math:`\min(0.9999, (1 + t) / (10 + t))`. Without a teacher the first sum alone is left: so the first teacher learns.

**Differences** between the paper, the official code (google-research/noisystudent, aac52bf) and this file:

- The weight :math:`r` of the second mean is the code's, which divides the sum over all images by the labelled ones.
- Its teacher may answer while the student trains, at the same crop; here answers are stored, as in its offline scripts.
- Its flag's default is hard answers, its scripts' and the paper's soft ones; here they are soft.
- The mean is taken over weights and running statistics, as in the code.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import Images
from selfsight.encoders.protocol import Encoder
from selfsight.losses.precision import full
from selfsight.losses.self_training import joint_cross_entropy, smoothed, tempered
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.momentum import target_of


class NoisyStudent(Method[Images]):
    """A student and its moving average, which is what is kept; called with images the average gives logits.

    ``labels`` are those of the first images that it is trained on, by their place in the source; ``answers`` gives the
    probabilities of the others by row, of which place ``len(labels) + i`` has row ``rows[i]``. Both speak of the CPU:
    all answers may be more than a device holds, so a batch's rows alone are looked up and moved there. None of the
    three is state: a run that is only opened again needs none. ``ratio`` is :math:`r`.
    """

    labels: Tensor
    rows: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        ratio: int,
        dropout: float,
        smoothing: float,
        temperature: float = 1.0,
        hard: bool = False,
        average: float = 0.9999,
        labels: Int[Tensor, " n"] | None = None,
        answers: Callable[[Int[Tensor, " b"]], Float[Tensor, "b k"]] | None = None,
        rows: Int[Tensor, " o"] | None = None,
    ) -> None:
        super().__init__()
        self.online = encoder
        self.online_classifier = nn.Linear(encoder.width, classes)
        nn.init.uniform_(self.online_classifier.weight, -(classes**-0.5), classes**-0.5)  # the code's dense kernels
        nn.init.zeros_(self.online_classifier.bias)
        self.encoder, self.classifier = target_of(self.online), target_of(self.online_classifier)
        self.dropout = nn.Dropout(dropout)
        self.classes, self.ratio, self.smoothing, self.average = classes, ratio, smoothing, average
        self.temperature, self.hard = temperature, hard
        nothing = torch.empty(0, dtype=torch.int64)
        self.register_buffer("labels", nothing if labels is None else labels, persistent=False)
        self.answers, self.rows = answers, nothing if rows is None else rows

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return full(self.classifier(self.encoder(x)))

    def targets(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """What the student should say of the images at these places: labels, or what the teacher said."""
        known = len(self.labels)
        own = smoothed(self.labels[index.clamp_max(known - 1)], self.classes, smoothing=self.smoothing)
        if self.answers is None:
            return own
        told = self.answers(self.rows[(index - known).clamp_min(0).cpu()]).to(index.device)
        if self.hard:
            told = smoothed(told.argmax(dim=1), self.classes, smoothing=self.smoothing)
        else:
            told = tempered(told, self.temperature)
        return torch.where((index < known)[:, None], own, told)

    def step(self, batch: Images, clock: Clock) -> Steps:
        logits = full(self.online_classifier(self.dropout(self.online(batch.x))))
        targets = self.targets(batch.index)
        agree = (logits.detach().argmax(dim=1) == targets.argmax(dim=1)).float().mean()
        moved = yield Objective(joint_cross_entropy(logits, targets, ratio=self.ratio), log={"agreement": agree})
        if moved:
            t = clock.step + 1
            m = min(self.average, (1 + t) / (10 + t))
            follow_(self.encoder, self.online, m)
            follow_(self.classifier, self.online_classifier, m)


@torch.no_grad()
def follow_(average: object, online: object, m: float) -> None:
    """Moves parameters and running statistics of ``average`` towards those of ``online``; counts are copied."""
    assert isinstance(average, nn.Module)
    assert isinstance(online, nn.Module)
    theirs = online.state_dict()
    for name, mine in average.state_dict().items():
        if mine.is_floating_point():
            mine.lerp_(theirs[name], 1 - m)
        else:
            mine.copy_(theirs[name])
