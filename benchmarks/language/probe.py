"""The floor of every tuning: a logistic regression on what the frozen model answers.

One forward pass over each sentence, no direction and no step. It sees the last token's
standardised state after one layer, which is chosen with the penalty on the validation
sentences, or after several layers side by side, the penalty by cross-validation.
"""

import itertools
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.language import head, problem, tasks
from benchmarks.language.problem import Batch, Model, Source
from benchmarks.study import Tick

PENALTIES = tuple(float(c) for c in np.logspace(-4, 0, 9))  # scikit-learn's C
LONGEST = 24  # tokens of a training sentence, as in the presets


class Features(NamedTuple):
    """States of the last token after each of some layers, and labels."""

    states: np.ndarray  # f[N, layers, D]
    labels: np.ndarray  # i32[N]


def features(model: Model, examples: Batch, tick: Tick) -> Features:
    """Runs the frozen model once over each sentence."""
    params = {"model": model.params, "adapter": {}}
    states, final = problem.states_of(model.config, params, examples, tick)
    # What the logits are made of, in place of the last layer's own states.
    read = [states[depth - 1] for depth in head.read_depths(len(states))[:-1]]
    return Features(np.stack([*read, final], axis=1), examples.labels)


def of_one_layer(
    train: Features, validation: Features, test: Features
) -> tuple[np.ndarray, int]:
    """(Margins f[N] on test, index of the layer): the best on validation sentences."""
    best = (np.inf, np.zeros(0), 0)
    for layer, penalty in itertools.product(range(train.states.shape[1]), PENALTIES):
        regression = LogisticRegression(C=penalty, max_iter=2000)
        model = make_pipeline(StandardScaler(), regression)
        model.fit(train.states[:, layer], train.labels)
        chances = model.predict_proba(validation.states[:, layer])
        value = log_loss(validation.labels, chances)
        if value < best[0]:
            best = value, model.decision_function(test.states[:, layer]), layer
    return best[1:]


def of_several_layers(train: Features, test: Features) -> np.ndarray:
    """Margins f[N] on test of a regression on all layers that are read."""
    slopes, bias = head.regression(list(train.states.swapaxes(0, 1)), train.labels)
    return bias + np.einsum("nld,ld->n", test.states, np.stack(slopes))


def margins(
    sentences: int, test: Batch | None = None, tick: Tick = lambda share: None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(Margins f[N] of both on test sentences, labels), trained as the presets are."""
    source = Source()
    model, splits = problem.load_model(source), problem.load_splits(source)
    train = tasks.encode(model.tokenizer, splits.train, LONGEST)
    validation, usual = (
        tasks.encode(model.tokenizer, some, problem.LONGEST, truncate=True)
        for some in (splits.validation, splits.test)
    )
    parts = train.take(np.arange(sentences)), validation, test or usual
    found = [
        features(model, some, lambda share, i=i: tick((i + share) / len(parts)))
        for i, some in enumerate(parts)
    ]
    one, layer = of_one_layer(*found)
    depth = head.read_depths(len(model.params["layers"]["q"]))[layer]
    several = of_several_layers(found[0], found[2])
    names = f"regression after layer {depth}", "regression on several layers"
    return dict(zip(names, (one, several), strict=True)), found[2].labels
