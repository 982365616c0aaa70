"""Convergence: vanilla, mean baseline, ZoAR and the recommended preset side by side.

Every method runs from the same starting points with the paper's settings (K = 10,
mu = 0.05, R-AdaZO with betas 0.9 and 0.99) at every step size of one grid. Tables show
the paper's step size, and each method at the best of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.functions import FUNCTIONS
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate
from benchmarks.synthetic.runs import (
    METHODS,
    PAPER_STEP,
    STEPS,
    Curves,
    constant,
    curves,
)

QUICK, FULL = (500, 2000), (10_000, 20_000)  # d, iterations
SEEDS = 3


def curve_rows(
    name: str,
    method: str,
    found: Curves,
    seeds: Sequence[int],
    step_sizes: Sequence[float],
) -> list[Row]:
    """Rows of the curves of one function and method."""
    return [
        {
            "function": name,
            "method": method,
            "step_size": step_size,
            "seed": seed,
            "iteration": int(iteration),
            "queries": int(iteration) * METHODS[method].queries,
            "loss": float(loss),
        }
        for i, seed in enumerate(seeds)
        for j, step_size in enumerate(step_sizes)
        for iteration, loss in zip(found.iterations, found.losses[i, j], strict=True)
    ]


PRESETS = ("recommended", "recommended-half", "fast-half", "fast-30")


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each function and method: all seeds and step sizes in one program."""
    dimension, iterations = FULL if full else QUICK
    seeds = range(SEEDS * seed, SEEDS * (seed + 1))

    def cell(name, method):
        def run(tick):
            found = curves(
                FUNCTIONS[name],
                METHODS[method],
                dimension=dimension,
                iterations=iterations,
                seeds=seeds,
                tick=tick,
            )
            return curve_rows(name, method, found, seeds, STEPS)

        return run

    return {f"{f}/{m}": cell(f, m) for f in FUNCTIONS for m in METHODS}


class Runs:
    """The curves of one function, averaged over seeds."""

    def __init__(self, frame: pd.DataFrame, function: str):
        rows = frame[frame["function"] == function]
        keys = ["method", "step_size", "iteration"]
        self.loss = rows.groupby(keys)["loss"].mean()
        self.last = rows["iteration"].max()
        final = rows[rows["iteration"] == self.last]
        self.final = final.groupby(["method", "step_size"])["loss"]

    def best_step(self, method: str) -> float:
        """The step size of the lowest mean final loss."""
        return float(self.final.mean()[method].idxmin())

    def queries_to(self, target: float, method: str, step_size: float) -> float:
        """Calls of f until the mean loss is at most the target; nan if never."""
        curve = self.loss[method, step_size]
        reached = curve.index[curve <= target]
        if not len(reached):
            return math.nan
        # A curve is looked at now and then: a budget may end between two looks.
        steps = min(reached[0], METHODS[method].budget * self.last)
        return steps * METHODS[method].queries

    def over_zoar(self, method: str) -> float:
        """Calls of f that reach ZoAR's (N = 5) final loss, over ZoAR's own.

        Both at their best step sizes; nan if the method never gets there.
        """
        target = self.final.mean()["zoar-5"].min()
        calls = lambda name: self.queries_to(target, name, self.best_step(name))
        return calls(method) / calls("zoar-5")


def _ratio(number: float) -> str:
    return "never" if math.isnan(number) else f"{number:.2f}"


def tables(frame: pd.DataFrame) -> list[Table]:
    """At the paper's step size, and each method at the best of the grid."""
    functions = [f for f in FUNCTIONS if f in set(frame["function"])]
    runs = {f: Runs(frame, f) for f in functions}
    full = frame["iteration"].max() == FULL[1]
    dimension, iterations = FULL if full else QUICK
    size = f"d = {dimension:,}, {iterations:,} steps, {SEEDS} seeds"

    paper, against_vanilla, best, steps_found, against_zoar = [], [], [], [], []
    for name, method in METHODS.items():
        final = {f: runs[f].final.mean()[name] for f in functions}
        steps = {f: runs[f].best_step(name) for f in functions}
        paper.append([method.label, *(plain(final[f][PAPER_STEP]) for f in functions)])
        best.append([method.label, *(plain(final[f][steps[f]]) for f in functions)])
        edges = min(STEPS), max(STEPS)
        marked = [f"{steps[f]:g}{'*' if steps[f] in edges else ''}" for f in functions]
        steps_found.append([method.label, *marked])
        row = []
        for f in functions:
            row.append(_ratio(runs[f].over_zoar(name)))
        against_zoar.append([method.label, *row])
        row = []
        for f in functions:
            target = runs[f].final.mean()["vanilla", PAPER_STEP]
            queries = runs[f].queries_to(target, name, PAPER_STEP)
            whole = runs[f].queries_to(target, "vanilla", PAPER_STEP)
            row.append("never" if math.isnan(queries) else f"{whole / queries:.1f}x")
        against_vanilla.append([method.label, *row])
    columns = ["", *functions]
    tables = [
        tabulate(f"Step size {PAPER_STEP:g}: final loss; {size}", columns, paper),
        tabulate(
            f"Step size {PAPER_STEP:g}: how many times fewer calls of f reach vanilla's"
            " final loss",
            columns,
            against_vanilla,
        ),
        tabulate("Best step size of the grid: final loss", columns, best),
        tabulate("The best step size", columns, steps_found),
        tabulate(
            "Best step sizes: calls of f to reach ZoAR's final loss, over ZoAR's N = 5",
            columns,
            against_zoar,
        ),
    ]
    tables[-1].caption = (
        "recommended: mean baseline, Rademacher, cosine decay over the run, or over"
        " half of it; fast preset: K = 20, betas 0 and 0.95, exponential decay by 2.2"
        " over half or 30% of the calls. An exact gradient counts as 10 calls. *: edge"
        " of the grid."
    )
    return tables


