"""Which share of the directions should the rough stage of two-stage DAP have?"""

import functools

import jax
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.estimates import (
    METHODS,
    PROBLEMS,
    Method,
    measure,
    relative,
    two_stage,
)

SPLITS = (0.1, 0.25, 0.5, 0.75, 0.9)
SIZES = (16, 64, 256)
MEASURES = {"error": "all entries", "tau_error": "entries ≥ tau"}


def estimate(
    method: Method, name: str, split: float, seed: int, tick: Tick
) -> list[Row]:
    """Errors on the sparse product, n = 16."""
    found = measure(PROBLEMS["product"], method, SIZES, jax.random.key(seed))
    return [{"method": name, "split": split} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """Every split, and what uses no split at all; the same at both sizes."""
    unsplit = {
        name: functools.partial(estimate, METHODS[name], name, 0.0, seed)
        for name in ("sphere", "rademacher")
    }
    return unsplit | {
        f"{combine}/{split}": functools.partial(
            estimate,
            Method(combine, build=two_stage(combine, split)),
            combine,
            split,
            seed,
        )
        for combine in ("refined", "average")
        for split in SPLITS
    }


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Errors over the sphere's, at equal directions (and so at equal calls)."""
    return relative(frame, ["method", "split"], ["num_directions"])


def tables(frame: pd.DataFrame) -> Tables:
    """By method and split."""
    by = {"index": ["method", "split"], "columns": "num_directions", "sort": False}
    found = ratios(frame).groupby("measure")
    return {
        f"Sparse product, d = 16: {MEASURES[name]}, error over the sphere's, by K": (
            part.pivot_table("ratio", **by)
        )
        for name, part in found
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The best split by K."""
    text = []
    staged = ratios(frame).query("split > 0").reset_index()
    for name, part in staged.groupby("measure"):
        best = part.loc[part.groupby("num_directions")["ratio"].idxmin()]
        found = ", ".join(
            f"K = {row.num_directions}: {row.method} with {row.split:.0%} rough"
            f" ({row.ratio:.2f})"
            for row in best.itertuples()
        )
        text.append(f"Best split for {MEASURES[name]}, over the sphere's: {found}.")
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """A panel for all entries, one for the large ones."""
    found = ratios(frame).query("split > 0")
    axes = {"x": "split", "y": "ratio", "hue": "num_directions", "style": "method"}
    return lines(found, "y", **axes, col="measure")


STUDY = Study("Batch split of two-stage DAP", cells, tables, findings, figure)
