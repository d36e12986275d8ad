"""The fusion of stages: a sum, place by place."""

import torch

from selfsight.parts.fusion import StageFusion


def test_it_is_the_normalised_sum_at_visible_places() -> None:
    torch.manual_seed(0)
    fusion = StageFusion((3, 5), 8).double()
    fine, coarse = (torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((3, 8), (5, 4)))
    tokens, visible = torch.randn(2, 2, 8, dtype=torch.float64), torch.tensor([[0, 3], [1, 2]])
    found = fusion(tokens, (fine, coarse), visible)
    for b in range(2):
        for k, place in enumerate(visible[b].tolist()):
            row, column = place // 2, place % 2
            y = tokens[b, k].clone()
            for bring, stage, ratio in ((fusion.bring[0], fine, 4), (fusion.bring[1], coarse, 2)):
                part = stage[b, :, ratio * row : ratio * (row + 1), ratio * column : ratio * (column + 1)]
                y += (bring.weight * part).sum((1, 2, 3)) + bring.bias
            y = (y - y.mean()) / (y.var(correction=0) + 1e-6).sqrt()
            torch.testing.assert_close(found[b, k], y * fusion.norm.weight + fusion.norm.bias)
