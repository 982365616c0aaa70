"""How far a difference quotient is off, and the smoothing at which it is least.

Arithmetic alone: half differences in, smoothings out.
"""

import math
from typing import NamedTuple

import numpy as np


class Probed(NamedTuple):
    """What was found along n directions at M smoothings, which grow."""

    smoothings: np.ndarray  # [M]
    halves: np.ndarray  # [M, n], [f(theta + mu v) - f(theta - mu v)] / 2, or NaN
    rounded: np.ndarray  # [M], the share of mu v that rounding of params changes
    rounding: float  # of a half difference, by the dtype of f's values


class Suggestion(NamedTuple):
    """What :func:`suggested` returns, as in :class:`zojax.Diagnosis`."""

    smoothing_error: float | None = None
    suggested_smoothing: float | None = None
    suggested_error: float | None = None


class _Errors(NamedTuple):
    """The error of a directional derivative at mu: hypot(rounding / mu, bend mu^2)."""

    rounding: float
    bend: float

    def at(self, smoothing: float) -> float:
        return math.hypot(self.rounding / smoothing, self.bend * smoothing**2)

    def best(self, lowest: float, highest: float) -> float:
        """The smoothing of the least error, within bounds."""
        if self.bend == 0:
            return highest
        best = (self.rounding / (math.sqrt(2) * self.bend)) ** (1 / 3)
        return min(max(best, lowest), highest)


def _root_mean(x: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Roots of means of squares along the last axis, of what is told; 0 of none."""
    squares = np.where(told, x, 0) ** 2
    return np.sqrt(squares.sum(axis=-1) / np.maximum(told.sum(axis=-1), 1))


def _plateau(agree: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Pairs that bound rounding, pairs that bound truncation), of those with some.

    Above the first that agree, what agrees again does so by chance: a difference that
    is all wrong no longer grows with mu^2. Where none agree all are noise.
    """
    if not agree.any():
        return some, some
    after = np.flatnonzero(some & ~agree & (np.arange(len(agree)) > agree.argmax()))
    end = after[0] if len(after) else len(agree)
    return some & (np.arange(len(agree)) < end), agree & (np.arange(len(agree)) < end)


def _errors(probed: Probed) -> _Errors | None:
    """Both constants, the largest that no pair of neighbours contradicts.

    Derivatives change from one to the next by what either is off.
    """
    mu, halves = probed.smoothings, probed.halves
    halves = halves[:, (np.nan_to_num(halves) != 0).any(axis=0)]
    low, high, slopes = mu[:-1], mu[1:], halves / mu[:, None]
    change = slopes[1:] - slopes[:-1]
    told = np.isfinite(change)
    # Where most are swallowed neighbours agree, but on too little.
    moved = (halves[:-1] != 0).sum(axis=1)
    some = told.any(axis=1) & (2 * moved >= halves.shape[1])
    if not some.any():
        return None
    off, size = _root_mean(change, told), _root_mean(slopes[:-1], told)
    left, right = _plateau(some & (off <= size / 2), some)
    rounding = max(
        (off / np.hypot(1 / low, 1 / high))[left].min(),
        (size * probed.rounded[:-1] * low)[left].min(),
        probed.rounding,
    )
    return _Errors(float(rounding), float((off / (high**2 - low**2))[right].min()))


def suggested(given: float, probed: Probed) -> Suggestion:
    """The smoothing of the least error, of those between the first and the last."""
    finite = np.isfinite(probed.halves).sum(axis=1)
    own = probed.smoothings.tolist().index(given)
    # Not where more points fail than at the smoothing that is given.
    usable = finite >= finite[own]
    mu, halves, rounded = (x[usable] for x in probed[:3])
    errors = _errors(Probed(mu, halves, rounded, probed.rounding))
    if errors is None:
        return Suggestion()
    best = errors.best(mu[0], mu[-1])
    near = int(np.abs(np.log(mu / best)).argmin())
    told = np.isfinite(halves[near])
    size = float(_root_mean(halves[near] / mu[near], told))
    if size == 0:
        return Suggestion()
    here, there = errors.at(given), errors.at(best)
    if mu[near] != given:
        away = probed.halves[own] / given - halves[near] / mu[near]
        here = float(_root_mean(away, np.isfinite(away)))
    return Suggestion(here / size, float(best), there / size)
