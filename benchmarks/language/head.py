"""A head on a model's own states: a regression in the place of label words.

A logistic one tells two labels, a ridge regression estimates numbers.

It reads the last token's state after some layers and before the logits: one forward
pass over each sentence. What is tuned afterwards moves those states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import UsageError

__all__ = ["check_labels", "fit", "margin_logits", "read_depths", "regression", "ridge"]

EVERY = 5  # layers between those that are read
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2)  # scikit-learn's C
RIDGES = tuple(float(alpha) for alpha in np.logspace(2, 6, 9))  # its alpha
FOLDS = 4

Head = dict[str, jax.Array]


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


def regression(
    parts: Sequence[np.ndarray], labels: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """Logistic regression on states side by side, standardised; the penalty by 4 folds.

    Args:
      parts: f[N, D] each.
      labels: i[N], 0 or 1.

    Returns:
      (f[D] for each part, bias): the margin of label 1 is bias + sum of part @ slope.

    Raises:
      UsageError: for too few sentences of a label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    check_labels(labels)
    rows, mean, spread = _standardised(parts)
    search = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": PENALTIES},
        scoring="neg_log_loss",
        cv=FOLDS,
    )
    model = search.fit(rows, labels).best_estimator_
    slopes = model.coef_[0] / spread
    bias = float(model.intercept_[0] - mean @ slopes)
    return np.split(slopes, len(parts)), bias


def ridge(
    parts: Sequence[np.ndarray], targets: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """Ridge regression on states side by side, standardised; the penalty by 4 folds.

    Args:
      parts: f[N, D] each.
      targets: f[N].

    Returns:
      (f[D] for each part, bias): the estimate is bias + sum of part @ slope.

    Raises:
      UsageError: for fewer sentences than folds.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    if len(targets) < FOLDS:
        raise UsageError(f"a head needs at least {FOLDS} sentences, got {len(targets)}")
    rows, mean, spread = _standardised(parts)
    search = GridSearchCV(
        Ridge(), {"alpha": RIDGES}, scoring="neg_mean_squared_error", cv=FOLDS
    )
    model = search.fit(rows, targets).best_estimator_
    slopes = model.coef_ / spread
    return np.split(slopes, len(parts)), float(model.intercept_ - mean @ slopes)


def _standardised(
    parts: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Rows of mean 0 and deviation 1, their mean and deviation before)."""
    rows = np.concatenate(parts, axis=1).astype(np.float32)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    return (rows - mean) / spread, mean, spread


def fit(
    states: np.ndarray,
    final: np.ndarray,
    labels: np.ndarray,
    bottom: int = 0,
    regress: Callable[..., tuple[list[np.ndarray], float]] = regression,
) -> Head:
    """Fits the head of a model.

    Args:
      states: f[L, N, D], after each of the layers above the bottom ones.
      final: f[N, D], what logits are made of; read in place of the last of states.
      labels: i[N], 0 or 1; with ridge f[N].
      bottom: layers below those.
      regress: regression or ridge.

    Returns:
      {"layers": f32[L, D], "final": f32[D], "bias": f32[]}; layers that are not read
      have zeros.

    Raises:
      UsageError: for too few sentences of a label.
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
    margin = jnp.einsum(
        "lbd,ld->b", states, head["layers"].astype(states.dtype), **wide
    )
    margin += jnp.einsum("bd,d->b", final, head["final"].astype(final.dtype), **wide)
    half = (margin + head["bias"]) / 2
    return jnp.stack([-half, half], axis=1)
