"""Convergence: vanilla, mean baseline, ZoAR and the recommended preset side by side.

Every method runs from the same starting points with the paper's settings (K = 10,
mu = 0.05, R-AdaZO with betas 0.9 and 0.99) at every step size of one grid. Tables show
the paper's step size, and each method at the best of its own.
"""

import functools
import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.functions import FUNCTIONS
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.runs import METHODS, PAPER_STEP, curves

QUICK, FULL = (500, 2000), (10_000, 20_000)  # d, iterations
SEEDS = 3
PRESETS = ("recommended", "recommended-half", "fast-half", "fast-30")
DRAWN = (
    *("vanilla", "mean", "zoar-5", "zoar-20", "zoar-5-cosine", "mean-rademacher"),
    *("recommended", "fast-half", "exact", "exact-cosine"),
)


def descend(function: str, method: str, full: bool, seed: int, tick: Tick) -> list[Row]:
    """All seeds and step sizes in one program."""
    dimension, iterations = FULL if full else QUICK
    found = curves(
        FUNCTIONS[function],
        METHODS[method],
        dimension=dimension,
        iterations=iterations,
        seeds=range(SEEDS * seed, SEEDS * (seed + 1)),
        tick=tick,
    )
    return [{"function": function, "method": method} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each function and method."""
    return {
        f"{f}/{m}": functools.partial(descend, f, m, full, seed)
        for f in FUNCTIONS
        for m in METHODS
    }


class Runs:
    """The curves of one function, averaged over seeds."""

    def __init__(self, rows: pd.DataFrame):
        keys = ["method", "step_size", "iteration"]
        self.loss = rows.groupby(keys)["loss"].mean()
        self.last = rows["iteration"].max()
        self.final = self.loss.xs(self.last, level="iteration")

    def best_step(self, method: str) -> float:
        """The step size of the lowest mean final loss."""
        return float(self.final[method].idxmin())

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
        target = self.final["zoar-5"].min()
        calls = lambda name: self.queries_to(target, name, self.best_step(name))
        return calls(method) / calls("zoar-5")

    def under_vanilla(self, method: str) -> float:
        """How many times fewer calls reach vanilla's loss, at the paper's step size."""
        target = self.final["vanilla", PAPER_STEP]
        calls = lambda name: self.queries_to(target, name, PAPER_STEP)
        return calls("vanilla") / calls(method)


def by_function(frame: pd.DataFrame) -> dict[str, Runs]:
    """The curves of each."""
    return {f: Runs(part) for f, part in frame.groupby("function", sort=False)}


def tables(frame: pd.DataFrame) -> Tables:
    """At the paper's step size, and each method at the best of the grid.

    A method that never gets there has no ratio. An exact gradient counts as 10 calls.
    """
    runs = by_function(frame)
    last, seeds = frame["iteration"].max(), frame["seed"].nunique()
    columns = {
        f"Step size {PAPER_STEP:g}: final loss; {last:,} steps, {seeds} seeds": (
            lambda of, name: of.final[name, PAPER_STEP]
        ),
        f"Step size {PAPER_STEP:g}: how many times fewer calls of f reach vanilla's"
        " final loss": Runs.under_vanilla,
        "Best step size of the grid: final loss": lambda of, name: of.final[name].min(),
        "The best step size": Runs.best_step,
        "Best step sizes: calls of f to reach ZoAR's final loss, over ZoAR's N = 5": (
            Runs.over_zoar
        ),
    }
    labels = {name: method.label for name, method in METHODS.items()}
    return {
        title: pd.DataFrame(
            {
                f: {label: of(run, name) for name, label in labels.items()}
                for f, run in runs.items()
            }
        )
        for title, of in columns.items()
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """Does the recommended preset halve ZoAR's calls; what does the history bring."""
    preset, decayed, history, share = [], [], [], []
    for f, runs in by_function(frame).items():
        soonest = np.fmin.reduce([runs.over_zoar(name) for name in PRESETS])
        preset.append(f"{f} {soonest:.2f}")
        decayed.append(f"{f} {runs.over_zoar('zoar-5-cosine'):.2f}")
        ratio = runs.final["zoar-5"].min() / runs.final["mean"].min()
        history.append(f"{f} {ratio - 1:+.0%}")
        paper = np.log(runs.final.xs(PAPER_STEP, level="step_size"))
        gain = paper["vanilla"] - paper
        share.append(f"{f} {gain['mean'] / gain['zoar-5']:.0%}")
    return [
        "Calls of f that our presets need for ZoAR's final loss, over ZoAR's, each at"
        f" its best step size, the soonest of four (nan: never): {', '.join(preset)};"
        f" ZoAR itself with a cosine decay: {', '.join(decayed)}.",
        "Final loss of ZoAR (N = 5) against the mean baseline alone, each at its best"
        f" step size: {', '.join(history)}.",
        "Share of ZoAR's gain over vanilla (in log loss, at the paper's step size) that"
        f" the mean baseline alone has: {', '.join(share)}.",
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Loss by calls of f: the paper's step size above, each method's best below."""
    parts = []
    for f, runs in by_function(frame).items():
        for name in DRAWN:
            method = METHODS[name]
            steps = {"best step size": runs.best_step(name)}
            if not name.endswith("cosine") and name not in PRESETS:
                steps[f"step size {PAPER_STEP:g}"] = PAPER_STEP
            for panel, step in steps.items():
                curve = runs.loss[name, step].reset_index()
                # What is spent stands still.
                curve = curve[curve["iteration"] <= method.budget * runs.last]
                labels = {"method": method.label, "panel": panel, "function": f}
                calls = curve["iteration"] * method.queries / 1000
                parts.append(curve.assign(**labels, calls=calls))
    axes = {"x": "calls", "y": "loss", "hue": "method", "col": "function"}
    out = lines(
        pd.concat(parts, ignore_index=True), "y", **axes, row="panel", marker=""
    )
    for panel in out.axes:
        panel.set(xlabel="thousand calls of f")
    return out


STUDY = Study(
    "Convergence (arXiv 2506.14460, Figures 1 and 2)", cells, tables, findings, figure
)
