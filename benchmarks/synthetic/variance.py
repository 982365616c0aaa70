"""The error of one estimate by number of directions, and by number of calls of f.

Figures 2 and 3 of arXiv 2510.19975 compare samplers at equal directions; a two-point
estimate also asks f(theta), so that equal calls are shown beside them.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.study import COLOURS, Cell, Study, plain, tabulate, with_error
from benchmarks.synthetic.estimates import MEASURES, METHODS, PROBLEMS, measure

QUICK_SIZES = (2, 8, 32, 128)
FULL_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SHOWN = 32  # in the printed tables
DRAWN = (
    "gaussian",
    "sphere",
    "rademacher",
    "coordinate",
    "dap-gaussian",
    "dap-refined",
    "dap-average",
    "orthogonal",
    "simplex",
    "rademacher-loo",
)


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each objective and method, with all sizes in both ways of counting."""
    sizes = FULL_SIZES if full else QUICK_SIZES

    def cell(problem, method):
        def run(tick):
            extra = METHODS[method].extra_queries
            counts = sorted({n for size in sizes for n in (size, size - extra)})
            counts = [n for n in counts if METHODS[method].accepts(n)]
            key = jax.random.key(seed)
            found = measure(PROBLEMS[problem], METHODS[method], counts, key)
            tick(1.0)
            return [{"problem": problem, "method": method} | row for row in found]

        return run

    return {
        f"{problem}/{method}": cell(problem, method)
        for problem in PROBLEMS
        for method in METHODS
    }


def _at(frame: pd.DataFrame, problem: str, counted_by: str, name: str) -> pd.DataFrame:
    """Rows of one panel, indexed by (method, size)."""
    rows = frame[(frame["problem"] == problem) & (frame["measure"] == name)]
    return rows.set_index(["method", counted_by]).sort_index()


def tables(frame: pd.DataFrame) -> list[Table]:
    """One a problem and way of counting, at SHOWN directions or calls."""
    out = []
    counts = {"num_directions": "directions", "queries": "calls of f"}
    for problem, counted_by in itertools.product(PROBLEMS, counts):
        panels = {name: _at(frame, problem, counted_by, name) for name in MEASURES}
        rows = []
        for name, method in METHODS.items():
            if (name, SHOWN) not in panels["error"].index:
                rows.append([method.label, *["-"] * 6])
                continue
            stats = {m: panel.loc[(name, SHOWN)] for m, panel in panels.items()}
            row = [method.label, f"{stats['tau_mse']['median']:.0e}"]
            for m in ("tau_error", "error"):
                mean, error, theory = stats[m][["mean", "standard_error", "theory"]]
                row += [with_error(mean, error), plain(theory)]
            rows.append([*row, f"{stats['cosine']['median']:.2f}"])
        columns = ["", "tau-MSE", "≥ tau", "theory", "all", "theory", "cos"]
        out.append(tabulate(f"{problem}, {SHOWN} {counts[counted_by]}", columns, rows))
    out[-1].caption = (
        "tau-MSE and cosine: medians. ≥ tau, all: squared error over |gradient|² on the"
        " entries of at least tau and on all, mean with its standard error in the last"
        " digit, and closed form."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """How the closed forms fared, and what two stages cost at equal calls."""
    checked = frame[frame["z"].notna()]
    beyond = checked[checked["z"] > 3]
    again = checked[checked["trials"] > checked["trials"].min()]
    text = [
        f"{len(checked)} cells have a closed form: {len(beyond)} lie beyond 3 standard"
        f" errors, the farthest at {checked['z'].max():.1f}"
        f" ({len(again)} were measured again with ten times the trials)."
    ]
    for problem in PROBLEMS:
        for name, words in (("error", "full error"), ("tau_error", "tau error")):
            panel = _at(frame, problem, "queries", name)["mean"]
            sphere = panel["sphere", SHOWN]
            ratio = lambda name, panel=panel, s=sphere: panel[name, SHOWN] / s
            text.append(
                f"{problem}, {SHOWN} calls, {words} against the sphere's: refined DAP"
                f" {ratio('dap-refined'):.2f}, averaged DAP {ratio('dap-average'):.2f},"
                f" Rademacher {ratio('rademacher'):.2f}, exact DAP (needs the gradient)"
                f" {ratio('dap-gaussian'):.2f}."
            )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """Errors by size: a row for each objective, a column for each way of counting."""
    out = Figure(figsize=(11, 0.8 + 3.2 * len(PROBLEMS)), layout="constrained")
    axes = out.subplots(len(PROBLEMS), 3, sharex=True, squeeze=False)
    columns = (
        ("num_directions", "tau_error", "entries ≥ τ, equal directions"),
        ("queries", "tau_error", "entries ≥ τ, equal calls of f"),
        ("queries", "error", "all entries, equal calls of f"),
    )
    floor = 1e-6  # below are exact estimates, to rounding
    for row, problem in zip(axes, PROBLEMS, strict=True):
        for axis, (counted_by, error, title) in zip(row, columns, strict=True):
            panel = _at(frame, problem, counted_by, error)
            sizes = [n for n in FULL_SIZES if n in set(panel.index.get_level_values(1))]
            for colour, name in zip(COLOURS, DRAWN, strict=False):
                found = panel.loc[name].reindex(sizes).dropna(subset="mean")
                axis.plot(
                    found.index,
                    np.maximum(found["mean"], floor),
                    marker="o",
                    markersize=3.5,
                    linewidth=1.5,
                    color=colour,
                    label=METHODS[name].label,
                )
                if counted_by == "num_directions":
                    axis.plot(
                        found.index,
                        np.maximum(found["theory"], floor),
                        linestyle=(0, (1, 2)),
                        linewidth=3.5,
                        alpha=0.45,
                        color=colour,
                    )
            axis.set(xscale="log", yscale="log", ylim=(floor / 2, None))
            axis.set_title(f"{problem}: {title}", fontsize=10)
            axis.set_xlabel("directions" if counted_by != "queries" else "calls of f")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("mean squared error / |gradient|²")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    out.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    out.suptitle(
        "Error of one estimate (dotted: closed form; at the bottom: exact to rounding)",
        fontsize=11,
    )
    return out


STUDY = Study(
    "Variance of one estimate (arXiv 2510.19975, Figures 2 and 3)",
    cells,
    tables,
    findings,
    figure,
)
