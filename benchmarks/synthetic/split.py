"""Which share of the directions should the rough stage of two-stage DAP have?"""

from __future__ import annotations

import jax
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.study import COLOURS, Cell, Study, tabulate
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
UNSPLIT = ("sphere", "rademacher")


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """The sparse product, n = 16: every split, and what uses no split at all."""
    del full  # the same at both sizes

    def cell(method, name, split):
        def run(tick):
            key = jax.random.key(seed)
            found = measure(PROBLEMS["product"], method, SIZES, key)
            tick(1.0)
            return [{"method": name, "split": split} | row for row in found]

        return run

    references = {name: cell(METHODS[name], name, 0.0) for name in UNSPLIT}
    return references | {
        f"{combine}/{split}": cell(
            Method(combine, build=two_stage(combine, split)), combine, split
        )
        for combine in ("refined", "average")
        for split in SPLITS
    }


def tables(frame: pd.DataFrame) -> list[Table]:
    """Errors over the sphere's, at equal directions (and so at equal calls)."""
    frame = relative(frame, ["method", "split"], ["num_directions"])
    cell = frame.set_index(["method", "split", "num_directions", "measure"])["ratio"]
    out = []
    for name, words in (("error", "full error"), ("tau_error", "tau error")):
        rows = [
            [
                f"{method}, {split:.0%} rough" if split else METHODS[method].label,
                *(f"{cell[(method, split, n, name)]:.2f}" for n in SIZES),
            ]
            for method, split in frame[["method", "split"]].drop_duplicates().values
        ]
        columns = ["method", *(f"K = {n}" for n in SIZES)]
        out.append(
            tabulate(
                f"Sparse product, d = 16: {words} over the sphere's",
                columns,
                rows,
            )
        )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    frame = relative(frame, ["method", "split"], ["num_directions"])
    text = []
    for name, words in (("error", "full error"), ("tau_error", "tau error")):
        staged = frame[(frame["measure"] == name) & (frame["split"] > 0)]
        best = staged.loc[staged.groupby("num_directions")["ratio"].idxmin()]
        found = ", ".join(
            f"K = {row.num_directions}: {row.method} with {row.split:.0%} rough"
            f" ({row.ratio:.2f})"
            for row in best.itertuples()
        )
        text.append(f"Best split for the {words}, over the sphere's: {found}.")
    return text


def figure(frame: pd.DataFrame) -> Figure:
    frame = relative(frame, ["method", "split"], ["num_directions"])
    out = Figure(figsize=(9, 4), layout="constrained")
    axes = out.subplots(1, 2)
    titles = {"error": "all entries", "tau_error": "entries ≥ τ"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for style, method in zip(("-", "--"), ("average", "refined"), strict=True):
            for colour, size in zip(COLOURS, SIZES, strict=False):
                rows = frame[
                    (frame["measure"] == name)
                    & (frame["method"] == method)
                    & (frame["num_directions"] == size)
                ].sort_values("split")
                axis.plot(
                    100 * rows["split"],
                    rows["ratio"],
                    style,
                    marker="o",
                    color=colour,
                    label=f"{method}, K = {size}",
                )
        axis.axhline(1, color="black", linewidth=1, linestyle=":")
        axis.set(
            title=f"{title} (dotted: the sphere)",
            xlabel="directions in the rough stage, %",
            ylabel="error over the sphere's",
            yscale="log",
        )
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Batch split of two-stage DAP", cells, tables, findings, figure)
