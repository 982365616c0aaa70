"""Mesh optimisation at equal PDE solves: few directions and many steps, or the reverse.

Gradient descent whose step decays by half a cosine wave, each method with each number
of directions at the best of a grid of step sizes, by the mean of the seeds that are
reported. Vertices that would squeeze a triangle make a shorter step. The exact gradient
by autodiff is one-sided where f has a kink, as at the start, where the fine vertices
lie on edges of the coarse mesh: it is a mark to compare with, not a bound.
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

CELLS = (10, 20)  # coarse, fine
# A better estimate stands a larger step.
STEP_SIZES = {
    8: (0.3, 1.0, 3.0, 10.0),
    32: (1.0, 3.0, 10.0, 30.0),
    128: (3.0, 10.0, 30.0, 100.0),
    512: (10.0, 30.0, 100.0, 300.0),
}
EXACT_STEPS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
NUM_POINTS = 20
# Solves of a run, seeds, numbers of directions.
QUICK = (10_240, 3, (8, 32, 128))
FULL = (20_480, 10, (8, 32, 128, 512))
SHARE = 0.9  # of the initial error: solves needed to get there are counted


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each method and number of directions, all step sizes and seeds."""
    solves, num_seeds, sizes = FULL if full else QUICK

    def cell(name, num_directions):
        return lambda tick: measure(
            make_problem(*CELLS),
            name,
            num_directions,
            solves // cost(name, num_directions),
            num_points=NUM_POINTS,
            step_sizes=EXACT_STEPS if name == EXACT else STEP_SIZES[num_directions],
            seeds=range(num_seeds * seed, num_seeds * (seed + 1)),
            cosine=True,
            tick=tick,
        )

    return {
        f"{name}-{size}": cell(name, size)
        for size in sizes
        for name in (EXACT, *METHODS)
    }


RUN = ["method", "num_directions", "step_size", "seed"]


