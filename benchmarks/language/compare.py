"""Methods at equal forward passes: ZoAR beside vanilla, DAP beside the sphere.

On LoRA here; ``compare_cores`` does the same on small cores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import problem, training
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import PRESETS, Recipe, queries
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate, with_error

SEEDS = 3
QUICK, FULL = 300, 2000  # forward passes


class Base(NamedTuple):
    """On what methods are compared: a preset, changed, and its learning rates."""

    preset: str
    changes: tuple[tuple[str, Any], ...]
    grid: tuple[float, ...]


# In small, so that a grid and seeds can be afforded. Nothing is clipped: a bound on
# each derivative and one on an average of them are not the same.
SMALLER = (("batch", 8), ("sentences", 1024), ("clip", 0.0))
LORA = Base("lora-zo", (*SMALLER, ("top", 10)), (0.1, 0.3, 0.9, 2.7))
CORES = Base(
    "cores-zo",
    (*SMALLER, ("matrices", "od"), ("rank", 4), ("head", "words")),
    (0.01, 0.03, 0.09, 0.27, 0.81),
)
# What is compared, as changes of that.
METHODS: dict[str, dict[str, Any]] = {
    "two-sided, gaussian": {"sampler": "gaussian"},
    "ZoAR of pairs, N = 5": {"sampler": "gaussian", "estimator": "zoar", "history": 5},
    "one-sided, sphere, K = 2": {
        "sampler": "sphere",
        "estimator": "one-sided",
        "directions": 2,
    },
    "two-stage DAP, K = 2": {
        "sampler": "gaussian",
        "estimator": "dap",
        "directions": 2,
    },
}
# Vanilla, and what the papers say of each pair.
PAIRS = {
    "ZoAR of pairs, N = 5": (
        "two-sided, gaussian",
        "the paper: ZoAR converges faster than vanilla ZO (OPT-1.3B, LoRA)",
    ),
    "two-stage DAP, K = 2": (
        "one-sided, sphere, K = 2",
        "the paper: DAP reaches a higher accuracy than the sphere (OPT-1.3B, prompt)",
    ),
}


def recipe_of(base: Base, method: str, rate: float, seed: int, passes: int) -> Recipe:
    """The base recipe with a method's changes, for that many forward passes."""
    preset = dataclasses.asdict(PRESETS[base.preset][1])
    fields = preset | dict(base.changes) | METHODS[method]
    fields |= {"learning_rate": rate, "seed": seed}
    steps = passes // queries(Recipe(**fields))
    return Recipe(**{**fields, "steps": steps})


@functools.cache
def _ready(base: Base) -> tuple[problem.Problem, Floors]:
    """The problem; what is run once serves all methods and seeds."""
    source = Source()
    recipe = recipe_of(base, next(iter(METHODS)), base.grid[0], 0, QUICK)
    model, splits = problem.load_model(source), problem.load_splits(source)
    ready = problem.make(recipe, model, splits)
    return ready, problem.floors(ready)


def cells(full: bool, seed: int, base: Base = LORA) -> dict[str, Cell]:
    """A cell for each method, learning rate and seed."""
    passes = FULL if full else QUICK

    def cell(method: str, rate: float, run_seed: int) -> Cell:
        def run(tick: Callable[[float], None]) -> list[Row]:
            recipe = recipe_of(base, method, rate, run_seed, passes)
            ready, floors = _ready(base)
            ready = problem.with_seed(ready, recipe)
            out, test = training.train_and_test(recipe, ready, tick)
            row = out.curve[-1]
            return [
                {
                    "method": method,
                    "learning_rate": rate,
                    "seed": run_seed,
                    "passes": row["passes"],
                    "validation": row["cross_entropy"],
                    "accuracy": test.accuracy,
                    "cross_entropy": test.cross_entropy,
                    "calibrated": floors.calibrated,
                }
            ]

        return run

    return {
        f"{method}, {rate:g}, seed {run_seed}": cell(method, rate, run_seed)
        for run_seed in range(seed, seed + SEEDS)
        for method in METHODS
        for rate in base.grid
    }


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Each method's rows at the learning rate best on validation sentences."""
    means = frame.groupby(["method", "learning_rate"])["validation"].mean()
    chosen = means.groupby("method").idxmin()
    keys = pd.MultiIndex.from_frame(frame[["method", "learning_rate"]])
    return frame[keys.isin(list(chosen))]


def _mean(values: pd.Series) -> tuple[float, float]:
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def tables(frame: pd.DataFrame) -> list[Table]:
    at_best = best(frame)
    rows = []
    for method in METHODS:
        group = at_best[at_best["method"] == method]
        others = frame[frame["method"] == method].groupby("learning_rate")
        each = others["cross_entropy"].mean()
        rows.append(
            [
                method,
                plain(group["learning_rate"].iloc[0]),
                with_error(*_mean(100 * group["accuracy"])),
                with_error(*_mean(group["cross_entropy"])),
                " / ".join(f"{value:.2f}" for value in each),
            ]
        )
    rates = " / ".join(f"{rate:g}" for rate in sorted({*frame["learning_rate"]}))
    columns = [
        "method",
        "best\nrate",
        "accuracy,\n%",
        "cross-\nentropy",
        f"cross-entropy at\n{rates}",
    ]
    passes = int(frame["passes"].max())
    title = f"Test sentences after {passes} forward passes, {SEEDS} seeds"
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    at_best = best(frame).set_index(["method", "seed"])
    out = []
    for method, (vanilla, claim) in PAIRS.items():
        parts = []
        for column, unit, scale in (
            ("accuracy", " points", 100),
            ("cross_entropy", "", 1),
        ):
            by_seed = at_best[column].unstack("seed")
            mean, error = _mean(scale * (by_seed.loc[method] - by_seed.loc[vanilla]))
            parts.append(f"{column.replace('_', '-')} {mean:+.3g} +- {error:.2g}{unit}")
        out.append(f"{method} less {vanilla}: {', '.join(parts)} ({claim}).")
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(7, 4), layout="constrained")
    axis = out.subplots()
    for colour, method in zip(COLOURS, METHODS, strict=False):
        group = frame[frame["method"] == method].groupby("learning_rate")
        spread = group["cross_entropy"].agg(["mean", "std"])
        axis.errorbar(
            spread.index,
            spread["mean"],
            spread["std"],
            color=colour,
            label=method,
            marker="o",
            capsize=2,
        )
    axis.set(xscale="log", xlabel="learning rate", ylabel="test cross-entropy, 3 seeds")
    grid = sorted({*frame["learning_rate"]})
    axis.set_xticks(grid, map(str, grid))
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    return out


STUDY = Study("Language: methods compared", cells, tables, findings, figure, timed=True)
