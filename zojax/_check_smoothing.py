"""Whether a smoothing survives rounding, of the parameters and of the objective."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax import _docs as docs
from zojax._checks import check_int, check_number
from zojax._keys import canonical_key
from zojax._numerics import PyTree, is_none, value_dtype, wide_dtype
from zojax._objective import answer_of, check_params
from zojax.perturbations import rademacher
from zojax.perturbations._sampler import Sampler, check_sampler, perturb


class SmoothingCheck(NamedTuple):
    """What :func:`check_smoothing` measured.

    Attributes:
      kept: the share of a perturbation that the dtypes of params can hold: 1 if nothing
        is lost.
      lost: the share of the differences f(theta + mu v) - f(theta - mu v) that may be
        rounding of the values: 0 if nothing is, 1 if all is. None without value_fn.
      curvature: the share of f(theta + mu v) - f(theta) that is no slope but curvature,
        which forward differences take for one. None without value_fn.
    """

    kept: float
    lost: float | None = None
    curvature: float | None = None


def shares_of_params(
    params: PyTree, direction: PyTree, smoothing: float
) -> tuple[float, float]:
    """Shares of a perturbation: what rounding keeps of it, and what it changes.

    With m = round(theta + mu v) - theta: <m, v> / (mu |v|^2), |m - mu v| / (mu |v|).
    """
    moved = perturb(params, direction, smoothing)

    def leaf(v, p, q):
        if v is None:
            return jnp.zeros(3)
        wide = wide_dtype(v.dtype)
        v, p, q = v.astype(wide), jnp.asarray(p, wide), q.astype(wide)
        away = q - p - jnp.asarray(smoothing, wide) * v
        return jnp.stack([jnp.sum(x) for x in ((q - p) * v, v * v, away * away)])

    sums = jax.tree.leaves(
        jax.tree.map(leaf, direction, params, moved, is_leaf=is_none)
    )
    totals = np.sum([np.asarray(x, float) for x in sums], axis=0, initial=0.0)
    moved_by, norm, away = np.broadcast_to(totals, 3)
    if norm == 0:
        return 1.0, 0.0
    return float(moved_by / (smoothing * norm)), math.sqrt(away / norm) / smoothing


def shares_of_values(
    plus: np.ndarray, minus: np.ndarray, at_params: Any, unit: float
) -> tuple[float, float]:
    """(Lost, curvature) of values [K], which are rounded to a relative unit."""
    root_mean = lambda x: float(np.sqrt(np.mean(np.square(x))))
    slope, bend = (plus - minus) / 2, (plus + minus) / 2 - at_params
    # Each value is off by up to half a step of its dtype, step / sqrt(12) on average.
    step = unit * max(np.abs(plus).max(), np.abs(minus).max())
    rounding = step / math.sqrt(24)  # of half the difference of two
    odd, even = root_mean(slope), root_mean(bend)
    lost = min(1.0, rounding / odd) if odd > 0 else 1.0
    both = math.hypot(odd, even)
    return float(lost), float(even / both) if both > 0 else 0.0


def unit_of(answer: Any) -> float:
    """The relative step between values, of what f answered once it is kept."""
    # Values are kept in float32 or wider; what f returns may be coarser.
    coarsest = lambda x: jnp.finfo(x).eps if jnp.issubdtype(x, jnp.floating) else 0.0
    return float(max(coarsest(jnp.result_type(answer)), jnp.finfo(value_dtype()).eps))


def _ask(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    smoothing: float,
    draw: Callable[[int], PyTree],
    number: int,
) -> tuple[float, float]:
    """(Lost, curvature) of f, asked point by point, as plain Python may need."""

    def value_at(point):
        answer = value_fn(point)
        return np.asarray(answer_of(answer, has_aux=False)[0], float)

    first = value_fn(params)
    base = np.asarray(answer_of(first, has_aux=False)[0], float)
    unit = unit_of(first)
    at = lambda k, side: value_at(perturb(params, draw(k), side * smoothing))
    plus, minus = ([at(k, side) for k in range(number)] for side in (1.0, -1.0))
    finite = np.isfinite(plus) & np.isfinite(minus)
    if not (finite.any() and np.isfinite(base)):
        raise ValueError(
            "value_fn must be finite near params, got no finite difference"
        )
    return shares_of_values(np.array(plus)[finite], np.array(minus)[finite], base, unit)


def check_smoothing(
    params: PyTree,
    smoothing: float,
    *,
    key: jax.Array | int,
    sampler: Sampler | None = None,
    value_fn: Callable[[PyTree], Any] | None = None,
    num_directions: int = 8,
    minimum: float = 0.9,
) -> SmoothingCheck:
    """Warns if rounding swallows the perturbation, or what f makes of it.

        kept       <round(theta + mu v) - theta, v> / (mu |v|^2)
        lost       step of f's dtype / (sqrt(24) rms[(y+ - y-) / 2])
        curvature  even / sqrt(even^2 + odd^2),
                   even = rms[(y+ + y-) / 2 - y], odd = rms[(y+ - y-) / 2]

    Near weights of 1, mu should be 1e-2 or more in bfloat16, 1e-3 in float16, 1e-6 in
    float32. Where f is large and changes little, mu has to be larger, whatever dtype
    params have. Rounding inside f is not seen: ``lost`` is what its result alone loses.
    For use once, outside jit.

    Args:
      params, smoothing: pytree at its true scale, and mu > 0, in units of params.
      key, sampler: a key or an int seed; rademacher() by default.
      value_fn: params -> scalar, of any kind: it is called with arrays, 2K + 1 times.
      num_directions: K >= 1, for f.
      minimum: the share below which a UserWarning is issued; also if more than the
        rest, 1 - minimum, is lost.

    Returns:
      A :class:`SmoothingCheck`.

    Raises:
      ValueError: for an argument out of its range, or no finite value.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> x, f = jnp.ones(64), lambda x: 1e4 + 1e-3 * jnp.sum(x**2)
      >>> check = zojax.check_smoothing(x, 0.1, key=0, value_fn=f, minimum=0.1)
      >>> check.kept > 0.99, 0.1 < check.lost < 1
      (True, True)

    Source: rounding to nearest; MeZO in bfloat16, arXiv 2305.17333.
    """
    sampler = rademacher() if sampler is None else sampler
    check_sampler("sampler", sampler)
    check_params(params)
    check_number("smoothing", smoothing, 0.0, schedule=False)
    check_number("minimum", minimum, 0.0, low_ok=True, schedule=False)
    check_int("num_directions", num_directions, 1)
    sampler.check(num_directions)
    typed = canonical_key(key)
    draw = lambda k: sampler(typed, k, num_directions, params)
    kept, warn = shares_of_params(params, draw(0), smoothing)[0], []
    if kept < minimum:
        share = f"rounding of params keeps {kept:.0%} of a perturbation"
        warn.append(f"{share}; use a larger smoothing or a wider dtype")
    lost = curvature = None
    if value_fn is not None:
        if not callable(value_fn):
            raise ValueError(f"value_fn must be callable, got {value_fn!r}")
        lost, curvature = _ask(value_fn, params, smoothing, draw, num_directions)
        if lost > 1 - minimum:
            share = f"rounding of f may be {lost:.0%} of its differences"
            warn.append(
                f"{share}; use a larger smoothing, float64, or an f without its offset"
                " (an f that is constant nearby looks the same)"
            )
    for text in warn:
        message = f"smoothing={float(smoothing):g} is too small here: {text};"
        warnings.warn(f"{message} {docs.SMOOTHING}", stacklevel=2)
    return SmoothingCheck(kept, lost, curvature)
