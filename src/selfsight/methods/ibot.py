r"""iBOT: predict of hidden patches what the network's own moving average says of them when it sees them.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong, "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022,
arXiv 2111.07832.

**Idea.** Masked modelling needs targets with a meaning, which BEiT takes from a tokenizer that was trained before.
Here the tokenizer is learnt meanwhile: it is DINO's teacher, whose head turns every patch into a distribution over
"tokens". The student gets large crops with patches hidden: their tokens it learns from the teacher's on the same
crop, the whole crop's from the teacher's on another, as in DINO, and one head serves both.

**Equations.** With :math:`V` crops, the :math:`U` large ones of which the student sees with the patches :math:`M_u`
hidden, its logits :math:`s`, the teacher's :math:`t`, of crops and of patches, and two centres :math:`c, c'`,

.. math:: P_u = \mathrm{softmax}\frac{t_u - c}{\tau_t}, \quad
    P_{u,i} = \mathrm{softmax}\frac{t_{u,i} - c'}{\tau'_t}, \quad
    L = \frac{\lambda_1}{U(V-1)} \sum_u \sum_{v \ne u} \mathrm{CE}(P_u, s_v / \tau_s)
    + \frac{\lambda_2}{U} \sum_u \frac{1}{\max(1, |M_u|)} \sum_{i \in M_u} \mathrm{CE}(P_{u,i}, s_{u,i} / \tau_s),

and after the update :math:`c` and :math:`c'` move to the means of :math:`t_u` and of :math:`t_{u,i}`, over all patches,
and :math:`\theta_t \leftarrow \lambda \theta_t + (1 - \lambda) \theta_s`.

**Differences** between the paper, the official code (bytedance/ibot, da316d8) and this file:

- One head for crops and patches, as in the paper and the code's published runs; the code's command line gives the
  student, by default, a last layer of its own for patches, the teacher none.
- ``encoder``, what is kept and evaluated, is the teacher's, as in the code.
- Centres and teacher move together, once for each update, as in ``selfsight.methods.dino``; the code moves the centres
  before the optimiser's step. Temperatures change with every update, in the code once an epoch.
- The code computes all patches' outputs; here the last layer is applied to hidden patches only, and the mean of all
  outputs, for the centre, follows from the mean of its input, since the layer is linear. The numbers are the same.
- Where the head has batch norm, which the code offers and its runs do without, class tokens and patches go through it
  apart, so that each are told from their like; in the code those of large crops go through it together, and both
  hidden layers share one norm.
- Swin, whose masks lie on its last map and begin late, is not built: transformers with one position for each patch
  are. Positions of small crops are interpolated as timm does, without the code's offset of 0.1.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfsight.batches import MaskedMultiCrop
from selfsight.encoders.protocol import PlacedEncoder
from selfsight.losses.distillation import masked_distillation, self_distillation, teacher_probabilities
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Schedule, Steps
from selfsight.parts.cells import behind
from selfsight.parts.centre import Centre
from selfsight.parts.momentum import ema_, target_of, without_noise_
from selfsight.parts.prototypes import DistillationHead


class IBOT(Method[MaskedMultiCrop]):
    """iBOT; a batch's large crops are those that the teacher sees whole and the student with patches hidden.

    ``encoder`` and ``head`` become the student; the teacher starts as their copy. Crops are compared by their class
    tokens, even where the encoder's feature is the patches' mean, and by that feature where there is no such token, as
    the code's Swin is. Defaults: ``main_ibot.py``.
    """

    encoder: PlacedEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do

    def __init__(
        self,
        encoder: PlacedEncoder,
        head: DistillationHead,
        *,
        teacher_temperature: Schedule,
        patch_temperature: Schedule,
        momentum: Schedule,
        student_temperature: float = 0.1,
        centre_momentum: float = 0.9,
        image_weight: float = 1.0,
        patch_weight: float = 1.0,
        frozen_epochs: float = 1,
    ) -> None:
        super().__init__()
        self.student, self.student_head = encoder, head
        self.mask_token = nn.Parameter(torch.zeros(1, encoder.width))
        self.encoder = target_of(encoder)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.teacher_head = target_of(head)
        without_noise_(self.encoder)
        self.teacher_temperature, self.patch_temperature = teacher_temperature, patch_temperature
        self.momentum, self.student_temperature = momentum, student_temperature
        self.image_weight, self.patch_weight = image_weight, patch_weight
        self.frozen_epochs = frozen_epochs
        self.centre, self.patch_centre = (Centre(head.outputs, centre_momentum) for _ in range(2))

    def step(self, batch: MaskedMultiCrop, clock: Clock) -> Steps:
        b, large, masked = len(batch.index), torch.cat(batch.large), torch.cat(batch.masked)
        outputs = self.student_head.outputs
        t, t_hidden, t_mean = self.teach(large, masked)
        t = t.reshape(-1, b, outputs)
        p = teacher_probabilities(t, self.centre.value, temperature=self.teacher_temperature(clock))
        p_hidden = teacher_probabilities(
            t_hidden[None], self.patch_centre.value, temperature=self.patch_temperature(clock)
        )[0]

        h, patches = self.student.tokens(self.hide(large, masked))
        seen = h[:b].detach()
        if batch.small:
            h = torch.cat([h, self.student.tokens(self.student.embed(torch.cat(batch.small)))[0]])
        z = self.student_head.unit(h)
        s, s_hidden = self.student_head.score(z), self.predict(patches, masked)
        image = self_distillation(s.reshape(-1, b, outputs), p, temperature=self.student_temperature)
        patch = masked_distillation(s_hidden, p_hidden, masked, temperature=self.student_temperature)

        frozen = clock.step < self.frozen_epochs * clock.steps_per_epoch
        moved = yield Objective(
            self.image_weight * image + self.patch_weight * patch,
            hold=self.student_head.last_layer if frozen else (),
            log={"image_loss": image.detach(), "patch_loss": patch.detach()},
            watch={"feature": seen, "projection": z[: 2 * b].detach(), "teacher": p.flatten(0, 1)},
        )

        self.centre.note_(t.mean(dim=(0, 1)))
        self.patch_centre.note_(t_mean)
        if moved:
            self.centre.move_()
            self.patch_centre.move_()
            m = self.momentum(clock)
            ema_(self.encoder, self.student, m)
            ema_(self.teacher_head, self.student_head, m)

    def hide(self, x: Float[Tensor, "c rgb h w"], masked: Bool[Tensor, "c n"]) -> Float[Tensor, "c n d"]:
        """The student's embedded patches, hidden ones replaced by the mask token before they get their positions."""
        patches = self.student.patches(x)
        return self.student.place(behind(self.mask_token, patches, masked.view(patches.shape[:3])))

    def predict(self, patches: Float[Tensor, "c n d"], masked: Bool[Tensor, "c n"]) -> Float[Tensor, "m k"]:
        """The student's logits of hidden patches. A head with batch norm is shown the others too, as the teacher's."""
        head = self.student_head
        return head.score(head.unit(patches)[masked]) if head.mixes else head(patches[masked])

    @torch.no_grad()
    def teach(
        self, x: Float[Tensor, "c rgb h w"], masked: Bool[Tensor, "c n"]
    ) -> tuple[Float[Tensor, "c k"], Float[Tensor, "m k"], Float[Tensor, " k"]]:
        """The teacher's raw logits of crops and of hidden patches, and the mean over all patches, from clean crops."""
        head = self.teacher_head
        h, patches = self.encoder.tokens(self.encoder.embed(x))
        z = head.unit(patches)
        return full(head(h)), full(head.score(z[masked])), full(head.score(z.mean(dim=(0, 1))[None]))[0]
