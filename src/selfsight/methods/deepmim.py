r"""DeepMIM: a masked autoencoder whose middle blocks have decoders of their own.

Ren, Wei, Albanie, Zhang, Hu, "DeepMIM: Deep Supervision for Masked Image Modeling", WACV 2025, arXiv 2303.08817.

**Idea.** In a masked autoencoder only the last block hears of the task, so the shallow ones learn little of meaning.
Here blocks in the middle of the encoder must solve it as well: each has a small decoder, and the sum of all errors is
minimised. What is still too hard for them may be made easier by hybrid targets, blends of the pixels with what a
trained MAE reconstructs, coarse for shallow blocks and sharp for deep ones.

**Equations.** With :math:`p^l` the prediction from block :math:`l`, :math:`x` the patches' normalised pixels,
:math:`\hat x` a frozen MAE's prediction of them, and :math:`M` the hidden places,

.. math:: L = \sum_l \frac1{|M|} \sum_{i \in M} \frac1p \lVert p^l_i - t^l_i \rVert^2, \qquad
    t^l = \alpha_l x + (1 - \alpha_l) \hat x .

Plain targets have :math:`\alpha_l = 1` everywhere. Hybrid ones have 0, 1/3, 2/3 and 1 for blocks 6, 8, 10 and 12.

**Differences** between the paper, the official code (OliverRensu/DeepMIM, 2767f81) and this file:

- The code's targets are CLIP's features and its error is of cosines: the only variant that was released. This is the
  paper's other one, DeepMIM on MAE, which needs no second model.
- In both, blocks 6, 8 and 10 are decoded as they are and block 12 after the last norm; gradients of all go down to the
  patches. Decoders share nothing but their fixed positions.
- Hybrid targets are off by default, as in the paper, for their cost. What the frozen MAE sees is here what the encoder
  sees, the visible patches, and the blend is of normalised pixels, where both models predict these: the paper's
  equation says neither, and no code of it was published. The frozen MAE's weights are not saved with the run, but a
  checksum of them is: a run that goes on with another one is refused.
- Masks come with the batch, as in MAE's file.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfsight.batches import MaskedImages
from selfsight.encoders.protocol import LayeredEncoder
from selfsight.losses.deep import deep_masked_mse, hybrid_target
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.fingerprint import fingerprint
from selfsight.parts.reconstruction import Reconstruction, pixel_targets, reconstructed


class Guide(Protocol):
    """A masked autoencoder, MAE's for instance."""

    def predict(
        self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n p"]]: ...


class DeepMIM(Method[MaskedImages]):
    """DeepMIM; ``decoders`` has one of MAE's for each supervised block, numbered from 1, the last block among them.

    ``shares`` are the hybrid targets' :math:`\\alpha` of each such block; without, all targets are plain. ``guide``
    reconstructs for them. It stays as it is and is no part of the state, which keeps its checksum alone: a run that is
    only opened again needs none.
    """

    encoder: LayeredEncoder  # pyright: ignore[reportIncompatibleVariableOverride]  # no other will do
    guide_sum: Tensor

    def __init__(
        self,
        encoder: LayeredEncoder,
        decoders: Mapping[int, nn.Module],
        *,
        normalise_target: bool = True,
        shares: Mapping[int, float] | None = None,
        guide: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.blocks = tuple(sorted(decoders))
        if not self.blocks or self.blocks[0] < 1 or self.blocks[-1] != encoder.depth:
            raise ValueError(f"decoders follow blocks {self.blocks} of {encoder.depth}; the last must be among them")
        self.encoder = encoder  # pyright: ignore[reportIncompatibleVariableOverride]
        self.decoders = nn.ModuleList([decoders[block] for block in self.blocks])
        self.normalise_target = normalise_target
        self.shares = None if shares is None else tuple(shares[block] for block in self.blocks)
        # in a tuple, so that it is no submodule: neither saved, nor trained, nor ever in training mode
        self._guide = (None if guide is None else guide.eval().requires_grad_(False),)
        self._same = False
        if self.shares is not None:
            self.register_buffer("guide_sum", torch.tensor(0 if guide is None else fingerprint(guide)))

    def step(self, batch: MaskedImages, clock: Clock) -> Steps:
        token, predictions = self.predict(batch.x, batch.visible)
        losses = deep_masked_mse(predictions, self.targets(batch), batch.masked)
        log = {f"block{number}": loss for number, loss in zip(self.blocks, losses.detach(), strict=True)}
        yield Objective(losses.sum(), log=log, watch={"feature": token.detach()})

    def predict(
        self, x: Float[Tensor, "b c h w"], visible: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b n p"]]]:
        """The last class token, and from each supervised block a vector for every patch."""
        levels = self.encoder.levels(self.encoder.embed(x), visible, after=self.blocks[:-1])
        predictions = [
            decoder(token, seen, visible) for decoder, (token, seen) in zip(self.decoders, levels, strict=True)
        ]
        return levels[-1][0], predictions

    def targets(self, batch: MaskedImages) -> list[Float[Tensor, "b n p"]]:
        """What each supervised block is to predict."""
        target = pixel_targets(batch.x, self.encoder.patch, normalise=self.normalise_target)
        if self.shares is None:
            return [target for _ in self.blocks]
        guess = self.guess(batch)
        return [hybrid_target(target, guess, share) for share in self.shares]

    @torch.no_grad()
    def guess(self, batch: MaskedImages) -> Float[Tensor, "b n p"]:
        """The frozen model's prediction from the visible patches."""
        (guide,) = self._guide
        if guide is None:
            raise ValueError("this run was opened without the one that its hybrid targets need; it cannot be trained")
        if not self._same:
            if int(self.guide_sum) != fingerprint(guide):
                raise ValueError("the run of --hybrid is not the one that this run was begun with: its weights differ")
            self._same = True
        model: Guide = guide.to(batch.x.device)  # pyright: ignore[reportAssignmentType]
        return model.predict(batch.x, batch.visible)[1]

    @torch.no_grad()
    def reconstruct(self, batch: MaskedImages) -> Reconstruction:
        """Masked input, reconstruction from the last block, and original."""
        prediction = self.predict(batch.x, batch.visible)[1][-1]
        patch = self.encoder.patch
        return reconstructed(batch.x, prediction, batch.masked, patch, normalised=self.normalise_target)
