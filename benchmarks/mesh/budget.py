"""Mesh optimisation at equal PDE solves: few directions and many steps, or the reverse.

Gradient descent whose step decays by half a cosine wave, each method with each number
of directions at the best of a grid of step sizes, by the mean of the seeds that are
reported. Vertices that would squeeze a triangle make a shorter step. The exact gradient
by autodiff is one-sided where f has a kink, as at the start, where the fine vertices
lie on edges of the coarse mesh: it is a mark to compare with, not a bound.
"""

import functools

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from benchmarks.mesh import runs
from benchmarks.mesh.external import error_field
from benchmarks.mesh.problem import make_problem
from benchmarks.mesh.runs import EXACT, METHODS, cost, measure
from benchmarks.study import COLOURS, Cell, Study, Tables

# A better estimate stands a larger step.
STEP_SIZES = {
    8: (0.3, 1.0, 3.0, 10.0),
    32: (1.0, 3.0, 10.0, 30.0),
    128: (3.0, 10.0, 30.0, 100.0),
    512: (10.0, 30.0, 100.0, 300.0),
}
EXACT_STEPS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# Solves of a run, seeds, numbers of directions.
QUICK = (10_240, 3, (8, 32, 128))
FULL = (20_480, 10, (8, 32, 128, 512))
GROUP = ["num_directions", "method"]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each method and number of directions, all step sizes and seeds."""
    solves, number, sizes = FULL if full else QUICK
    seeds = range(number * seed, number * (seed + 1))
    out: dict[str, Cell] = {}
    for size in sizes:
        for name in (EXACT, *METHODS):
            steps = EXACT_STEPS if name == EXACT else STEP_SIZES[size]
            setting = size, solves // cost(name, size), steps, True, seeds
            out[f"{name}-{size}"] = functools.partial(measure, name, *setting)
    return out


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method and K at the best of its step sizes."""
    means = ends(frame).groupby([*GROUP, "step_size"], sort=False)["rms"].mean()
    chosen = means.loc[means.groupby(GROUP, sort=False).idxmin()]
    return chosen.index.to_frame(index=False).merge(frame)


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run."""
    return frame.dropna(subset=["vertices"])


def tables(frame: pd.DataFrame) -> Tables:
    """Final errors, of which those to the equation's solution are called true."""
    runs_of = ends(best(frame)).groupby(GROUP, sort=False)
    rms, initial = runs_of["rms"].mean(), frame["rms"].iloc[0]
    gain = (initial - rms) / (initial - rms.xs(EXACT, level="method"))
    shown = {
        "step size": runs_of["step_size"].first(),
        "RMS x 1000": (1e3 * rms).map("{:.4f}".format),
        "sd of seeds": (1e3 * runs_of["rms"].std()).map("{:.4f}".format),
        "initial / final": (initial / rms).map("{:.3f}".format),
        "gain of autodiff": gain.map("{:.0%}".format),
        "true RMS x 1000": (1e3 * runs_of["true_rms"].mean()).map("{:.4f}".format),
    }
    title = (
        f"Mesh, {frame['solves'].max():,} solves; RMS x 1000 at first"
        f" {1e3 * initial:.4f}, true {1e3 * frame['true_rms'].iloc[0]:.4f}"
    )
    return {title: pd.DataFrame(shown)}


def findings(frame: pd.DataFrame) -> list[str]:
    """Which methods can be told apart, for each K."""
    runs_of = ends(best(frame)).query("method != @EXACT").groupby("num_directions")
    out = []
    for size, rows in runs_of:
        by_seed = 1e3 * rows.pivot(index="seed", columns="method", values="rms")
        means = by_seed.mean().sort_values()
        gaps = by_seed.sub(by_seed[means.index[0]], axis=0)
        near = (gaps.mean() <= 2 * gaps.sem())[means.index]
        of = {True: [], False: []}
        for name, mean in means.items():
            of[near[name]].append(f"{name} {mean:.4f}")
        out.append(
            f"K = {size}, mean RMS x 1000: {', '.join(of[True])} (the lowest, and those"
            " within two standard errors of it, paired by seed); farther behind:"
            f" {', '.join(of[False]) or 'none'}."
        )
    return out


def _before_and_after(figure: Figure, row: pd.Series) -> None:
    """The mesh over its field of error, at the start and as a row has it."""
    problem = make_problem(*runs.CELLS)
    moved = problem.coarse.points.copy()
    moved[~problem.coarse.is_boundary] = np.reshape(row["vertices"].split(), (-1, 2))
    states = {"before": problem.coarse.points, "after": moved}
    fields = [1e3 * error_field(points, problem) for points in states.values()]
    largest = np.abs(fields).max()
    axes = figure.subplots(1, 2)
    for axis, (title, points), field in zip(axes, states.items(), fields, strict=True):
        shown = axis.tripcolor(
            *problem.fine.points.T,
            field,
            triangles=problem.fine.triangles,
            shading="gouraud",
            cmap="RdBu_r",
            clim=(-largest, largest),
        )
        axis.triplot(*points.T, problem.coarse.triangles, color="black", linewidth=0.5)
        axis.set(
            title=f"{title}: RMS error {np.sqrt(np.mean(field**2)):.4f}e-3",
            aspect="equal",
        )
    axes[1].set_xlabel(f"{row['method']}, K = {row['num_directions']}")
    figure.colorbar(shown, ax=axes, label="coarse - fine solution, x 1000")


def figure(frame: pd.DataFrame) -> Figure:
    """Mean and range of the seeds; below, the mesh of the method that is best."""
    curves = best(frame)
    groups = curves.groupby("num_directions")
    out = Figure(figsize=(4.3 * max(groups.ngroups, 2), 8.4), layout="constrained")
    top, bottom = out.subfigures(2, 1)
    axes = top.subplots(1, groups.ngroups, sharey=True, squeeze=False)[0]
    others = [colour for colour in COLOURS if colour != "#000000"]
    for axis, (size, rows) in zip(axes, groups, strict=True):
        seaborn.lineplot(
            rows.assign(rms=1e3 * rows["rms"]),
            x="solves",
            y="rms",
            hue="method",
            palette=dict(zip((EXACT, *METHODS), ("#000000", *others), strict=False)),
            errorbar=("pi", 100),
            legend=axis is axes[0],
            ax=axis,
        )
        axis.set(title=f"K = {size}", ylabel="RMS error x 1000")
        axis.set_ylim(None, 1.03e3 * frame["rms"].iloc[0])
        axis.grid(alpha=0.25)
    last = ends(curves).query("method != @EXACT").set_index(GROUP, drop=False)
    lowest = last["rms"].groupby(level=GROUP).mean().idxmin()
    _before_and_after(bottom, last.loc[[lowest]].iloc[0])
    return out


STUDY = Study("Mesh: equal PDE solves", cells, tables, findings, figure)
