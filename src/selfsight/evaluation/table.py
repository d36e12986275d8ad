"""Results as a table: drawn on a terminal, tab-free plain text elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, console: Console | None = None
) -> None:
    """Prints a table; where the output is no terminal, as aligned words without lines or colour."""
    console = console or Console()
    if console.is_terminal:
        drawn = Table(title=title, title_justify="left", title_style="bold")
        for i, name in enumerate(columns):
            drawn.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
        return
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    lines = [
        title,
        *("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (columns, *rows)),
    ]
    for line in lines:
        console.out(line.rstrip(), highlight=False)


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none.

    >>> percent(0.4321), percent(None)
    ('43.2 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"
