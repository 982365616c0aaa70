"""The paper's mesh experiment (arXiv 2510.19975, Section 5).

Coarse 10 x 10, fine 20 x 20, 512 directions, amplitude 1e-5, gradient descent with a
constant step of 0.1, 200 iterations.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.mesh import pictures
from benchmarks.mesh.pictures import STYLES
from benchmarks.mesh.problem import make_problem
from benchmarks.mesh.runs import EXACT, METHODS, cost, label, measure
from benchmarks.study import Cell, Study, tabulate

NUM_DIRECTIONS, ITERATIONS, NUM_POINTS, STEP_SIZE = 512, 200, 20, 0.1
CELLS = (10, 20)  # coarse, fine
QUICK, FULL = 2, 10  # seeds


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each method, all seeds."""
    num_seeds = FULL if full else QUICK

    def cell(name):
        return lambda tick: measure(
            make_problem(*CELLS),
            name,
            NUM_DIRECTIONS,
            ITERATIONS,
            num_points=NUM_POINTS,
            step_sizes=[STEP_SIZE],
            seeds=range(num_seeds * seed, num_seeds * (seed + 1)),
            cosine=False,
            tick=tick,
        )

    return {name: cell(name) for name in (EXACT, *METHODS)}


def _ends(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["iteration"] == frame["iteration"].max()]


def _start(frame: pd.DataFrame) -> float:
    return frame.loc[frame["iteration"] == 0, "rms"].iloc[0]


def tables(frame: pd.DataFrame) -> list[Table]:
    initial, ends = _start(frame), _ends(frame)
    floor = ends.loc[ends["method"] == EXACT, "rms"].iloc[0]
    rows = []
    for name, group in ends.groupby("method", sort=False):
        mean = group["rms"].mean()
        rows.append(
            [
                label(name),
                "-" if name == EXACT else cost(name, NUM_DIRECTIONS),
                f"{1e3 * mean:.4f}",
                "-" if len(group) < 2 else f"{1e3 * group['rms'].std():.4f}",
                f"{initial / mean:.4f}",
                f"{(initial - mean) / (initial - floor):.0%}",
                f"{1e3 * group['true_rms'].mean():.4f}",
                int(group["rejected"].sum()),
            ]
        )
    columns = [
        "method",
        "solves\na step",
        "RMS\nx 1000",
        "sd of\nseeds",
        "initial\n/ final",
        "gain of\nautodiff",
        "true RMS\nx 1000",
        "rejected\nprobes",
    ]
    title = (
        f"Mesh, {frame['iteration'].max()} steps of {STEP_SIZE:g},"
        f" K = {NUM_DIRECTIONS}; RMS error at first {1e3 * initial:.4f}e-3"
    )
    table = tabulate(title, columns, rows)
    table.caption = (
        "RMS: to the fine solution. Gain: over that of the exact gradient by autodiff,"
        " one-sided at kinks such as the start, in as many steps. True RMS: to the"
        " solution of the equation, at the fine vertices."
    )
    return [table]


def findings(frame: pd.DataFrame) -> list[str]:
    initial, ends = _start(frame), _ends(frame)
    means = ends.groupby("method")["rms"].mean()
    floor, rest = means[EXACT], means.drop(EXACT)
    spread = ends[ends["method"] != EXACT].groupby("method")["rms"].std().max()
    text = [
        f"The RMS error falls by a factor of {initial / rest.max():.4f} with"
        f" {label(rest.idxmax())} to {initial / rest.min():.4f} with"
        f" {label(rest.idxmin())}; {initial / floor:.4f} with the gradient by autodiff."
        f" The methods lie {1e6 * (rest.max() - rest.min()):.2f}e-6 apart, seeds of one"
        f" method up to {1e6 * spread:.2f}e-6 (standard deviation)."
    ]
    if abs(rest - floor).max() < 0.05 * (initial - floor):
        text.append(
            "All methods gain what autodiff gains, to 5%: in this setting progress is"
            " limited by the step, not by the estimator."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(13, 4), layout="constrained")
    axes = out.subplots(1, 3, width_ratios=(1.5, 1, 1.15))
    axis = axes[0]
    for name, group in frame.groupby("method", sort=False):
        pictures.band(axis, group, "iteration", label(name), STYLES[name])
    axis.set(
        xlabel="iteration",
        ylabel="RMS error x 1000, mean and range of the seeds",
        title=f"K = {NUM_DIRECTIONS}, step {STEP_SIZE:g}",
    )
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    dap = _ends(frame)[lambda ends: ends["method"] == "dap"].iloc[0]
    pictures.before_and_after(out, axes[1:], make_problem(*CELLS), dap)
    return out


STUDY = Study(
    "Mesh: the paper's setting (arXiv 2510.19975)", cells, tables, findings, figure
)
