"""torchvision's data sets by name. None is downloaded: a missing one is an error that says how to get it."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from selfsight.data.arrays import TorchData
from selfsight.data.cache import cache_folder
from selfsight.data.protocol import DataError

_FLAG = ({"train": True}, {"train": False})
_TEST = ({"split": "train"}, {"split": "test"})
_VAL = ({"split": "train"}, {"split": "val"})
_TRAINVAL = ({"split": "trainval"}, {"split": "test"})

SETS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("SVHN", "STL10", "Flowers102", "Food101", "DTD", "GTSRB", "PCAM", "Country211"), _TEST),
    **dict.fromkeys(("StanfordCars", "RenderedSST2", "FER2013"), _TEST),
    **dict.fromkeys(("ImageNet", "Imagenette"), _VAL),
    **dict.fromkeys(("OxfordIIITPet", "FGVCAircraft"), _TRAINVAL),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SUN397"), ({},)),
}
"""The arguments that open the train and the test split of each; one where there are no splits."""

NAMES = {name.lower(): name for name in SETS}


def at_home(path: str | Path) -> Path:
    """``path`` with ``~`` replaced; as it stands where there is no such user, or where it can be no path at all."""
    return Path(path if "\0" in str(path) else os.path.expanduser(path))


def torchvision_parts(name: str, root: str, channels: int | None) -> Mapping[str, Callable[[], TorchData]]:
    """How to open the splits of a data set of ``NAMES``, under ``root`` or where the cache keeps such sets."""
    folder = at_home(root) if root else cache_folder("torchvision")
    splits = ("train", "test") if len(SETS[NAMES[name]]) == 2 else ("all",)
    arguments = zip(splits, SETS[NAMES[name]], strict=True)
    return {split: partial(_open, NAMES[name], folder, given, channels) for split, given in arguments}


def _open(name: str, root: Path, given: Mapping[str, Any], channels: int | None) -> TorchData:
    import torchvision.datasets  # noqa: PLC0415

    try:
        data = getattr(torchvision.datasets, name)(str(root), **given)
    except (RuntimeError, OSError, ValueError):
        call = f"import torchvision; torchvision.datasets.{name}('{root}', download=True)"
        raise DataError(f'{name} is not in {root}; get it once: python -c "{call}"') from None
    return TorchData(data, name=name.lower(), channels=channels)
