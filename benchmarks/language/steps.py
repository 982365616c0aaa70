"""Steps of the preset quick changed, and what else is tuned: each with its own rate."""

import functools
from typing import Any

import pandas as pd

from benchmarks.language import runs, training
from benchmarks.language.compare import paired
from benchmarks.language.recipe import PRESETS, TWO_SIDED
from benchmarks.study import Cell, Row, Study, Tables, Tick, bars

# A head on the tuned states hides what the steps did; 1,536 sentences, on both sides.
BASE = PRESETS["quick"][1].replace(**TWO_SIDED, head="words", steps=48)
RATES = (0.03, 0.09, 0.27)
MEAN = {"estimator": "mean", "directions": 4, "steps": 24}  # passes: 4 a step
SCORES = {"shaping": "z-score", "clip": 0.0}
NORMS = (0.003, 0.01, 0.03)
# By name: changes, and the rates of which the best is taken on validation sentences.
METHODS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "two-sided": ({}, RATES),
    "a rate found": ({}, ("auto",)),
    "batch doubled late": ({"late_batch": 64, "steps": 32}, RATES),
    "two-sided, z-scores": (SCORES, (3e-4, 1e-3, 3e-3)),
    "mean of 4": (MEAN, (0.09, 0.27, 0.81)),
    "mean of 4, z-scores": (MEAN | SCORES, (3e-4, 1e-3, 3e-3)),
    # Norms alone have no directions of their own that could predict.
    "norms alone": ({"tuning": "norms", "predicting": False}, NORMS),
    "norms beside cores": ({"norms": True}, NORMS),
}


def run(method: str, rate: Any, seed: int, tick: Tick) -> Row:
    """The last row of a run; the rate may have to be found first."""
    changes = METHODS[method][0]
    recipe = BASE.replace(**changes, learning_rate=rate, seed=seed)
    found: Row = {}
    if rate == "auto":
        made, _ = runs.ready(recipe)
        suggested = training.suggest_rate(recipe, made)
        recipe = recipe.replace(learning_rate=float(suggested.learning_rate))
        found["rate_error"] = float(suggested.learning_rate_error)
    return runs.measure(method, recipe, tick)[-1] | found


def measure(method: str, seed: int, tick: Tick) -> list[Row]:
    """A row for each run: the first seed's of each rate, the others' of its best."""
    rates = METHODS[method][1]
    number = len(rates) + runs.SEEDS - 1
    part = lambda done: lambda share: tick((done + share) / number)
    first = [run(method, rate, seed, part(i)) for i, rate in enumerate(rates)]
    best = min(range(len(rates)), key=lambda i: first[i]["cross_entropy"])
    more = [
        run(method, rates[best], seed + i, part(len(rates) + i - 1))
        for i in range(1, runs.SEEDS)
    ]
    chosen = [first[best], *more]
    return [row | {"chosen": row in chosen} for row in first + more]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    return {name: functools.partial(measure, name, seed) for name in METHODS}


def tables(frame: pd.DataFrame) -> Tables:
    chosen = frame[frame["chosen"]]
    found = runs.scores(chosen)
    rates = chosen.groupby("name")["learning_rate"]
    found["rates"] = rates.agg(lambda each: "/".join(f"{x:.3g}" for x in each.unique()))
    return {"Quick, by its words": found}


def findings(frame: pd.DataFrame) -> list[str]:
    others = dict.fromkeys(frame["name"].unique()[1:], "two-sided")
    return paired(frame[frame["chosen"]], others)


FIGURE = functools.partial(bars, x="test_cross_entropy", y="name", hue="chosen")
STUDY = Study("Language: steps", cells, tables, findings, FIGURE, timed=True)
