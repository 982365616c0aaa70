"""Return of the mean policy against environment steps, by method and environment."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.policy.methods import (
    EPISODES,
    METHODS,
    OURS,
    POPULATION,
    make_run,
)
from benchmarks.policy.tasks import TASKS, Task
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

STEP_SIZES = (0.01, 0.03, 0.1)
SEEDS = 5  # to choose a step size by, and as many others to judge it by
QUICK, FULL = 40, 200  # generations
LAST = 5  # generations that the end is the mean of


def measure(
    task: Task, method: str, generations: int, seed: int, tick: Tick
) -> list[Row]:
    """All step sizes and seeds as one program: a row for each generation of each."""
    run = make_run(task, method, generations)
    keys = jax.random.split(jax.random.key(seed), 2 * SEEDS)
    grid = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    start = time.monotonic()
    program = jax.jit(grid).lower(jnp.asarray(STEP_SIZES), keys).compile()
    tick(0.2)
    compiled = time.monotonic()
    found = np.asarray(jax.block_until_ready(program(jnp.asarray(STEP_SIZES), keys)))
    seconds = time.monotonic() - compiled
    steps = POPULATION * EPISODES * task.length
    return [
        {
            "task": task.name,
            "method": method,
            "step_size": step_size,
            "judges": k >= SEEDS,
            "seed": k,
            "generation": n + 1,
            "env_steps": (n + 1) * steps,
            "return": float(found[i, k, n]),
            "seconds": seconds,
            "compile_seconds": compiled - start,
        }
        for i, step_size in enumerate(STEP_SIZES)
        for k in range(2 * SEEDS)
        for n in range(generations)
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each environment and method."""
    generations = FULL if full else QUICK
    return {
        f"{task.name}/{method}": functools.partial(
            measure, task, method, generations, seed
        )
        for task in TASKS
        for method in METHODS
    }


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The judging seeds, at the step size that was best over the other ones.

    By the mean over all generations: fast and good.
    """
    parts = []
    for _, part in frame.groupby(["task", "method"], sort=False):
        tuning = part[~part["judges"].astype(bool)]
        best = tuning.groupby("step_size")["return"].mean().idxmax()
        parts.append(part[part["judges"].astype(bool) & (part["step_size"] == best)])
    return pd.concat(parts)


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
                f"{row.end:.1f} ± {row.end_error:.1f}",
                f"{row.whole:.1f} ± {row.whole_error:.1f}",
                f"{row.seconds:.0f}",
            ]
            for row in part.itertuples()
        ]
        columns = ["", "step\nsize", f"return, last\n{LAST} generations", "of all"]
        title = f"{task}, {steps / 1e6:.1f} million environment steps a run"
        out.append(tabulate(title, [*columns, "seconds,\n30 runs"], rows))
    out[-1].caption = (
        f"Mean ± standard error over {SEEDS} seeds; step sizes of {STEP_SIZES} (SNES:"
        f" first deviations of ten times these) chosen by {SEEDS} other seeds."
    )
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """Our best against evosax's best, by environment."""
    out = []
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
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Return against environment steps, mean and spread over seeds."""
    tasks = list(chosen(frame).groupby("task", sort=False))
    out = Figure(figsize=(4.4 * len(tasks), 3.8), layout="constrained")
    axes = out.subplots(1, len(tasks), squeeze=False)[0]
    for axis, (task, part) in zip(axes, tasks, strict=True):
        methods = part.groupby("method", sort=False)
        for colour, (method, rows) in zip(COLOURS, methods, strict=False):
            curves = rows.groupby("env_steps")["return"].agg(["mean", "min", "max"])
            style = "-" if method.startswith(OURS) else "--"
            axis.plot(curves["mean"], style, color=colour, label=method)
            axis.fill_between(
                curves.index, curves["min"], curves["max"], color=colour, alpha=0.08
            )
        axis.set(title=task, xlabel="environment steps", ylabel="return")
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=7)
    return out


STUDY = Study("Policies by their returns", cells, tables, findings, figure)
