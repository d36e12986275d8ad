"""The catalogue of recipes: names and facts without importing torch, functions when one is asked for.

A recipe module's ``CARDS`` is a literal, so it is read from the module's syntax tree.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsight.errors import UserError, unknown

if TYPE_CHECKING:
    from selfsight.recipes.recipe import Recipe

FAMILIES = ("pretext", "contrastive", "masked", "multimodal")
UNMEASURED: frozenset[str] = frozenset()
"""Recipes that run and pass every test, but have no row in the ladder yet: neither listed nor documented until then."""


@dataclass(frozen=True)
class Card:
    """What is known of a recipe without running it."""

    name: str
    module: str
    family: str
    title: str
    year: int
    fact: str
    arxiv: str = ""
    encoder: str = "resnet50"
    options: Mapping[str, Any] = field(default_factory=dict)
    """What ``build_encoder`` is told besides of ``encoder``, as ``small_options`` of ``small_encoder``.

    Neither goes to a backbone that was asked for."""
    small_encoder: str = "resnet18"
    small_options: Mapping[str, Any] = field(default_factory=dict)
    norm: str = ""
    """What stands for batch norm in the encoder, whichever it is, unless its options say otherwise."""
    sizes: tuple[int, ...] = ()
    """The only image sizes that its encoder takes, ascending; none where it takes any."""
    needs: str = ""
    yields: str = ""
    """What it trains, where that is no encoder to evaluate: ``tokenizer``."""
    probe: str = ""
    """Whose linear probe its paper takes, ``mae``'s or ``moco``'s, if not its family's: MAE's of masked methods."""
    takes: str = ""
    """Of a stage: the flag that its command takes as its one argument."""
    fixed: tuple[str, ...] = ()
    """Of a stage: the flags that follow from that argument, which its command does not have."""


@cache
def cards() -> dict[str, Card]:
    """All self-supervised recipes by name, oldest paper first."""
    return _read("CARDS")


def listed() -> dict[str, Card]:
    """The recipes that ``selfsight list`` and the documentation name: those whose results are committed."""
    return {name: card for name, card in cards().items() if name not in UNMEASURED}


@cache
def stages() -> dict[str, Card]:
    """The recipes that follow a pretraining and have a command of their own."""
    return _read("STAGES")


def _read(literal: str) -> dict[str, Card]:
    found: list[Card] = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [literal]:
                facts = ast.literal_eval(node.value)
                found += [Card(name=name, module=path.stem, **fact) for name, fact in facts.items()]
    return {card.name: card for card in sorted(found, key=lambda card: (card.year, card.name))}


def card(name: str) -> Card:
    """The card of one self-supervised recipe; a ``UserError`` with the nearest name where there is none."""
    if name in stages():
        raise UserError(f"{name} is no method but a command of its own; see selfsight {name} --help")
    if name not in cards():
        raise unknown("method", name, cards())
    return cards()[name]


def entry(name: str) -> Card:
    """The card of a recipe or of a stage."""
    return stages()[name] if name in stages() else card(name)


def recipe_function(name: str) -> "Callable[..., Recipe[Any]]":
    """The function that wires the recipe: ``Setting`` in, ``Recipe`` out."""
    return getattr(importlib.import_module(f"selfsight.recipes.{entry(name).module}"), name)


def hyper_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The method's own flags: the keyword parameters of its recipe."""
    parameters = inspect.signature(recipe_function(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def tiny(name: str) -> "Recipe[Any]":
    """The recipe at a size that a test can train."""
    return importlib.import_module(f"selfsight.recipes.{card(name).module}").tiny()[name]
