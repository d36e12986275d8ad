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
from selfsight.losses.precision import full
from selfsight.losses.reconstruction import patchify, unpatchify
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.reconstruction import Reconstruction


class MP3(Method[MaskedImages]):
    """MP3; ``head`` maps a patch's token to a logit for each place, ``encoder.embed`` must add no positions.

    A batch's visible patches are the context.
    """

    pictures = (
        "In threes: the image; the context, at which alone all patches may look; and every patch where it says that it "
        "lies, the surest where several do, nothing where none does."
    )

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

    @torch.no_grad()
    def reconstruct(self, batch: MaskedImages) -> Reconstruction:
        """The context, the patches at the places that they are said to have, and the original."""
        (height, width), side = batch.x.shape[2:], self.encoder.patch
        patches = patchify(full(batch.x), side)
        sure, place = full(self.predict(batch.x, batch.visible)[1]).log_softmax(dim=2).max(dim=2)
        silent = torch.full_like(sure, -torch.inf)[..., None].repeat(1, 1, patches.shape[1])
        claims = silent.scatter_(2, place[..., None], sure[..., None])
        surest, who = claims.max(dim=1)  # of each place
        placed = patches.gather(1, who[..., None].expand_as(patches)) * surest.isfinite()[..., None]
        context = torch.zeros_like(patches[..., :1]).scatter_(1, batch.visible[..., None].long(), 1.0)
        return Reconstruction(*(unpatchify(part, side, height, width) for part in (patches * context, placed, patches)))
