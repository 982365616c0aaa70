"""Return of the mean policy against environment steps, by method and environment."""

from __future__ import annotations

import collections
import functools
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.policy.methods import METHODS, OURS, POPULATION, make_run
from benchmarks.policy.pictures import before_and_after
from benchmarks.policy.tasks import TASKS, Task
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, plain, tabulate

STEP_SIZES = (0.03, 0.1, 0.3)
SMOOTHINGS = (0.03, 0.1, 0.3, 1.0)
SEEDS = 5  # to choose settings by, and as many others to judge them by
QUICK = 8  # generations, unless --full
LAST = 5  # generations that the end is the mean of
LOCKS: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)


@functools.cache
def compiled(task: Task, generations: int, names: tuple[str, ...]) -> Callable:
    """(number of the method, step size, smoothing, keys of SEEDS) -> Run of each."""
    run = make_run(task, names)
    each = lambda *args: run(*args, generations)
    keys = jax.random.split(jax.random.key(0), SEEDS)
    grid = jax.jit(jax.vmap(each, (None, None, None, 0)))
    return grid.lower(jnp.int32(0), *jnp.ones(2), keys).compile()


def as_text(params: Any) -> str:
    """Numbers of a policy, for a cell of the CSV."""
    return " ".join(f"{x:.9g}" for x in np.asarray(ravel_pytree(params)[0]))


