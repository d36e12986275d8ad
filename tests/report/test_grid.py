"""Views as pictures: normalisation undone exactly, masks where they are, crops at their size, errors in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.batches import (
    ColouredImages,
    HiddenPixels,
    MaskedImages,
    MaskedMultiCrop,
    MultiCrop,
    Patches,
    PlacedViews,
    QuarterSeen,
)
from selfsight.data.protocol import DataError
from selfsight.lab import to_lab
from selfsight.report.grid import (
    hide,
    in_colour,
    outlined,
    read_originals,
    render_batch,
    sample_positions,
    tiles,
    tiles_sheet,
    undo,
    views_grid,
)
from selfsight.report.thumbnails import as_image, sprite, thumbnail
from selfsight.views.exemplars import exemplars
from selfsight.views.pipelines import one_view
from selfsight.views.view import View


def test_normalisation_is_undone_to_the_byte(patches, mirrored):
    originals = read_originals(patches, [0, 1, 2, 3])
    batch = render_batch(mirrored.plain, originals)
    assert np.array_equal(undo(mirrored, batch.x).numpy(), np.stack(originals.images))


def test_views_are_those_of_the_epoch(patches, mirrored):
    """The second view is always mirrored; the first is mirrored for some images in some epochs, as the plan draws."""
    originals = read_originals(patches, range(6, 30))
    images = np.stack(originals.images)
    shown = [tiles(mirrored, render_batch(mirrored, originals, epoch=epoch, seed=3)) for epoch in (0, 1)]
    for first, second in shown:
        assert np.array_equal(second.numpy(), images[..., ::-1])
        flipped = [np.array_equal(one, image[..., ::-1]) for one, image in zip(first.numpy(), images, strict=True)]
        assert 0 < sum(flipped) < len(flipped)
    assert not torch.equal(shown[0][0], shown[1][0])


def test_unreadable_images_are_left_out(patches):
    originals = read_originals(patches, [4, 5, 6])
    assert originals.positions.tolist() == [4, 6]


def test_large_images_go_through_cut(patches, mirrored):
    """Images of several sizes are cut first; what comes out is the same as for whole ones of the crop's content."""
    patches.read = lambda position: np.full((3, 120 + position, 130), 50 * position, np.uint8)
    originals = read_originals(patches, [1, 2])
    x = undo(mirrored, render_batch(mirrored.plain, originals).x)
    assert x.shape == (2, 3, 32, 32)
    assert x[0].unique().tolist() == [50]
    assert x[1].unique().tolist() == [100]


def test_masked_patches_are_grey_and_the_rest_untouched():
    x = torch.randint(0, 120, (2, 3, 8, 8), dtype=torch.uint8)
    out = hide(x, torch.tensor([[0], [3]]), patches=4)
    expected = x.clone()
    expected[0, :, :4, :4] = 127
    expected[1, :, 4:, 4:] = 127
    assert torch.equal(out, expected)


def test_tiles_of_masked_and_multi_crop_batches(mirrored):
    x = mirrored.normalised(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8))
    index = torch.zeros(1, dtype=torch.long)
    whole, seen = tiles(mirrored, MaskedImages(x, torch.tensor([[0, 1, 2]]), torch.tensor([[3]]), index))
    assert whole.unique().tolist() == [200]
    assert sorted(seen.unique().tolist()) == [127, 200]
    crops = tiles(mirrored, MultiCrop((x, x), (x[..., :4, :4],), index))
    assert [crop.shape[-1] for crop in crops] == [8, 8, 4]
    masks = torch.tensor([[True, False, False, False]]), torch.zeros(1, 4, dtype=torch.bool)
    first, second, small = tiles(mirrored, MaskedMultiCrop((x, x), (x[..., :4, :4],), masks, index))
    assert first[0, :, :4, :4].unique().tolist() == [127]
    assert first[0, :, 4:].unique().tolist() == [200]
    assert second.unique().tolist() == small.unique().tolist() == [200]


def test_tiles_of_a_hole(mirrored):
    x = mirrored.normalised(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8))
    hidden = torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[0, 2:5, 3] = True
    whole, seen = tiles(mirrored, HiddenPixels(x, hidden, torch.zeros(1, dtype=torch.long)))
    assert whole.unique().tolist() == [200]
    assert torch.equal(seen[0] == 127, hidden.expand(3, -1, -1))
    assert sorted(seen.unique().tolist()) == [127, 200]


def test_tiles_of_a_quarter(mirrored):
    x = mirrored.normalised(torch.full((2, 3, 8, 8), 200, dtype=torch.uint8))
    whole, seen = tiles(mirrored, QuarterSeen(x, torch.tensor([1, 2]), torch.arange(2)))
    assert whole.unique().tolist() == [200]
    expected = torch.full((2, 3, 8, 8), 127, dtype=torch.uint8)
    expected[0, :, :4, 4:] = 200
    expected[1, :, 4:, :4] = 200
    assert torch.equal(seen, expected)


def test_grid_shows_the_originals_then_the_views(patches, mirrored):
    grid = views_grid(mirrored, patches, positions=[1, 2], columns=4, cell=32)
    pixels = np.asarray(grid)
    assert np.array_equal(pixels[:32, :32], patches.read(1).transpose(1, 2, 0))
    second_view = pixels[34:66, grid.width - 32 :]
    assert np.array_equal(second_view, patches.read(2).transpose(1, 2, 0)[:, ::-1])
    assert grid.width == 5 * 34 - 2 + 6


