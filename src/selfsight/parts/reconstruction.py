"""What methods that predict pixels show of themselves."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Reconstruction(NamedTuple):
    """What a report shows, in the space of the encoder's input (normalised, if the views normalise)."""

    masked: Float[Tensor, "b c h w"]
    """Hidden patches are zero."""
    reconstruction: Float[Tensor, "b c h w"]
    """Predictions where patches were hidden, the image elsewhere."""
    original: Float[Tensor, "b c h w"]
