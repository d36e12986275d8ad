"""What a user did wrong, in one line: what, the value, the remedy."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the call: the command line prints its one line and leaves with exit code 2."""


class TrainingError(RuntimeError):
    """A run that cannot go on; what it had saved stays as it was. Exit code 1."""


class ToldElsewhere(TrainingError):
    """The same, of which another process tells: this one leaves without a word."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    >>> str(unknown("method", "simclrr", ["simclr", "byol"]))
    "unknown method 'simclrr'; did you mean 'simclr'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
    return UserError(f"unknown {kind} '{name}'; {hint}")
