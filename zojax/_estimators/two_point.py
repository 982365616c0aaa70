"""Two-point gradient estimators: forward, central and without f(theta)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from zojax._checks import check_option
from zojax._directions import Directions, direction_shapes
from zojax._estimators.differences import DIFFERENCES, check_baseline, sides_of, weigh
from zojax._estimators.log import QueryLog
from zojax._estimators.rounds import Round, check_settings
from zojax._estimators.step import Estimator, estimator, followed_by
from zojax._numerics import Number, PyTree
from zojax.perturbations import Sampler, gaussian, rademacher


class TwoPointState(NamedTuple):
    """State of :func:`two_point`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # i32[]
    log: QueryLog


def two_point(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    sampler: Sampler | None = None,
    difference: str = "forward",
    clip: Number | None = None,
    shaping: Callable[[jax.Array], jax.Array] | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """Estimates the gradient from differences of the objective along K directions.

    With y_k = f(theta + mu v_k) and E[v v^T] = I:

        forward        g = (1/K) sum_k [y_k - f(theta)] / mu v_k              K + 1
        central        g = (1/K) sum_k [y_k - f(theta - mu v_k)] / (2 mu) v_k 2K
        mean           g = (1/K) sum_k [y_k - mean(y)] / mu v_k               K
        leave_one_out  g = (1/K) sum_k [y_k - mean of the others] / mu v_k    K

    The last column counts queries; forward takes K where the caller passes ``value=``.
    All but mean are unbiased as mu -> 0; mean shrinks the expectation by (K-1)/K,
    except with :func:`zojax.perturbations.simplex`, where it is what to use. The
    result is a gradient, for descent: to maximise, negate value_fn.

    Incoming updates are ignored (they may be None). How an objective is called, or
    asked for its values from outside, says :class:`zojax.Estimator`.

    Args:
      smoothing: mu > 0, in units of params, or a schedule. Rounding bounds it from
        below, see :func:`zojax.check_smoothing` (bfloat16 weights near 1: 1e-2).
      num_directions: K >= 1; >= 2 for mean and leave_one_out.
      key: a threefry key (typed or uint32[2]) or an int seed.
      sampler: a sampler of zojax.perturbations; gaussian() by default.
      difference: "forward", "central", "mean" or "leave_one_out".
      clip: bound > 0 of each directional derivative, or a schedule; None for none.
        Where |v|^2 = d and K = 1 this is optax.clip_by_global_norm(clip sqrt(d)),
        without another pass over the estimate.
      shaping: values f[K, P] -> as many values, that weights are made of: ranks,
        z-scores (as ``lambda y: y / jnp.nanstd(y)``). NaN stands for a value that is
        not finite, and stays. Not with forward differences. The log keeps the values as
        they came.
      chunk_size: how many directions live at once; None keeps all K in memory, 1 needs
        the memory of one perturbed copy.
      axis_name: mesh axis that the directions are spread over, see
        :class:`zojax.Directions`; None for none.
      has_aux: whether value_fn returns (value, aux).
      aux_like: arrays or ShapeDtypeStructs shaped like the aux, to keep that of the
        step's first query in ``state.log.aux``; None drops it.

    Returns:
      An :class:`zojax.Estimator` whose update has the structure, shapes and dtypes of
      params. Query values that are not finite are left out and counted
      in ``state.log.num_nonfinite``.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(zojax.two_point(1e-3, 8, key=0), optax.sgd(0.05))
      >>> f = lambda x: jnp.sum((x - 1) ** 2)
      >>> def step(carry, _):
      ...     x, state = carry
      ...     updates, state = opt.update(None, state, x, value_fn=f)
      ...     return (optax.apply_updates(x, updates), state), None
      >>> x = jnp.zeros(3)
      >>> (x, _), _ = jax.lax.scan(step, (x, opt.init(x)), length=200)
      >>> print(x.round(2))
      [1. 1. 1.]

    Source: arXiv 2510.19975, Equation 1; arXiv 2506.14460, Section 4.1 (baselines).
    """
    sampler = gaussian() if sampler is None else sampler
    check_option("difference", difference, DIFFERENCES)
    asks_params = difference == "forward"
    settings = check_settings(
        key,
        smoothing,
        clip,
        shaping,
        chunk_size,
        axis_name,
        has_aux,
        aux_like,
        asks_params=asks_params,
    )
    V = Directions(sampler, settings.key, num_directions)
    check_baseline("difference", difference, sampler, num_directions)
    sides = sides_of(difference)

    def init(params):
        direction_shapes(params, V)  # fails early
        return {}

    def body(step):
        def weights_of(values, at_params):
            found = weigh(difference, values, at_params, step.smoothing)
            return step.clipped(found, values)

        V = step.directions(sampler, num_directions)
        answer = yield Round(V, step.smoothing, sides, asks_params, weights_of)
        return answer.sums, {}

    return estimator(
        settings,
        body,
        TwoPointState,
        init,
        num_values=(num_directions, len(sides)),
        asks_params=asks_params,
    )


def mezo(
    learning_rate: optax.ScalarOrSchedule,
    smoothing: Number = 1e-3,
    *,
    key: jax.Array | int,
    sampler: Sampler | None = None,
) -> Estimator:
    """MeZO: a central difference along one replayed direction, and SGD.

        theta <- theta - lr [f(theta + mu v) - f(theta - mu v)] / (2 mu) v

    Two queries a step, the memory of one perturbed copy; both sides start from the
    untouched params.

    Args:
      learning_rate: lr, or a schedule.
      smoothing: mu > 0, or a schedule.
      key: a threefry key or an int seed.
      sampler: gaussian() by default, as in the paper; rademacher() is cheaper.

    Returns:
      ``optax.chain(two_point(..., difference="central"), sgd)`` that can be asked.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = zojax.mezo(1e-2, key=0)
      >>> x, f = jnp.ones(2), lambda x: jnp.sum(x**2)
      >>> updates, state = opt.update(None, opt.init(x), x, value_fn=f)
      >>> bool(f(optax.apply_updates(x, updates)) < f(x))
      True

    Source: arXiv 2305.17333, Algorithm 1.
    """
    return followed_by(
        two_point(
            smoothing, 1, key=key, sampler=sampler, difference="central", chunk_size=1
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def spsa(
    learning_rate: optax.ScalarOrSchedule,
    smoothing: Number,
    *,
    key: jax.Array | int,
    num_directions: int = 1,
    sampler: Sampler | None = None,
) -> Estimator:
    """SPSA: central differences along random signs, and SGD.

    For fair signs 1/v_j = v_j, so Spall's [y+ - y-] / (2 c v_j) is the central
    estimate. Both gain sequences of SPSA are schedules here.

    Args:
      learning_rate: a_t, or a schedule.
      smoothing: c_t > 0, or a schedule.
      key: a threefry key or an int seed.
      num_directions: K >= 1, estimates averaged in a step.
      sampler: rademacher() by default; restrict(rademacher(), mask) freezes leaves.

    Returns:
      ``optax.chain(two_point(..., sampler=rademacher(), difference="central"), sgd)``
      that can be asked.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = zojax.spsa(1e-2, 1e-3, key=0)
      >>> x, f = jnp.arange(2.0), lambda x: jnp.sum(x**2)
      >>> updates, state = opt.update(None, opt.init(x), x, value_fn=f)
      >>> bool(f(optax.apply_updates(x, updates)) < f(x))
      True

    Source: Spall, IEEE Transactions on Automatic Control 37(3), 1992.
    """
    return followed_by(
        two_point(
            smoothing,
            num_directions,
            key=key,
            sampler=rademacher() if sampler is None else sampler,
            difference="central",
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