def measure(
    task: Task, method: str, generations: int, seed: int, tick: Tick
) -> list[Row]:
    """All settings by the first seeds, then the best of them by the other ones.

    Rows are generations of a run; the last of one that judges has its policies.
    """
    names = tuple(METHODS)
    with LOCKS[task.name]:
        program = compiled(task, generations, names)
    number = jnp.int32(names.index(method))
    keys = jax.random.split(jax.random.key(seed), 2 * SEEDS)
    grid = list(itertools.product(STEP_SIZES, SMOOTHINGS))
    rows: list[Row] = []

    def add(setting, judges):
        """Runs the seeds; the mean of all their returns."""
        start = time.monotonic()
        found = program(
            number, *jnp.asarray(setting), keys[SEEDS:] if judges else keys[:SEEDS]
        )
        returns = np.asarray(found.returns)
        seconds = time.monotonic() - start
        for k, of_seed in enumerate(returns):
            for n, value in enumerate(of_seed):
                row = {
                    "task": task.name,
                    "method": method,
                    "step_size": setting[0],
                    "smoothing": setting[1],
                    "judges": judges,
                    "seed": k + judges * SEEDS,
                    "generation": n,
                    "env_steps": n * POPULATION * task.episodes * task.length,
                    "return": float(value),
                    "seconds": seconds,
                }
                if judges and n == len(of_seed) - 1:
                    of = lambda tree, k=k: as_text(jax.tree.map(lambda x: x[k], tree))
                    row |= {"before": of(found.first), "after": of(found.last)}
                rows.append(row)
        tick(len(rows) / returns.size / (len(grid) + 1))
        return float(returns.mean())

    best = max(grid, key=lambda setting: add(setting, False))
    add(best, True)
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each environment and method; environments compile side by side."""
    return {
        f"{task.name}/{method}": functools.partial(
            measure, task, method, task.generations if full else QUICK, seed
        )
        for method in METHODS
        for task in TASKS
    }


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The seeds that judge: of each method at the settings that the others chose.

    By the mean over all generations: fast and good.
    """
    return frame[frame["judges"].astype(bool)]


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """(mean, standard error) over seeds of the last generations and of all."""
    rows = []
    for (task, method), part in chosen(frame).groupby(["task", "method"], sort=False):
        last = part["generation"] > part["generation"].max() - LAST
        by_seed = part[last].groupby("seed")["return"].mean()
        over_all = part.groupby("seed")["return"].mean()
        rows.append(
            {
                "task": task,
                "method": method,
                "step_size": part["step_size"].iloc[0],
                "smoothing": part["smoothing"].iloc[0],
                "end": by_seed.mean(),
                "end_error": by_seed.std() / np.sqrt(len(by_seed)),
                "whole": over_all.mean(),
                "whole_error": over_all.std() / np.sqrt(len(over_all)),
                "seconds": part["seconds"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def tables(frame: pd.DataFrame) -> list[Table]:
    """One for each environment."""
    out = []
    for task, part in ends(frame).groupby("task", sort=False):
        steps = frame.loc[frame["task"] == task, "env_steps"].max()
        rows = [
            [
                row.method,
                f"{row.step_size:g}",
                f"{row.smoothing:g}",
                f"{row.end:.1f} ± {row.end_error:.1f}",
                f"{row.whole:.1f} ± {row.whole_error:.1f}",
                f"{row.seconds:.1f}",
            ]
            for row in part.itertuples()
        ]
        columns = [
            "",
            "step\nsize",
            "smooth-\ning",
            f"return, last\n{LAST} generations",
        ]
        columns += ["of all", f"seconds,\n{SEEDS} runs"]
        title = f"{task}, {plain(steps)} environment steps a run"
        out.append(tabulate(title, columns, rows))
    out[-1].caption = (
        f"Mean ± standard error over {SEEDS} seeds; step sizes {STEP_SIZES} (SNES: its"
        f" mean's rate over ten)\nand smoothings {SMOOTHINGS} (SNES: first deviation)"
        f" chosen by {SEEDS} other seeds."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """Our best against evosax's best, by environment."""
    out, edges = [], []
    for task, part in ends(frame).groupby("task", sort=False):
        ours = part["method"].str.startswith(OURS)
        us, them = (
            rows.loc[rows["whole"].idxmax()] for rows in (part[ours], part[~ours])
        )
        error = np.hypot(us["whole_error"], them["whole_error"])
        gap = us["whole"] - them["whole"]
        verdict = "within two standard errors"
        if abs(gap) > 2 * error:
            verdict = "ahead" if gap > 0 else "BEHIND"
        out.append(
            f"{task}, mean over the run: {us['method']} {us['whole']:.1f},"
            f" {them['method']} {them['whole']:.1f}: {verdict}."
        )
        for row in part.itertuples():
            for name, value, grid in (
                ("step size", row.step_size, STEP_SIZES),
                ("smoothing", row.smoothing, SMOOTHINGS),
            ):
                if value in (grid[0], grid[-1]):
                    edges.append(f"{task}, {row.method}, {name} {value:g}")
    return [*out, f"Chosen at an edge of the grid: {'; '.join(edges) or 'none'}."]


def _curves(axis: Axes, part: pd.DataFrame) -> None:
    """Return against environment steps, mean and range of the seeds."""
    methods = part.groupby("method", sort=False)
    for colour, (method, rows) in zip(COLOURS, methods, strict=False):
        curves = rows.groupby("env_steps")["return"].agg(["mean", "min", "max"])
        style = "-" if method.startswith(OURS) else "--"
        axis.plot(curves["mean"], style, color=colour, label=method)
        axis.fill_between(
            curves.index, curves["min"], curves["max"], color=colour, alpha=0.07
        )
    axis.set(title=part["task"].iloc[0], xlabel="environment steps", ylabel="return")
    axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axis.grid(alpha=0.25)


def typical(frame: pd.DataFrame, task: str) -> pd.Series:
    """The last row of our best method's run of median return."""
    means = ends(frame)
    ours = means[(means["task"] == task) & means["method"].str.startswith(OURS)]
    method = ours.loc[ours["whole"].idxmax(), "method"]
    runs = chosen(frame)
    runs = runs[(runs["task"] == task) & (runs["method"] == method)]
    by_seed = runs.groupby("seed")["return"].mean().sort_values()
    run = runs[runs["seed"] == by_seed.index[len(by_seed) // 2]]
    return run.loc[run["generation"].idxmax()]


def figure(frame: pd.DataFrame) -> Figure:
    """Curves; below them an episode of our best policy, before and after."""
    parts = list(chosen(frame).groupby("task", sort=False))
    out = Figure(figsize=(3.7 * len(parts), 7), layout="constrained")
    axes = out.subplots(3, len(parts), squeeze=False, height_ratios=(2.4, 1, 1))
    by_name = {task.name: task for task in TASKS}
    for column, (name, part) in zip(axes.T, parts, strict=True):
        _curves(column[0], part)
        before_and_after(column[1:], by_name[str(name)], typical(frame, str(name)))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    options = {"ncols": min(3, len(parts)), "frameon": False}
    out.legend(handles, labels, loc="outside lower center", **options)
    return out


STUDY = Study("Policies by their returns", cells, tables, findings, figure)
