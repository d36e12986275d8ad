"""What a piece's company, its slot, its mean colour and a lens's fringes tell of its image and its place: little.

The controls take away what stands against each shortcut: the shuffle, or the colours drawn for each piece.
"""

from dataclasses import replace

import torch
from shortcuts import fringes, through_a_lens, told
from torch import Tensor
from torch.nn.functional import normalize

from selfsight.keyed import Key, uniforms
from selfsight.losses.grouped import grouped_contrast
from selfsight.parts.montage import DRAWS, arrangement, montage
from selfsight.views import augment
from selfsight.views.quadrants import pieces_of
from selfsight.views.view import View

PLAIN = View(size=16, scale=(1, 1), ratio=(1, 1), flip=0, normalise=None)


def keys(n: int, epoch: int = 0) -> Key:
    return Key(0, torch.full((n,), epoch), torch.arange(n))


def pieces(images: Tensor, view: View, *, cross: float = 0.3) -> Tensor:
    views, key = pieces_of(view, cross=cross, shuffle=DRAWS), keys(len(images))
    return views.render(images, views.plan(key), key).x


def test_the_slot_tells_neither_place_nor_image() -> None:
    """Zero padding shows a network in which slot of its montage a piece stands. Control: montages of whole images."""
    n, epochs = 64, 60
    table, same = torch.zeros(4, 4), 0.0
    for epoch in range(epochs):
        shown = arrangement(uniforms(keys(n, epoch), "shuffle", DRAWS)).flatten()
        slot, place = torch.arange(4).repeat(n), shown % 4
        table += torch.zeros(4, 4).index_put((slot, place), torch.ones(4 * n), accumulate=True)
        of_image = slot[shown.argsort()].view(n, 4)
        same += (of_image[:, :, None] == of_image[:, None]).float().mean().item() / epochs
    best = table.amax(dim=1).sum() / table.sum()
    assert best < 0.27  # chance is 0.25; of a montage in its own order all are known
    assert abs(same - (4 + 12 / 4) / 16) < 0.01  # mates share a slot as often as any two pieces


def seams(x: Tensor) -> Tensor:
    """How far the two rows of pixels are apart that meet in the middle of each picture."""
    middle = x.shape[-1] // 2
    return (x[:, :, middle] - x[:, :, middle - 1]).abs().mean((1, 2))


def test_edges_do_not_go_on_from_piece_to_piece() -> None:
    """Smooth images, cut without overlap and put together: in their own order seams vanish, in montages they do not."""
    generator = torch.Generator().manual_seed(0)
    n = 64
    coarse = torch.rand(n, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True)
    x = pieces((smooth.clamp(0, 1) * 255).to(torch.uint8), PLAIN, cross=0.0)
    shown = arrangement(uniforms(keys(n), "shuffle", DRAWS))
    whole, shuffled = seams(montage(x)), seams(montage(x.flatten(0, 1)[shown]))
    strangers = seams(montage(torch.stack([x[:, 0], x[:, 1], x[:, 2].roll(1, 0), x[:, 3].roll(1, 0)], dim=1)))
    assert whole.mean() < 0.25 * strangers.mean()
    assert shuffled.mean() > 0.8 * strangers.mean()
    mates = torch.stack([(shown[:, 0] // 4) == (shown[:, k] // 4) for k in (1, 2, 3)])
    assert not mates.any()  # so no continuity is ever between pieces that belong together


def clustered_by_colour(x: Tensor) -> tuple[float, float]:
    """How often the piece of the nearest mean colour is one of the same image, and the loss of those colours."""
    colour = x.mean((3, 4))
    n = len(colour)
    apart = torch.cdist(colour.flatten(0, 1), colour.flatten(0, 1)).fill_diagonal_(torch.inf)
    right = (apart.argmin(dim=1) // 4 == torch.arange(4 * n) // 4).float().mean().item()
    centred = normalize(colour - colour.mean((0, 1)), dim=2)
    return right, grouped_contrast(centred, temperature=0.3).item()


def test_mean_colour_loses_most_of_what_it_tells() -> None:
    """Images of one colour each, in which there is nothing else to see."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randint(20, 236, (256, 3, 1, 1), dtype=torch.uint8, generator=generator)
    flat = flat.expand(-1, -1, 32, 32).contiguous()
    right, loss = clustered_by_colour(pieces(flat, augment.moco_v2(16, blur=False)))
    known, least = clustered_by_colour(pieces(flat, PLAIN))
    assert known > 0.95, (right, known)
    assert right < 0.3, (right, known)
    assert loss > least + 0.3, (loss, least)


def placed(view: View, n: int = 250) -> tuple[float, float, float]:
    """How often the fringes of a piece tell its place, its row, and its column."""
    images = (255 * through_a_lens(n, 96)).round().to(torch.uint8)
    seen, place = fringes(pieces(images, view).flatten(0, 1)), torch.arange(4).repeat(n)
    return told(seen, place), told(seen, place // 2), told(seen, place % 2)


def test_chromatic_aberration_tells_no_column_but_it_does_tell_rows() -> None:
    """Pieces are mirrored by lot, so a lens's fringes say nothing of left and right. Nothing in the method stands
    against them from top to bottom: only the fifth of the pieces that are grey tell nothing at all. So who sees fringes
    alone, of a lens that magnifies one colour by six per cent, finds the place four times in ten, by chance once in
    four."""
    plain = View(size=48, scale=(1, 1), ratio=(1, 1), flip=0, normalise=None)
    assert min(placed(plain)) > 0.95
    place, row, column = placed(replace(plain, flip=0.5))
    assert (place < 0.56, row > 0.95, column < 0.56) == (True, True, True)
    place, row, column = placed(replace(plain, grey=1.0))
    assert (place < 0.29, row < 0.55, column < 0.55) == (True, True, True)
    for blur in (False, True):
        place, row, column = placed(augment.moco_v2(48, blur=blur))
        assert place < 0.47, (place, row, column)
        assert column < 0.56, (place, row, column)
        assert 0.7 < row < 0.88, (place, row, column)
