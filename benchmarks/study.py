"""What a study is: cells to measure, and what to show of their rows."""

import math
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import seaborn
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

Tick = Callable[[float], None]
"""Takes the share of a cell that is done; raises to stop it."""

Row = dict[str, Any]
"""A line of the study's CSV; what a row lacks is empty there."""

Cell = Callable[[Tick], list[Row]]
"""A unit of work: what a resumed run does again as a whole, or not at all."""

Tables = dict[str, pd.DataFrame]
"""By title; texts are shown as they are, numbers with three digits."""


class Study(NamedTuple):
    """A question, the cells that answer it, and the form of the answer."""

    title: str
    cells: Callable[[bool, int], dict[str, Cell]]  # (full size?, seed) -> by name
    tables: Callable[[pd.DataFrame], Tables]
    findings: Callable[[pd.DataFrame], list[str]]  # sentences, computed
    figure: Callable[[pd.DataFrame], Figure]
    timed: bool = False  # its cells measure time: nothing may run beside them


# Distinct for all eyes (Okabe and Ito), then darker tones for longer lists.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#000000", "#999999", "#7f3c00", "#4b0082", "#006d5b"),
)


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


def mean_error(values: pd.Series) -> str:
    """The mean of independent runs with its standard error, for ``agg``."""
    return with_error(values.mean(), values.sem())


def printed(tables: Tables) -> list[Table]:
    """The tables as they are printed; what names a row is text and comes first."""
    out = []
    for title, frame in tables.items():
        table = Table(
            title=title,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            collapse_padding=True,
            pad_edge=False,
        )
        names = frame.index.nlevels
        frame = frame.reset_index()
        for i, column in enumerate(frame.columns):
            parts = column if isinstance(column, tuple) else (column,)
            words = [str(part).replace("_", " ") for part in parts if str(part)]
            heading = "\n".join(
                line for word in words for line in textwrap.wrap(word, 10)
            )
            heading = "" if heading in ("index", "level 0") else heading
            justify = "right" if i >= names else "left"
            table.add_column(heading, justify=justify, no_wrap=True)
        for row in frame.itertuples(index=False, name=None):
            table.add_row(*map(_shown, row))
        out.append(table)
    return out


def _shown(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    if float(entry).is_integer() and abs(entry) < 1e7:
        return f"{int(entry):,}"
    return plain(float(entry))


def lines(frame: pd.DataFrame, log: str = "", **options: Any) -> Figure:
    """Curves by seaborn's relplot: x, y, hue, style, col are columns of the frame.

    Args:
      frame: one row a point; rows that agree in all but y are runs, whose mean is drawn
        with a band of one standard error.
      log: the axes whose scale is logarithmic, "x", "y" or "xy".
      options: of ``seaborn.relplot``.
    """
    colours = frame[options["hue"]].nunique() if "hue" in options else 1
    usual = {
        "kind": "line",
        "marker": "o",
        "errorbar": "se",
        "palette": list(COLOURS[:colours]) if "hue" in options else None,
        "height": 3.6,
        "facet_kws": {"sharex": False, "sharey": False},
    }
    grid = seaborn.relplot(frame, **usual | options)
    grid.set(**{f"{axis}scale": "log" for axis in log})
    if "row" in options:  # one line of both is wider than a panel
        grid.set_titles("{row_name}\n{col_name}")
    for axes in grid.axes.flat:
        axes.grid(alpha=0.25)
    grid.tight_layout()  # once more: a scale changes what has to fit
    return grid.figure


def bars(frame: pd.DataFrame, log: str = "", **options: Any) -> Figure:
    """Bars by seaborn's catplot: x, y, hue are columns of the frame; ``log`` as above.

    Runs that agree in all but the number are one bar, their mean.
    """
    colours = frame[options["hue"]].nunique() if "hue" in options else 1
    usual = {"kind": "bar", "palette": list(COLOURS[:colours])}
    grid = seaborn.catplot(frame, **usual | options)
    grid.set(**{f"{axis}scale": "log" for axis in log})
    return grid.figure
