"""What a transformer's feature is, where a method asks its class token for nothing."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn


def pool_patches_(encoder: object) -> None:
    """Makes the feature of a vision transformer the mean of its patch tokens where it was the class token.

    A class token that no loss reads is never trained for anything. The norm stays where it is, so the weights keep
    their names; other encoders stay as they are.
    """
    made: Any = encoder
    model = getattr(made, "model", None)
    if not isinstance(model, VisionTransformer) or model.global_pool != "token":
        return
    model.global_pool = "avg"
    told = {"global_pool": "avg", "fc_norm": not isinstance(model.fc_norm, nn.Identity)}
    made.options = {**made.options, **told}
    if made.arguments is not None:
        made.arguments = {**made.arguments, **told}
