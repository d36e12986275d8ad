"""Images in arrays (.npy files) and in torch data sets."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from selfsight.data.cache import digest
from selfsight.data.decoding import channels_first, fit_channels, to_bytes
from selfsight.data.protocol import DataError, Unreadable, one_by_one


class Stack:
    """A .npy file of ``n h w``, ``n h w c`` or ``n c h w``, memory-mapped; it pickles as its path."""

    resident = True
    """Its rows are at hand: nothing is gained by the decoded cache."""

    def __init__(self, path: Path, *, channels: int | None = None) -> None:
        self.path, self.name = Path(os.path.abspath(path)), path.name
        self.labels: np.ndarray | None = None
        self.classes: tuple[str, ...] = ()
        self._map()
        bands, height, width = channels_first(self._array[0]).shape
        self.channels = channels or (3 if bands == 1 else bands)
        self.native: tuple[int, int, int] | None = (self.channels, height, width)
        self.fingerprint = digest(self.name, str(self._array.shape), self._array.dtype.str)

    def _map(self) -> None:
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy raises half a dozen kinds
            raise DataError(f"cannot read {self.path} ({' '.join(str(error).split())[:300]})") from None
        if not isinstance(array, np.ndarray):  # an archive under another name
            array.close()
            raise DataError(f"{self.path} is an .npz archive of several arrays; save the images alone with np.save")
        if array.ndim not in (3, 4) or array.size == 0:
            raise DataError(f"{self.path} has shape {array.shape}; images are n h w, n h w c or n c h w")
        self._array = array

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_array"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        return len(self._array)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """One row. Raises ``Unreadable`` where its values have no place in 0-255."""
        return fit_channels(to_bytes(channels_first(np.asarray(self._array[position]))), self.channels)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """Several rows."""
        return one_by_one(self.read, positions)

    def where(self, position: int) -> str:
        """The file's name and the row's number."""
        return f"{self.name}[{position}]"


class TorchData:
    """A torch data set with length whose items are an image, (image, label) or a mapping with an image.

    An image is a PIL image, a uint8 array or tensor, or floats within 0 and 1, ``h w``, ``h w c`` or ``c h w``. Labels
    are taken from ``targets`` or ``labels`` or a TensorDataset's second tensor, through Subset; other data sets have
    none, because finding them would decode every image.
    """

    resident = False

    def __init__(self, data: Any, *, name: str | None = None, channels: int | None = None) -> None:
        if isinstance(data, torch.utils.data.IterableDataset) or not hasattr(data, "__len__"):
            raise DataError(f"{type(data).__name__} has no positions; give a data set with a length and data[i]")
        if len(data) == 0:
            raise DataError(f"{type(data).__name__} is empty")
        self.data, self.name = data, name or type(data).__name__
        self.labels: np.ndarray | None = _labels_of(data)
        self.classes = _classes_of(data, self.labels)
        first = self._first_shape()
        self.channels = channels or first[0]
        self.resident = _held(data)
        self.native: tuple[int, int, int] | None = (self.channels, *first[1:]) if self.resident else None
        labels = b"" if self.labels is None else self.labels
        pixels = [self.read(i) for i in range(min(16, len(data)))] if self.resident else []
        self.fingerprint = digest(self.name, str(len(data)), str(first), *self.classes, labels, *pixels)

    def _first_shape(self) -> tuple[int, int, int]:
        reason: Unreadable | None = None
        for position in range(len(self.data)):
            try:
                bands, height, width = self._image(position).shape
                return (3 if bands == 1 else bands), height, width
            except Unreadable as error:
                reason = reason or error
        raise DataError(f"no readable image among the {len(self.data):,} of {self.name}; the first {reason}")

    def _image(self, position: int) -> UInt8[np.ndarray, "b h w"]:
        try:
            item = self.data[position]
        except Exception as error:
            raise Unreadable(" ".join(f"{type(error).__name__}: {error}".split())) from error
        if isinstance(item, dict):
            item = next((item[key] for key in ("image", "img", "x") if key in item), None)
        return as_image(item[0] if isinstance(item, (tuple, list)) else item)

    def __len__(self) -> int:
        return len(self.data)

    def read(self, position: int) -> UInt8[np.ndarray, "c h w"]:
        """One item's image. Raises ``Unreadable``."""
        return fit_channels(self._image(position), self.channels)

    def read_many(self, positions: np.ndarray) -> list[UInt8[np.ndarray, "c h w"] | Unreadable]:
        """Several items, one after the other."""
        return one_by_one(self.read, positions)

    def where(self, position: int) -> str:
        """The data set's name and the item's number."""
        return f"{self.name}[{position}]"


def as_image(value: Any) -> UInt8[np.ndarray, "b h w"]:
    """A PIL image, array or tensor as uint8 channels. Raises ``Unreadable``."""
    if isinstance(value, Image.Image):
        value = np.asarray(value if value.mode in ("L", "RGB") else value.convert("RGB"))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3) or value.size == 0:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, np.ndarray) else ""
        raise Unreadable(f"is a {type(value).__name__}{shape}, not an image")
    return to_bytes(channels_first(value))


def _held(data: Any) -> bool:
    """Whether all images lie in one array and come out of it untouched, so that one size is all sizes."""
    if isinstance(data, torch.utils.data.Subset):
        return _held(data.dataset)
    if isinstance(data, torch.utils.data.TensorDataset):
        return True
    array = getattr(data, "data", None)
    transforms = (getattr(data, name, None) for name in ("transform", "transforms"))
    return isinstance(array, (np.ndarray, torch.Tensor)) and array.ndim in (3, 4) and not any(transforms)


def _labels_of(data: Any) -> np.ndarray | None:
    if isinstance(data, torch.utils.data.Subset):
        labels = _labels_of(data.dataset)
        return None if labels is None else labels[np.asarray(data.indices, dtype=np.int64)]
    if isinstance(data, torch.utils.data.TensorDataset):
        found = data.tensors[1] if len(data.tensors) > 1 else None
    else:
        found = next(
            (getattr(data, name) for name in ("targets", "labels", "_labels", "y") if hasattr(data, name)), None
        )
        samples = next((getattr(data, name) for name in ("samples", "_samples") if hasattr(data, name)), None)
        if found is None and samples is not None:  # (path, label) pairs
            found = [sample[-1] for sample in samples]
    try:
        labels = np.asarray(found)
    except ValueError:  # ragged: boxes, captions
        return None
    return labels.astype(np.int64) if labels.shape == (len(data),) and labels.dtype.kind in "iu" else None


def _classes_of(data: Any, labels: np.ndarray | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    if isinstance(data, torch.utils.data.Subset):
        return _classes_of(data.dataset, labels)
    named = getattr(data, "classes", None)
    top = int(labels.max(initial=-1)) + 1
    return tuple(map(str, named if isinstance(named, (list, tuple)) and len(named) >= top else range(top)))
