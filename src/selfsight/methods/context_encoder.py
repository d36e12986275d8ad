r"""Context Encoders: paint what is missing of an image from what surrounds it.

Pathak, Krähenbühl, Donahue, Darrell, Efros, "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
arXiv 1604.07379.

**Idea.** A part of the image is filled with one colour, and the network paints it: for that it must know what such
scenes look like. Since convolutions alone never carry anything from one end of a feature map to the other, a layer that
is fully connected within each channel stands between encoder and decoder. The squared error paints the blurred mean of
all that might be there; a discriminator, trained against the painter, makes it choose.

**Equations.** With the hole's mask :math:`\hat M`, the painter :math:`F` and the discriminator :math:`D`,

.. math:: L_{rec} = \lVert \hat M \odot (x - F((1 - \hat M) \odot x)) \rVert_2^2, \qquad
    L = (1 - \lambda) L_{rec} + \lambda L_{adv},

.. math:: D \;\mathrm{ascends}\; \log D(x) + \log (1 - D(F)), \qquad L_{adv} = -\log D(F) .

Where the hole is a square in the middle, a rim of it stays visible; there the squared error counts ten times, so that
the painting joins the picture. Features are learnt from holes of arbitrary shape, since the border of a square would be
a feature of its own, and with :math:`\lambda = 0`.

**Differences** between the paper, the official code (pathak22/context-encoder, ef611a7, which is the inpainting alone)
and this file:

- The paper's features come from an AlexNet with a channel-wise layer, the code's paintings from an encoder of six
  convolutions with a fully connected bottleneck. Here any encoder's last map serves, and ``decoder`` has either layer.
- For holes of arbitrary shape the code's squared error counts all pixels, or the visible ones ten times. Here, as in
  the paper's equation, it counts what is hidden, and a rim round it if there is one. It is a mean over the pixels that
  count, image by image.
- The discriminator sees all that is painted: the middle of the image, or all of it where the hole may be anywhere. So
  does the code's; the paper's formula has the discriminator's pictures without mask too.
- The discriminator steps first. The code then takes the painter's gradient from activations that the discriminator had
  before its step; here they are computed again.
- Holes are filled with ImageNet's mean colour (123, 117, 104). The code has (117, 104, 123), its channels mixed up.
- The code draws one hole for a batch; here each image has its own, by its key.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfsight.batches import HiddenPixels
from selfsight.encoders.protocol import Encoder
from selfsight.losses.adversarial import discriminator_loss, generator_loss
from selfsight.losses.inpainting import painted_error, rim
from selfsight.losses.precision import full
from selfsight.method import Clock, Method, Objective, Steps
from selfsight.parts.reconstruction import Reconstruction


class ContextEncoder(Method[HiddenPixels]):
    """A context encoder: ``decoder`` paints the middle of the image, or all of it, from the encoder's last map.

    ``fill`` is the colour of holes, one number a channel in the space of the input. ``adversarial`` is λ, the weight of
    the discriminator's judgement, and needs one. ``overlap`` is the width in pixels of the rim round the hole that is
    painted too, ``overlap_weight`` the weight of its squared error.

    There are two optimisers if there is a discriminator: ``adversary`` for it, ``main`` for all else.
    """

    fill: Tensor

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        fill: Sequence[float],
        adversarial: float = 0.0,
        overlap: int = 0,
        overlap_weight: float = 10.0,
    ) -> None:
        super().__init__()
        if not 0 <= adversarial <= 1:
            raise ValueError(f"the adversarial loss has a weight from 0 to 1, not {adversarial:g}")
        if (discriminator is not None) != (adversarial > 0):
            need = "a discriminator" if adversarial else "no discriminator"
            raise ValueError(f"an adversarial weight of {adversarial:g} needs {need}")
        self.encoder = encoder
        self.decoder = decoder
        self.discriminator = discriminator
        self.register_buffer("fill", torch.tensor(tuple(fill)).view(-1, 1, 1), persistent=False)
        self.adversarial = adversarial
        self.overlap, self.overlap_weight = overlap, overlap_weight

    def trainables(self) -> Mapping[str, Iterable[tuple[str, nn.Parameter]]]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        main = [(name, p) for name, p in named if not name.startswith("discriminator.")]
        if self.discriminator is None:
            return {"main": main}
        return {"main": main, "adversary": [(name, p) for name, p in named if name.startswith("discriminator.")]}

    def step(self, batch: HiddenPixels, clock: Clock) -> Steps:
        z, picture = self.predict(batch.x, batch.hidden)
        real = middle(batch.x, picture.shape[-1])
        if self.discriminator is not None:
            logits = full(self.discriminator(real)), full(self.discriminator(picture.detach()))
            caught = ((logits[0] > 0).float().mean() + (logits[1] < 0).float().mean()) / 2
            yield Objective(discriminator_loss(*logits), by=("adversary",), log={"told_apart": caught.detach()})

        error = painted_error(picture, real, self.weight(batch.hidden, picture.shape[-1]))
        loss = error
        if self.discriminator is not None:  # which has moved
            loss = (1 - self.adversarial) * error + self.adversarial * generator_loss(self.discriminator(picture))
        yield Objective(
            loss, log={"squared_error": error.detach()}, watch={"feature": full(z.detach()).mean(dim=(2, 3))}
        )

    def predict(
        self, x: Float[Tensor, "b c h w"], hidden: Bool[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b d y x"], Float[Tensor, "b c s s"]]:
        """The feature map of the image with its hole, and what is painted."""
        z = self.encoder.dense(self.filled(x, hidden))
        return z, self.decoder(z)

    def filled(self, x: Float[Tensor, "b c h w"], hidden: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """The image with its hole in one colour."""
        return torch.where(hidden[:, None], self.fill.to(x.dtype), x)

    def weight(self, hidden: Bool[Tensor, "b h w"], size: int) -> Float[Tensor, "b s s"]:
        """What each painted pixel's squared error counts."""
        hole = hidden.float()
        if self.overlap:
            hole = hole + self.overlap_weight * rim(hidden, self.overlap).float()
        return middle(hole[:, None], size)[:, 0]

    @torch.no_grad()
    def reconstruct(self, batch: HiddenPixels) -> Reconstruction:
        """The image with its hole, with the painting in it, and as it was."""
        picture = full(self.predict(batch.x, batch.hidden)[1])
        painted = batch.x.to(picture.dtype, copy=True)
        middle(painted, picture.shape[-1]).copy_(picture)
        whole = torch.where(batch.hidden[:, None], painted, batch.x)
        return Reconstruction(self.filled(batch.x, batch.hidden), whole, batch.x, batch.hidden)


def middle(x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """The central square of ``size`` pixels, a view of ``x``.

    >>> middle(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 0]
    tensor([[ 5.,  6.],
            [ 9., 10.]])
    """
    top, left = ((side - size) // 2 for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]
