r"""MP3: give a transformer patches without their positions, and let it say where each one lies.

Zhai, Jaitly, Ramapuram, Busbridge, Likhomanenko, Cheng, Talbott, Huang, Goh, Susskind, "Position Prediction as an
Effective Pretraining Strategy", ICML 2022, arXiv 2207.07611.

**Idea.** Without position embeddings a transformer sees a set of patches. To say where in the image each of them lies
it must understand what they show and how these parts belong together. The task grows harder, and the training cheaper,
where every patch may look at a random few only: its queries meet the keys and values of this context, in every layer,
and the others do not see each other.

**Equations.** With the patches' embeddings :math:`x_i`, no positions added, a random context :math:`C` of
:math:`(1 - \eta) N` of the :math:`N` patches, and blocks whose attention is

.. math:: \mathrm{softmax}\big(Q(h_{1..N})\, K(h_C)^\top / \sqrt{d}\big)\, V(h_C), \qquad
    L = \frac1N \sum_{i=1}^N -\log \mathrm{softmax}(W h_i + b)_i ,

where :math:`h` are each layer's own states, in the loss the last one's after its norm. All patches count, those of the
context and the others.

**Differences** between the paper, other code and this file (the authors published none; lucidrains/vit-pytorch
``mp3.py`` and arshadshk/Position-Prediction-Pretraining were read):

- lucidrains' version gives the context's first embeddings as keys and values to every layer; here, as in the paper, a
  layer's keys and values come from its own states.
- The context is drawn by each sample's key and comes with the batch. A share of patches that is no whole number is
  rounded down.
- The encoder's positions are zero and get no gradient: the exported encoder has none either. Fine-tuning may train
  them, from zero, which is the paper's variant with new positions.
- The recipe's encoder has no class token, its feature being the patches' mean: in pretraining nothing would ask a class
  token for anything. Where an encoder has one, every patch sees it and it sees the context; arshadshk's has one too.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.protocol import ContextEncoder
from selfsight.losses.position import position_cross_entropy
from selfsight.method import Clock, Method, Objective, Steps


class MP3(Method[MaskedImages]):
    """MP3; ``head`` maps a patch's token to a logit for each place, ``encoder.embed`` must add no positions.

    A batch's visible patches are the context.
    """

    encoder: ContextEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do

    def __init__(self, encoder: ContextEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.head = head

    def step(self, batch: MaskedImages, clock: Clock) -> Steps:
        feature, logits = self.predict(batch.x, batch.visible)
        right = logits.detach().argmax(dim=2) == torch.arange(logits.shape[1], device=logits.device)
        yield Objective(
            position_cross_entropy(logits),
            log={"position_accuracy": right.float().mean()},
            watch={"feature": feature.detach()},
        )

    def predict(
        self, x: Float[Tensor, "b c h w"], context: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n n"]]:
        """The pooled feature, and for every patch a logit for each place, where all look at the context alone."""
        feature, tokens = self.encoder.in_context(self.encoder.embed(x), context)
        return feature, self.head(tokens)
