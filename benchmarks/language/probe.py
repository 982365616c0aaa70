"""The floor of every tuning: a logistic regression on what the frozen model answers.

One forward pass over each sentence, no direction and no step. It sees the last token's
standardised state after one layer, which is chosen with the penalty on the validation
sentences, or after several layers side by side, the penalty by cross-validation.
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

from benchmarks.language import head, problem, tasks
from benchmarks.language.problem import Model, Source
from benchmarks.language.tasks import Examples
from benchmarks.language.transformer import embed, finish, run_layers
from benchmarks.study import COLOURS, Cell, Row, Study, Tick, tabulate

PENALTIES = tuple(float(c) for c in np.logspace(-4, 0, 9))  # scikit-learn's C
QUICK, FULL = (512,), (512, 2048, 4096)  # training sentences
TOGETHER = "several"  # in place of a layer
NAMES = ("probe of one layer", "probe of several layers")
LONGEST = 24  # tokens of a training sentence, as in the presets


class Features(NamedTuple):
    """States of the last token after each of some layers, and labels."""

    states: np.ndarray  # f[N, layers, D]
    labels: np.ndarray  # i32[N]

    def first(self, number: int) -> Features:
        return Features(self.states[:number], self.labels[:number])


def depths(model: Model) -> list[int]:
    """How many layers are run before a state is read; the last is the whole model."""
    return head.read_depths(len(model.params["layers"]["q"]))


def features(model: Model, examples: Examples, tick: Tick) -> Features:
    """Runs the frozen model once over each sentence."""
    config, params, _ = model
    at = depths(model)

    @jax.jit
    def run(params, tokens, last):
        x = embed(config, params, tokens, {})
        x, own = run_layers(config, params["layers"], x, {}, read=last)
        # What the logits are made of, in place of the last layer's own states.
        final = finish(config, params, x[jnp.arange(len(last)), last])
        return jnp.stack([*(own["state"][depth - 1] for depth in at[:-1]), final], 1)

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


def margins_together(train: Features, test: Features) -> np.ndarray:
    """Margins f[N] on test of a regression on all layers that are read."""
    split = lambda states: list(np.moveaxis(states, 1, 0))
    slopes, bias = head.regression(split(train.states), train.labels)
    return bias + sum(
        part @ slope for part, slope in zip(split(test.states), slopes, strict=True)
    )


def together(train: Features, test: Features) -> tuple[float, float]:
    """(Accuracy, cross-entropy) of that regression."""
    margins = margins_together(train, test)
    right = np.mean((margins > 0) == test.labels)
    signs = np.where(test.labels == 1, 1.0, -1.0)
    return float(right), float(np.mean(np.logaddexp(0, -signs * margins)))


def splits_of(source: Source, model: Model, number: int) -> list[Examples]:
    """Training, validation and test sentences, as the presets see them."""
    splits = problem.load_splits(source)
    read = lambda some, longest, cut: tasks.encode(
        model.tokenizer, some, longest, truncate=cut
    )
    train = read(splits.train, LONGEST, False)
    held_out = [
        read(some, problem.LONGEST, True) for some in (splits.validation, splits.test)
    ]
    return [train.take(np.arange(number)), *held_out]


def measure(sizes: tuple[int, ...], tick: Tick) -> list[Row]:
    """Two rows for each number of training sentences; all of them are run once."""
    source = Source()
    model = problem.load_model(source)
    begin = time.monotonic()
    found = [
        features(model, some, lambda share, i=i: tick((i + share) / 4))
        for i, some in enumerate(splits_of(source, model, max(sizes)))
    ]
    seconds = time.monotonic() - begin
    train, validation, test = found
    rows = []
    for size in sizes:
        common = {"sentences": size, "features_seconds": seconds * size / max(sizes)}
        begin = time.monotonic()
        regression, layer, penalty, value = fitted(train.first(size), validation)
        chances = regression.predict_proba(test.states[:, layer])
        one = {
            "layers": str(depths(model)[layer]),
            "penalty": penalty,
            "validation": value,
            "accuracy": float(np.mean(chances.argmax(1) == test.labels)),
            "cross_entropy": float(log_loss(test.labels, chances)),
            "fit_seconds": time.monotonic() - begin,
        }
        begin = time.monotonic()
        accuracy, cross_entropy = together(train.first(size), test)
        every = {
            "layers": TOGETHER,
            "accuracy": accuracy,
            "cross_entropy": cross_entropy,
            "fit_seconds": time.monotonic() - begin,
        }
        rows += [common | one, common | every]
    return rows


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """One cell: the numbers of sentences share what is run."""
    del seed
    return {"probe": lambda tick: measure(FULL if full else QUICK, tick)}


def tables(frame: pd.DataFrame) -> list[Table]:
    rows = [
        [
            f"{row.sentences:,}",
            row.layers,
            f"{100 * row.accuracy:.1f}",
            f"{row.cross_entropy:.3f}",
            f"{(row.features_seconds + row.fit_seconds) / 60:.1f}",
        ]
        for row in frame.itertuples()
    ]
    columns = ["training\nsentences", "after\nlayers", "accuracy, %", "cross-entropy"]
    title = "Logistic regression on frozen states, test"
    return [tabulate(title, [*columns, "minutes"], rows)]


def findings(frame: pd.DataFrame) -> list[str]:
    out = []
    for layers, group in frame.groupby(frame["layers"] == TOGETHER, sort=False):
        last = group.iloc[-1]
        which = "several layers" if layers else f"layer {last['layers']}"
        out.append(
            f"One forward pass over each of {last['sentences']:,.0f} sentences,"
            f" {which}: {last['accuracy']:.1%}, cross-entropy"
            f" {last['cross_entropy']:.3f}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    out = Figure(figsize=(5, 3), layout="constrained")
    axis = out.subplots()
    kinds = frame["layers"] == TOGETHER
    for colour, (together, group) in zip(COLOURS, frame.groupby(kinds), strict=False):
        label = "several layers" if together else "one layer"
        values = 100 * group["accuracy"]
        axis.plot(group["sentences"], values, "o-", color=colour, label=label)
    axis.set(xlabel="training sentences", ylabel="test accuracy, %", xscale="log")
    axis.legend(frameon=False, fontsize=8)
    return out


STUDY = Study("Language: the floor", cells, tables, findings, figure)
