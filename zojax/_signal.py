"""Signal to noise of estimates, and the step that suits them.

Arithmetic alone: products, slopes and curvatures in, ratios with their errors out.
"""

import math

import numpy as np


def _ratio(signal: float, square: float) -> float:
    """Signal to noise of |E g|^2 and E|g|^2."""
    noise, resolved = square - signal, 8 * float(np.finfo(np.float32).eps)
    if square == 0:
        return 0.0
    return signal / noise if noise > resolved * square else math.inf


def _jackknife(found: list[float]) -> float:
    """The standard error of a statistic, from it and from those without each repeat."""
    if np.isinf(found).any():
        return 0.0 if np.isinf(found).all() else math.inf
    return math.sqrt((len(found) - 2) * np.var(found[1:]))


def signal_to_noise(
    squares: np.ndarray, crossed: np.ndarray
) -> tuple[float, float, float]:
    """(Signal to noise, its standard error, agreement), of R estimates.

    Of |g_r|^2 and <g_r, sum of the others>, as in :func:`zojax.diagnose`.
    """
    number, total, pairs = len(squares), float(squares.sum()), float(crossed.sum())
    signal, square = pairs / (number * (number - 1)), total / number
    agreement = signal / square if square > 0 else 0.0
    without = lambda r: _ratio(
        (pairs - 2 * float(crossed[r])) / ((number - 1) * (number - 2)),
        (total - float(squares[r])) / (number - 1),
    )
    found = [_ratio(signal, square), *map(without, range(number))]
    return found[0], _jackknife(found), agreement


def learning_rate(
    slopes: np.ndarray, curvatures: np.ndarray, unit: float
) -> tuple[float | None, float | None]:
    """(Mean slope over mean curvature along R estimates, its standard error).

    In a unit, for estimates that are so many times what was walked along. inf where f
    does not bend upwards; None of fewer than three that are finite, or of no slope and
    no curvature at all.
    """
    told = np.isfinite(slopes) & np.isfinite(curvatures)
    rows = np.stack([slopes, curvatures], axis=1)[told]
    if len(rows) < 3 or not rows.any():
        return None, None
    ratio = lambda some: unit * float(some[0] / some[1]) if some[1] > 0 else math.inf
    total = rows.sum(axis=0)
    found = [ratio(total), *(ratio(total - row) for row in rows)]
    return found[0], _jackknife(found)
