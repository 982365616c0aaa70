"""REINFORCE: the score-function view of a zeroth-order gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax import queries, weights
from zojax._checks import check_int, check_number, check_option
from zojax._estimators.log import QueryLog, check_aux_arguments, init_log, update_log
from zojax._keys import key_data, step_key
from zojax._numerics import Number, PyTree, number_at, tree_dot, wide_dtype
from zojax._objective import bind_value_fn, check_params
from zojax.perturbations import gaussian, sphere
from zojax.perturbations._sampler import Sampler
from zojax.queries import check_queries, direction_shapes

__all__ = ["ReinforceState", "gaussian_log_density", "reinforce"]

SEARCHES = ("gaussian", "sphere")
BASELINES = ("value", "mean", "leave_one_out", "optimal")


class ReinforceState(NamedTuple):
    """State of :func:`reinforce`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # i32[]
    log: QueryLog


def gaussian_log_density(offset: PyTree, smoothing: jax.Array) -> jax.Array:
    """log N(x; theta, mu^2 I) as a function of x - theta.

        -|x - theta|^2 / (2 mu^2) - d log(mu) - d log(2 pi) / 2

    Args:
      offset: x - theta, a pytree of float arrays.
      smoothing: f[], mu.

    Returns:
      f[].

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> print(round(float(zojax.gaussian_log_density(jnp.zeros(2), 1.0)), 4))
      -1.8379

    Source: arXiv 2506.14460, Theorem 3.1 (the policy of zeroth-order optimisation).
    """
    d = sum(leaf.size for leaf in jax.tree.leaves(offset))
    squared = tree_dot(offset, offset)
    return -squared / (2 * smoothing**2) - d * jnp.log(
        smoothing * math.sqrt(2 * math.pi)
    )


def reinforce(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    baseline: str = "value",
    search: str = "gaussian",
    sampler: Sampler | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    """Policy gradient of the one-step policy pi_theta = N(theta, mu^2 I).

    With x_k = theta + mu u_k drawn from the search distribution q,

        g = (1/K) sum_k rho_k [f(x_k) - b] grad_theta log pi_theta(x_k),

    the score by autodiff of :func:`gaussian_log_density`, the baseline b explicit and
    rho = pi / q the importance weight:

        gaussian  q = pi, rho = 1. With baseline "value" this is the forward difference
                  (Theorem 3.2).
        sphere    q uniform on a shell |u| = r. pi is constant there, so that rho is one
                  number, fixed by E_q[rho u u^T] = I: rho = d / r^2, which is d on the
                  unit sphere and 1 on the sphere of radius sqrt(d) that
                  zojax.perturbations.sphere() draws (Theorem 3.3).

    K queries a step; baseline "value" takes one more unless ``value=`` is passed.

    Args:
      smoothing: mu > 0, the policy's standard deviation, or a schedule.
      num_directions: K >= 1; >= 2 for the baselines made from the step's values.
      key: a threefry key (typed or uint32[2]) or an int seed.
      baseline: "value" (f(theta)), "mean", "leave_one_out", or "optimal" (Theorem B.4).
      search: "gaussian" or "sphere", the distribution that u is drawn from.
      sampler: draws u; gaussian() or sphere() by default. With search="sphere" any
        sampler of constant length r, whatever r is.
      chunk_size: how many directions live at once; None for all.
      axis_name: mesh axis that the directions are spread over, see
        :func:`zojax.evaluate`; None for none.
      has_aux: whether value_fn returns (value, aux).
      aux_like: arrays or ShapeDtypeStructs shaped like the aux, to keep that of the
        step's first query in ``state.log.aux``; None drops it.

    Returns:
      An optax.GradientTransformationExtraArgs whose update is the gradient of the
      expected *loss* (to descend), with the structure, shapes and dtypes of params.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(zojax.reinforce(1e-2, 8, key=0), optax.sgd(1e-2))
      >>> x, f = jnp.ones(4), lambda x: jnp.sum(x**2)
      >>> updates, state = opt.update(None, opt.init(x), x, value_fn=f)
      >>> bool(f(optax.apply_updates(x, updates)) < f(x))
      True

    Source: arXiv 2506.14460, Theorems 3.1 to 3.3 and B.4.
    """
    check_number("smoothing", smoothing, 0.0)
    check_option("baseline", baseline, BASELINES)
    check_option("search", search, SEARCHES)
    if sampler is None:
        sampler = gaussian() if search == "gaussian" else sphere()
    check_queries(sampler, num_directions, chunk_size, axis_name)
    if baseline != "value":
        check_int("num_directions", num_directions, 2, f" with baseline={baseline!r}")
    check_aux_arguments(has_aux, aux_like)
    key = key_data(key)
    uses_base = baseline == "value"

    def init_fn(params):
        check_params(params)
        direction_shapes(params, sampler, num_directions)  # fails early
        return ReinforceState(
            jnp.array(key),
            jnp.zeros((), jnp.int32),
            init_log(aux_like, uses_base),
        )

    def update_fn(updates, state, params=None, *, value_fn, value=None, **extra_args):
        del updates
        objective = bind_value_fn(value_fn, params, extra_args)
        mu = number_at(smoothing, state.count)
        key_now = step_key(state.key, state.count)
        one = jnp.ones((), mu.dtype)

        def scores(key, k, num_directions, params):
            """Rows grad_theta log pi_theta(x_k), times mu to be of order one."""
            u = sampler(key, k, num_directions, params)
            # In terms of x - theta, which rounding of x would spoil.
            offset = jax.tree.map(lambda v: mu * v.astype(wide_dtype(v.dtype)), u)
            toward_x = jax.grad(gaussian_log_density)(offset, mu)
            return jax.tree.map(lambda s: -mu * s, toward_x)

        def squared_norm(u):
            return tree_dot(u, u).astype(mu.dtype)

        values, aux = queries.evaluate(
            objective,
            params,
            sampler,
            key_now,
            num_directions,
            mu,
            chunk_size=chunk_size,
            axis_name=axis_name,
            has_aux=has_aux,
        )
        y, base = values[:, 0], None
        if uses_base:
            base, base_aux = queries.base_value(objective, params, value, has_aux)
            aux = aux if base_aux is None else base_aux
        importance, norms = one, None
        if search == "sphere" or baseline == "optimal":
            norms = queries.map_directions(
                squared_norm,
                params,
                sampler,
                key_now,
                num_directions,
                chunk_size=chunk_size,
                axis_name=axis_name,
            )
        if search == "sphere":
            like = queries.direction_like(params, sampler, num_directions)
            dimension = sum(leaf.size for leaf in jax.tree.leaves(like))
            importance = dimension / jnp.where(norms > 0, norms, 1)

        advantages = {
            "value": lambda: weights.forward(y, base, mu),
            "mean": lambda: weights.mean_baseline(y, mu),
            "leave_one_out": lambda: weights.leave_one_out(y, mu),
            "optimal": lambda: weights.optimal_baseline(y, norms, mu),
        }[baseline]()  # (f(x_k) - b) / (K mu)
        sums = queries.combine(
            importance * advantages,
            params,
            scores,
            key_now,
            num_directions,
            chunk_size=chunk_size,
            axis_name=axis_name,
        )
        return queries.as_gradient(sums, params), ReinforceState(
            key=state.key,
            count=optax.safe_increment(state.count),
            log=update_log(state.log, values, base, aux),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
