"""The floor of every tuning: a logistic regression on what the frozen model answers.

One forward pass over each sentence, no direction and no step. The state of the last
token after some layers is standardised; layer and regularisation are those with the
lowest cross-entropy on the validation sentences.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.language import problem, tasks
from benchmarks.language.problem import Model, Source
from benchmarks.language.tasks import Examples
from benchmarks.language.transformer import embed, finish, run_layers
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

EVERY = 5  # layers between those that are read
PENALTIES = tuple(float(c) for c in np.logspace(-4, 0, 9))  # scikit-learn's C
QUICK, FULL = (512,), (512, 2048, 4096)  # training sentences
LONGEST = 24  # tokens of a training sentence, as in the presets


class Features(NamedTuple):
    """States of the last token after each of some layers, and labels."""

    states: np.ndarray  # f[N, layers, D]
    labels: np.ndarray  # i32[N]

    def first(self, number: int) -> Features:
        return Features(self.states[:number], self.labels[:number])


def depths(model: Model) -> list[int]:
    """How many layers are run before a state is read; the last is the whole model."""
    number = len(model.params["layers"]["q"])
    return sorted({*range(EVERY, number, EVERY), number})


def features(model: Model, examples: Examples, tick: Tick) -> Features:
    """Runs the frozen model once over each sentence."""
    config, params, _ = model
    at = depths(model)

    @jax.jit
    def run(params, tokens, last):
        x, states = embed(config, params, tokens, {}), []
        rows = jnp.arange(len(last))
        for start, stop in zip([0, *at], at, strict=False):
            some = jax.tree.map(lambda leaf: leaf[start:stop], params["layers"])  # noqa: B023
            x, _ = run_layers(config, some, x, {})
            states.append(x[rows, last])
        # What the logits are made of, in place of the last layer's own states.
        states[-1] = finish(config, params, states[-1])
        return jnp.stack(states, axis=1)

    width = params["embed"].shape[1]
    out = np.zeros((len(examples.labels), len(at), width), np.float32)
    done = 0
    for rows, length in problem.by_length(examples.last):
        tokens = examples.tokens[rows, :length]
        out[rows] = run(params, tokens, examples.last[rows])
        done += len(rows)
        tick(done / len(out))
    return Features(out, examples.labels)


def fitted(train: Features, validation: Features) -> tuple[Pipeline, int, float, float]:
    """(Regression, index of the layer, C, cross-entropy): the best on validation."""
    best = None
    for layer in range(train.states.shape[1]):
        for penalty in PENALTIES:
            regression = LogisticRegression(C=penalty, max_iter=2000)
            model = make_pipeline(StandardScaler(), regression)
            model.fit(train.states[:, layer], train.labels)
            chances = model.predict_proba(validation.states[:, layer])
            value = float(log_loss(validation.labels, chances))
            if best is None or value < best[3]:
                best = (model, layer, penalty, value)
    return best


def measure(sizes: tuple[int, ...], tick: Tick) -> list[Row]:
    """A row for each number of training sentences; all of them are run once."""
    source = Source()
    model, splits = problem.load_model(source), problem.load_splits(source)
    read = lambda some, longest, cut: tasks.encode(
        model.tokenizer, some, longest, truncate=cut
    )
    train = read(splits.train, LONGEST, False).take(np.arange(max(sizes)))
    held_out = [
        read(some, problem.LONGEST, True) for some in (splits.validation, splits.test)
    ]
    begin = time.monotonic()
    found = [
        features(model, some, lambda share, i=i: tick((i + share) / 4))
        for i, some in enumerate((train, *held_out))
    ]
    seconds = time.monotonic() - begin
    rows = []
    for size in sizes:
        begin = time.monotonic()
        regression, layer, penalty, value = fitted(found[0].first(size), found[1])
        chances = regression.predict_proba(found[2].states[:, layer])
        rows.append(
            {
                "sentences": size,
                "layer": depths(model)[layer],
                "penalty": penalty,
                "validation": value,
                "accuracy": float(np.mean(chances.argmax(1) == found[2].labels)),
                "cross_entropy": float(log_loss(found[2].labels, chances)),
                "features_seconds": seconds,
                "fit_seconds": time.monotonic() - begin,
            }
        )
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell: the numbers of sentences share what is run."""
    del seed
    return {"probe": lambda tick: measure(FULL if full else QUICK, tick)}


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            f"{row.sentences:,}",
            row.layer,
            f"{row.penalty:.2g}",
            f"{100 * row.accuracy:.1f}",
            f"{row.cross_entropy:.3f}",
        ]
        for row in frame.itertuples()
    ]
    columns = ["training sentences", "layer", "C", "accuracy, %", "cross-entropy"]
    return [tabulate("Logistic regression on frozen states, test", columns, rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    last = frame.iloc[-1]
    return [
        f"One forward pass over each of {last['sentences']:,.0f} sentences:"
        f" {last['accuracy']:.1%}, cross-entropy {last['cross_entropy']:.3f}."
    ]


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5, 3), layout="constrained")
    axis = out.subplots()
    axis.plot(frame["sentences"], 100 * frame["accuracy"], "o-", color=COLOURS[0])
    axis.set(xlabel="training sentences", ylabel="test accuracy, %", xscale="log")
    return out


STUDY = Study("Language: the floor", cells, tables, findings, figure)
