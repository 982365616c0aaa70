"""A regression: how people rate tweets, from -4 to 4, estimated by a tuned model.

The readout is a ridge regression on the frozen model's states of the training tweets,
the floor; cores then move these states, with forward passes only, and lower the squared
error. Beside both: the mean of the training ratings.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
import pandas as pd

from benchmarks.language import assets, head, problem, tasks, training
from benchmarks.language.problem import Batch, Model, Problem, Source
from benchmarks.language.recipe import PRESETS, TWO_SIDED, Recipe, queries
from benchmarks.study import Cell, Row, Study, Tables, Tick, bars

QUICK, FULL = 100, 600  # steps
# Cores on what the head reads; their step size is for errors of squared ratings. The
# head that answers is fitted here, to ratings, and tweets are longer than sentences.
RECIPE = PRESETS["cores-zo"][1].replace(
    **TWO_SIDED, calibrate=False, head="words", longest=32, sentences=2800
)


def ready(model: Model, recipe: Recipe, source: Source, tick: Tick) -> Problem:
    """The tweets' problem, its labels ratings, its start the head on frozen states."""
    tweets = tasks.rated(assets.path_of("tweets", source.cache))
    made = problem.make(recipe, model, tweets, tick)
    read = problem.states_of(made.config, made.params, made.train)
    fitted = head.fit(*read, made.train.labels, made.bottom, head.ridge)
    flag = lambda parts: parts | {"adapter": parts["adapter"] | {"head": False}}
    return dataclasses.replace(
        made,
        params=made.params | {"adapter": made.params["adapter"] | {"head": fitted}},
        trainable=flag(made.trainable),
        stacked=flag(made.stacked),
    )


def errors(estimates: np.ndarray, ratings: np.ndarray) -> Row:
    """Root mean square and mean absolute error, in ratings; Pearson's correlation."""
    away = np.asarray(estimates, np.float64) - ratings
    with np.errstate(invalid="ignore"):  # constants have no correlation
        correlation = np.corrcoef(estimates, ratings)[0, 1]
    rmse, mae = np.sqrt(np.mean(away**2)), np.mean(np.abs(away))
    return {"rmse": rmse, "mae": mae, "correlation": correlation}


def estimates(made: Problem, adapter: Any, batch: Batch) -> np.ndarray:
    """Estimated ratings f32[N]."""
    params = {"model": made.params["model"], "adapter": adapter}
    return np.diff(problem.logits(made.config, params, batch, made.words))[:, 0]


def tuned(made: Problem, recipe: Recipe, tick: Tick) -> Any:
    """The adapter after all steps."""
    value_fn = problem.loss(made.config, made.words, "squared error")
    opt, step = training.make_step(recipe, made, value_fn)
    step = jax.jit(step)
    frozen = {"model": made.params["model"]}
    adapter, state = made.params["adapter"], opt.init(made.params)
    for i in range(recipe.steps):
        rows = training.batch_rows(recipe, len(made.train.labels), i)
        batch = made.train.take(rows)
        adapter, state, _ = step(adapter, state, frozen, batch)
        tick((i + 1) / recipe.steps)
    return adapter


def measure(steps: int, seed: int, tick: Tick) -> list[Row]:
    """The mean, the floor and the tuned cores on the same test tweets."""
    recipe = RECIPE.replace(steps=steps, seed=seed)
    begin, source = time.monotonic(), Source()
    model = problem.load_model(source)
    made = ready(model, recipe, source, lambda share: tick(share / 3))
    prepared, start = time.monotonic() - begin, made.params["adapter"]
    end = tuned(made, recipe, lambda share: tick((1 + 2 * share) / 3))
    ratings = made.test.labels
    found = {
        "mean rating": np.full(len(ratings), made.train.labels.mean()),
        "ridge on frozen states": estimates(made, start, made.test),
        "cores, tuned": estimates(made, end, made.test),
    }
    passes, seconds = steps * queries(recipe), time.monotonic() - begin
    cost = ((0, 0.0), (0, prepared), (passes, seconds))
    return [
        {"name": name, **errors(values, ratings), "passes": number, "minutes": own / 60}
        for (name, values), (number, own) in zip(found.items(), cost, strict=True)
    ]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    return {"ratings": functools.partial(measure, FULL if full else QUICK, seed)}


def tables(frame: pd.DataFrame) -> Tables:
    columns = ["rmse", "mae", "correlation", "passes", "minutes"]
    found = frame.set_index("name")[columns]
    found[columns[:3]] = found[columns[:3]].map("{:.3f}".format)
    return {"Ratings from -4 to 4 of test tweets; passes of a batch": found}


FIGURE = functools.partial(bars, x="rmse", y="name", hue="name")
STUDY = Study("Language: ratings", cells, tables, lambda frame: [], FIGURE)
