"""A head's first layers as part of the encoder: SimCLR v2 fine-tunes from a middle layer of the head."""

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from selfsight.encoders.protocol import Encoder


def first_layers(head: nn.Module, count: int) -> nn.Sequential:
    """The first ``count`` layers of a multi-layer perceptron, a layer being a linear map with all that follows it.

    0 gives an empty head, which is the identity. The layers are the head's own, not copies, and keep their names in
    the state dict. Raises ``ValueError`` where the head has fewer.

    >>> head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    >>> [type(layer).__name__ for layer in first_layers(head, 1)]
    ['Linear', 'BatchNorm1d', 'ReLU']
    """
    parts = list(head) if isinstance(head, nn.Sequential) else []
    starts = [i for i, part in enumerate(parts) if isinstance(part, nn.Linear)]
    if not 0 <= count <= len(starts) or (starts and starts[0] != 0):
        raise ValueError(f"--head-layers is {count}, but the head has {len(starts)} layers; use 0 to {len(starts)}")
    return nn.Sequential(*parts[: [*starts, len(parts)][count]])


class WithHead(nn.Module):
    """An encoder and the first layers of a head behind it, as one encoder; the dense feature stays the backbone's."""

    def __init__(self, backbone: Encoder, head: nn.Sequential) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        linear = [part for part in head if isinstance(part, nn.Linear)]
        self.width = linear[-1].out_features if linear else backbone.width
        self.stride = backbone.stride
        self.image_size, self.channels = getattr(backbone, "image_size", None), getattr(backbone, "channels", None)
        self.channels_last = getattr(backbone, "channels_last", False)
        self.name = f"{getattr(backbone, 'name', type(backbone).__name__)} + {len(linear)} of its head's layers"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width"]:
        return self.head(self.backbone(x))

    def dense(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """The backbone's last feature map."""
        return self.backbone.dense(x)


def backbone_of(encoder: Encoder) -> Encoder:
    """The encoder without the layers of a head, where it has some."""
    return cast(Any, encoder).backbone if isinstance(encoder, WithHead) else encoder
