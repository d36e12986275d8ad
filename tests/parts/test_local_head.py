"""AMDIM's head begins near the identity and treats each place by itself."""

import torch

from selfsight.parts.local_head import LocalHead


def test_it_begins_near_the_identity() -> None:
    torch.manual_seed(0)
    head, x = LocalHead(4, 6), torch.randn(8, 4, 5, 5)
    inside = head.shortcut(x)
    assert not head.conv2.weight.any()
    assert (inside[:, :4] - x).abs().max() < 0.01 * 4 * x.abs().max()
    assert inside[:, 4:].abs().max() < 0.01 * 4 * x.abs().max()
    assert torch.equal(head.shortcut.weight[:4, :, 0, 0].diagonal(), torch.ones(4))
    y = head(x)
    assert y.mean(dim=(0, 2, 3)).abs().max() < 1e-5


def test_places_do_not_mix() -> None:
    torch.manual_seed(0)
    head, x = LocalHead(4, 3).eval(), torch.randn(2, 4, 5, 5)
    torch.nn.init.normal_(head.conv2.weight)
    other = x.clone()
    other[:, :, 1, 2] += 1.0
    changed = (head(x) != head(other)).any(dim=1)
    assert changed[:, 1, 2].all()
    assert changed.sum() == 2
