"""What is drawn, against torchvision's own draws: Kolmogorov-Smirnov for numbers, chi-square for choices."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision import transforms as T  # noqa: N812

from selfsight import keyed
from selfsight.views.view import (
    DRAWS,
    HUE,
    IMAGENET,
    Blur,
    Jitter,
    Normalise,
    Solarise,
    View,
    boxes,
    colours,
    resolve,
)

N = 20_000
UNLIKELY = 1e-3


def plan(n: int = N, seed: int = 0) -> Tensor:
    key = keyed.Key(seed, torch.zeros(n, dtype=torch.long), torch.arange(n))
    return keyed.uniforms(key, "view0", DRAWS)


def same_distribution(ours: Tensor, theirs: np.ndarray) -> None:
    result = stats.ks_2samp(ours.double().numpy(), theirs)
    assert result.pvalue > UNLIKELY, result


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (32, 32, (0.08, 1.0)),
        (375, 500, (0.2, 1.0)),
        (500, 100, (0.5, 1.0)),
        (96, 400, (0.05, 0.14)),
        (24, 90, (0.9, 1)),
    ],
)
def test_crops_are_drawn_as_torchvision_draws_them(height: int, width: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    theirs = np.array([T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(3000)], float)
    box = boxes(View(size=32, scale=scale), plan(), height, width)
    ours = torch.stack([box.top, box.left, box.height, box.width], dim=1)
    for k in range(4):
        same_distribution(ours[:, k], theirs[:, k])
    same_distribution(box.height * box.width, theirs[:, 2] * theirs[:, 3])
    same_distribution(box.width / box.height, theirs[:, 3] / theirs[:, 2])
    same_distribution(box.top + box.height, theirs[:, 0] + theirs[:, 2])
    same_distribution(box.left + box.width, theirs[:, 1] + theirs[:, 3])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    assert (ours[:, 2:] >= 1).all()


def test_the_first_attempt_that_fits_is_taken_and_the_central_crop_where_none_does() -> None:
    """One row of numbers at a time, by torchvision's own loop; 24 x 90 px with large areas rejects nearly all."""
    view, height, width, u = View(size=8, scale=(0.5, 1.0)), 24, 50, plan(400)
    box = boxes(view, u, height, width)
    fallbacks = 0
    for k, row in enumerate(u.double().tolist()):
        for attempt in range(10):
            area = height * width * (0.5 + 0.5 * row[2 * attempt])
            ratio = math.exp(math.log(3 / 4) + row[2 * attempt + 1] * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                expected = (int(row[20] * (height - h + 1)), int(row[21] * (width - w + 1)), h, w)
                break
        else:
            fallbacks += 1
            expected = (0, (width - round(height * 4 / 3)) // 2, height, round(height * 4 / 3))
        assert tuple(int(side[k]) for side in box[:4]) == expected
    assert 0 < fallbacks < 400


@pytest.mark.parametrize("jitter", [Jitter(0.4, 0.4, 0.2, 0.1, p=0.8), Jitter(0.8, 1.5, 0.8, 0.5, p=1.0)])
def test_jitter_is_drawn_as_torchvision_draws_it(jitter: Jitter) -> None:
    torch.manual_seed(3)
    module = T.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    ranges = (module.brightness, module.contrast, module.saturation, module.hue)
    draws = [T.ColorJitter.get_params(*ranges) for _ in range(3000)]  # type: ignore[arg-type]
    drawn = colours(View(size=8, jitter=jitter), plan())
    happened = drawn.order[:, 0] >= 0
    probability(happened, jitter.p)
    for k in range(4):
        same_distribution(drawn.factors[happened, k], np.array([float(draw[k + 1]) for draw in draws]))  # type: ignore[arg-type]
    orders = list(itertools.permutations(range(4)))
    counts = np.bincount([orders.index(tuple(order)) for order in drawn.order[happened].tolist()], minlength=24)
    assert stats.chisquare(counts).pvalue > UNLIKELY
    theirs = np.bincount([orders.index(tuple(draw[0].tolist())) for draw in draws], minlength=24)
    assert stats.chi2_contingency([counts, theirs]).pvalue > UNLIKELY
    assert (drawn.factors[~happened, :3] == 1).all()
    assert (drawn.factors[~happened, HUE] == 0).all()


def probability(happens: Tensor, p: float) -> None:
    assert stats.binomtest(int(happens.sum()), len(happens), p).pvalue > UNLIKELY


def test_every_probability_is_kept_and_draws_are_independent() -> None:
    view = View(
        size=8, flip=0.3, grey=0.2, jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), blur=Blur(0.5), solarise=Solarise(0.1)
    )
    box, drawn = resolve(view, plan(), 32, 32)
    events = {
        "flip": (box.flip, 0.3),
        "jitter": (drawn.order[:, 0] >= 0, 0.8),
        "grey": (drawn.grey, 0.2),
        "blur": (drawn.blur, 0.5),
        "solarise": (drawn.solarise, 0.1),
    }
    for happens, p in events.values():
        probability(happens, p)
    for (first, p), (second, q) in itertools.combinations(events.values(), 2):
        probability(first & second, p * q)
    assert stats.kstest(drawn.sigma.double().numpy(), "uniform", (0.1, 1.9)).pvalue > UNLIKELY
    numbers = [box.top, box.height, drawn.sigma, *drawn.factors.T, drawn.order[:, 0]]
    table = np.corrcoef(np.stack([x.double().numpy() for x in (*numbers, *(e for e, _ in events.values()))]))
    dependent = [{0, 1}]  # a small box leaves more room above it
    # The hue's and the other factors' absence tell of the jitter's; factors themselves are symmetric about it.
    for i, j in itertools.combinations(range(len(table)), 2):
        if {i, j} not in dependent and not {7, 9} <= {i, j}:
            assert abs(table[i, j]) < 0.035, (i, j, table[i, j])


def test_what_a_view_leaves_out_never_happens() -> None:
    box, drawn = resolve(View(size=8, flip=0), plan(500), 32, 32)
    assert not box.flip.any()
    assert (drawn.order == -1).all()
    assert not (drawn.grey | drawn.blur | drawn.solarise).any()


def test_padding_moves_the_image_by_every_whole_step_equally_often() -> None:
    box = boxes(View(size=32, scale=None, padding=4), plan(), 32, 32)
    for side in (box.top, box.left):
        counts = np.bincount((side + 4).long().numpy(), minlength=9)
        assert len(counts) == 9
        assert stats.chisquare(counts).pvalue > UNLIKELY
    assert (box.height == 32).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: View(size=0), "at least 1 px, not 0"),
        (lambda: View(size=8, scale=(0.5, 0.2)), r"smaller number first, not \(0.5, 0.2\)"),
        (lambda: View(size=8, scale=(0.0, 1.0)), r"\(0, 1\]"),
        (lambda: View(size=8, padding=4), "padding=4 goes with scale=None"),
        (lambda: View(size=8, ratio=(2.0, 1.0)), "ratio"),
        (lambda: View(size=8, order=("jitter", "blur")), "once each"),
        (lambda: Blur(0.5, kernel=4), "must be odd, not 4; take 5"),
        (lambda: Blur(0.5, sigma=(0.0, 1.0)), "positive"),
        (lambda: Jitter(0.4, 0.4, 0.4, 0.6), "hue at most 0.5"),
    ],
)
def test_a_wrong_view_is_refused_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_normalise_takes_its_averages_for_other_channels() -> None:
    assert IMAGENET.of(3) is IMAGENET
    assert Normalise((0.2, 0.4), (0.1, 0.3)).of(1) == ((pytest.approx(0.3),), (pytest.approx(0.2),))


def test_describe_names_each_step_in_its_order() -> None:
    view = View(
        size=32, jitter=Jitter(0.4, 0.4, 0.4, 0.1, p=0.8), grey=0.2, order=("grey", "jitter", "blur", "solarise")
    )
    words = view.describe()
    assert words.index("grey 0.2") < words.index("jitter (0.4, 0.4, 0.4, 0.1) 0.8")
    assert "blur" not in words
    assert "\n" not in words
    assert "padded by 4" in View(size=32, scale=None, padding=4).describe()
