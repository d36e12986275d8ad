"""The precision of losses: half types are computed in float32, float64 stays, autocast stays outside.

bfloat16 has eight significant bits, so cosines near 1 come in steps of 2⁻⁸, which at a temperature of 0.07 are steps of
0.056 in the logits.
"""

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
