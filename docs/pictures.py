"""Makes the documentation's pictures: from a finished run, and of what methods see.

python docs/pictures.py runs/demo        writes docs/images/map.png, neighbours.png and views.png
python docs/pictures.py views            writes docs/images/views/METHOD.webp, for methods whose views are a question
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw

from selfsight.cli import views
from selfsight.engine.run import open_run
from selfsight.recipes import catalogue
from selfsight.report.atlas import gather_features, nearest, project
from selfsight.report.grid import views_grid
from selfsight.report.thumbnails import thumbnail

WIDTH, HEIGHT, CELL, IMAGES = 1600, 900, 44, 700


def lay_out(xy: np.ndarray, images: list[Image.Image]) -> Image.Image:
    """Thumbnails at their places on the map; where two would overlap by much, the later one is left out."""
    low, high = np.percentile(xy, 0.5, axis=0), np.percentile(xy, 99.5, axis=0)
    room = np.array([WIDTH - CELL, HEIGHT - CELL])
    places = ((xy - low) / (high - low) * room).round().astype(int).clip(0, room)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
    taken: list[np.ndarray] = []
    for place, image in zip(places, images, strict=True):
        if all(np.abs(place - other).max() >= 0.8 * CELL for other in taken):
            sheet.paste(thumbnail(image, CELL), tuple(place.tolist()))
            taken.append(place)
    return sheet


def in_rows(features: np.ndarray, images: list[Image.Image], rows: int = 6, columns: int = 12) -> Image.Image:
    """Rows of neighbours: an image, a rule, its nearest by cosine."""
    cell, gap = 96, 6
    found, _ = nearest(features, columns)
    sheet = Image.new("RGB", ((columns + 1) * (cell + gap) + gap, rows * (cell + gap) - gap), "white")
    for y in range(rows):
        for x, i in enumerate([y, *found[y]]):
            sheet.paste(thumbnail(images[i], cell), (x * (cell + gap) + (gap if x else 0), y * (cell + gap)))
    rule = cell + gap
    ImageDraw.Draw(sheet).line([(rule - 1, 0), (rule - 1, sheet.height)], fill=(160, 160, 160), width=2)
    return sheet


def main(run: Path, out: Path) -> None:
    """Writes the pictures of ``run`` into ``out``."""
    opened = open_run(run)
    source, recipe = opened.source("test"), opened.recipe()
    found = gather_features(recipe.method.encoder, recipe.views.plain, source, most=IMAGES)
    out.mkdir(parents=True, exist_ok=True)
    lay_out(project(found.x)[0], found.images).save(out / "map.png", optimize=True)
    in_rows(found.x, found.images).save(out / "neighbours.png", optimize=True)
    views_grid(recipe.views, source).save(out / "views.png", optimize=True)
    print(*sorted(out.glob("*.png")), sep="\n")


def draw_views(out: Path) -> None:
    """What each pretext task and masked method sees of three images of the world at 96 px."""
    out.mkdir(parents=True, exist_ok=True)
    for name, card in catalogue.listed().items():
        if card.family in ("pretext", "masked"):
            with TemporaryDirectory() as folder:
                views(name, data="world", image_size=96, rows=3, out=Path(folder) / "views.png")
                Image.open(Path(folder) / "views.png").convert("RGB").save(out / f"{name}.webp", quality=75)


if __name__ == "__main__":
    images = Path(__file__).parent / "images"
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/pictures.py RUN, or views")
    if sys.argv[1] == "views":
        draw_views(images / "views")
    else:
        main(Path(sys.argv[1]), images)
