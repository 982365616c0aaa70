"""Two-point estimates and policy gradients of a one-step policy: the same curves.

Theorem 3.2 of arXiv 2506.14460: REINFORCE on the policy N(theta, mu^2 I) with baseline
f(theta) is the forward difference. Both estimators are run on their own, with the score
by autodiff of the density in the one and directions in the other.
"""

import functools

import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.functions import quadratic
from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.runs import (
    NUM_DIRECTIONS,
    PAPER_STEP,
    SMOOTHING,
    Method,
    curves,
)
from zojax.perturbations import sphere

QUICK, FULL = (500, 2000), (10_000, 5000)  # d, iterations
SIDES = ("finite difference", "policy gradient")


def _two_point(difference, sampler=None):
    return lambda key: zojax.two_point(
        SMOOTHING, NUM_DIRECTIONS, key=key, difference=difference, sampler=sampler
    )


def _reinforce(baseline, search="gaussian"):
    return lambda key: zojax.reinforce(
        SMOOTHING, NUM_DIRECTIONS, key=key, baseline=baseline, search=search
    )


# By baseline.
PAIRS = {
    "f(θ)": (_two_point("forward"), _reinforce("value")),
    "mean": (_two_point("mean"), _reinforce("mean")),
    "leave-one-out": (_two_point("leave_one_out"), _reinforce("leave_one_out")),
    "f(θ), sphere": (_two_point("forward", sphere()), _reinforce("value", "sphere")),
}


def descend(baseline: str, side: int, full: bool, seed: int, tick: Tick) -> list[Row]:
    """One curve on the quadratic."""
    dimension, iterations = FULL if full else QUICK
    found = curves(
        quadratic,
        Method(SIDES[side], PAIRS[baseline][side], NUM_DIRECTIONS),
        dimension=dimension,
        iterations=iterations,
        seeds=[seed],
        step_sizes=[PAPER_STEP],
        tick=tick,
    )
    return [{"baseline": baseline, "side": SIDES[side]} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each baseline and side."""
    return {
        f"{baseline}/{name}": functools.partial(descend, baseline, side, full, seed)
        for baseline in PAIRS
        for side, name in enumerate(SIDES)
    }


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """Final losses of both sides, and the largest relative gap of their curves."""
    both = frame.pivot(index=["baseline", "iteration"], columns="side", values="loss")
    gaps = (both[SIDES[0]] / both[SIDES[1]] - 1).abs().groupby("baseline").max()
    return both.groupby("baseline").last().assign(gap=gaps)


def tables(frame: pd.DataFrame) -> Tables:
    """By baseline."""
    return {"Final loss on the quadratic, largest gap of the curves": compared(frame)}


def findings(frame: pd.DataFrame) -> list[str]:
    """How far the two are apart."""
    return [
        "Finite differences and policy gradients give the same curves to"
        f" {compared(frame)['gap'].max():.0e} (float32, relative), whatever the"
        " baseline."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """The curves lie upon each other."""
    axes = {"x": "iteration", "y": "loss", "hue": "baseline", "style": "side"}
    return lines(frame, "y", **axes)


STUDY = Study(
    "Zeroth-order is one-step policy optimisation", cells, tables, findings, figure
)
