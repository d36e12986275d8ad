"""Sources told apart by the value of their first pixel."""

from pathlib import Path

from PIL import Image

from selfsight.data.protocol import Source


def image(value: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def folder_of(root: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image(value).save(path)
    return root


def values(source: Source) -> list[int]:
    return [int(source.read(i)[0, 0, 0]) for i in range(len(source))]


def labels(source: Source) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()
