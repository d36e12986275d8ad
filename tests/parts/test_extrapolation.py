"""QB-Heat's linear maps: each quarter at its place, known maps recovered, mirrored images, and the decoder."""

import pytest
import torch
from torch import Tensor

from selfsight.parts.extrapolation import Extrapolation, MapDecoder, assemble


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(width: int = 3, *, own_diagonal: bool = False) -> Extrapolation:
    torch.manual_seed(0)
    layer = Extrapolation(width, own_diagonal=own_diagonal).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
    return layer


def quarter_of(whole: Tensor, number: int) -> Tensor:
    """The upper left (0), upper right (1), lower left (2) or lower right (3) quarter of a map ``d h w``."""
    h, w = whole.shape[-2] // 2, whole.shape[-1] // 2
    top, left = h * (number // 2), w * (number % 2)
    return whole[:, top : top + h, left : left + w]


@pytest.mark.parametrize("own_diagonal", [False, True])
def test_every_quarter_is_what_its_direction_makes_of_the_one_seen(own_diagonal: bool) -> None:
    layer, z, quarter = drawn(own_diagonal=own_diagonal), noise(4, 3, 2, 5), torch.tensor([2, 0, 3, 1])
    whole = layer(z, quarter)
    assert whole.shape == (4, 3, 4, 10)
    one = torch.eye(3, dtype=torch.float64)
    for b, seen in enumerate(quarter.tolist()):
        p, q = one + layer.across[seen % 2], one + layer.down[seen // 2]
        opposite = (p @ q + q @ p) / 2 if layer.diagonal is None else one + layer.diagonal[seen]
        for step, matrix in ((0, one), (1, p), (2, q), (3, opposite)):
            found = quarter_of(whole[b], seen ^ step)
            for i in range(2):
                for j in range(5):
                    torch.testing.assert_close(found[:, i, j], matrix @ z[b, :, i, j])


def test_it_begins_by_repeating_the_quarter() -> None:
    layer, z = Extrapolation(3).double(), noise(4, 3, 2, 2)
    whole = layer(z, torch.arange(4))
    for b in range(4):
        for number in range(4):
            assert torch.equal(quarter_of(whole[b], number), z[b])
    assert Extrapolation(3).diagonal is None
    assert sum(p.numel() for p in Extrapolation(8).parameters()) == 4 * 64


def test_a_mirrored_image_swaps_right_and_left_alone() -> None:
    layer, z, quarter = drawn(), noise(4, 3, 2, 3), torch.arange(4)
    turned = drawn()
    with torch.no_grad():
        turned.across.copy_(layer.across.flip(0))
    torch.testing.assert_close(turned(z.flip(-1), quarter ^ 1), layer(z, quarter).flip(-1))
    with torch.no_grad():
        turned.down.copy_(layer.down.flip(0))
    torch.testing.assert_close(turned(z.flip(-1, -2), quarter ^ 3), layer(z, quarter).flip(-1, -2))


def test_it_recovers_the_maps_that_made_the_features() -> None:
    """Sheet 6, check 2: features that obey linear equations with known matrices that commute."""
    a = 0.3 * noise(3, 3)
    p, q = torch.matrix_exp(a), torch.matrix_exp(-0.7 * a)  # one right, one down
    first = noise(64, 3, 2, 2, seed=1)
    right, under = (torch.einsum("ij,bjhw->bihw", m, first) for m in (p, q))
    truth = assemble([first, right, under, torch.einsum("ij,bjhw->bihw", p @ q, first)], torch.zeros(64).long())
    quarter = torch.arange(64) % 4
    seen = torch.stack([quarter_of(x, k) for x, k in zip(truth, quarter.tolist(), strict=True)])
    layer = Extrapolation(3).double()
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=400, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def error() -> Tensor:
        optimiser.zero_grad()
        loss = (layer(seen, quarter) - truth).square().mean()
        loss.backward()
        return loss

    optimiser.step(error)
    one = torch.eye(3, dtype=torch.float64)
    expected = torch.stack([p - one, p.inverse() - one])
    torch.testing.assert_close(layer.across.detach(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(layer.down.detach(), torch.stack([q - one, q.inverse() - one]), atol=1e-4, rtol=0)
    torch.testing.assert_close(layer(seen, quarter).detach(), truth, atol=1e-4, rtol=0)


def test_its_gradient() -> None:
    layer, z = drawn(2), noise(4, 2, 1, 2).requires_grad_()
    quarter = torch.arange(4)
    matrices = [layer.across.detach().requires_grad_(), layer.down.detach().requires_grad_()]

    def made(z: Tensor, across: Tensor, down: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"across": across, "down": down}, (z, quarter))

    assert torch.autograd.gradcheck(made, (z, *matrices))


def test_the_decoder_tells_places_apart_by_position_alone() -> None:
    torch.manual_seed(0)
    decoder = MapDecoder(6, 5, (2, 4), width=8, depth=1, heads=2)
    out = decoder(torch.ones(1, 6, 2, 4))
    assert out.shape == (1, 8, 5)
    assert not torch.allclose(out[0, 0], out[0, 1])
    with torch.no_grad():
        decoder.positions.zero_()
    z = torch.randn(1, 6, 2, 4)
    torch.testing.assert_close(decoder(z.flip(-1)).view(1, 2, 4, 5), decoder(z).view(1, 2, 4, 5).flip(2))
    assert "positions" not in decoder.state_dict()
    with pytest.raises(ValueError, match="cannot have 3 heads"):
        MapDecoder(6, 5, (2, 2), width=16, depth=1, heads=3)
