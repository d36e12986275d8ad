"""A classifier as an encoder, whose features are the logits."""

from typing import Any

from torch import Tensor, nn


class Logits(nn.Module):
    """``whole`` has an ``encoder`` and a ``classifier``, and gives logits where it is called."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole
        self.width, self.stride = whole.classifier.out_features, whole.encoder.stride

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x)

    def dense(self, x: Tensor) -> Tensor:
        return self.whole.encoder.dense(x)
