"""SPSA's gains from the objective: its noise, and how much it changes nearby."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import _loops as loops
from zojax._checks import check_int, check_number
from zojax._keys import canonical_key, purpose_key
from zojax._numerics import PyTree, value_dtype
from zojax._objective import Objective, answer_of, as_objective, check_params
from zojax._spall import SpallGains, spall_gains
from zojax.perturbations import rademacher
from zojax.perturbations._sampler import Sampler, check_sampler, perturb


def _known(x: Any) -> bool:
    """Whether x is a number now, and not one of a program that is traced."""
    return not isinstance(x, jax.core.Tracer)


def as_given(params: PyTree, point: PyTree) -> PyTree:
    """The point, with arrays of numpy where params have them.

    They are copies, since plain Python may write to what it gets.
    """

    def leaf(p, x):
        return np.array(x) if isinstance(p, np.ndarray) and _known(x) else x

    return jax.tree.map(leaf, params, point)


def _caller(
    value_fn: Callable[..., Any] | Objective, params: PyTree
) -> Callable[[PyTree, jax.Array], jax.Array]:
    """(point, key) -> value."""
    objective = as_objective(value_fn, False)

    def call(point, key):
        answer = objective.call(as_given(params, point), key)
        return answer_of(answer, False)[0]

    return call


def _share(finite: jax.Array, minus: int = 0) -> jax.Array:
    """The weight of each finite value in a mean."""
    dtype = value_dtype()
    number = jnp.maximum(finite.sum() - minus, 1)
    return finite.astype(dtype) / number.astype(dtype)


def noise_deviation(
    value_fn: Callable[..., Any] | Objective,
    params: PyTree,
    *,
    key: jax.Array | int,
    num_repeats: int = 8,
) -> jax.Array:
    """The standard deviation of f's noise: f asked again and again at one point.

        sd^2 = 1/(R - 1) sum_r (y_r - mean(y))^2,    y_r = f(theta)

    Outside of jit value_fn may be any Python function; it is called R times, one after
    the other. ``2 * sd`` is the tolerance that :func:`zojax.block_steps` wants.

    Args:
      value_fn: params -> scalar, or (params, query_key) -> scalar, with a key of its
        own each time. It gets arrays of numpy where params are such, else of JAX.
      params, key: pytree; a threefry key or an int seed.
      num_repeats: R >= 2.

    Returns:
      f[], 0 of an f without noise. Values that are not finite are left out.

    Raises:
      ValueError: for an argument out of its range; outside of jit also if fewer than
        two values were finite, where a jitted program gets 0.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> f = lambda x, query_key: x @ x + 0.5 * jax.random.normal(query_key)
      >>> sd = zojax.noise_deviation(f, jnp.ones(3), key=0, num_repeats=400)
      >>> print(round(float(sd), 1))
      0.5

    Source: Spall, IEEE Transactions on Aerospace and Electronic Systems 34(3), 1998.
    """
    check_params(params)
    check_int("num_repeats", num_repeats, 2)
    call, own = _caller(value_fn, params), purpose_key(canonical_key(key), "noise")
    again = lambda k: call(params, jax.random.fold_in(own, k))
    values = loops.map_rows(again, jnp.arange(num_repeats))
    finite = jnp.isfinite(values)
    if _known(values) and finite.sum() < 2:
        found = f"{int(finite.sum())} of {num_repeats} values at params"
        raise ValueError(f"value_fn must be finite at params, got {found} that are")
    # Of distances to one of them, so that equal values have exactly 0.
    away = jnp.where(finite, values - values[jnp.argmax(finite)], 0)
    away = jnp.where(finite, away - jnp.sum(away * _share(finite)), 0)
    return jnp.sqrt(jnp.sum(away**2 * _share(finite, 1)))


def calibrate_spall_gains(
    value_fn: Callable[..., Any],
    params: PyTree,
    first_step: float,
    num_steps: int,
    *,
    key: jax.Array | int,
    c: float | None = None,
    max_c: float | None = None,
    num_directions: int = 8,
    num_repeats: int = 8,
    sampler: Sampler | None = None,
    alpha: float = 0.602,
    gamma: float = 0.101,
) -> SpallGains:
    """Spall's gains for an objective: f is asked how much it is noise, and how steep.

        c = sd of f's noise, at least first_step (and so where f has no noise)
        s = mean |f(theta + c v) - f(theta - c v)| / (2 c)
        a = first_step (A + 1)^alpha / s,    A = num_steps / 10

    so that the first step of SPSA moves each coordinate by ``first_step``, on average
    and one direction being asked: with K of them the noise averages out and steps are
    shorter. The noise is in units of f and c in those of params: where those are
    unlike, give ``c``, or ``max_c``.

    value_fn may be any Python function outside of jit, called with one point at a time,
    R + 2K times (2K with c), or a JAX program, inside of jit and vmap too.

    Args:
      value_fn: params -> scalar, or (params, query_key) -> scalar; both sides of a
        direction share a key. It gets arrays of numpy where params are such.
      params: pytree.
      first_step: > 0, in units of params, per coordinate.
      num_steps: >= 1, of the run to come.
      key: a threefry key or an int seed; the directions are not those of a run with it.
      c: > 0, if it is known.
      max_c: > 0, a bound of the measured c; None for none.
      num_directions: K >= 1.
      num_repeats: R >= 2, for the noise.
      sampler: of rows whose entries are +-1 (or frozen); rademacher() by default.
      alpha, gamma: as in :func:`spall_gains`.

    Returns:
      :class:`SpallGains`: ``zojax.spsa(*gains, key=0)``; ``gains.smoothing(0)`` is c.
      Differences that are not finite are left out.

    Raises:
      ValueError: for an argument out of its range; outside of jit also for an f that is
        flat, or nowhere finite, along all directions. A jitted program gets a = 0 then,
        gains that stay where they are.

    Example:
      >>> import numpy as np, zojax
      >>> def simulate(x):  # plain Python
      ...     return float(np.abs(x - 1.0).sum())
      >>> gains = zojax.calibrate_spall_gains(simulate, np.zeros(1), 0.1, 90, key=0)
      >>> print(f"{gains.learning_rate(0):.3f}")  # the slope is 1
      0.100

    Source: Spall, IEEE Transactions on Aerospace and Electronic Systems 34(3), 1998.
    """
    sampler = rademacher() if sampler is None else sampler
    check_sampler("sampler", sampler)
    check_params(params)
    check_number("first_step", first_step, 0.0, schedule=False)
    check_int("num_steps", num_steps, 1)
    check_int("num_directions", num_directions, 1)
    for name, value in (("c", c), ("max_c", max_c)):
        if value is not None:
            check_number(name, value, 0.0, schedule=False)
    sampler.check(num_directions)
    if c is None:
        sd = noise_deviation(value_fn, params, key=key, num_repeats=num_repeats)
        bound = jnp.inf if max_c is None else max_c
        lowest, highest = (jnp.asarray(x, sd.dtype) for x in (first_step, bound))
        width = jnp.minimum(jnp.maximum(sd, lowest), highest)
    else:
        width = jnp.asarray(c, value_dtype())
    own, call = purpose_key(canonical_key(key), "gains"), _caller(value_fn, params)

    def change(k):
        row = sampler.row(own, k, num_directions, params)
        at = lambda x: call(perturb(params, row, x), jax.random.fold_in(own, k))
        return jnp.abs(at(width) - at(-width))

    changes = loops.map_rows(change, jnp.arange(num_directions))
    finite = jnp.isfinite(changes)
    slope = jnp.sum(jnp.where(finite, changes, 0) * _share(finite)) / (2 * width)
    stability = num_steps / 10
    first = jnp.asarray(first_step, slope.dtype)
    a = first * (stability + 1) ** alpha / jnp.where(slope > 0, slope, 1)
    usable = (slope > 0) & jnp.isfinite(slope) & jnp.isfinite(a)
    a = jnp.where(usable, a, 0)
    if _known(a) and not usable:
        found = f"{int(finite.sum())} finite differences, of slope {float(slope):g}"
        need = "value_fn must change within c of params"
        raise ValueError(f"{need} ({float(width):g}), got {found}")
    gains: Any = (float(a), float(width)) if _known(a) else (a, width)
    return spall_gains(*gains, stability=stability, alpha=alpha, gamma=gamma)
