"""The paper's ZoAR experiment beside the losses that its authors' own code reaches."""

import functools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.functions import FUNCTIONS
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
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


def descend(name: str, full: bool, seed: int, tick: Tick) -> list[Row]:
    """Curves of all seeds, at the paper's step size."""
    iterations, num_seeds, num_points = FULL if full else QUICK
    function, method = name.split("/")
    found = curves(
        FUNCTIONS[function],
        METHODS[method],
        dimension=DIMENSION,
        iterations=iterations,
        seeds=range(num_seeds * seed, num_seeds * (seed + 1)),
        step_sizes=[PAPER_STEP],
        num_points=num_points,
        tick=tick,
    )
    return [{"function": function, "method": method} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each function and method."""
    return {name: functools.partial(descend, name, full, seed) for name in AUTHORS}


def comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """Ours and theirs at each iteration that both have.

    ``z`` is the distance of the authors' single run from the mean of ours, in standard
    deviations of one more run.
    """
    keys = ["function", "method", "iteration"]
    theirs = pd.Series(
        {
            (*name.split("/"), iteration): loss
            for name, losses in AUTHORS.items()
            for iteration, loss in zip(ITERATIONS, losses, strict=True)
        },
        name="authors",
    ).rename_axis(keys)
    ours = frame.groupby(keys)["loss"].agg(["mean", "min", "max", "std", "count"])
    found = ours.join(theirs, how="inner")
    spread = found.pop("std") * np.sqrt(1 + 1 / found.pop("count"))
    return found.assign(z=(found["authors"] - found["mean"]) / spread)


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The comparison at the end of the runs."""
    return comparison(frame).xs(frame["iteration"].max(), level="iteration")


def tables(frame: pd.DataFrame) -> Tables:
    """At the end of the runs."""
    steps, seeds = frame["iteration"].max(), frame["seed"].nunique()
    title = f"Loss after {steps:,} iterations, d = {DIMENSION:,}, {seeds} seeds of ours"
    return {title: last(frame)}


def findings(frame: pd.DataFrame) -> list[str]:
    """How often the authors' run lies among ours."""
    final, seeds = last(frame), frame["seed"].nunique()
    inside = (final["min"] <= final["authors"]) & (final["authors"] <= final["max"])
    expected = len(final) * (seeds - 1) / (seeds + 1)
    return [
        f"The authors' loss after {frame['iteration'].max():,} iterations lies inside"
        f" the range of our {seeds} seeds in {inside.sum()} of {len(final)} cases"
        f" ({expected:.1f} are expected of a run like ours); the largest distance from"
        f" our mean is {final['z'].abs().max():.1f} standard deviations."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """The authors' run as one seed more."""
    theirs = comparison(frame)["authors"].rename("loss").reset_index()
    both = pd.concat([frame.assign(code="ours"), theirs.assign(code="authors'")])
    axes = {"x": "iteration", "y": "loss", "hue": "method", "style": "code"}
    return lines(both, "y", **axes, col="function", errorbar=("pi", 100))


STUDY = Study(
    "Losses beside those of the authors' code", cells, tables, findings, figure
)
