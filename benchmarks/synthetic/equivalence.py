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
from benchmarks.study import Cell, Study, Tables, lines
from benchmarks.synthetic.runs import (
    NUM_DIRECTIONS,
    PAPER_STEP,
    SMOOTHING,
    Method,
    Size,
    curves,
)
from zojax.perturbations import sphere

QUICK, FULL = Size(500, 2000), Size(10_000, 5000)


def _method(factory, **options) -> Method:
    return Method(lambda key: factory(SMOOTHING, NUM_DIRECTIONS, key=key, **options))


two_point = functools.partial(_method, zojax.two_point)
reinforce = functools.partial(_method, zojax.reinforce)
# Baseline: finite differences, policy gradients.
PAIRS = {
    "f(θ)": (two_point(difference="forward"), reinforce(baseline="value")),
    "mean": (two_point(difference="mean"), reinforce(baseline="mean")),
    "leave-one-out": (
        two_point(difference="leave_one_out"),
        reinforce(baseline="leave_one_out"),
    ),
    "f(θ), sphere": (
        two_point(difference="forward", sampler=sphere()),
        reinforce(baseline="value", search="sphere"),
    ),
}
SIDES = ("finite difference", "policy gradient")


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A curve on the quadratic for each baseline and side."""
    settings = (FULL if full else QUICK, [seed], [PAPER_STEP])
    return {
        f"{baseline}/{side}": functools.partial(
            curves, quadratic, method, *settings, {"baseline": baseline, "side": side}
        )
        for baseline, pair in PAIRS.items()
        for side, method in zip(SIDES, pair, strict=True)
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
    gap = compared(frame)["gap"].max()
    return [f"Finite differences and policy gradients are {gap:.0e} apart at most."]


def figure(frame: pd.DataFrame) -> Figure:
    """The curves lie upon each other."""
    axes = {"x": "iteration", "y": "loss", "hue": "baseline", "style": "side"}
    return lines(frame, "y", **axes)


TITLE = "Zeroth-order is one-step policy optimisation"
STUDY = Study(TITLE, cells, tables, findings, figure)
