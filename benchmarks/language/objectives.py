"""Accuracy itself as the objective, beside cross-entropy, at equal forward passes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import problem, training
from benchmarks.language.problem import Floors, Source
from benchmarks.language.recipe import OBJECTIVES, PRESETS, Recipe, queries
from benchmarks.study import COLOURS, Cell, Row, Study, plain, tabulate, with_error

SEEDS = 3
QUICK, FULL = 300, 2000  # forward passes
SMOOTHINGS, RATES = (0.01, 0.03), (0.1, 0.4)
# Of the base recipe. A share of wrong labels moves in steps of one sentence: more
# sentences and directions than cross-entropy needs, and the same for both.
CHANGES = {"top": 10, "batch": 64, "directions": 2, "sentences": 1024, "clip": 0.0}
SETTING = ["smoothing", "learning_rate"]


def recipe_of(
    objective: str, smoothing: float, rate: float, seed: int, passes: int
) -> Recipe:
    """The base recipe with an objective, for that many forward passes."""
    chosen = dataclasses.replace(
        PRESETS["lora-zo"][1],
        **CHANGES,
        objective=objective,
        smoothing=smoothing,
        learning_rate=rate,
        seed=seed,
    )
    return dataclasses.replace(chosen, steps=passes // queries(chosen))


@functools.cache
def _ready() -> tuple[problem.Problem, Floors]:
    """The problem; what is run once serves all objectives and seeds."""
    source = Source()
    recipe = recipe_of(OBJECTIVES[0], SMOOTHINGS[0], RATES[0], 0, QUICK)
    model, splits = problem.load_model(source), problem.load_splits(source)
    ready = problem.make(recipe, model, splits)
    return ready, problem.floors(ready)


def measure(recipe: Recipe, tick: Callable[[float], None]) -> list[Row]:
    """A run: its validation and test scores at the end."""
    ready, floors = _ready()
    ready = problem.with_seed(ready, recipe)
    out, test = training.train_and_test(recipe, ready, tick)
    return [
        {
            "objective": recipe.objective,
            "smoothing": recipe.smoothing,
            "learning_rate": recipe.learning_rate,
            "seed": recipe.seed,
            "passes": out.curve[-1]["passes"],
            "validation": out.curve[-1]["accuracy"],
            "accuracy": test.accuracy,
            "cross_entropy": test.cross_entropy,
            "calibrated": floors.calibrated,
        }
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each objective, smoothing, learning rate and seed."""
    passes = FULL if full else QUICK
    return {
        f"{objective}, {smoothing:g}, {rate:g}, seed {s}": functools.partial(
            measure, recipe_of(objective, smoothing, rate, s, passes)
        )
        for s in range(seed, seed + SEEDS)
        for objective in OBJECTIVES
        for smoothing in SMOOTHINGS
        for rate in RATES
    }


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """Each objective's rows at the setting with the best validation accuracy."""
    means = frame.groupby(["objective", *SETTING])["validation"].mean()
    chosen = list(means.groupby("objective").idxmax())
    keys = pd.MultiIndex.from_frame(frame[["objective", *SETTING]])
    return frame[keys.isin(chosen)]


def _mean(values: pd.Series) -> tuple[float, float]:
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = []
    for objective, group in best(frame).groupby("objective", sort=False):
        first = group.iloc[0]
        rows.append(
            [
                objective,
                plain(first["smoothing"]),
                plain(first["learning_rate"]),
                with_error(*_mean(100 * group["accuracy"])),
                with_error(*_mean(group["cross_entropy"])),
            ]
        )
    columns = ["objective", "smoothing", "rate", "test\naccuracy, %", "cross-\nentropy"]
    passes = frame["passes"].max()
    title = f"{passes:,.0f} forward passes of {CHANGES['batch']} sentences"
    table = tabulate(title, columns, rows)
    floor = 100 * frame["calibrated"].iloc[0]
    table.caption = (
        f"{SEEDS} seeds; smoothing of {SMOOTHINGS} and rate of {RATES} chosen on the"
        f" validation sentences; calibrated zero-shot {floor:.1f}%."
    )
    return [table]


def findings(frame: pd.DataFrame) -> list[str]:
    """Paired by seed: accuracy as an objective less cross-entropy."""
    at_best = best(frame).set_index(["objective", "seed"])["accuracy"].unstack(0)
    gap = 100 * (at_best["accuracy"] - at_best["cross-entropy"])
    mean, error = _mean(gap)
    return [
        f"Accuracy as the objective: {mean:+.1f} ± {error:.1f} points of test accuracy"
        " on cross-entropy at as many forward passes."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(6, 3.2), layout="constrained")
    axis = out.subplots()
    at_best = best(frame)
    for i, objective in enumerate(OBJECTIVES):
        group = at_best[at_best["objective"] == objective]
        axis.plot(
            group["seed"], 100 * group["accuracy"], "o", color=COLOURS[i], ms=8, mew=0
        )
        mean = 100 * group["accuracy"].mean()
        axis.axhline(mean, color=COLOURS[i], lw=1, label=f"{objective}: {mean:.1f}%")
    floor = 100 * frame["calibrated"].iloc[0]
    axis.axhline(floor, color="0.6", lw=1, ls="--", label="zero-shot, calibrated")
    axis.set(xlabel="seed", ylabel="test accuracy, %", xticks=sorted({*frame["seed"]}))
    axis.legend(frameon=False)
    return out


STUDY = Study("Language: objectives", cells, tables, findings, figure)
