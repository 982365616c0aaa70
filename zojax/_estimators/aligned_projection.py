"""Projection of the gradient on the span of a running guide and fresh directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import queries, weights
from zojax._checks import check_int, check_number, check_option
from zojax._estimators.log import QueryLog, check_aux_arguments, init_log, update_log
from zojax._keys import key_data, step_key
from zojax._numerics import Number, PyTree, decayed, normalize, number_at, tree_dot
from zojax._objective import bind_value_fn, check_params
from zojax.perturbations import orthogonal, restrict
from zojax.queries import check_queries

__all__ = ["AlignedProjectionState", "aligned_projection"]

DIFFERENCES = ("forward", "central")


class AlignedProjectionState(NamedTuple):
    """State of :func:`aligned_projection`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # i32[]
    log: QueryLog
    guide: PyTree  # like params, at least float32; None at frozen leaves


def aligned_projection(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    decay: Number = 0.9,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    difference: str = "forward",
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    """Projects the gradient on a decayed average of past estimates and fresh rows.

    Row 0 is the guide a at length sqrt(d), rows 1..K-1 are orthogonal(); with P the
    orthogonal projection on their span,

        g = P grad f    (from K directional differences),
        a <- decay a + (1 - decay) g.

    Biased to the span, which is its point: if c is the squared cosine between guide and
    gradient, that of the estimate is about c + (1 - c) (K - 1) / (d - 1). A guide
    inherited from past steps costs no query. The rows are orthonormalised through K
    inner products, without holding them.

    K + 1 queries for forward differences (K where the caller passes ``value=``), 2K for
    central ones. Where the guide is zero or not finite, all K rows are orthogonal().

    Args:
      smoothing: mu > 0, in units of params, or a schedule.
      num_directions: K >= 2, at most the number of trainable entries.
      key: a threefry key (typed or uint32[2]) or an int seed.
      decay: 0 <= decay < 1, or a schedule; 0.7 to 0.9 suits.
      mask: which leaves are trainable, as in :func:`zojax.perturbations.restrict`;
        None for all.
      difference: "forward" or "central".
      chunk_size: how many directions live at once; None for all.
      axis_name: mesh axis that the directions are spread over, see
        :func:`zojax.evaluate`; None for none.
      has_aux: whether value_fn returns (value, aux).
      aux_like: arrays or ShapeDtypeStructs shaped like the aux, to keep that of the
        step's first query in ``state.log.aux``; None drops it.

    Returns:
      An optax.GradientTransformationExtraArgs whose update has the structure, shapes
      and dtypes of params.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(zojax.aligned_projection(1e-3, 2, key=0), optax.sgd(0.1))
      >>> x, f = jnp.arange(4.0), lambda x: jnp.sum(x**2)
      >>> updates, state = opt.update(None, opt.init(x), x, value_fn=f)
      >>> bool(f(optax.apply_updates(x, updates)) < f(x))
      True

    Source: DAP (arXiv 2510.19975) with past descent directions (arXiv 1910.05268).
    """
    fresh = orthogonal() if mask is None else restrict(orthogonal(), mask)
    check_number("smoothing", smoothing, 0.0)
    check_number("decay", decay, 0.0, 1.0, low_ok=True)
    check_int("num_directions", num_directions, 2)
    check_queries(fresh, num_directions, chunk_size, axis_name)
    check_option("difference", difference, DIFFERENCES)
    check_aux_arguments(has_aux, aux_like)
    key = key_data(key)
    uses_base = difference == "forward"

    def init_fn(params):
        check_params(params)
        guide = queries.direction_like(params, fresh, num_directions)
        dimension = sum(leaf.size for leaf in jax.tree.leaves(guide))
        if num_directions > dimension:
            raise ValueError(
                f"num_directions must be at most the {dimension} trainable entries,"
                f" got {num_directions}"
            )
        return AlignedProjectionState(
            key=jnp.array(key),
            count=jnp.zeros((), jnp.int32),
            log=init_log(aux_like, uses_base),
            guide=guide,
        )

    def update_fn(updates, state, params=None, *, value_fn, value=None, **extra_args):
        del updates
        objective = bind_value_fn(value_fn, params, extra_args)
        mu = number_at(smoothing, state.count)
        key_now = step_key(state.key, state.count)
        dimension = sum(leaf.size for leaf in jax.tree.leaves(state.guide))
        unit, usable = normalize(state.guide, state.guide)

        def rows(key, k, num_directions, params):
            """Row 0 is the guide; E[v v^T] is not I, which the weights undo."""
            is_guide = (jnp.asarray(k) == 0) & usable
            return jax.tree.map(
                lambda v, a: jnp.where(is_guide, math.sqrt(dimension) * a, v).astype(
                    v.dtype
                ),
                fresh(key, k, num_directions, params),
                unit,
            )

        first = rows(key_now, 0, num_directions, params)
        cosines = queries.map_directions(
            lambda v: tree_dot(v, first) / dimension,
            params,
            rows,
            key_now,
            num_directions,
            chunk_size=chunk_size,
            axis_name=axis_name,
        )
        base, base_aux = None, None
        if uses_base:
            base, base_aux = queries.base_value(objective, params, value, has_aux)

        def weigh(values):
            other = base if uses_base else values[:, 1]
            slopes = (values[:, 0] - other) / (mu if uses_base else 2 * mu)
            return weights.projection(slopes, cosines.astype(slopes.dtype), dimension)

        result = queries.estimate(
            objective,
            params,
            rows,
            key_now,
            num_directions,
            mu,
            weigh,
            signs=(1.0,) if uses_base else (1.0, -1.0),
            chunk_size=chunk_size,
            axis_name=axis_name,
            has_aux=has_aux,
        )
        aux = result.aux if base_aux is None else base_aux
        return queries.as_gradient(result.sums, params), AlignedProjectionState(
            key=state.key,
            count=optax.safe_increment(state.count),
            log=update_log(state.log, result.values, base, aux),
            guide=decayed(state.guide, result.sums, number_at(decay, state.count)),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
