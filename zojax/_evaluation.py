"""Asking the objective along directions: by calling it, or by handing out the points.

:func:`evaluate` calls f along V, :func:`estimate` also weighs and sums, and
:func:`points` hands out what evaluate would ask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zojax._checks import check_flag, check_number
from zojax._directions import (
    Directions,
    check_directions,
    checked_weights,
    combine,
    drop_non_finite,
)
from zojax._keys import purpose_key
from zojax._mesh_axis import over
from zojax._numerics import PyTree, value_dtype
from zojax._objective import Objective, answer_of, as_objective, check_params
from zojax.perturbations import _sampler as samplers
from zojax.perturbations import materialize

ONE_SIDE = (1.0,)
BOTH_SIDES = (1.0, -1.0)


class Estimate(NamedTuple):
    """What :func:`estimate` returns."""

    sums: PyTree  # V^T w, as combine returns it
    values: jax.Array  # f[K, P], the query values
    aux: PyTree  # of query (0, 0), or None


def key_at_params(key: jax.Array) -> jax.Array:
    """The key of the query at params."""
    return purpose_key(key, "query at params")


def query_keys(key: jax.Array, ks: jax.Array) -> jax.Array:
    """The key of direction k, or the keys of several; both sides share one."""
    of_one = lambda k: jax.random.fold_in(purpose_key(key, "query"), k)
    return jax.vmap(of_one)(ks) if jnp.ndim(ks) else of_one(ks)


def value_at_params(
    objective: Objective, params: PyTree, value: Any, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    """(f(params), aux): the value that the caller passed, else a query."""
    if value is None:
        own = key_at_params(key) if objective.takes_key else None
        return answer_of(objective.call(params, own), objective.has_aux)
    if jnp.shape(value) != ():
        raise ValueError(f"value must be a scalar, f(params), got {value!r}")
    return jnp.asarray(value, value_dtype()), None


def _check_asked(params: PyTree, V: Directions, smoothing: Any, sides: Any) -> None:
    """Raises for what cannot be asked."""
    check_params(params)
    check_directions(V)
    check_number("smoothing", smoothing, 0.0, schedule=False)
    kinds = (int, float, np.number)
    number = lambda s: isinstance(s, kinds) and s is not True and np.isfinite(s)
    if not (isinstance(sides, tuple) and sides and all(map(number, sides))):
        accepted = "a tuple of finite numbers, (1.0,) or (1.0, -1.0) as a rule"
        raise ValueError(f"sides must be {accepted}, got {sides!r}")


def _asked_along(
    objective: Objective,
    V: Directions,
    smoothing: Any,
    sides: tuple[float, ...],
    line_of: Callable[[Any], samplers.Line],
    which: PyTree,
) -> tuple[jax.Array, PyTree]:
    """Values [K, P] along this device's lines, and the aux of query (0, 0), on all.

    A line is made of what ``which`` holds for it, its index k last.
    """
    spread, scales = over(V.axis_name), jnp.asarray(sides, value_dtype()) * smoothing

    def values_along(one):
        query_key = query_keys(V.key, one[-1]) if objective.takes_key else None
        call = V.sampler.adapt(lambda point: objective.call(point, query_key))
        line = line_of(one)
        at = lambda scale: answer_of(call(line(scale)), objective.has_aux)
        # In chunks the sides take turns: one perturbed copy a direction. Two of them
        # are no loop, for which a GPU would wait for its host.
        at_once = None if V.chunk_size is None else 1
        unroll = len(sides) <= 2
        return samplers.map_leading(at, scales, len(sides), at_once, unroll=unroll)

    values, aux = samplers.map_leading(
        values_along, which, len(which[-1]), V.chunk_size
    )
    first = jax.tree.map(lambda x: x[0, 0], aux)
    return spread.from_all(values, V.num_directions), spread.from_first(first)


def evaluate(
    value_fn: Callable[..., Any] | Objective,
    params: PyTree,
    directions: Directions,
    smoothing: jax.Array | float,
    *,
    sides: tuple[float, ...] = ONE_SIDE,
    has_aux: bool = False,
) -> tuple[jax.Array, PyTree]:
    """Queries the objective along the directions: y_kp = f(theta + mu s_p v_k).

    Args:
      value_fn: params -> scalar, or (scalar, aux) with ``has_aux``. If it names
        ``query_key``, it gets a key for each direction, which its sides share.
      params: pytree; float leaves are perturbed, each point from the untouched params.
      directions: V. With a chunk size the sides of a direction take turns.
      smoothing: mu > 0, in units of params.
      sides: the P scales s_p of mu, (1.0,) or (1.0, -1.0) as a rule.
      has_aux: whether value_fn returns an aux.

    Returns:
      (values f[K, P] in float32 or, under x64, float64; the aux of query (0, 0)).

    Raises:
      ValueError: for an argument or an answer of value_fn that is not as said.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> V = zojax.Directions(zojax.perturbations.simplex(), 0, 8)
      >>> values, _ = zojax.evaluate(lambda x: x.sum(), jnp.zeros(4), V, 1e-1)
      >>> values.shape, abs(round(float(values.sum()), 5))
      ((8, 1), 0.0)

    Source: arXiv 2510.19975, Equation 1; arXiv 2506.14460, Section 4.1.
    """
    _check_asked(params, directions, smoothing, sides)
    check_flag("has_aux", has_aux)
    objective = as_objective(value_fn, has_aux)
    V, spread = directions, over(directions.axis_name)

    def ask(params, key):
        line = lambda one: V.sampler.line(key, one[-1], V.num_directions, params)
        ks = spread.own_ks(V.num_directions)
        return _asked_along(objective, V._at(key), smoothing, sides, line, (ks,))

    return spread.run(ask, params, V.key)


def estimate(
    value_fn: Callable[..., Any] | Objective,
    params: PyTree,
    directions: Directions,
    smoothing: jax.Array | float,
    weigh: Callable[[jax.Array], jax.Array],
    *,
    sides: tuple[float, ...] = ONE_SIDE,
    has_aux: bool = False,
) -> Estimate:
    """Evaluates, weighs and combines: g = V^T weigh(f(theta + mu V)).

    Without a chunk size directions are drawn once and held, if the sampler lets them.

    Args:
      weigh: values f[K, P] -> weights f[..., K], as in zojax.weights.
      value_fn, params, directions, smoothing, sides, has_aux: as in :func:`evaluate`.

    Returns:
      An :class:`Estimate`.

    Raises:
      ValueError: for an argument or an answer of value_fn that is not as said.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> mu, f = 1e-2, lambda x: x[0] + 2 * x[1]
      >>> weigh = lambda y: zojax.weights.central(y[:, 0], y[:, 1], mu)
      >>> V = zojax.Directions(zojax.perturbations.orthogonal(), 0, 2)
      >>> g = zojax.estimate(f, jnp.zeros(2), V, mu, weigh, sides=(1.0, -1.0)).sums
      >>> print(g.round(3))
      [1. 2.]

    Source: arXiv 2510.19975, Equation 1; arXiv 2506.14460, Theorem 3.2.
    """
    _check_asked(params, directions, smoothing, sides)
    check_flag("has_aux", has_aux)
    objective = as_objective(value_fn, has_aux)
    V, spread = directions, over(directions.axis_name)
    if V.chunk_size is not None or not V.sampler.holds_rows:
        values, aux = evaluate(objective, params, V, smoothing, sides=sides)
        return Estimate(combine(weigh(values), params, V), values, aux)

    def ask_and_add(params, key):
        ks = spread.own_ks(V.num_directions)
        rows = samplers.stacked_rows(V.sampler.row, key, ks, V.num_directions, params)
        line = lambda one: lambda scale: samplers.perturb(params, one[0], scale)
        asked = objective, V._at(key), smoothing, sides
        values, aux = _asked_along(*asked, line, (rows, ks))
        weights = checked_weights(weigh(values), V, None)
        sums = samplers.contract_rows(spread.own(weights), rows)
        return spread.total(sums), values, aux

    sums, values, aux = spread.run(ask_and_add, params, V.key)
    return Estimate(drop_non_finite(sums), values, aux)


def points(
    params: PyTree,
    directions: Directions,
    smoothing: jax.Array | float,
    *,
    sides: tuple[float, ...] = ONE_SIDE,
) -> PyTree:
    """Returns the points that :func:`evaluate` asks at, for an objective of any kind.

    Args:
      params, directions, smoothing, sides: as in :func:`evaluate`; chunks and mesh axis
        are not read.

    Returns:
      theta + mu s_p v_k, a pytree like params whose leaves, all arrays, have a leading
      axis K P: the sides of direction 0, those of direction 1, and so on.

    Raises:
      ValueError: for an argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> V = zojax.Directions(zojax.perturbations.rademacher(), 0, 3)
      >>> zojax.queries.points(jnp.zeros(2), V, 0.1, sides=(1.0, -1.0)).shape
      (6, 2)

    Source: ask and tell, the interface of evolution strategies.
    """
    _check_asked(params, directions, smoothing, sides)
    V, scales = directions, jnp.asarray(sides, value_dtype()) * smoothing
    # What takes the views of a sampler also forms them.
    formed = V.sampler.adapt(lambda point: point)

    def of_row(k):
        line = V.sampler.line(V.key, k, V.num_directions, params)
        at = lambda scale: materialize(formed(line(scale)))
        return samplers.map_leading(at, scales, len(sides))

    ks = jnp.arange(V.num_directions)
    both = samplers.map_leading(of_row, ks, len(ks))
    number = len(ks) * len(sides)
    return jax.tree.map(lambda x: x.reshape(number, *x.shape[2:]), both)
