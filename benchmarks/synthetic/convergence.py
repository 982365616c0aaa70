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
from benchmarks.study import Cell, Study, Tables, lines
from benchmarks.synthetic.runs import METHODS, PAPER_STEP, STEPS, Size, curves

QUICK, FULL = Size(500, 2000), Size(10_000, 20_000)
SEEDS = 3
ZOAR, DECAYED, MEAN = "ZoAR N = 5", "ZoAR N = 5, cosine", "mean baseline"
HALF = "recommended, half"
PRESETS = ("recommended", HALF, "fast preset, half", "fast preset, 30%")
UNDRAWN = (HALF, "fast preset, 30%")
# Drawn at the paper's step size, beside their best.
OF_PAPER = ("vanilla", MEAN, ZOAR, "ZoAR N = 20", "mean, Rademacher", "exact gradient")


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each function and method: all seeds and step sizes in one program."""
    size, seeds = FULL if full else QUICK, range(SEEDS * seed, SEEDS * (seed + 1))
    return {
        f"{f}/{m}": functools.partial(
            curves, of, method, size, seeds, STEPS, {"function": f, "method": m}
        )
        for f, of in FUNCTIONS.items()
        for m, method in METHODS.items()
    }


class Runs:
    """The curves of one function, averaged over seeds."""

    def __init__(self, rows: pd.DataFrame):
        keys = ["method", "step_size", "iteration"]
        self.loss = rows.groupby(keys)["loss"].mean()
        self.last = rows["iteration"].max()
        self.final = self.loss.xs(self.last, level="iteration").unstack("step_size")
        self.best = self.final.min(axis=1)
        self.best_step = self.final.idxmin(axis=1)

    def queries_to(self, target: float, method: str, step_size: float) -> float:
        """Calls of f until the mean loss is at most the target; nan if never."""
        curve = self.loss[method, step_size]
        reached = curve.index[curve <= target]
        if not len(reached):
            return math.nan
        # A curve is looked at now and then: a budget may end between two looks.
        steps = min(reached[0], METHODS[method].budget * self.last)
        return steps * METHODS[method].queries

    def over_zoar(self) -> pd.Series:
        """Calls of f that reach ZoAR's final loss over its own, at best step sizes."""
        calls = {
            m: self.queries_to(self.best[ZOAR], m, self.best_step[m]) for m in METHODS
        }
        return pd.Series(calls) / calls[ZOAR]

    def under_vanilla(self) -> pd.Series:
        """How many times fewer calls reach vanilla's loss, at the paper's step size."""
        target = self.final.loc["vanilla", PAPER_STEP]
        calls = {m: self.queries_to(target, m, PAPER_STEP) for m in METHODS}
        return calls["vanilla"] / pd.Series(calls)

    def share(self) -> float:
        """Of ZoAR's gain over vanilla in log loss: what the mean baseline alone has."""
        gain = np.log(self.final.loc["vanilla", PAPER_STEP] / self.final[PAPER_STEP])
        return gain[MEAN] / gain[ZOAR]


def by_function(frame: pd.DataFrame) -> dict[str, Runs]:
    """The curves of each."""
    return {f: Runs(part) for f, part in frame.groupby("function", sort=False)}


def tables(frame: pd.DataFrame) -> Tables:
    """A column for each function; nan where a method never gets there."""
    runs = by_function(frame)
    paper, best = f"Step size {PAPER_STEP:g}: ", "Best step size of the grid: "
    columns = {
        f"{paper}final loss": lambda of: of.final[PAPER_STEP],
        f"{paper}how many times fewer calls reach vanilla's": Runs.under_vanilla,
        f"{best}final loss": lambda of: of.best,
        f"{best}which it is": lambda of: of.best_step,
        f"{best}calls of f to reach ZoAR's final loss, over ZoAR's": Runs.over_zoar,
    }
    return {
        title: pd.DataFrame({f: of(run) for f, run in runs.items()}, list(METHODS))
        for title, of in columns.items()
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """Does the recommended preset halve ZoAR's calls; what does the history bring."""
    questions = {
        "Calls of f that our presets need for ZoAR's final loss, over ZoAR's, each at"
        " its best step size, the soonest of four": (
            lambda of: of.over_zoar()[list(PRESETS)].min()
        ),
        "ZoAR itself with a cosine decay": lambda of: of.over_zoar()[DECAYED],
        "Final loss of ZoAR (N = 5) over that of the mean baseline alone, each at its"
        " best step size": lambda of: of.best[ZOAR] / of.best[MEAN],
        "Share of ZoAR's gain over vanilla (in log loss, at the paper's step size) that"
        " the mean baseline alone has": Runs.share,
    }
    runs = by_function(frame)
    return [
        f"{text}: {', '.join(f'{f} {of(run):.2f}' for f, run in runs.items())}."
        for text, of in questions.items()
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Loss by calls of f: the paper's step size above, each method's best below."""
    parts = []
    for f, runs in by_function(frame).items():
        for name in METHODS:
            panels = {"best step size": runs.best_step[name]}
            if name in OF_PAPER:
                panels[f"step size {PAPER_STEP:g}"] = PAPER_STEP
            for panel, step in panels.items() if name not in UNDRAWN else ():
                curve = runs.loss[name, step].reset_index()
                # What is spent stands still.
                curve = curve[curve["iteration"] <= METHODS[name].budget * runs.last]
                calls = curve["iteration"] * METHODS[name].queries / 1000
                names = {"method": name, "panel": panel, "function": f}
                parts.append(curve.assign(**names, **{"thousand calls": calls}))
    axes = {"x": "thousand calls", "y": "loss", "hue": "method", "col": "function"}
    every = pd.concat(parts, ignore_index=True)
    return lines(every, "y", **axes, row="panel", marker="")


TITLE = "Convergence (arXiv 2506.14460, Figures 1 and 2)"
STUDY = Study(TITLE, cells, tables, findings, figure)