def findings(frame: pd.DataFrame) -> list[str]:
    """Does the recommended preset halve ZoAR's calls; what does the history bring."""
    functions = [f for f in FUNCTIONS if f in set(frame["function"])]
    preset, decayed, history, share = [], [], [], []
    for f in functions:
        runs = Runs(frame, f)
        final = runs.final.mean()
        soonest = np.fmin.reduce([runs.over_zoar(name) for name in PRESETS])
        preset.append(f"{f} {_ratio(soonest)}")
        decayed.append(f"{f} {_ratio(runs.over_zoar('zoar-5-cosine'))}")
        ratio = final["zoar-5"].min() / final["mean"].min()
        history.append(f"{f} {ratio - 1:+.0%}")
        gain = lambda m, final=final: math.log(
            final["vanilla", PAPER_STEP] / final[m, PAPER_STEP]
        )
        whole = gain("zoar-5")
        share.append(f"{f} {gain('mean') / whole:.0%}" if whole > 0 else f"{f} -")
    return [
        "Calls of f that our presets need for ZoAR's final loss, over ZoAR's, each at"
        f" its best step size, the soonest of four: {', '.join(preset)}; ZoAR"
        f" itself with a cosine decay: {', '.join(decayed)}.",
        "Final loss of ZoAR (N = 5) against the mean baseline alone, each at its best"
        f" step size: {', '.join(history)}.",
        "Share of ZoAR's gain over vanilla (in log loss, at the paper's step size) that"
        f" the mean baseline alone has: {', '.join(share)}.",
    ]


DRAWN = (
    "vanilla",
    "mean",
    "zoar-5",
    "zoar-20",
    "zoar-5-cosine",
    "mean-rademacher",
    "recommended",
    "fast-half",
    "exact",
    "exact-cosine",
)


def figure(frame: pd.DataFrame) -> Figure:
    """Loss by calls of f: the paper's step size above, each method's best below."""
    functions = [f for f in FUNCTIONS if f in set(frame["function"])]
    out = Figure(figsize=(3.1 * len(functions), 7), layout="constrained")
    axes = out.subplots(2, len(functions), squeeze=False)
    for column, f in zip(axes.T, functions, strict=True):
        runs = Runs(frame, f)
        for axis, best in zip(column, (False, True), strict=True):
            for colour, name in zip(COLOURS, DRAWN, strict=False):
                method = METHODS[name]
                if name == ("exact" if best else "exact-cosine"):
                    continue
                if method.decay is not constant and not best:
                    continue
                step = runs.best_step(name) if best else PAPER_STEP
                curve = runs.loss[name, step]
                curve = curve[curve.index <= math.ceil(method.budget * runs.last)]
                exact = name.startswith("exact")
                axis.plot(
                    curve.index * method.queries / 1000,
                    curve.to_numpy(),
                    color="black" if exact else colour,
                    linestyle=":" if exact else "-",
                    linewidth=1.6,
                    label="exact gradient" if exact else method.label,
                )
            target = runs.final.mean()["exact-cosine"].min()
            if best and target < 1e-6:
                axis.set_ylim(bottom=runs.final.mean()["recommended"].min() / 10)
            axis.set(yscale="log", xlabel="thousand calls of f")
            axis.set_title(
                f"{f}, {'best step sizes' if best else f'step size {PAPER_STEP:g}'}",
                fontsize=10,
            )
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    for row in axes:
        row[0].set_ylabel("loss f(θ), mean of the seeds")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    out.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return out


STUDY = Study(
    "Convergence (arXiv 2506.14460, Figures 1 and 2)", cells, tables, findings, figure
)
