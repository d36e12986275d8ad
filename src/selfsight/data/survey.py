"""What size and how many channels a source's images have, from their headers.

A sample of headers is read first. Two sizes among them, or one of more than ``SMALL`` pixels a side, settle it: no
native size. Only where the whole sample agrees on one small size are all headers read; and only up to ``CAREFUL``
images, because a size is called native when every header says so, never when it is likely. What is found is filed in
the cache folder. An image that later turns out otherwise is an unreadable image, it cannot break a run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import numpy as np

from selfsight.data.cache import cache_folder, write_beside
from selfsight.data.index import CAREFUL
from selfsight.data.protocol import DataError, Unreadable
from selfsight.keyed import words
from selfsight.sizes import SMALL

SAMPLE = 256

Shape = tuple[int, int, int]


class Survey(NamedTuple):
    """The native size where all images have one (as in ``Source.native``), and the number of channels of most."""

    native: Shape | None
    channels: int

    def as_channels(self, channels: int | None) -> "Survey":
        """The same images read to another number of channels (None: to the number found)."""
        channels = channels or self.channels
        return Survey(None if self.native is None else (channels, *self.native[1:]), channels)


def survey(probe: Callable[[int], Shape], n: int, *, name: str, where: Callable[[int], str], key: str) -> Survey:
    """Reads headers by ``probe`` (which raises ``Unreadable``); raises ``DataError`` where not one can be read."""
    path = cache_folder("survey") / f"{key}.json"
    try:
        filed = json.loads(path.read_text())
        return Survey(filed["native"] and tuple(filed["native"]), filed["channels"])
    except (OSError, ValueError, KeyError, TypeError):  # not surveyed yet
        pass
    found = _read_headers(probe, n)
    if isinstance(found, Unreadable):
        raise DataError(f"no readable image among the {n:,} of {name}; {where(0)} {found}")
    write_beside(path, [json.dumps(found._asdict()).encode()])
    return found


def _read_headers(probe: Callable[[int], Shape], n: int) -> Survey | Unreadable:
    shapes = list(_readable(probe, sampled(n))) or list(islice(_readable(probe, range(n)), 1))
    if not shapes:
        return _reason(probe)
    channels = Counter(shape[0] for shape in shapes).most_common(1)[0][0]
    native = shapes[0]
    settled = set(shapes) != {native} or max(native[1:]) > SMALL or n > CAREFUL
    agreed = not settled and all(shape == native for shape in _readable(probe, range(n)))
    return Survey(native if agreed else None, channels)


def sampled(n: int) -> list[int]:
    """The positions of the sample of ``n``, by key: all where they are few."""
    drawn = words(0, np.zeros(SAMPLE, np.uint64), np.arange(SAMPLE), "survey", 1)[:, 0] % np.uint64(n)
    return list(range(n)) if n <= SAMPLE else np.unique(drawn).tolist()


def _readable(probe: Callable[[int], Shape], positions: Iterable[int]) -> Iterator[Shape]:
    for position in positions:
        with suppress(Unreadable):
            yield probe(position)


def _reason(probe: Callable[[int], Shape]) -> Unreadable:
    try:
        probe(0)
    except Unreadable as error:
        return error
    return Unreadable("has become readable meanwhile; start again")
