"""What a report is made of: plain data, so that a page can be built and tested without a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Column = list[float | None]
Table = Mapping[str, Column]
"""Columns of numbers by name, all of one length; None where a cell is empty or no number."""


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    uri: str
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Sprite:
    """Many thumbnails in one image, row by row: thumbnail ``i`` lies at column ``i % columns``."""

    uri: str
    cell: int
    columns: int


@dataclass(frozen=True)
class EmbeddingMap:
    """Images as points of the plane."""

    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str]
    labels: Sequence[str] | None
    sprite: Sprite
    projection: str
    """How the plane was found, in words."""


@dataclass(frozen=True)
class Neighbour:
    """One image in a row of neighbours."""

    picture: Picture
    name: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Neighbours:
    """Rows of images: each begins with the one that was asked for, its nearest follow."""

    rows: Sequence[Sequence[Neighbour]]
    searched: int
    """How many images were searched."""
    agreement: float | None
    """Share of all images' nearest neighbours that carry the same label; None without labels."""
    chance: float | None = None
    """The share that neighbours drawn blindly would have."""


@dataclass(frozen=True)
class ReportContent:
    """All that the page shows. What is missing is empty, and ``missing`` says why where that is known."""

    name: str
    settings: Mapping[str, Any]
    title: str = ""
    fact: str = ""
    metrics: Table = field(default_factory=dict[str, Column])
    timings: Table = field(default_factory=dict[str, Column])
    alarms: Sequence[Mapping[str, str]] = ()
    skipped: Sequence[Mapping[str, str]] = ()
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    views: Picture | None = None
    reconstructs: bool = False
    reconstructions: Picture | None = None
    embedding: EmbeddingMap | None = None
    neighbours: Neighbours | None = None
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    """Section's name -> why it is empty, where the reason was met while gathering."""
