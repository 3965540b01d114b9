"""Tables and numbers as the verbs print them in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table_of(title: str, *columns: str) -> Table:
    """A table whose first column is a name, and whose others are figures."""
    # Not before there is something to print: `--help` answers at once.
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left")
    return table


def number(value: float) -> str:
    """Without the zero before the point, as tables of this field have it; none where not known."""
    return f"{value:.4f}".replace("0.", ".", 1) if value == value else ""
