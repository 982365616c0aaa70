"""A head on a model's own states: a regression in the place of label words.

A logistic one tells two labels, a ridge regression estimates numbers. It reads the last
token's state after some layers and before the logits: one forward pass over each
sentence. What is tuned afterwards moves those states.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import UsageError

EVERY = 5  # layers between those that are read
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2)  # scikit-learn's C
RIDGES = tuple(float(alpha) for alpha in np.logspace(2, 6, 9))  # its alpha
FOLDS = 4

Head = dict[str, jax.Array]
Slopes = tuple[list[np.ndarray], float]  # f[D] for each part, bias


def read_depths(layers: int, bottom: int = 0) -> list[int]:
    """After how many layers a state is read, above the bottom ones; the last is all."""
    return [n for n in (*range(EVERY, layers, EVERY), layers) if n > bottom]


def check_labels(labels: np.ndarray) -> None:
    """Raises where there are too few sentences of a label."""
    number = np.bincount(labels, minlength=2)
    if number.min() < FOLDS:
        raise UsageError(
            f"a head needs at least {FOLDS} training sentences of each label, got"
            f" {number.tolist()}"
        )


def regression(parts: Sequence[np.ndarray], labels: np.ndarray) -> Slopes:
    """Logistic regression on states f[N, D] side by side, of labels i[N], 0 or 1.

    The margin of label 1 is bias + the sum of part @ slope.
    """
    from sklearn.linear_model import LogisticRegression

    check_labels(labels)
    model = LogisticRegression(max_iter=2000)
    return _fitted(model, {"C": PENALTIES}, "neg_log_loss", parts, labels)


def ridge(parts: Sequence[np.ndarray], targets: np.ndarray) -> Slopes:
    """Ridge regression in the same form, of targets f[N]."""
    from sklearn.linear_model import Ridge

    if len(targets) < FOLDS:
        raise UsageError(f"a head needs at least {FOLDS} sentences, got {len(targets)}")
    scoring = "neg_mean_squared_error"
    return _fitted(Ridge(), {"alpha": RIDGES}, scoring, parts, targets)


def _fitted(model, grid, scoring, parts, targets):
    """On standardised states; the penalty by cross-validation."""
    from sklearn.model_selection import GridSearchCV

    rows = np.concatenate(parts, axis=1).astype(np.float32)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    search = GridSearchCV(model, grid, scoring=scoring, cv=FOLDS)
    found = search.fit((rows - mean) / spread, targets).best_estimator_
    slopes = np.ravel(found.coef_) / spread
    bias = np.ravel(found.intercept_)[0] - mean @ slopes
    return np.split(slopes, len(parts)), float(bias)


def fit(
    states: np.ndarray,
    final: np.ndarray,
    labels: np.ndarray,
    bottom: int = 0,
    regress: Callable[..., Slopes] = regression,
) -> Head:
    """Fits the head of a model: {"layers": f32[L, D], "final": f32[D], "bias": f32[]}.

    It reads states f[L, N, D] after some of the layers above the bottom ones, where
    others have zeros, and the final ones f[N, D], what logits are made of.
    """
    number = len(states)
    at = [depth - bottom - 1 for depth in read_depths(number + bottom, bottom)][:-1]
    (*read, last), bias = regress([*(states[i] for i in at), final], labels)
    layers = np.zeros((number, final.shape[1]))
    for i, slope in zip(at, read, strict=True):
        layers[i] = slope
    parts = {"layers": layers, "final": last, "bias": bias}
    return {name: jnp.asarray(part, jnp.float32) for name, part in parts.items()}


def margin_logits(head: Head, states: jax.Array, final: jax.Array) -> jax.Array:
    """Logits f32[B, 2] from the states f[L, B, D] and f[B, D]."""
    wide: Any = {"preferred_element_type": jnp.float32}
    layers, last = (head[name].astype(final.dtype) for name in ("layers", "final"))
    margin = jnp.einsum("lbd,ld->b", states, layers, **wide)
    margin += jnp.einsum("bd,d->b", final, last, **wide)
    half = (margin + head["bias"]) / 2
    return jnp.stack([-half, half], axis=1)