def _best(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method and K at the best of its step sizes."""
    ends = frame.groupby(RUN, sort=False)["rms"].last()
    means = ends.groupby(RUN[:3], sort=False).mean().reset_index()
    best = means.loc[means.groupby(RUN[:2], sort=False)["rms"].idxmin()]
    return frame.merge(best[RUN[:3]], on=RUN[:3])


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A line for each method and K: final error at the best step size, solves."""
    initial = frame["rms"].iloc[0]
    best = _best(frame)
    curves = best.groupby([*RUN[:3], "solves"])["rms"].mean().reset_index()
    reached = curves[curves["rms"] <= SHARE * initial]
    ends = best.groupby(RUN, sort=False).last().reset_index()
    groups = ends.groupby(RUN[:3], sort=False)
    out = groups["rms"].agg(["mean", "std"]).reset_index()
    out["true_rms"] = groups["true_rms"].mean().to_numpy()
    out["rejected"] = groups["rejected"].sum().to_numpy()
    out["factor"] = initial / out["mean"]
    needed = reached.groupby(RUN[:2])["solves"].min()
    tried = frame.groupby(RUN[:2])["step_size"].agg(["min", "max"])
    tried = out[RUN[:2]].join(tried, on=RUN[:2])
    out["at_end"] = (out["step_size"] == tried["min"]) | (
        out["step_size"] == tried["max"]
    )
    keys = zip(out["method"], out["num_directions"], strict=True)
    out["needed"] = [needed.get(key, float("nan")) for key in keys]
    return out


def tables(frame: pd.DataFrame) -> list[Table]:
    summary = _summary(frame)
    initial = 1e3 * frame["rms"].iloc[0]
    out = []
    for size, group in summary.groupby("num_directions"):
        rows = [
            [
                label(line.method),
                f"{line.step_size:g}{'*' if line.at_end else ''}",
                f"{1e3 * line.mean:.4f}",
                "-" if line.method == EXACT else f"{1e3 * line.std:.4f}",
                f"{line.factor:.3f}",
                "-" if line.needed != line.needed else f"{line.needed:,.0f}",
                f"{1e3 * line.true_rms:.4f}",
                int(line.rejected),
            ]
            for line in group.itertuples(index=False)
        ]
        columns = [
            "method",
            "best\nstep",
            "RMS\nx 1000",
            "sd of\nseeds",
            "initial\n/ final",
            f"solves to\n{1 - SHARE:.0%} less",
            "true RMS\nx 1000",
            "rejected\nprobes",
        ]
        solves = frame.loc[frame["num_directions"] == size, "solves"].max()
        title = (
            f"Mesh, K = {size}, at most {solves:,} solves; at first {initial:.4f}e-3"
        )
        out.append(tabulate(title, columns, rows))
    out[-1].caption = (
        "*: at an end of the grid of step sizes. Solves to so much less: of the mean"
        f" curve, in steps of a {NUM_POINTS}th of the budget. True RMS: to the"
        " solution of the equation, at the fine vertices."
    )
    return out


def _not_worse(frame: pd.DataFrame, size: int, name: str) -> list[str]:
    """Methods whose mean is within two standard errors of one's, paired by seed."""
    ends = _best(frame).groupby(RUN, sort=False)["rms"].last().reset_index()
    ends = ends[(ends["num_directions"] == size) & (ends["method"] != EXACT)]
    table = ends.pivot_table(index="seed", columns="method", values="rms", sort=False)
    gaps = table.sub(table[name], axis=0).drop(columns=name)
    errors = gaps.std() / len(table) ** 0.5
    return [other for other in gaps if gaps[other].mean() < 2 * errors[other]]


def findings(frame: pd.DataFrame) -> list[str]:
    summary = _summary(frame)
    estimates = summary[summary["method"] != EXACT]
    best = estimates.loc[estimates["mean"].idxmin()]
    exact = summary[summary["method"] == EXACT].set_index("num_directions")["mean"]
    text = [
        f"Lowest mean RMS error: {label(best['method'])} with K ="
        f" {best['num_directions']}, {1e3 * best['mean']:.4f}e-3, a factor of"
        f" {best['factor']:.3f} below the initial mesh; autodiff with about as many"
        f" steps {1e3 * exact[best['num_directions']]:.4f}e-3."
    ]
    for size, group in estimates.groupby("num_directions"):
        first = group.nsmallest(1, "mean").iloc[0]
        others = _not_worse(frame, size, first["method"])
        clear = [name for name in group["method"] if name not in others]
        clear.remove(first["method"])
        means = group.set_index("method")["mean"]
        show = lambda names, means=means: ", ".join(
            f"{label(name)} {1e3 * means[name]:.4f}" for name in names
        )
        text.append(
            f"K = {size}: {show([first['method']])} has the lowest mean; within two"
            f" standard errors of it (paired by seed): {show(others) or 'none'};"
            f" farther behind: {show(clear) or 'none'}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    best, summary = _best(frame), _summary(frame)
    sizes = sorted(frame["num_directions"].unique())
    out = Figure(figsize=(4.3 * max(len(sizes), 3), 8.4), layout="constrained")
    top, bottom = out.subfigures(2, 1)
    axes = top.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    initial = 1e3 * frame["rms"].iloc[0]
    for axis, size in zip(axes, sizes, strict=True):
        rows = best[best["num_directions"] == size]
        for name, group in rows.groupby("method", sort=False):
            pictures.band(axis, group, "solves", label(name), STYLES[name])
        axis.set(xlabel="PDE solves", title=f"K = {size}", ylim=(None, 1.03 * initial))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("RMS error x 1000, mean and range of the seeds")
    axes[0].legend(frameon=False, fontsize=8)
    estimates = summary[summary["method"] != EXACT]
    line = estimates.loc[estimates["mean"].idxmin()]
    chosen = best[
        (best["method"] == line["method"])
        & (best["num_directions"] == line["num_directions"])
    ].dropna(subset=["vertices"])
    before, after, axis = bottom.subplots(1, 3)
    problem = make_problem(*CELLS)
    pictures.before_and_after(bottom, (before, after), problem, chosen.iloc[0])
    after.set_xlabel(f"{label(line['method'])}, K = {line['num_directions']}")
    for name, group in summary.groupby("method", sort=False):
        axis.errorbar(
            group["num_directions"],
            1e3 * group["mean"],
            1e3 * group["std"],
            **STYLES[name],
            label=label(name),
            capsize=2,
        )
    axis.set(xscale="log", xlabel="directions K", ylabel="final RMS error x 1000")
    axis.set_title("mean and standard deviation of the seeds", fontsize=10)
    axis.set_xticks(sizes, map(str, sizes))
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return out


STUDY = Study("Mesh: equal PDE solves", cells, tables, findings, figure)
