"""Tables in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 140  # where stdout is no terminal


def table(*columns: str, right: Iterable[str] = (), gap: int = 2) -> Table:
    """A table without lines. right: columns to set flush right. gap: spaces between columns."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for column in columns:
        justify: Any = "right" if column in right else "left"
        shown.add_column(column, justify=justify, overflow="fold")
    return shown


def print_table(shown: Table) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    Console(width=width, highlight=False, markup=False).print(shown)
