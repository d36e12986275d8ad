"""Heads that end in a comparison with ``k`` unit vectors: SwAV's prototypes and DINO's weight-normed last layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrizations import weight_norm


class Prototypes(nn.Module):
    """``k`` trainable unit vectors; the scores are cosines where the features are unit vectors too.

    The engine's update moves a prototype off the sphere, so a method calls ``renormalise_`` before every forward.
    Initialised as ``nn.Linear`` is; SwAV's code does the same and renormalises before the first forward.

    >>> prototypes = Prototypes(16, 100)
    >>> prototypes.renormalise_()
    >>> prototypes(normalize(torch.randn(4, 16), dim=-1)).shape
    torch.Size([4, 100])
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())

    @torch.no_grad()
    def renormalise_(self) -> None:
        """Brings every prototype back to length 1, in place and outside of autograd."""
        self.weight.copy_(normalize(self.weight, dim=-1))

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """In float32 under autocast too: a cosine in bfloat16 is off by up to 0.004, or 0.08 after division by 0.05."""
        with torch.autocast(z.device.type, enabled=False):
            return linear(z.to(self.weight.dtype), self.weight)


class DistillationHead(nn.Module):
    r"""DINO's head: a perceptron, the L2 norm, and a linear layer without bias whose rows have a length of their own.

    .. math:: s_k = g_k \frac{w_k^\top}{\lVert w_k \rVert} \frac{f(h)}{\lVert f(h) \rVert}

    ``fixed_gain`` keeps every :math:`g_k` at 1, where the outputs are cosines: DINO's default, and safer. The paper's
    ViT-S trains the gains. ``trunk`` is :math:`f`, whose output has width ``bottleneck``.
    """

    def __init__(self, trunk: nn.Module, bottleneck: int, outputs: int, *, fixed_gain: bool = True) -> None:
        super().__init__()
        self.trunk = trunk
        self.outputs = outputs
        last = nn.Linear(bottleneck, outputs, bias=False)
        self.last = weight_norm(last)
        gain = self.last.get_parameter("parametrizations.weight.original0")
        nn.init.ones_(gain)
        gain.requires_grad = not fixed_gain

    @property
    def last_layer(self) -> tuple[nn.Parameter, ...]:
        """What DINO holds in the first epoch."""
        return tuple(p for p in self.last.parameters() if p.requires_grad)

    @property
    def mixes(self) -> bool:
        """Whether a batch norm makes each output depend on the others of its batch."""
        return any(isinstance(module, _BatchNorm) for module in self.trunk.modules())

    def forward(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        return self.score(self.unit(h))

    def unit(self, h: Float[Tensor, "*b d"]) -> Float[Tensor, "*b z"]:
        """The unit vectors that are compared.

        In float32 under autocast too: a logit off by 0.002 is off by 0.05 after division by the teacher's temperature.
        """
        z = self.trunk(h.flatten(0, -2)).unflatten(0, h.shape[:-1])  # batch norm counts every token as a sample
        with torch.autocast(z.device.type, enabled=False):
            return normalize(z.to(self.last.weight.dtype), dim=-1)

    def score(self, z: Float[Tensor, "*b z"]) -> Float[Tensor, "*b k"]:
        """The last layer, which is linear: the mean of all scores is the score of the mean."""
        with torch.autocast(z.device.type, enabled=False):
            return self.last(z)
