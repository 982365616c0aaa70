"""REINFORCE: the score-function view of a zeroth-order gradient."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax import weights
from zojax._checks import check_option
from zojax._directions import Directions, combine, dimension, map_directions
from zojax._estimators.log import QueryLog
from zojax._estimators.rounds import Round, Settings, Shaping, check_baseline
from zojax._estimators.step import Estimator, estimator
from zojax._evaluation import ONE_SIDE
from zojax._numerics import Number, PyTree, tree_dot, wide_dtype, widest
from zojax.perturbations import Sampler, from_rows, gaussian, sphere

SEARCHES = ("gaussian", "sphere")
BASELINES = ("value", "mean", "leave_one_out", "optimal")


class ReinforceState(NamedTuple):
    """State of :func:`reinforce`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog


def gaussian_log_density(offset: PyTree, smoothing: jax.Array) -> jax.Array:
    """log N(x; theta, mu^2 I) as a function of x - theta.

        -|x - theta|^2 / (2 mu^2) - d log(mu) - d log(2 pi) / 2

    Args:
      offset, smoothing: x - theta, a pytree of float arrays, and mu, f[].

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
    wide = widest(squared, smoothing)
    mu = jnp.asarray(smoothing, wide)
    quadratic = -squared.astype(wide) / (2 * mu**2)
    return quadratic - d * jnp.log(mu * math.sqrt(2 * math.pi))


def _scores(sampler: Sampler, mu: jax.Array) -> Sampler:
    """Rows grad_theta log pi_theta(x_k), times mu to be of order one."""

    def row(key, k, num_directions, params):
        u = sampler(key, k, num_directions, params)
        # In terms of x - theta, which rounding of x would spoil.
        times_mu = lambda v, wide: mu.astype(wide) * v.astype(wide)
        offset = jax.tree.map(lambda v: times_mu(v, wide_dtype(v.dtype)), u)
        toward_x = jax.grad(gaussian_log_density)(offset, mu)
        return jax.tree.map(lambda s: -mu.astype(s.dtype) * s, toward_x)

    return from_rows(row)


def reinforce(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    baseline: str = "value",
    search: str = "gaussian",
    sampler: Sampler | None = None,
    clip: Number | None = None,
    shaping: Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """Policy gradient of the one-step policy pi_theta = N(theta, mu^2 I).

    With x_k = theta + mu u_k drawn from the search distribution q,

        g = (1/K) sum_k rho_k [f(x_k) - b] grad_theta log pi_theta(x_k),

    the score by autodiff of :func:`gaussian_log_density`, rho = pi / q the importance
    weight:

        gaussian  q = pi, rho = 1. With baseline "value" this is the forward difference
                  (Theorem 3.2).
        sphere    q uniform on a shell |u| = r. pi is constant there, so that rho is one
                  number, fixed by E_q[rho u u^T] = I: rho = d / r^2, 1 for
                  zojax.perturbations.sphere(), whose radius is sqrt(d) (Theorem 3.3).

    K queries a step; one more for baseline "value".

    Args:
      smoothing: mu > 0, the policy's standard deviation, or a schedule.
      num_directions: K >= 1; >= 2 for the baselines made from the step's values.
      baseline: "value" (f(theta)), "mean", "leave_one_out", or "optimal" (Theorem B.4).
      search: "gaussian" or "sphere", the distribution that u is drawn from.
      sampler: draws u; gaussian() or sphere() by default; for search="sphere" any of
        constant length.
      key, clip, shaping, chunk_size, axis_name, has_aux, aux_like: as in
        :func:`two_point`; no shaping with baseline "value".

    Returns:
      An :class:`zojax.Estimator` whose update is the gradient of the expected *loss*.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.reinforce(1e-2, 8, key=0), jnp.ones(4)
      >>> g, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(g @ x > 0)
      True

    Source: arXiv 2506.14460, Theorems 3.1 to 3.3 and B.4.
    """
    check_option("baseline", baseline, BASELINES)
    check_option("search", search, SEARCHES)
    if sampler is None:
        sampler = gaussian() if search == "gaussian" else sphere()
    asks_params = baseline == "value"
    V = Directions(sampler, key, num_directions, chunk_size, axis_name)
    check_baseline("baseline", baseline, sampler, num_directions)

    def advantages(answer, norms, mu):
        """(f(x_k) - b) / (K mu)."""
        y = answer.values[:, 0]
        if baseline == "value":
            return weights.forward(y, answer.at_params, mu)
        if baseline == "optimal":
            return weights.optimal_baseline(y, norms, mu)
        of_values = {"mean": weights.mean_baseline}.get(baseline, weights.leave_one_out)
        return of_values(y, mu)

    def body(step):
        mu, V = step.smoothing, step.directions(sampler, num_directions)
        answer = yield Round(V, mu, asks_params=asks_params)
        importance, norms = jnp.ones((), mu.dtype), None
        if search == "sphere" or baseline == "optimal":
            squared_norm = lambda u: tree_dot(u, u).astype(mu.dtype)
            norms = map_directions(squared_norm, step.params, V)
        if search == "sphere":
            d = dimension(step.params, V)
            importance = d / jnp.where(norms > 0, norms, 1)
        gains = step.clipped(advantages(answer, norms, mu), answer.values)
        scores = dataclasses.replace(V, sampler=_scores(V.sampler, mu))
        return combine(importance * gains, step.params, scores), {}

    settings = Settings(
        key, smoothing, clip, shaping, chunk_size, axis_name, has_aux, aux_like
    )
    return estimator(
        settings, body, ReinforceState, (V,), ONE_SIDE, asks_params=asks_params
    )
