"""The error of one estimate by number of directions, and by number of calls of f.

Figures 2 and 3 of arXiv 2510.19975 compare samplers at equal directions; a two-point
estimate also asks f(theta), so that equal calls are shown beside them.
"""

import functools

import jax
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.estimates import METHODS, PROBLEMS, measure

QUICK_SIZES = (2, 8, 32, 128)
FULL_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SHOWN = 32  # calls of f, in the printed tables
UNDRAWN = ("sphere", "Rademacher", "coordinate", "fixed length")  # bases of exact DAP


def estimate(problem: str, name: str, full: bool, seed: int, tick: Tick) -> list[Row]:
    """All sizes, in both ways of counting."""
    method = METHODS[name]
    sizes = FULL_SIZES if full else QUICK_SIZES
    counts = {n for size in sizes for n in (size, size - method.extra_queries)}
    counts = sorted(n for n in counts if method.accepts(n))
    found = measure(PROBLEMS[problem], method, counts, jax.random.key(seed))
    return [{"problem": problem, "method": name} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each objective and method."""
    return {
        f"{problem}/{name}": functools.partial(estimate, problem, name, full, seed)
        for problem in PROBLEMS
        for name in METHODS
    }


def tables(frame: pd.DataFrame) -> Tables:
    """The mean, its standard error and the closed form, at SHOWN calls."""
    axes = {"index": "method", "columns": "measure", "sort": False}
    columns = ["mean", "standard_error", "theory"]
    return {
        f"{problem}, {SHOWN} calls of f: error over |gradient|²": (
            part.pivot_table(columns, **axes).swaplevel(axis=1).sort_index(axis=1)
        )
        for problem, part in frame[frame["queries"] == SHOWN].groupby("problem")
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """How the closed forms fared."""
    checked = frame[frame["z"].notna()]
    again = checked["trials"] > checked["trials"].min()
    return [
        f"{len(checked)} cells have a closed form: {(checked['z'] > 3).sum()} lie"
        f" beyond 3 standard errors, the farthest at {checked['z'].max():.1f}"
        f" ({again.sum()} were measured again with ten times the trials)."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Errors by size: a row for each objective, a column for each way of counting."""
    panels = {
        "entries ≥ τ, equal directions": ("num_directions", "tau_error"),
        "entries ≥ τ, equal calls of f": ("queries", "tau_error"),
        "all entries, equal calls of f": ("queries", "error"),
    }
    undrawn = [f"exact DAP, {base}" for base in UNDRAWN]
    drawn = frame[~frame["method"].isin(undrawn)]
    parts = []
    for panel, (count, name) in panels.items():
        part = drawn[(drawn["measure"] == name) & drawn[count].isin(FULL_SIZES)]
        part = part.assign(size=part[count], panel=panel)
        names = ["problem", "method", "size", "panel"]
        parts.append(part.melt(names, ["mean", "theory"], value_name="error"))
    both = pd.concat(parts, ignore_index=True).query("error > 1e-6")  # else: exact
    axes = {"x": "size", "y": "error", "hue": "method", "style": "variable"}
    return lines(both, "xy", **axes, col="panel", row="problem")


TITLE = "Variance of one estimate (arXiv 2510.19975, Figures 2 and 3)"
STUDY = Study(TITLE, cells, tables, findings, figure)
