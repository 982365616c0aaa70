"""A regression: how people rate tweets, from -4 to 4, estimated by a tuned model.

The readout is a ridge regression on the frozen model's states of the training tweets,
the floor; cores then move these states, with forward passes only, and lower the squared
error. Beside both: the mean of the training ratings.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.language import assets, head, problem, tasks, training
from benchmarks.language.problem import Batch, Model, Problem, Source
from benchmarks.language.recipe import PRESETS, Recipe, queries
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

LONGEST = 32  # tokens of a training tweet with the template
SENTENCES = 2800
QUICK, FULL = 100, 600  # steps
MEAN, FLOOR, TUNED = "mean rating", "ridge on frozen states", "cores, tuned"


def recipe_of(steps: int) -> Recipe:
    """Cores on what the head reads; its step size is for errors of squared ratings."""
    return dataclasses.replace(
        PRESETS["cores-zo"][1],
        calibrate=False,
        head="words",  # one is fitted here, to ratings
        steps=steps,
        longest=LONGEST,
        sentences=SENTENCES,
    )


def ready(model: Model, recipe: Recipe, source: Source, tick: Tick) -> Problem:
    """The tweets' problem, its labels ratings, its start the head on frozen states."""
    cache = source.cache or assets.cache_folder()
    splits, ratings = tasks.rated(assets.path_of("tweets", cache))
    train = tasks.encode(model.tokenizer, splits.train, recipe.longest)
    train = train.take(np.arange(min(recipe.sentences, len(train.labels))))
    held_out = [
        tasks.encode(model.tokenizer, some, problem.LONGEST, truncate=True)
        for some in (splits.validation, splits.test)
    ]
    examples = [
        some._replace(labels=ratings[some.labels]) for some in (train, *held_out)
    ]
    return with_head(problem.assemble(recipe, model, examples, tick))


def with_head(made: Problem) -> Problem:
    """The same problem, from a ridge regression on its training states on."""
    params, adapter = made.params["model"], made.params["adapter"]
    states, final = problem.states_of(made.config, params, adapter, made.train)
    fitted = head.fit(states, final, made.train.labels, made.bottom, head.ridge)
    trainable = made.trainable["adapter"] | {"head": False}
    stacked = made.stacked["adapter"] | {"head": False}
    return dataclasses.replace(
        made,
        params={"model": params, "adapter": adapter | {"head": fitted}},
        trainable=made.trainable | {"adapter": trainable},
        stacked=made.stacked | {"adapter": stacked},
    )


def errors(estimates: np.ndarray, ratings: np.ndarray) -> Row:
    """Root mean square and mean absolute error, in ratings; Pearson's correlation."""
    away = np.asarray(estimates, np.float64) - ratings
    constant = np.ptp(estimates) == 0
    correlation = np.nan if constant else np.corrcoef(estimates, ratings)[0, 1]
    return {
        "rmse": float(np.sqrt(np.mean(away**2))),
        "mae": float(np.mean(np.abs(away))),
        "correlation": float(correlation),
    }


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
    number = len(made.train.labels)
    for i in range(recipe.steps):
        rows = training.batch_rows(recipe, number, i)
        batch = training.on_device(made.train, rows)
        adapter, state, _ = step(adapter, state, frozen, batch)
        tick((i + 1) / recipe.steps)
    return adapter


def measure(steps: int, seed: int, tick: Tick) -> list[Row]:
    """The mean, the floor and the tuned cores on the same test tweets."""
    source, recipe = Source(), dataclasses.replace(recipe_of(steps), seed=seed)
    begin = time.monotonic()
    model = problem.load_model(source)
    made = ready(model, recipe, source, lambda share: tick(share / 3))
    seconds = time.monotonic() - begin
    ratings = made.test.labels
    mean = np.full(len(ratings), made.train.labels.mean())
    start = made.params["adapter"]
    common = {"seed": seed, "sentences": len(made.train.labels), "tests": len(ratings)}
    rows = [
        {"method": MEAN, "passes": 0, **errors(mean, ratings)},
        {
            "method": FLOOR,
            "passes": 0,
            "seconds": seconds,
            **errors(estimates(made, start, made.test), ratings),
        },
    ]
    end = tuned(made, recipe, lambda share: tick((1 + 2 * share) / 3))
    rows.append(
        {
            "method": TUNED,
            "passes": steps * queries(recipe),
            "seconds": time.monotonic() - begin,
            **errors(estimates(made, end, made.test), ratings),
        }
    )
    return [common | row for row in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One run: its start is the floor."""
    return {"ratings": lambda tick: measure(FULL if full else QUICK, seed, tick)}


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            row.method,
            f"{row.rmse:.3f}",
            f"{row.mae:.3f}",
            "" if pd.isna(row.correlation) else f"{row.correlation:.3f}",
            f"{row.passes:,}",
            "" if pd.isna(row.seconds) else f"{row.seconds / 60:.1f}",
        ]
        for row in frame.itertuples()
    ]
    columns = ["", "root mean\nsquare error", "mean absolute\nerror"]
    columns += ["correlation", "forward passes\nof a batch", "minutes"]
    title = f"Ratings from -4 to 4 of {frame['tests'].iloc[0]} test tweets"
    return [tabulate(title, columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    at = frame.set_index("method")
    return [
        f"{at.loc[TUNED, 'passes']:,.0f} forward passes of a batch change the floor's"
        f" error of {at.loc[FLOOR, 'rmse']:.3f} to {at.loc[TUNED, 'rmse']:.3f} ratings;"
        f" the mean rating's is {at.loc[MEAN, 'rmse']:.3f}."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5, 2.2), layout="constrained")
    axis = out.subplots()
    axis.barh(frame["method"], frame["rmse"], color=COLOURS[: len(frame)])
    axis.invert_yaxis()
    axis.set(xlabel="root mean square error, ratings")
    return out


STUDY = Study("Language: ratings", cells, tables, findings, figure)
