"""What a method that predicts pixels gives a report to show."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Reconstruction(NamedTuple):
    """What a report shows, in the space of the encoder's input (normalised, if the views normalise)."""

    masked: Float[Tensor, "b c h w"]
    """What is hidden is zero, or has the colour that it is filled with."""
    reconstruction: Float[Tensor, "b c h w"]
    """Predictions where pixels were hidden, the image elsewhere."""
    original: Float[Tensor, "b c h w"]