def test_a_small_crop_keeps_its_size_beside_a_large_one(patches, mirrored):
    class Crops(type(mirrored)):
        def render(self, images, plan, key):
            x = self.normalised(images)
            return MultiCrop((x, x), (x[..., :16, :16],), key.index)

    pixels = np.asarray(views_grid(Crops(), patches, positions=[0], columns=3, cell=64, paper=None))
    last = pixels[:, -64:, 3]
    assert (last == 255).sum() == 32 * 32
    assert (last[16:48, 16:48] == 255).all()


def test_a_grid_can_be_saved_as_jpeg(patches, mirrored, tmp_path):
    views_grid(mirrored, patches, rows=2).save(tmp_path / "grid.jpg")
    with Image.open(tmp_path / "grid.jpg") as saved:
        assert saved.mode == "RGB"


def test_sample_is_keyed_and_without_repeats(patches):
    sample = sample_positions(patches, 20, seed=1)
    assert len(set(sample.tolist())) == 20
    assert np.array_equal(sample[:7], sample_positions(patches, 7, seed=1))
    assert not np.array_equal(sample, sample_positions(patches, 20, seed=2))


@pytest.mark.parametrize("position", [80, -1])
def test_a_position_outside_the_data_is_one_line(patches, mirrored, position):
    with pytest.raises(DataError, match=f"position {position} is outside the data, which hold 80 images"):
        views_grid(mirrored, patches, positions=[3, position])


def test_nothing_readable_is_one_line(patches, mirrored):
    with pytest.raises(DataError, match="none of the 1 images chosen from patches can be read"):
        views_grid(mirrored, patches, positions=[5])


def test_channels_for_the_eye():
    grey = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    assert np.array_equal(np.asarray(as_image(grey)), np.repeat(grey[0][..., None], 3, axis=2))
    many = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
    assert np.array_equal(np.asarray(as_image(many)), many[:3].transpose(1, 2, 0))


def test_sprite_places_thumbnails_row_by_row():
    images = [Image.new("RGB", (30, 20), (40 * i, 0, 0)) for i in range(5)]
    made = sprite(images, 10)
    assert (made.columns, made.cell) == (3, 10)
    assert thumbnail(images[0], 10).size == (10, 10)


def test_patches_are_shown_side_by_side():
    x = torch.arange(2 * 2 * 3 * 3 * 4 * 4).reshape(2, 2, 3, 3, 4, 4) % 256 / 255
    (shown,) = tiles(one_view(View(size=32, normalise=None)), Patches(x, torch.arange(2)))
    assert shown.shape == (2, 3, 10, 15)
    for row in range(2):
        for column in range(3):
            tile = shown[:, :, 5 * row : 5 * row + 4, 5 * column : 5 * column + 4]
            assert torch.equal(tile, (x[:, row, column] * 255).round().to(torch.uint8))
    assert (shown[:, :, 4] == 255).all()


def test_placed_views_are_shown_as_two(patches, mirrored):
    originals = read_originals(patches, [0, 1])
    x = render_batch(mirrored.plain, originals).x
    shown = tiles(mirrored, PlacedViews(x, x.flip(-1), torch.zeros(2, 2), torch.arange(2)))
    assert np.array_equal(shown[0].numpy(), np.stack(originals.images))
    assert torch.equal(shown[1], shown[0].flip(-1))


def test_exemplars_are_outlined_on_the_original(patches):
    """Red lines where a patch's edges lie, nothing else; the grid draws all epochs' on the first column."""
    square = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])
    drawn = np.asarray(outlined(Image.new("RGB", (32, 32)), [square]))
    assert drawn.shape == (256, 256, 3)
    assert drawn[64, 128].tolist() == drawn[128, 192].tolist() == [255, 64, 64]
    assert not drawn[128, 128].any()
    assert not drawn[:60].any()
    grid, bare = (
        np.asarray(views_grid(views, patches, rows=2, columns=3)) for views in (exemplars(32), one_view(View(size=32)))
    )
    assert not np.array_equal(grid[:, :64], bare[:, :64])


def test_colours_to_be_said_are_those_of_every_fourth_pixel():
    rgb = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    light, a, b = to_lab(*rgb.unbind(1))
    batch = ColouredImages((light / 50 - 1)[:, None].repeat(1, 3, 1, 1), torch.stack([a, b], dim=1), torch.arange(2))
    assert int((in_colour(batch, 1).int() - (rgb * 255).round().int()).abs().max()) <= 1
    sparse = in_colour(batch, 4)
    assert sparse.shape == (2, 3, 8, 10)
    assert torch.equal(sparse[:, :, ::4, ::4], in_colour(batch, 1)[:, :, ::4, ::4])
    assert not torch.equal(sparse, in_colour(batch, 1))


def test_what_was_hidden_is_outlined_in_the_last_tile_alone():
    """A square in the middle of the picture: its rim changes colour, inside and outside stay as they are."""
    flat = torch.full((1, 3, 64, 64), 50, dtype=torch.uint8)
    hidden = torch.zeros(1, 64, 64, dtype=torch.bool)
    hidden[:, 16:32, 16:32] = True
    plain = np.asarray(tiles_sheet([flat, flat], 64).convert("RGB")).astype(int)
    drawn = np.asarray(tiles_sheet([flat, flat], 64, outlined=hidden).convert("RGB")).astype(int)
    changed = (drawn != plain).any(axis=2)
    left = 64 + 2
    expected = np.zeros_like(changed)
    expected[16:32, left + 16 : left + 32] = True
    expected[17:31, left + 17 : left + 31] = False
    assert (changed == expected).all()
