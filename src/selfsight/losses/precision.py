"""The precision of losses: half types are computed in float32, float64 stays, autocast stays outside.

bfloat16 has eight significant bits, so cosines near 1 come in steps of 2⁻⁸, which at a temperature of 0.07 are steps of
0.056 in the logits.
"""

# torch types vector_norm loosely
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
import torch
from jaxtyping import Float
from torch import Tensor


def full(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x`` in float32 where it was of a half type, else as it is.

    >>> full(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """A region in which matrix products on ``x``'s device keep their operands' type."""
    return torch.autocast(x.device.type, enabled=False)


def unit(x: Float[Tensor, "..."], *, dim: int) -> Float[Tensor, "..."]:
    """``x`` in full precision, each of its vectors along ``dim`` brought to length one.

    A vector of zero has no direction: it stays zero and gets no gradient. Torch's ``normalize`` hands it one of 10¹²
    times what comes in, which is infinite in float16 and throws weights far away in any type.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), dim=1)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    x = full(x)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)  # whose gradient at zero is zero
    return torch.where(length <= SHORTEST, 0.0, x / length.clamp_min(SHORTEST))  # what is no number stays none


SHORTEST = 1e-12
"""The length below which a vector counts as zero: torch's own."""
