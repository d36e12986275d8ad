"""Pixels that match: geometry against brute force, both losses against slow oracles, and sheet 14's checks."""

import math

import pytest
import torch
from torch import Tensor

from selfsight.losses.pixels import Matches, centres, match, pixel_consistency, pixel_contrast


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_boxes(b: int) -> Tensor:
    """Boxes within the image, half of them mirrored."""
    corner, extent = torch.rand(b, 2), 0.2 + 0.8 * torch.rand(b, 2)
    start = corner * (1 - extent)
    box = torch.cat([start, start + extent], dim=1).double()
    mirrored = box[:, [2, 1, 0, 3]]
    return torch.where((torch.rand(b) < 0.5)[:, None], mirrored, box)


def slow_bins(box: list[float], height: int, width: int) -> list[tuple[float, float]]:
    """Centres in row-major order, from the unmirrored box, each row read backwards where it is mirrored."""
    low, high, mirrored = min(box[0], box[2]), max(box[0], box[2]), box[0] > box[2]
    places = []
    for row in range(height):
        across = [low + (column + 0.5) * (high - low) / width for column in range(width)]
        down = box[1] + (row + 0.5) * (box[3] - box[1]) / height
        places += [(x, down) for x in (across[::-1] if mirrored else across)]
    return places


def slow_match(box1: list[float], box2: list[float], height: int, width: int, threshold: float) -> Tensor:
    diagonals = [math.hypot((b[2] - b[0]) / width, (b[3] - b[1]) / height) for b in (box1, box2)]
    first, second = (slow_bins(b, height, width) for b in (box1, box2))
    rows = [[math.dist(p, q) / max(diagonals) < threshold for q in second] for p in first]
    return torch.tensor(rows)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.5])
def test_pixels_match_where_brute_force_says_so(height: int, width: int, threshold: float) -> None:
    box1, box2 = random_boxes(40), random_boxes(40)
    matches = match(box1, box2, size=(height, width), threshold=threshold)
    for k in range(40):
        expected = slow_match(box1[k].tolist(), box2[k].tolist(), height, width, threshold)
        assert torch.equal(matches.near[k], expected)
        for inside, own, other in ((matches.inside1, box1, box2), (matches.inside2, box2, box1)):
            (x0, y0, x1, y1), places = other[k].tolist(), slow_bins(own[k].tolist(), height, width)
            within = [min(x0, x1) <= x <= max(x0, x1) and y0 <= y <= y1 for x, y in places]
            assert inside[k].tolist() == within
    assert matches.near.any()
    assert height * width == 1 or not matches.near.all()


def test_identical_square_crops_match_pixel_by_pixel() -> None:
    """Sheet 14, check 1."""
    box = torch.tensor([[0.1, 0.2, 0.5, 0.6]])
    assert torch.equal(match(box, box, size=(7, 7), threshold=0.7).near[0], torch.eye(49, dtype=torch.bool))


def test_a_mirrored_crop_matches_left_to_right() -> None:
    box = torch.tensor([[0.1, 0.2, 0.5, 0.6]])
    near = match(box, box[:, [2, 1, 0, 3]], size=(7, 7), threshold=0.7).near[0]
    columns = torch.eye(49, dtype=torch.bool).view(49, 7, 7).flip(2).view(49, 49)
    assert torch.equal(near, columns)
    both = match(box[:, [2, 1, 0, 3]], box[:, [2, 1, 0, 3]], size=(7, 7), threshold=0.7).near[0]
    assert torch.equal(both, torch.eye(49, dtype=torch.bool))


def test_long_crops_have_more_matches() -> None:
    """Sheet 14: boxes of 1:2 have 2.71 a pixel."""
    box = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    near = match(box, box, size=(7, 7), threshold=0.7).near
    assert near.sum().item() / 49 == pytest.approx(1 + 2 * 6 / 7)


def test_every_pixel_inside_the_other_view_has_a_match() -> None:
    """Half a bin's diagonal is the farthest that a place in a view can be from the nearest centre."""
    matches = match(random_boxes(200), random_boxes(200), size=(7, 7), threshold=0.7)
    assert not (matches.inside1 & ~matches.near.any(dim=2)).any()
    assert not (matches.inside2 & ~matches.near.any(dim=1)).any()


def test_boxes_of_half_types_are_compared_in_float32() -> None:
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.bfloat16)
    assert centres(box, 7, 7).dtype == torch.float32
    assert torch.equal(match(box, box, size=(7, 7), threshold=0.7).near[0], torch.eye(49, dtype=torch.bool))


def pixels(b: int = 3, n: int = 6, d: int = 4) -> list[Tensor]:
    return [torch.randn(b, n, d, dtype=torch.float64, requires_grad=True) for _ in range(4)]


def some_matches(b: int = 3) -> Matches:
    return match(random_boxes(b), random_boxes(b), size=(2, 3), threshold=0.7)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / a.norm() / b.norm()


def slow_consistency(y1: Tensor, y2: Tensor, t1: Tensor, t2: Tensor, matches: Matches) -> Tensor:
    total = y1.new_zeros(())
    for k in range(len(y1)):
        pairs = matches.near[k].nonzero().tolist()
        for i, j in pairs:
            total = total - 2 * (cosine(y1[k, i], t2[k, j]) + cosine(y2[k, j], t1[k, i])) / len(pairs)
    return total / len(y1)


