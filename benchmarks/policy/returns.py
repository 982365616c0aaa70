"""Return of the mean policy against environment steps, by method and environment."""

import collections
import functools
import itertools
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import seaborn
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from benchmarks.policy.methods import METHODS, OURS, POPULATION, make_run
from benchmarks.policy.pictures import before_and_after
from benchmarks.policy.tasks import TASKS, Task
from benchmarks.study import COLOURS, Cell, Row, Study, Tables, Tick

STEP_SIZES = (0.03, 0.1, 0.3)
SMOOTHINGS = (0.03, 0.1, 0.3, 1.0)
SEEDS = 5  # to choose settings by, and as many others to judge them by
QUICK = 8  # generations, unless --full
LAST = 5  # generations that the end is the mean of
GROUP = ["task", "method"]
LOCKS: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)


@functools.cache
def compiled(task: Task, generations: int, names: tuple[str, ...]) -> Callable:
    """(number of the method, step size, smoothing, keys of SEEDS) -> runs."""
    run = make_run(task, names)
    each = lambda *args: run(*args, generations)
    keys = jax.random.split(jax.random.key(0), SEEDS)
    grid = jax.jit(jax.vmap(each, (None, None, None, 0)))
    return grid.lower(jnp.int32(0), *jnp.ones(2), keys).compile()


def measure(
    task: Task, method: str, generations: int, seed: int, tick: Tick
) -> list[Row]:
    """All settings by the first seeds, then the best of them by the other ones.

    Rows are generations of a run; the last of one that judges has its policies, as the
    texts of their numbers.
    """
    names = tuple(METHODS)
    with LOCKS[task.name]:
        program = compiled(task, generations, names)
    keys = jax.random.split(jax.random.key(seed), 2 * SEEDS)
    grid = list(itertools.product(STEP_SIZES, SMOOTHINGS))
    steps = POPULATION * task.episodes * task.length
    rows: list[Row] = []

    def play(setting, judges):
        """Runs the seeds; the mean of all their returns."""
        keys_of = keys[SEEDS:] if judges else keys[:SEEDS]
        number = jnp.int32(names.index(method))
        found, *policies = program(number, *jnp.asarray(setting), keys_of)
        returns = np.asarray(found)
        of_seed, generation = np.indices(returns.shape).reshape(2, -1)
        table = pd.DataFrame(
            {
                "task": task.name,
                "method": method,
                "step_size": setting[0],
                "smoothing": setting[1],
                "judges": judges,
                "seed": of_seed + judges * SEEDS,
                "env_steps": steps * generation,
                "return": returns.ravel(),
            }
        )
        if judges:
            ends = generation == returns.shape[1] - 1
            for name, params in zip(("before", "after"), policies, strict=True):
                numbers = jax.vmap(lambda params: ravel_pytree(params)[0])(params)
                table.loc[ends, name] = [
                    " ".join(f"{x:.9g}" for x in row) for row in np.asarray(numbers)
                ]
        rows.extend(table.to_dict("records"))
        tick(len(rows) / returns.size / (len(grid) + 1))
        return float(returns.mean())

    best = max(grid, key=lambda setting: play(setting, False))
    play(best, True)
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


def judging(frame: pd.DataFrame) -> pd.DataFrame:
    """The seeds that judge: of each method at the settings that the others chose.

    By the mean over all generations: fast and good.
    """
    return frame[frame["judges"].astype(bool)]


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """Settings, mean and standard error of the last generations and of all."""
    runs = judging(frame).groupby([*GROUP, "seed"], sort=False)
    over = {
        "end": runs.tail(LAST).groupby([*GROUP, "seed"], sort=False)["return"].mean(),
        "whole": runs["return"].mean(),
    }
    out = judging(frame).groupby(GROUP, sort=False)[["step_size", "smoothing"]].first()
    for name, means in over.items():
        found = means.groupby(GROUP, sort=False)
        out[[name, f"{name}_error"]] = found.agg(["mean", "sem"])
    return out


def tables(frame: pd.DataFrame) -> Tables:
    """One for each environment: mean ± standard error over the seeds that judge."""
    out = {}
    for task, part in ends(frame).groupby("task", sort=False):
        shown = part.loc[task, ["step_size", "smoothing"]].map("{:g}".format)
        for name, words in (("end", f"last {LAST}"), ("whole", "all")):
            pairs = part.loc[task, [name, f"{name}_error"]].itertuples(index=False)
            shown[f"return, {words}"] = [f"{x:.1f} ± {error:.1f}" for x, error in pairs]
        steps = frame.loc[frame["task"] == task, "env_steps"].max()
        out[f"{task}, {steps:,} environment steps a run"] = shown
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """Our best against evosax's best, by environment."""
    out = []
    for task, part in ends(frame).groupby("task", sort=False):
        part = part.loc[task]
        ours = part.index.str.startswith(OURS)
        us, them = (
            rows.loc[rows["whole"].idxmax()] for rows in (part[ours], part[~ours])
        )
        error = np.hypot(us["whole_error"], them["whole_error"])
        gap = us["whole"] - them["whole"]
        verdict = "within two standard errors"
        if abs(gap) > 2 * error:
            verdict = "ahead" if gap > 0 else "BEHIND"
        out.append(
            f"{task}, mean over the run: {us.name} {us['whole']:.1f}, {them.name}"
            f" {them['whole']:.1f}: {verdict}."
        )
    edges = [
        f"{task}, {method}, {name.replace('_', ' ')} {value:g}"
        for (task, method), row in ends(frame).iterrows()
        for name, grid in (("step_size", STEP_SIZES), ("smoothing", SMOOTHINGS))
        if (value := row[name]) in (grid[0], grid[-1])
    ]
    return [*out, f"Chosen at an edge of the grid: {'; '.join(edges) or 'none'}."]


def typical(frame: pd.DataFrame, task: str) -> pd.Series:
    """The last row of our best method's run of median return."""
    means = ends(frame).loc[task, "whole"]
    method = means[means.index.str.startswith(OURS)].idxmax()
    runs = judging(frame).set_index(GROUP).sort_index().loc[(task, method)]
    by_seed = runs.groupby("seed")["return"].mean().sort_values()
    return runs[runs["seed"] == by_seed.index[len(by_seed) // 2]].iloc[-1]


def figure(frame: pd.DataFrame) -> Figure:
    """Curves; below them an episode of our best policy, before and after."""
    parts = judging(frame).groupby("task", sort=False)
    out = Figure(figsize=(3.7 * parts.ngroups, 7), layout="constrained")
    axes = out.subplots(3, parts.ngroups, squeeze=False, height_ratios=(2.4, 1, 1))
    by_name = {task.name: task for task in TASKS}
    for column, (name, part) in zip(axes.T, parts, strict=True):
        seaborn.lineplot(
            part.assign(ours=part["method"].str.startswith(OURS)),
            x="env_steps",
            y="return",
            hue="method",
            style="ours",
            style_order=[True, False],
            errorbar=("pi", 100),
            palette=list(COLOURS[: part["method"].nunique()]),
            ax=column[0],
        )
        column[0].legend().remove()
        column[0].set(title=name, xlabel="environment steps")
        column[0].ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        before_and_after(column[1:], by_name[name], typical(frame, name))
    methods = frame["method"].unique()
    out.legend(
        axes[0, 0].lines[: len(methods)], methods, loc="outside lower center", ncols=3
    )
    return out


STUDY = Study("Policies by their returns", cells, tables, findings, figure)
