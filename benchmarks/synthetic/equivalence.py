"""Two-point estimates and policy gradients of a one-step policy: the same curves.

Theorem 3.2 of arXiv 2506.14460: REINFORCE on the policy N(theta, mu^2 I) with baseline
f(theta) is the forward difference. Both estimators are run on their own, with the score
by autodiff of the density in the one and directions in the other.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

import zojax
from benchmarks.functions import FUNCTIONS
from benchmarks.study import COLOURS, Cell, Study, tabulate
from benchmarks.synthetic.runs import (
    NUM_DIRECTIONS,
    PAPER_STEP,
    SMOOTHING,
    Method,
    curves,
)
from zojax.perturbations import sphere

QUICK, FULL = (500, 2000), (10_000, 5000)  # d, iterations


def _two_point(difference, sampler=None):
    return lambda key: zojax.two_point(
        SMOOTHING, NUM_DIRECTIONS, key=key, difference=difference, sampler=sampler
    )


def _reinforce(baseline, search="gaussian"):
    return lambda key: zojax.reinforce(
        SMOOTHING, NUM_DIRECTIONS, key=key, baseline=baseline, search=search
    )


# Name of the pair: (finite difference, policy gradient).
PAIRS = {
    "f(θ)": (_two_point("forward"), _reinforce("value")),
    "mean": (_two_point("mean"), _reinforce("mean")),
    "leave-one-out": (_two_point("leave_one_out"), _reinforce("leave_one_out")),
    "f(θ), sphere": (_two_point("forward", sphere()), _reinforce("value", "sphere")),
}
SIDES = ("finite difference", "policy gradient")


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each baseline and side, on the quadratic."""
    dimension, iterations = FULL if full else QUICK

    def cell(baseline, side, build):
        def run(tick):
            found = curves(
                FUNCTIONS["quadratic"],
                Method(side, build, NUM_DIRECTIONS),
                dimension=dimension,
                iterations=iterations,
                seeds=[seed],
                step_sizes=[PAPER_STEP],
                tick=tick,
            )
            return [
                {
                    "baseline": baseline,
                    "side": side,
                    "iteration": int(iteration),
                    "loss": float(loss),
                }
                for iteration, loss in zip(
                    found.iterations, found.losses[0, 0], strict=True
                )
            ]

        return run

    return {
        f"{baseline}/{side}": cell(baseline, side, build)
        for baseline, pair in PAIRS.items()
        for side, build in zip(SIDES, pair, strict=True)
    }


def _pivot(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.pivot(index=["baseline", "iteration"], columns="side", values="loss")


def gaps(frame: pd.DataFrame) -> dict[str, float]:
    """The largest relative difference of the two curves, by baseline."""
    both = _pivot(frame)
    relative = np.abs(both[SIDES[0]] / both[SIDES[1]] - 1)
    return relative.groupby("baseline").max().to_dict()


def tables(frame: pd.DataFrame) -> list[Table]:
    last = _pivot(frame).groupby("baseline").last()
    found = gaps(frame)
    rows = [
        [name, *(f"{last.loc[name, side]:.6g}" for side in SIDES), f"{found[name]:.1e}"]
        for name in PAIRS
    ]
    columns = ["baseline", *SIDES, "largest relative gap"]
    return [tabulate("Final loss on the quadratic, and the two curves", columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    return [
        "Finite differences and policy gradients give the same curves to"
        f" {max(gaps(frame).values()):.0e} (float32, relative), whatever the baseline."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(6.5, 4), layout="constrained")
    axis = out.subplots()
    both = _pivot(frame)
    for colour, name in zip(COLOURS, PAIRS, strict=False):
        curve = both.loc[name]
        axis.plot(curve[SIDES[0]], color=colour, linewidth=4, alpha=0.35)
        axis.plot(curve[SIDES[1]], "--", color=colour, label=f"baseline {name}")
    axis.set(
        xlabel="iterations",
        ylabel="loss f(θ)",
        yscale="log",
        title="Wide: finite differences. Dashed: REINFORCE on N(θ, μ²I)",
    )
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    return out


STUDY = Study(
    "Zeroth-order is one-step policy optimisation", cells, tables, findings, figure
)
