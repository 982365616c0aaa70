"""Asking the objective along directions, and recombining the answers.

The only module with vmap, scan and devices. Let V be the K x d matrix of directions,
row k a pure function of (key, k). ``evaluate`` asks for f(theta + mu s_p v_k),
``combine`` returns V^T w, and ``estimate`` does both. V is never state and never a
message: with ``chunk_size`` the rows are drawn again where they are needed, so that
only that many directions are alive at once, and with ``axis_name`` each device of a
mesh axis draws and asks only its own. Chunk size, jit and devices never change the
random stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax._checks import check_int
from zojax._keys import canonical_key, step_key
from zojax._mesh_axis import (
    from_all,
    from_first,
    on_axis,
    own,
    own_rows,
    total,
    zeros_beside,
)
from zojax._numerics import PyTree, contract, is_none, value_dtype, wide_dtype
from zojax._objective import check_params
from zojax.perturbations._sampler import Sampler

__all__ = [
    "Estimate",
    "add_directions",
    "as_gradient",
    "combine",
    "combine_steps",
    "direction_like",
    "estimate",
    "evaluate",
    "evaluate_at",
    "map_directions",
]


def check_queries(
    sampler: Sampler,
    num_directions: int,
    chunk_size: int | None,
    axis_name: str | None = None,
) -> None:
    """Checks the arguments that every estimator shares."""
    if not callable(sampler):
        raise ValueError(
            "sampler must be a callable (key, k, num_directions, params) -> direction,"
            f" as zojax.perturbations.gaussian() returns, got {sampler!r}"
        )
    check_int("num_directions", num_directions, 1)
    if chunk_size is not None:
        check_int("chunk_size", chunk_size, 1, " or None")
    if axis_name is not None and not isinstance(axis_name, str):
        raise ValueError(
            f"axis_name must be the name of a mesh axis or None, got {axis_name!r}"
        )
    check = getattr(sampler, "check_num_directions", None)
    if check is not None:
        check(num_directions)


def direction_shapes(params: PyTree, sampler: Sampler, num_directions: int) -> PyTree:
    """Shapes of a direction, in at least float32; raises where params do not fit."""
    like = jax.eval_shape(
        lambda: sampler(
            canonical_key(0), jnp.zeros((), jnp.int32), num_directions, params
        )
    )
    wide = lambda v: jax.ShapeDtypeStruct(v.shape, wide_dtype(v.dtype))
    return jax.tree.map(wide, like)


class Estimate(NamedTuple):
    """What :func:`estimate` returns.

    Attributes:
      sums: V^T w, a pytree like params in at least float32, with None at frozen leaves;
        leaves have the leading axes of the weights before K, if any.
      values: f[K, P], the query values.
      aux: the aux of query (0, 0), or None.
    """

    sums: PyTree
    values: jax.Array
    aux: PyTree


def _map(
    function: Callable, xs: PyTree, size: int, chunk_size: int | None = None
) -> PyTree:
    """Maps over a leading axis, ``chunk_size`` at a time (None: all at once)."""
    if size == 1:
        only = function(jax.tree.map(lambda x: jnp.squeeze(x, 0), xs))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], only)
    if chunk_size is None or chunk_size >= size:
        return jax.vmap(function)(xs)
    return jax.lax.map(function, xs, batch_size=chunk_size if chunk_size > 1 else None)


def _directions(
    sampler: Sampler,
    key: jax.Array,
    indices: jax.Array,
    num_directions: int,
    params: PyTree,
) -> PyTree:
    """Stacked rows of V."""
    return _map(
        lambda k: sampler(key, k, num_directions, params), indices, len(indices)
    )


def perturb(params: PyTree, direction: PyTree, scale: jax.Array) -> PyTree:
    """params + scale * direction, rounded once; frozen leaves are passed through."""

    def leaf(v, p):
        if v is None:
            return p
        wide = wide_dtype(jnp.result_type(p))
        moved = jnp.asarray(p, wide) + jnp.asarray(scale, wide) * v.astype(wide)
        return moved.astype(jnp.result_type(p))

    return jax.tree.map(leaf, direction, params, is_leaf=is_none)


def _seen_along(
    sampler: Sampler, key: jax.Array, k: jax.Array, num_directions: int, params: PyTree
) -> Callable[[jax.Array], PyTree]:
    """Returns scale -> params + scale v_k as value_fn gets them: lazy, or a copy."""
    view = getattr(sampler, "view", None)
    if view is not None:
        return lambda scale: view(key, k, num_directions, params, scale)
    direction = sampler(key, k, num_directions, params)
    return lambda scale: perturb(params, direction, scale)


def evaluate_at(
    value_fn: Callable[[PyTree], Any], params: PyTree, *, has_aux: bool = False
) -> tuple[jax.Array, PyTree]:
    """Queries the objective once: (f(params), aux).

    Args:
      value_fn: params -> scalar, or (scalar, aux) with ``has_aux``.
      params: pytree.
      has_aux: whether value_fn returns an aux.

    Returns:
      The value in float32 (float64 under x64), and the aux or None.

    Raises:
      ValueError: if value_fn does not return a real scalar.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> zojax.evaluate_at(lambda x: (x**2).sum(), jnp.ones(3))[0].item()
      3.0

    Source: the conventions of jax.value_and_grad.
    """
    result = value_fn(params)
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            f"value_fn must return (value, aux) with has_aux=True, got {type(result)}"
        )
    value, aux = result if has_aux else (result, None)
    if isinstance(value, tuple):
        raise ValueError(
            "value_fn must return a scalar, got a tuple: pass has_aux=True if it"
            " returns (value, aux)"
        )
    value = jnp.asarray(value)
    if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ValueError(
            "value_fn must return a real scalar, got shape"
            f" {value.shape} and dtype {value.dtype}"
        )
    return value.astype(value_dtype()), aux


def base_value(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    value: jax.Array | None,
    has_aux: bool,
) -> tuple[jax.Array, PyTree]:
    """(f(params), aux): the value that the caller passed, else a query."""
    if value is None:
        return evaluate_at(value_fn, params, has_aux=has_aux)
    if jnp.shape(value) != ():
        raise ValueError(
            f"value must be the scalar f(params), got shape {jnp.shape(value)}"
        )
    return jnp.asarray(value, value_dtype()), None


def map_directions(
    function: Callable[[PyTree], PyTree],
    params: PyTree,
    sampler: Sampler,
    key: jax.Array,
    num_directions: int,
    *,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> PyTree:
    """Applies a function to each direction: stacked function(v_k), k = 0..K-1.

    Args:
      function: direction -> pytree of arrays (scalars, as a rule).
      params: pytree that the directions are drawn for.
      sampler: a sampler of zojax.perturbations.
      key: the step's key.
      num_directions: K.
      chunk_size: how many directions live at once; None for all.
      axis_name: mesh axis that the directions are spread over; None for none.

    Returns:
      The results, with a leading axis K.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> sampler = zojax.perturbations.rademacher()
      >>> norms = zojax.queries.map_directions(
      ...     lambda v: jnp.sum(v**2), jnp.ones(5), sampler, jax.random.key(0), 2)
      >>> print(norms)
      [5. 5.]

    Source: one row of V at a time, as in arXiv 2305.17333 (seed replay).
    """

    def apply(params, key):
        rows = own_rows(num_directions, axis_name)
        results = _map(
            lambda k: function(sampler(key, k, num_directions, params)),
            rows,
            len(rows),
            chunk_size,
        )
        return from_all(results, num_directions, axis_name)

    return on_axis(apply, axis_name, params, canonical_key(key))


def _along(
    value_fn: Callable[[PyTree], Any],
    smoothing: jax.Array,
    signs: tuple[float, ...],
    chunk_size: int | None,
    has_aux: bool,
) -> Callable[[Callable], tuple[jax.Array, PyTree]]:
    """Returns (scale -> perturbed params) -> (values[P], aux of each side)."""
    scales = jnp.asarray(signs, value_dtype()) * smoothing

    def values_along(perturbed):
        return _map(
            lambda scale: evaluate_at(value_fn, perturbed(scale), has_aux=has_aux),
            scales,
            len(signs),
            # In chunks the sides take turns: one perturbed copy a direction.
            None if chunk_size is None else 1,
        )

    return values_along


def _shared(
    values: jax.Array, aux: PyTree, num_directions: int, axis_name: str | None
) -> tuple[jax.Array, PyTree]:
    """All values, and the aux of query (0, 0), on every device."""
    first = jax.tree.map(lambda x: x[0, 0], aux)
    return from_all(values, num_directions, axis_name), from_first(first, axis_name)


def evaluate(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    sampler: Sampler,
    key: jax.Array,
    num_directions: int,
    smoothing: jax.Array | float,
    *,
    signs: tuple[float, ...] = (1.0,),
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
) -> tuple[jax.Array, PyTree]:
    """Queries the objective along the directions: y_kp = f(theta + mu s_p v_k).

    Args:
      value_fn: params -> scalar, or (scalar, aux) with ``has_aux``.
      params: pytree; float leaves are perturbed, each point from the untouched params.
      sampler: a sampler of zojax.perturbations.
      key: the step's key, typed or uint32[2].
      num_directions: K.
      smoothing: mu, in units of params.
      signs: the P sides s_p, (1.0,) or (1.0, -1.0).
      chunk_size: how many directions live at once; None for all, 1 for the memory of
        one perturbed copy. With a chunk size the sides of a direction take turns.
      axis_name: mesh axis that the directions are spread over, K/n to a device: an axis
        of shard_map, or of the mesh in force (jax.set_mesh). None for none.
      has_aux: whether value_fn returns an aux.

    Returns:
      (values f[K, P] in float32 or, under x64, float64; the aux of query (0, 0)).

    Raises:
      ValueError: if value_fn does not return a real scalar.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> values, _ = zojax.evaluate(lambda x: x.sum(), jnp.zeros(4),
      ...     zojax.perturbations.simplex(), jax.random.key(0), 8, 1e-1)
      >>> values.shape, abs(round(float(values.sum()), 5))
      ((8, 1), 0.0)

    Source: arXiv 2510.19975, Equation 1; arXiv 2506.14460, Section 4.1.
    """
    check_params(params)
    transform = getattr(sampler, "transform", lambda value_fn: value_fn)
    along = _along(transform(value_fn), smoothing, signs, chunk_size, has_aux)

    def ask(params, key):
        rows = own_rows(num_directions, axis_name)
        values, aux = _map(
            lambda k: along(_seen_along(sampler, key, k, num_directions, params)),
            rows,
            len(rows),
            chunk_size,
        )
        return _shared(values, aux, num_directions, axis_name)

    return on_axis(ask, axis_name, params, canonical_key(key))


def _contract(weights: jax.Array, directions: PyTree) -> PyTree:
    """weights[..., K] times directions [K, ...], in at least float32."""

    def leaf(v):
        if v.shape[0] != 1:
            return contract(weights, v)
        # Elementwise: fuses with drawing, and with the update.
        wide = wide_dtype(v.dtype)
        scale = weights.reshape(weights.shape[:-1] + (1,) * (v.ndim - 1))
        return scale.astype(wide) * v[0].astype(wide)

    return jax.tree.map(leaf, directions)


def _finite(tree: PyTree) -> PyTree:
    """Drops sums that overflowed, so that they never enter a state."""
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), tree)


def _sum_like(
    params: PyTree,
    sampler: Sampler,
    num_directions: int,
    leading: tuple[int, ...] = (),
) -> PyTree:
    """Shapes of what :func:`combine` returns."""
    like = direction_shapes(params, sampler, num_directions)
    return jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(leading + v.shape, v.dtype), like
    )


def direction_like(
    params: PyTree,
    sampler: Sampler,
    num_directions: int,
    leading: tuple[int, ...] = (),
) -> PyTree:
    """Returns zeros of the shape and place of what :func:`combine` returns.

    Args:
      params: pytree that directions are drawn for.
      sampler: a sampler of zojax.perturbations.
      num_directions: K.
      leading: axes before those of a direction.

    Returns:
      Zeros in at least float32, None at frozen leaves.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> zojax.queries.direction_like(
      ...     jnp.ones(3, jnp.bfloat16), zojax.perturbations.gaussian(), 2, (4,)).shape
      (4, 3)

    Source: none; a convenience for the states of estimators.
    """
    like = _sum_like(params, sampler, num_directions, leading)

    def leaf(v, p):
        if v is None:
            return None
        return jnp.broadcast_to(jnp.zeros_like(p, v.dtype), v.shape)

    return jax.tree.map(leaf, like, params, is_leaf=is_none)


def _weighted_sum(
    weights: jax.Array,
    sampler: Sampler,
    key: jax.Array,
    rows: jax.Array,
    num_directions: int,
    params: PyTree,
) -> PyTree:
    """weights[..., n] times the n rows, drawn whole unless the sampler knows better."""
    known = getattr(sampler, "weighted_sum", None)
    if known is not None:
        return known(weights, key, rows, num_directions, params)
    return _contract(weights, _directions(sampler, key, rows, num_directions, params))


def _own_sum(
    weights: jax.Array,
    params: PyTree,
    sampler: Sampler,
    key: jax.Array,
    num_directions: int,
    chunk_size: int | None,
    axis_name: str | None,
) -> PyTree:
    """The part of V^T w whose rows are this device's, in chunks."""
    rows, mine = own_rows(num_directions, axis_name), own(weights, axis_name)
    if chunk_size is None or chunk_size >= len(rows):
        return _weighted_sum(mine, sampler, key, rows, num_directions, params)

    # Rows beyond K/n, where it is no multiple of the chunk, are drawn with weight zero.
    num_chunks = -(-len(rows) // chunk_size)
    padding = num_chunks * chunk_size - len(rows)
    padded = jnp.pad(mine, [(0, 0)] * (mine.ndim - 1) + [(0, padding)])

    def add_chunk(sums, chunk):
        start = chunk * chunk_size
        part = _weighted_sum(
            jax.lax.dynamic_slice_in_dim(padded, start, chunk_size, axis=-1),
            sampler,
            key,
            rows[0] + start + jnp.arange(chunk_size),
            num_directions,
            params,
        )
        return jax.tree.map(jnp.add, sums, part), None

    like = _sum_like(params, sampler, num_directions, weights.shape[:-1])
    zeros = zeros_beside(like, params, mine, rows, jax.random.key_data(key))
    return jax.lax.scan(add_chunk, zeros, jnp.arange(num_chunks))[0]


def combine(
    weights: jax.Array,
    params: PyTree,
    sampler: Sampler,
    key: jax.Array,
    num_directions: int,
    *,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> PyTree:
    """Recombines directions: V^T w = sum_k w_k v_k.

    Args:
      weights: f[..., K].
      params: pytree that the directions are drawn for; its values are not read.
      sampler: the sampler that the values were asked along.
      key: the key that the values were asked with.
      num_directions: K.
      chunk_size: how many directions live at once; None for all.
      axis_name: mesh axis that the directions are spread over; None for none.

    Returns:
      A pytree like params in at least float32, with None at frozen leaves and the
      leading axes of weights; :func:`as_gradient` casts it to params.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> rows = zojax.perturbations.orthogonal()
      >>> v = zojax.combine(jnp.ones(2), jnp.ones(2), rows, jax.random.key(0), 2)
      >>> print(jnp.sum(v**2))  # |v_0 + v_1|^2 = 2d
      4.0

    Source: seed replay, arXiv 2305.17333, Algorithm 1.
    """

    def add(weights, params, key):
        part = _own_sum(
            weights, params, sampler, key, num_directions, chunk_size, axis_name
        )
        return total(part, axis_name)

    return _finite(on_axis(add, axis_name, weights, params, canonical_key(key)))


def add_directions(
    params: PyTree,
    weights: jax.Array,
    sampler: Sampler,
    key: jax.Array,
    num_directions: int,
) -> PyTree:
    """Moves params along the directions: theta + V^T w, the sum never being held.

    One direction at a time is drawn and added where params lie, so that a jitted step
    that donates params needs no vector beside them, whatever K is. It is what SGD with
    :func:`combine` does (w = -lr times the weights), rounded to the dtype of params
    after each direction instead of once.

    Args:
      params: pytree.
      weights: f[K], learning rate and sign included.
      sampler: the sampler that the values were asked along.
      key: the key that the values were asked with.
      num_directions: K.

    Returns:
      A pytree like params; an entry that would overflow stays.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> x, f, mu = jnp.ones(3), lambda x: jnp.sum(x**2), 1e-2
      >>> asked = zojax.perturbations.rademacher(), jax.random.key(0), 4
      >>> y, _ = zojax.evaluate(f, x, *asked, mu, signs=(1.0, -1.0), chunk_size=1)
      >>> w = zojax.weights.central(y[:, 0], y[:, 1], mu)
      >>> bool(f(zojax.queries.add_directions(x, -0.1 * w, *asked)) < f(x))
      True

    Source: seed replay, arXiv 2305.17333, Algorithm 1, over K directions.
    """
    check_params(params)
    key = canonical_key(key)

    def add(params, row):
        k, weight = row
        moved = perturb(params, sampler(key, k, num_directions, params), weight)
        kept = lambda new, old: jnp.where(jnp.isfinite(new), new, old)
        return jax.tree.map(kept, moved, params), None

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(add, params, (jnp.arange(num_directions), weights))[0]


def combine_steps(
    weights: jax.Array,
    params: PyTree,
    sampler: Sampler,
    key: jax.Array,
    steps: jax.Array,
    num_directions: int,
    *,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> PyTree:
    """Recombines the directions of several steps, one step at a time.

    Args:
      weights: f[N, K].
      key: the key that step keys are folded from.
      steps: i32[N], step counts; step n was asked with fold_in(key, n).
      params, sampler, num_directions, chunk_size, axis_name: as in :func:`combine`.

    Returns:
      sum_n V_n^T w_n, as :func:`combine` returns it.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> zojax.queries.combine_steps(jnp.zeros((3, 2)), jnp.ones(3),
      ...     zojax.perturbations.gaussian(), jax.random.key(0), jnp.arange(3),
      ...     2).tolist()
      [0.0, 0.0, 0.0]

    Source: seed replay over a history, after arXiv 2506.14460, Section 4.1.
    """

    def add(weights, params, key, steps):
        def add_step(sums, step):
            part = _own_sum(
                step[0],
                params,
                sampler,
                step_key(key, step[1]),
                num_directions,
                chunk_size,
                axis_name,
            )
            return jax.tree.map(jnp.add, sums, part), None

        like = _sum_like(params, sampler, num_directions)
        rows = own_rows(num_directions, axis_name)
        zeros = zeros_beside(like, params, weights, key, steps, rows)
        return total(jax.lax.scan(add_step, zeros, (weights, steps))[0], axis_name)

    words = jax.random.key_data(canonical_key(key))
    return _finite(on_axis(add, axis_name, weights, params, words, steps))


def estimate(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    sampler: Sampler,
    key: jax.Array,
    num_directions: int,
    smoothing: jax.Array | float,
    weigh: Callable[[jax.Array], jax.Array],
    *,
    signs: tuple[float, ...] = (1.0,),
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
) -> Estimate:
    """Evaluates, weighs and combines: g = V^T weigh(f(theta + mu V)).

    Without ``chunk_size`` the directions are drawn once and kept in memory; with it
    they are drawn again to be combined.

    Args:
      weigh: values f[K, P] -> weights f[..., K], as in zojax.weights.
      value_fn, params, sampler, key, num_directions, smoothing, signs, chunk_size,
        axis_name, has_aux: as in :func:`evaluate`.

    Returns:
      An :class:`Estimate`.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> mu, f = 1e-2, lambda x: x[0] + 2 * x[1]
      >>> weigh = lambda y: zojax.weights.central(y[:, 0], y[:, 1], mu)
      >>> g = zojax.estimate(f, jnp.zeros(2), zojax.perturbations.orthogonal(),
      ...     jax.random.key(0), 2, mu, weigh, signs=(1.0, -1.0)).sums
      >>> print(g.round(3))
      [1. 2.]

    Source: arXiv 2510.19975, Equation 1; arXiv 2506.14460, Theorem 3.2.
    """
    if chunk_size is not None or hasattr(sampler, "view"):
        options = {"chunk_size": chunk_size, "axis_name": axis_name}
        asked = (params, sampler, key, num_directions)
        values, aux = evaluate(
            value_fn, *asked, smoothing, signs=signs, has_aux=has_aux, **options
        )
        return Estimate(combine(weigh(values), *asked, **options), values, aux)

    check_params(params)
    along = _along(value_fn, smoothing, signs, None, has_aux)
    perturbed = lambda params, direction: (
        lambda scale: perturb(params, direction, scale)
    )

    def ask_and_add(params, key):
        rows = own_rows(num_directions, axis_name)
        directions = _directions(sampler, key, rows, num_directions, params)
        values, aux = _map(lambda v: along(perturbed(params, v)), directions, len(rows))
        values, aux = _shared(values, aux, num_directions, axis_name)
        sums = _contract(own(weigh(values), axis_name), directions)
        return total(sums, axis_name), values, aux

    sums, values, aux = on_axis(ask_and_add, axis_name, params, canonical_key(key))
    return Estimate(_finite(sums), values, aux)


def as_gradient(sums: PyTree, params: PyTree) -> PyTree:
    """Casts sums to a gradient like params: zero at frozen leaves, always finite.

    Args:
      sums: what :func:`combine` or :func:`estimate` returns, without leading axes.
      params: pytree.

    Returns:
      A pytree with the structure, shapes and dtypes of params. What does not fit the
      dtype saturates at its largest finite number.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> sums = {"head": jnp.ones(2), "body": None}
      >>> params = {"head": jnp.ones(2, jnp.bfloat16), "body": jnp.ones(3)}
      >>> g = zojax.as_gradient(sums, params)
      >>> g["head"].dtype.name, g["body"].tolist()
      ('bfloat16', [0.0, 0.0, 0.0])

    Source: none; the contract between estimators and optax.
    """

    def leaf(x, p):
        if x is None:
            return jax.tree.map(jnp.zeros_like, p)
        dtype = jnp.result_type(p)
        largest = jnp.asarray(jnp.finfo(dtype).max, x.dtype)
        return jnp.clip(jnp.where(jnp.isnan(x), 0, x), -largest, largest).astype(dtype)

    return jax.tree.map(leaf, sums, params, is_leaf=is_none)
