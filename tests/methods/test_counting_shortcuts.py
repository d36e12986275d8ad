"""Networks that see nothing but a shortcut cannot count, and can once what stands against it is taken away.

A network for which a whole looks like each of its tiles counts ``a`` in one image of a pair and ``b`` in the other. Its
mean loss is at least ``9 (a² + b²) / 2 + M - 17 (a² + b²) / 2``, and never below 9/17 of the margin: that is chance.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from selfsight.keyed import Key
from selfsight.losses.counting import counting
from selfsight.views.tiled import KERNELS, Kernel, tiled
from selfsight.views.view import View

SIZE, MARGIN, CHANCE = 64, 10.0, 9 / 17
Measure = Callable[[Tensor], Tensor]


def rendered(images: Tensor, *, grey: float = 0.0, kernels: tuple[Kernel, ...] = ("area",)) -> tuple[Tensor, Tensor]:
    views = tiled(View(size=SIZE, scale=(1, 1), ratio=(1, 1), flip=0, normalise=None), grey=grey, kernels=kernels)
    key = Key(0, torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)))
    batch = views.render(images, views.plan(key), key)
    return batch.whole, batch.tiles


def least(whole: Tensor, tiles: Tensor) -> tuple[float, Tensor]:
    """The loss, as a share of the margin, of a small network that learnt from these measurements; and its counter."""
    torch.manual_seed(0)
    every = torch.cat([whole[:, None], tiles], dim=1)
    every = (every - every.mean((0, 1))) / (every.std((0, 1)) + 1e-6)
    head = nn.Sequential(
        nn.Linear(every.shape[2], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU()
    )
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    other = torch.arange(len(whole)).view(-1, 2).flip(1).flatten()
    best = torch.inf
    for _ in range(600):
        counts = head(every)
        loss = counting(counts[:, 0], counts[:, 1:], counts[other, 0], margin=MARGIN)
        best = min(best, loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return best / MARGIN, head(every).detach()


def noise(n: int) -> Tensor:
    """White noise; of the images of a pair one has four times the amplitude of the other."""
    generator = torch.Generator().manual_seed(0)
    amplitude = 0.02 * 4 ** torch.rand(n // 2, 1, generator=generator) * torch.tensor([1.0, 4.0])
    x = torch.randn(n, 3, SIZE, SIZE, generator=generator) * amplitude.flatten()[:, None, None, None]
    return ((0.5 + x).clamp(0, 1) * 255).round().to(torch.uint8)


def high_frequencies(x: Tensor) -> Tensor:
    """The log of the energy of second differences, the traces of downsampling."""
    bend = x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]
    return (bend.square().mean((-3, -2, -1)) + 1e-6).log()[..., None]


def misses(whole: Tensor, tiles: Tensor) -> float:
    """By how much, relative to the count, the tiles of images of noise miss the whole at best, where any power of the
    energy is what is counted."""
    powers = torch.linspace(-3, 3, 301)[:, None]
    counted = (powers * whole[:, 0]).exp(), sum((powers * tiles[:, j, 0]).exp() for j in range(4))
    return (counted[0] / counted[1] - 1).square().mean(dim=1).sqrt().min().item()


def test_high_frequencies_count_one_kernel_but_not_four() -> None:
    """With one kernel a power of what it leaves of the energy is four times as much, and so counts; four kernels have
    no power in common. A network that bends the energy as it likes gets on with four of them too, but at ten times the
    loss: mixing kernels makes their traces a poor thing to count, not a useless one."""
    images = noise(256)
    one = [high_frequencies(x) for x in rendered(images)]
    four = [high_frequencies(x) for x in rendered(images, kernels=KERNELS)]
    assert misses(*one) < 0.06
    assert misses(*four) > 0.25
    (alone, _), (mixed, _) = least(*one), least(*four)
    assert mixed > 5 * alone, (alone, mixed)


def on_a_grid(n: int) -> Tensor:
    """Images of one colour with lines every eight pixels, as JPEG leaves them, stronger in one image of each pair."""
    generator = torch.Generator().manual_seed(0)
    amplitude = 0.02 * 4 ** torch.rand(n // 2, 1, generator=generator) * torch.tensor([1.0, 4.0])
    x = (0.1 + 0.4 * torch.rand(n, 3, 1, 1, generator=generator)).repeat(1, 1, SIZE, SIZE)
    x[..., ::8, :] += amplitude.flatten()[:, None, None, None]
    x[..., ::8] += amplitude.flatten()[:, None, None, None]
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def periods(x: Tensor) -> Tensor:
    """How far lines stand out every four and every eight pixels, whatever their strength."""
    bend = (x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]).square().mean((-3, -2))
    found: list[Tensor] = []
    for period in (4, 8):
        by_phase = bend[..., : bend.shape[-1] // period * period].unflatten(-1, (-1, period)).mean(-2)
        found.append(by_phase.amax(-1) / (by_phase.sum(-1) + 1e-9))
    return torch.stack(found, dim=-1)


def test_the_grid_of_jpeg_counts_one_kernel_but_hardly_four() -> None:
    """Its lines are blocks that could be counted: twice as many to a pixel in the whole, fainter there. By the period
    no image is told from another, and that costs the margin; what their strength counts, four kernels spoil."""
    images = on_a_grid(256)
    one = rendered(images)
    four = rendered(images, kernels=KERNELS)
    traces = [tuple(high_frequencies(x) for x in both) for both in (one, four)]
    assert misses(*traces[0]) < 0.02
    assert misses(*traces[1]) > 0.25
    mixed, _ = least(*traces[1])
    assert mixed > 0.7 * CHANCE, mixed
    alike, _ = least(periods(four[0]), periods(four[1]))
    assert alike > CHANCE, alike


def fringed(n: int) -> Tensor:
    """Smooth patterns whose red is magnified, and whose blue is reduced, about the centre: a lens's colours."""
    generator = torch.Generator().manual_seed(0)
    strength = 0.005 * 2 ** torch.rand(n // 2, 1, generator=generator) * torch.tensor([1.0, 4.0])
    at = torch.arange(SIZE) + 0.5 - SIZE / 2
    images = torch.zeros(n, 3, SIZE, SIZE)
    angle, phase = (2 * torch.pi * torch.rand(n, 12, 1, 1, generator=generator) for _ in range(2))
    wave = 2 * torch.pi / (12 + 12 * torch.rand(n, 12, 1, 1, generator=generator))
    for channel, sign in enumerate((1, 0, -1)):
        scale = 1 + sign * strength.flatten()[:, None, None, None]
        across = wave * (at[:, None] * angle.sin() + at * angle.cos()) / scale
        images[:, channel] = 0.5 + 0.12 * (across + phase).sin().sum(dim=1) / 12**0.5 * 2
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def fringes(x: Tensor) -> Tensor:
    """By how many pixels red and blue are apart: the log of their difference over the green's slope."""
    red, green, blue = x.unbind(-3)
    slope = (green[..., :, 1:] - green[..., :, :-1]).square().mean((-2, -1))
    return ((red - blue).square().mean((-2, -1)) / (slope + 1e-6) + 1e-6).log()[..., None]


def test_fringes_of_colour_count_in_colour_but_not_in_grey() -> None:
    """In a grey pair nothing is left to count or to tell images by, and that costs the margin."""
    images = fringed(128)
    coloured, _ = least(*map(fringes, rendered(images)))
    whole, tiles = rendered(images, grey=0.67)
    mostly_grey, _ = least(fringes(whole), fringes(tiles))
    grey = ((whole[:, 0] - whole[:, 2]).abs().amax((1, 2)) < 1e-6).float().mean().item()
    assert 0.5 < grey < 0.85
    assert coloured < 0.35, (coloured, mostly_grey)
    assert mostly_grey > grey - 0.02, (coloured, mostly_grey)


def padded(x: Tensor) -> Tensor:
    """Mean colour, and the share of pixels at which zero padding shows."""
    side = x.shape[-1]
    border = torch.full((*x.shape[:-3], 1), 1 - ((side - 2) / side) ** 2)
    return torch.cat([x.mean((-2, -1)), border], dim=-1)


def test_mean_colour_and_padding_count_only_where_wholes_are_larger_than_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (256, 3, 1, 1), dtype=torch.uint8, generator=generator)
    images = images.expand(-1, -1, SIZE, SIZE).contiguous()
    whole, tiles = rendered(images)
    same, _ = least(padded(whole), padded(tiles))
    larger, _ = least(padded(torch.nn.functional.interpolate(whole, scale_factor=2.0)), padded(tiles))
    assert larger < 0.35, (same, larger)
    assert same > CHANCE - 1e-3, (same, larger)
