"""The paper's ZoAR experiment beside the losses that its authors' own code reaches."""

import functools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.functions import FUNCTIONS
from benchmarks.study import Cell, Study, Tables, lines
from benchmarks.synthetic.runs import METHODS, PAPER_STEP, Size, curves

# (size, seeds)
QUICK, FULL = (Size(10_000, 500, 1), 3), (Size(10_000, 20_000, 40), 8)
KEYS = ["function", "method", "iteration"]
# Losses of the authors' PyTorch code (CPU, float32, seed 456) at these iterations.
ITERATIONS = (500, 5000, 10_000, 20_000)
AUTHORS = {
    ("quadratic", "vanilla"): (4828.12, 3414.51, 2406.96, 1405.81),
    ("quadratic", "ZoAR N = 5"): (4352.43, 758.063, 34.2562, 33.3524),
    ("rosenbrock", "vanilla"): (3606310.0, 1761550.0, 1076910.0, 608137.0),
    ("rosenbrock", "ZoAR N = 5"): (3039130.0, 229144.0, 33243.3, 17878.7),
    ("levy", "vanilla"): (6142.27, 3188.53, 1949.82, 1307.92),
    ("levy", "ZoAR N = 5"): (5418.06, 827.225, 551.57, 329.27),
    ("ackley", "vanilla"): (5.21898, 4.9967, 4.95657, 4.85681),
    ("ackley", "ZoAR N = 5"): (4.96122, 3.7847, 3.7074, 3.64439),
}


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """Curves of all seeds at the paper's step size, for each function and method."""
    size, number = FULL if full else QUICK
    settings = (size, range(number * seed, number * (seed + 1)), [PAPER_STEP])
    return {
        f"{f}/{m}": functools.partial(
            curves, FUNCTIONS[f], METHODS[m], *settings, {"function": f, "method": m}
        )
        for f, m in AUTHORS
    }


def comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """Ours and theirs at each iteration that both have.

    ``z`` is the distance of the authors' single run from the mean of ours, in standard
    deviations of one more run.
    """
    theirs = pd.DataFrame(AUTHORS, index=ITERATIONS).unstack().rename_axis(KEYS)
    ours = frame.groupby(KEYS)["loss"].agg(["mean", "min", "max", "std", "count"])
    found = ours.join(theirs.rename("authors"), how="inner")
    spread = found.pop("std") * np.sqrt(1 + 1 / found.pop("count"))
    return found.assign(z=(found["authors"] - found["mean"]) / spread)


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The comparison at the end of the runs."""
    return comparison(frame).xs(frame["iteration"].max(), level="iteration")


def tables(frame: pd.DataFrame) -> Tables:
    """At the end of the runs."""
    return {f"Loss after {frame['iteration'].max():,} iterations": last(frame)}


def findings(frame: pd.DataFrame) -> list[str]:
    """How often the authors' run lies among ours."""
    final, seeds = last(frame), frame["seed"].nunique()
    inside = final["authors"].between(final["min"], final["max"]).sum()
    expected = len(final) * (seeds - 1) / (seeds + 1)
    return [
        f"The authors' loss lies inside the range of our {seeds} seeds in {inside} of"
        f" {len(final)} cases ({expected:.1f} are expected of a run like ours); the"
        f" largest distance from our mean is {final['z'].abs().max():.1f} standard"
        " deviations."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """The authors' run as one seed more."""
    theirs = comparison(frame)["authors"].rename("loss").reset_index()
    both = pd.concat([frame.assign(code="ours"), theirs.assign(code="authors'")])
    axes = {"x": "iteration", "y": "loss", "hue": "method", "style": "code"}
    return lines(both, "y", **axes, col="function", errorbar=("pi", 100))


TITLE = "Losses beside those of the authors' code"
STUDY = Study(TITLE, cells, tables, findings, figure)
