"""Tables in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 140  # where stdout is no terminal


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table without lines. right: columns to set flush right. A column `source` is cut, not
    wrapped, where the terminal is narrow."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        code = column == "source"
        shown.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=code,
            overflow="ellipsis" if code else "fold",
        )
    return shown


def print_table(shown: Table) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    Console(width=width, highlight=False, markup=False).print(shown)
