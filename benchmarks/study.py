"""What a study is: cells to measure, and what to show of their rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

__all__ = [
    "COLOURS",
    "Cell",
    "Row",
    "Study",
    "Tick",
    "plain",
    "tabulate",
    "with_error",
]

Tick = Callable[[float], None]
"""Takes the share of a cell that is done; raises to stop it."""

Row = dict[str, Any]
"""A line of the study's CSV; what a row lacks is empty there."""

Cell = Callable[[Tick], list[Row]]
"""A unit of work: what a resumed run does again as a whole, or not at all."""


class Study(NamedTuple):
    """A question, the cells that answer it, and the form of the answer."""

    title: str
    cells: Callable[[bool, int], dict[str, Cell]]  # (full size?, seed) -> by name
    tables: Callable[[pd.DataFrame], list[Table]]
    findings: Callable[[pd.DataFrame], list[str]]  # sentences, computed
    figure: Callable[[pd.DataFrame], Figure]
    timed: bool = False  # its cells measure time: nothing may run beside them


# Distinct for all eyes (Okabe and Ito), then darker tones for longer lists.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
    "#7f3c00",
    "#4b0082",
    "#006d5b",
)


def tabulate(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        collapse_padding=True,
        pad_edge=False,
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def plain(number: float, digits: int = 3) -> str:
    """Three digits, without an exponent where that can be read."""
    if number != number:
        return "-"
    size = abs(number)
    if size < 1e-12:
        return "0"
    if size < 1e-3 or size >= 1e7:
        return f"{number:.{digits - 1}e}"
    if size >= 10 ** (digits - 1):
        return f"{number:,.0f}"
    return f"{number:.{digits}g}"


def with_error(mean: float, error: float) -> str:
    """The mean with its standard error in units of the last digit: 0.535(7)."""
    if not error > 1e-6:  # exact to rounding
        return plain(mean)
    digits = max(0, -math.floor(math.log10(error)))
    return f"{mean:.{digits}f}({round(error * 10**digits)})"
