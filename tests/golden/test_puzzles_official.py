"""Jigsaw clustering against its official code: the clustering loss and its gradients."""

from typing import Any

import pytest
import torch
from recorded import drawn, recorded, same

from selfsight.losses.grouped import grouped_contrast

OFFICIAL = recorded("puzzles")


@pytest.mark.parametrize("case", OFFICIAL["jigclu"]["cases"])
def test_jigsaw_clustering(case: dict[str, Any]) -> None:
    """Three images of four pieces; the official loss takes them shuffled, with the images' numbers."""
    z = drawn(0, 3, 4, 5).requires_grad_()
    loss = grouped_contrast(z, **case["with"])
    same(loss, case["loss"])
    same(torch.autograd.grad(loss, z)[0], case["gradient"])