def slow_contrast(y1: Tensor, y2: Tensor, t1: Tensor, t2: Tensor, matches: Matches, *, tau: float) -> Tensor:
    def one(y: Tensor, t: Tensor, near: Tensor, inside: Tensor) -> Tensor:
        anchors = inside.nonzero()[:, 0].tolist()
        losses = []
        for i in anchors:
            scores = [(cosine(y[i], t[j]) / tau).exp() for j in range(len(t))]
            losses.append(-(sum(scores[j] for j in range(len(t)) if near[i, j]) / sum(scores)).log())
        return sum(losses) / len(losses) if losses else y.new_zeros(())

    each = []
    for k in range(len(y1)):
        near = matches.near[k]
        there = one(y1[k], t2[k], near, matches.inside1[k])
        each.append((there + one(y2[k], t1[k], near.T, matches.inside2[k])) / 2)
    return sum(each) / len(each)


def test_consistency_equals_the_equation() -> None:
    given, matches = pixels(), some_matches()
    assert matches.near.any(dim=(1, 2)).all()
    mine, theirs = pixel_consistency(*given, matches), slow_consistency(*given, matches)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_contrast_equals_the_equation(tau: float) -> None:
    given, matches = pixels(8), some_matches(8)
    assert 0 < matches.inside1.sum() < matches.inside1.numel()
    mine, theirs = pixel_contrast(*given, matches, temperature=tau), slow_contrast(*given, matches, tau=tau)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_gradcheck() -> None:
    given, matches = pixels(2), some_matches(2)
    assert torch.autograd.gradcheck(lambda *x: pixel_consistency(*x, matches), given)
    assert torch.autograd.gradcheck(lambda *x: pixel_contrast(*x, matches, temperature=0.3), given)


def test_the_ends_of_consistency() -> None:
    """Sheet 14: the loss lies in [-4, 4]."""
    y, box = torch.randn(2, 49, 8), torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    matches = match(box, box, size=(7, 7), threshold=0.7)
    assert pixel_consistency(y, 3 * y, y, y, matches).item() == pytest.approx(-4)
    assert pixel_consistency(y, y, -y, -y, matches).item() == pytest.approx(4)


def test_contrast_of_equal_pixels_is_the_log_of_their_number() -> None:
    y, box = torch.ones(2, 49, 8), torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    matches = match(box, box, size=(7, 7), threshold=0.7)
    assert pixel_contrast(y, y, y, y, matches, temperature=0.3).item() == pytest.approx(math.log(49))


def losses(y1: Tensor, y2: Tensor, t1: Tensor, t2: Tensor, matches: Matches) -> Tensor:
    both = pixel_consistency(y1, y2, t1, t2, matches), pixel_contrast(y1, y2, t1, t2, matches, temperature=0.3)
    return torch.stack(both)


def test_exchanging_the_views_changes_nothing() -> None:
    y1, y2, t1, t2 = pixels()
    box1, box2 = random_boxes(3), random_boxes(3)
    there, back = (match(a, b, size=(2, 3), threshold=0.7) for a, b in ((box1, box2), (box2, box1)))
    value = losses(y1, y2, t1, t2, there)
    torch.testing.assert_close(losses(y2, y1, t2, t1, back), value)
    assert (losses(y2, y1, t2, t1, there) - value).abs().min() > 1e-3


def test_crops_that_do_not_overlap_lose_nothing_and_move_nothing() -> None:
    """Sheet 14, check 2; and they count in the mean over the batch."""
    given = pixels(2)
    left, right = [0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]
    apart = match(torch.tensor([left] * 2), torch.tensor([right] * 2), size=(2, 3), threshold=0.7)
    assert not apart.near.any()
    value = losses(*given, apart)
    assert value.tolist() == [0, 0]
    assert all(not g.any() for g in torch.autograd.grad(value.sum(), given))

    half = match(torch.tensor([left, left]), torch.tensor([left, right]), size=(2, 3), threshold=0.7)
    alone = match(torch.tensor([left]), torch.tensor([left]), size=(2, 3), threshold=0.7)
    torch.testing.assert_close(losses(*given, half), losses(*(x[:1] for x in given), alone) / 2)


def test_a_pixel_outside_the_other_view_is_no_anchor() -> None:
    """It may be near a pixel of the other view and serves as its positive or negative, but it asks nothing itself."""
    y1, y2, t1, t2 = pixels(1, 3)
    box1, box2 = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.2, 0.0, 1.2, 1.0]])
    matches = match(box1, box2, size=(1, 3), threshold=0.3)
    assert matches.near[0].tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    assert matches.inside1.tolist() == [[False, True, True]]
    gradient = torch.autograd.grad(pixel_contrast(y1, y2, t1, t2, matches, temperature=0.3), y1)[0]
    assert not gradient[0, 0].any()
    assert gradient[0, 1].any()


def test_pixels_that_all_match_have_nothing_to_choose_from() -> None:
    given = pixels(2, 1)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    value = pixel_contrast(*given, match(box, box, size=(1, 1), threshold=0.7), temperature=0.3)
    assert value.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(value, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    given = [(1e4 * x).detach().to(dtype).requires_grad_() for x in pixels()]
    matches = some_matches()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses(*given, matches)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, losses(*(x.float() for x in given), matches))
    assert all(g.isfinite().all() and g.dtype == dtype for g in torch.autograd.grad(value.sum(), given))
    assert losses(*(x.double() for x in given), matches).dtype == torch.float64


def test_a_nearly_certain_choice_keeps_its_gradient() -> None:
    """With the others' share at 2e-9 float32 still has the gradient that float64 has."""
    y = torch.tensor([[[1.0, 0.3], [-1.0, 0.1]]], dtype=torch.float64)
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    matches = match(box, box, size=(1, 2), threshold=0.4)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x, t = y.to(dtype).clone().requires_grad_(), y.to(dtype) + 0.1
        gradients.append(torch.autograd.grad(pixel_contrast(x, x, t, t, matches, temperature=0.1), x)[0])
    assert gradients[1].abs().min() > 0
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=0)
