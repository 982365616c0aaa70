"""The paper's ZoAR experiment beside the losses that its authors' own code reaches."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.functions import FUNCTIONS
from benchmarks.study import COLOURS, Cell, Study, plain, tabulate
from benchmarks.synthetic.convergence import curve_rows
from benchmarks.synthetic.runs import METHODS, PAPER_STEP, curves

DIMENSION = 10_000
# (iterations, seeds, points of a curve)
QUICK, FULL = (500, 3, 1), (20_000, 8, 40)
# Losses of the authors' PyTorch code (CPU, float32, seed 456) at these iterations.
ITERATIONS = (500, 5000, 10_000, 20_000)
AUTHORS = {
    "quadratic/vanilla": (4828.12, 3414.51, 2406.96, 1405.81),
    "quadratic/zoar-5": (4352.43, 758.063, 34.2562, 33.3524),
    "rosenbrock/vanilla": (3606310.0, 1761550.0, 1076910.0, 608137.0),
    "rosenbrock/zoar-5": (3039130.0, 229144.0, 33243.3, 17878.7),
    "levy/vanilla": (6142.27, 3188.53, 1949.82, 1307.92),
    "levy/zoar-5": (5418.06, 827.225, 551.57, 329.27),
    "ackley/vanilla": (5.21898, 4.9967, 4.95657, 4.85681),
    "ackley/zoar-5": (4.96122, 3.7847, 3.7074, 3.64439),
}


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each function and method, at the paper's step size."""
    iterations, num_seeds, num_points = FULL if full else QUICK

    def cell(name):
        def run(tick):
            function, method = name.split("/")
            seeds = range(num_seeds * seed, num_seeds * (seed + 1))
            found = curves(
                FUNCTIONS[function],
                METHODS[method],
                dimension=DIMENSION,
                iterations=iterations,
                seeds=seeds,
                step_sizes=[PAPER_STEP],
                num_points=num_points,
                tick=tick,
            )
            return curve_rows(function, method, found, seeds, [PAPER_STEP])

        return run

    return {name: cell(name) for name in AUTHORS}


def comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """Ours and theirs at each iteration that both have.

    ``z`` is the distance of the authors' single run from the mean of ours, in standard
    deviations of one more run.
    """
    rows = []
    for name, theirs in AUTHORS.items():
        function, method = name.split("/")
        part = frame[(frame["function"] == function) & (frame["method"] == method)]
        for iteration, loss in zip(ITERATIONS, theirs, strict=True):
            ours = part.loc[part["iteration"] == iteration, "loss"].to_numpy()
            if not len(ours):
                continue
            spread = ours.std(ddof=1) * np.sqrt(1 + 1 / len(ours))
            rows.append(
                {
                    "function": function,
                    "method": method,
                    "iteration": iteration,
                    "authors": loss,
                    "mean": ours.mean(),
                    "low": ours.min(),
                    "high": ours.max(),
                    "z": (loss - ours.mean()) / spread,
                }
            )
    return pd.DataFrame(rows)


def tables(frame: pd.DataFrame) -> list[Table]:
    last = frame["iteration"].max()
    rows = [
        [
            f"{row.function}, {METHODS[row.method].label}",
            plain(row.authors, 4),
            plain(row.mean, 4),
            plain(row.low, 4),
            plain(row.high, 4),
            f"{row.z:+.1f}",
        ]
        for row in comparison(frame).itertuples()
        if row.iteration == last
    ]
    seeds = frame["seed"].nunique()
    columns = ["", "authors", "ours, mean", "lowest", "highest", "z"]
    title = f"Loss after {last:,} iterations, d = {DIMENSION:,}, {seeds} seeds of ours"
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    found = comparison(frame)
    final = found[found["iteration"] == found["iteration"].max()]
    inside = (final["low"] <= final["authors"]) & (final["authors"] <= final["high"])
    seeds = frame["seed"].nunique()
    expected = len(final) * (seeds - 1) / (seeds + 1)
    return [
        f"The authors' loss after {final['iteration'].max():,} iterations lies inside"
        f" the range of our {seeds} seeds in {inside.sum()} of {len(final)} cases"
        f" ({expected:.1f} are expected of a run like ours); the largest distance from"
        f" our mean is {final['z'].abs().max():.1f} standard deviations."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Our seeds as lines, the authors' run as dots."""
    functions = list(dict.fromkeys(frame["function"]))
    out = Figure(figsize=(3.2 * len(functions), 3.6), layout="constrained")
    axes = out.subplots(1, len(functions), squeeze=False)[0]
    found = comparison(frame)
    for axis, function in zip(axes, functions, strict=True):
        for colour, method in zip(COLOURS, ("vanilla", "zoar-5"), strict=False):
            part = frame[(frame["function"] == function) & (frame["method"] == method)]
            curves_by_seed = part.pivot(
                index="iteration", columns="seed", values="loss"
            )
            axis.plot(curves_by_seed, color=colour, linewidth=0.8, alpha=0.6)
            theirs = found[
                (found["function"] == function) & (found["method"] == method)
            ]
            axis.plot(
                theirs["iteration"],
                theirs["authors"],
                "o",
                color=colour,
                markeredgecolor="black",
                label=f"{METHODS[method].label} (dots: authors)",
            )
        axis.set(yscale="log", title=function, xlabel="iterations")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("loss f(θ)")
    axes[0].legend(frameon=False, fontsize=8)
    return out


STUDY = Study(
    "Losses beside those of the authors' code", cells, tables, findings, figure
)
