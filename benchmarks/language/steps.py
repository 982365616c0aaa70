"""Steps of the preset quick changed, and what else is tuned: each with its own rate."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import problem, training, tuning
from benchmarks.language.problem import Problem, Source
from benchmarks.language.recipe import PRESETS, Recipe
from benchmarks.study import (
    COLOURS,
    Cell,
    Row,
    Study,
    Tick,
    plain,
    tabulate,
    with_error,
)

SEEDS = 3
# A head on the tuned states hides what the steps did; 1,536 sentences, on both sides.
BASE = {"head": "words", "steps": 48}
RATES = (0.03, 0.09, 0.27)
MEAN = {"estimator": "mean", "directions": 4, "steps": 24}  # passes: 4 a step
SCORES = {"shaping": "z-score", "clip": 0.0}
NORMS = (0.003, 0.01, 0.03)
# By name: changes, and the rates of which the best is taken on validation sentences.
METHODS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "two-sided": ({}, RATES),
    "a rate found": ({"learning_rate": "auto"}, ("auto",)),
    "batch doubled late": ({"late_batch": 64, "steps": 32}, RATES),
    "two-sided, z-scores": (SCORES, (3e-4, 1e-3, 3e-3)),
    "mean of 4": (MEAN, (0.09, 0.27, 0.81)),
    "mean of 4, z-scores": (MEAN | SCORES, (3e-4, 1e-3, 3e-3)),
    "norms alone": ({"tuning": "norms"}, NORMS),
    "norms beside cores": ({"norms": True}, NORMS),
    "all positions": ({"after_text": False}, RATES[:2]),
}
FULL = ("all positions",)  # half a minute a step where others take one


def recipe_of(method: str, rate: Any, seed: int) -> Recipe:
    changes, _ = METHODS[method]
    fields = dataclasses.asdict(PRESETS["quick"][1]) | BASE | changes
    if fields["tuning"] == "norms":  # it has no directions of its own
        fields |= {"predicting": False}
    return Recipe(**fields | {"learning_rate": rate, "seed": seed})


@functools.cache
def _made(after_text: bool) -> Problem:
    """The problem of quick's cores; texts and layers below are run once for all."""
    source, chosen = Source(), recipe_of("two-sided", RATES[0], 0)
    chosen = dataclasses.replace(chosen, after_text=after_text)
    model = problem.load_model(source)
    return problem.make(chosen, model, problem.load_splits(source))


def ready(recipe: Recipe) -> Problem:
    """The same, with what the recipe tunes in the place of cores or beside them."""
    made = _made(recipe.after_text)
    model, adapter = made.params["model"], made.params["adapter"]
    if recipe.tuning == "norms":
        adapter = {"bias": adapter["bias"]}
    if recipe.tuning == "norms" or recipe.norms:
        adapter = adapter | tuning.norms(model)
    trainable, stacked = problem.trainable_and_stacked(recipe, model, adapter)
    return dataclasses.replace(
        made,
        params={"model": model, "adapter": adapter},
        trainable=trainable,
        stacked=stacked,
    )


def measure(method: str, seed: int, tick: Tick) -> list[Row]:
    """A row for each run: the first seed's of each rate, the others' of its best."""
    rates = METHODS[method][1]
    runs = len(rates) + SEEDS - 1

    def run(rate: Any, run_seed: int) -> Row:
        chosen = recipe_of(method, rate, run_seed)
        made, error = ready(chosen), None
        if rate == "auto":
            found = training.suggest_rate(chosen, made)
            rate, error = found.learning_rate, found.learning_rate_error
            chosen = dataclasses.replace(chosen, learning_rate=rate)
        before = len(rows) / runs
        done = lambda share: tick(before + share / runs)
        out, test = training.train_and_test(chosen, made, done)
        return {
            "method": method,
            "learning_rate": rate,
            "rate_error": error,
            "seed": run_seed,
            "validation_accuracy": out.curve[-1]["accuracy"],
            "validation": out.curve[-1]["cross_entropy"],
            "accuracy": test.accuracy,
            "cross_entropy": test.cross_entropy,
            "seconds": out.seconds,
        }

    rows: list[Row] = []
    for rate in rates:
        rows.append(run(rate, seed))
    best = rates[int(np.argmin([row["validation"] for row in rows]))]
    for other in range(seed + 1, seed + SEEDS):
        rows.append(run(best, other))
    chosen = [row for row in rows if best in ("auto", row["learning_rate"])]
    return [row | {"chosen": row in chosen} for row in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each method."""
    names = [name for name in METHODS if full or name not in FULL]
    return {name: functools.partial(measure, name, seed) for name in names}


def _mean(values: pd.Series) -> str:
    return with_error(values.mean(), values.std(ddof=1) / np.sqrt(len(values)))


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = []
    for method, every in frame.groupby("method", sort=False):
        group = every[every["chosen"]]
        rates = "/".join(plain(rate) for rate in sorted({*group["learning_rate"]}))
        columns = ("accuracy", "cross_entropy", "validation_accuracy", "validation")
        scores = (group[name] * (100 if "acc" in name else 1) for name in columns)
        rows.append([method, rates, *map(_mean, scores)])
    columns = ["", "rate", "test\naccuracy, %", "cross-\nentropy"]
    columns += ["validation\naccuracy, %", "cross-\nentropy"]
    return [tabulate(f"quick, by its words, {SEEDS} seeds", columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    """Each method beside two-sided steps, paired by seed."""
    chosen = frame[frame["chosen"]].set_index(["method", "seed"])
    out = []
    for method in frame["method"].unique()[1:]:
        parts = []
        for column, scale, unit in (
            ("accuracy", 100, " points"),
            ("cross_entropy", 1, ""),
        ):
            by_seed = scale * chosen[column].unstack("seed")
            away = by_seed.loc[method] - by_seed.loc["two-sided"]
            error = away.std(ddof=1) / np.sqrt(len(away))
            name = column.replace("_", "-")
            parts.append(f"{name} {away.mean():+.3f} +- {error:.3f}{unit}")
        out.append(f"{method} less two-sided: {', '.join(parts)}.")
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(7, 3), layout="constrained")
    axis = out.subplots()
    groups = frame[frame["chosen"]].groupby("method", sort=False)["cross_entropy"]
    spread = groups.agg(["mean", "std"])
    axis.barh(spread.index, spread["mean"], xerr=spread["std"], color=COLOURS[0])
    axis.invert_yaxis()
    axis.set(xlabel="test cross-entropy")
    return out


STUDY = Study("Language: steps", cells, tables, findings, figure)
