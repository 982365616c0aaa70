"""Two-point gradient estimators, and a twin of jax.value_and_grad made of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax._checks import check_number, check_option
from zojax._directions import Directions, as_gradient
from zojax._estimators import rounds
from zojax._estimators.log import QueryLog, moments
from zojax._estimators.step import Estimator, estimator, followed_by
from zojax._numerics import Number, PyTree, as_rate, value_dtype
from zojax._objective import as_objective, check_params
from zojax.perturbations import Sampler, gaussian, rademacher


class TwoPointState(NamedTuple):
    """State of :func:`two_point`."""

    key: jax.Array  # uint32[2], raw words
    count: jax.Array  # type: ignore[assignment]  # i32[]
    log: QueryLog


def two_point(
    smoothing: Number,
    num_directions: int,
    *,
    key: jax.Array | int,
    sampler: Sampler | None = None,
    difference: str = "forward",
    clip: Number | None = None,
    shaping: rounds.Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    aux_like: PyTree = None,
) -> Estimator:
    """Estimates the gradient from differences of the objective along K directions.

    With y_k = f(theta + mu v_k) and E[v v^T] = I:

        forward        g = (1/K) sum_k [y_k - f(theta)] / mu v_k               K + 1
        central        g = (1/K) sum_k [y_k - f(theta - mu v_k)] / (2 mu) v_k  2K
        mean           g = (1/K) sum_k [y_k - mean(y)] / mu v_k                K
        leave_one_out  g = (1/K) sum_k [y_k - mean of the others] / mu v_k     K

    The last column counts queries; forward takes K where the caller passes ``value=``.
    All but mean are unbiased as mu -> 0; mean shrinks the expectation by (K-1)/K,
    except with :func:`zojax.perturbations.simplex`, where it is what to use. The
    result is a gradient, for descent: to maximise, negate value_fn. How an objective
    is called, or told from outside, says :class:`zojax.Estimator`.

    Args:
      smoothing: mu > 0, in units of params, or a schedule. Rounding bounds it from
        below, see :func:`zojax.check_smoothing` (bfloat16 weights near 1: 1e-2).
      num_directions: K >= 1; >= 2 for mean and leave_one_out.
      key: a threefry key (typed or uint32[2]) or an int seed.
      sampler: a sampler of zojax.perturbations; gaussian() by default.
      difference: "forward", "central", "mean" or "leave_one_out".
      clip: bound > 0 of each directional derivative, or a schedule; None for none.
        At K = 1 and |v|^2 = d this is optax.clip_by_global_norm(clip sqrt(d)).
      shaping: f[K, P] -> f[K, P], applied to the values before a baseline, as those of
        zojax.shaping. Values that are not finite come as NaN and stay so. Not with
        forward differences. The log keeps the values as they came.
      chunk_size: how many directions live at once; None keeps all K in memory, 1 needs
        the memory of one perturbed copy.
      axis_name: mesh axis that they are spread over, see :class:`zojax.Directions`.
      has_aux: whether value_fn returns (value, aux).
      aux_like: arrays or ShapeDtypeStructs shaped like the aux, to keep that of the
        step's first query in ``state.log.aux``; None drops it.

    Returns:
      An :class:`zojax.Estimator` whose update has the structure, shapes and dtypes of
      params. Query values that are not finite are left out, and counted in its log.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.two_point(1e-3, 8, key=0), jnp.ones(4)
      >>> g, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(g @ x > 0)
      True

    Source: arXiv 2510.19975, Equation 1; arXiv 2506.14460, Section 4.1 (baselines).
    """
    sampler = gaussian() if sampler is None else sampler
    check_option("difference", difference, rounds.DIFFERENCES)
    V = Directions(sampler, key, num_directions, chunk_size, axis_name)
    rounds.check_baseline("difference", difference, sampler, num_directions)
    asks_params, sides = difference == "forward", rounds.sides_of(difference)

    def body(step):
        V = step.directions(sampler, num_directions)
        weigh = rounds.weigher(difference, step)
        answer = yield rounds.Round(V, step.smoothing, sides, asks_params, weigh)
        return answer.sums, {}

    settings = rounds.Settings(
        key, smoothing, clip, shaping, chunk_size, axis_name, has_aux, aux_like
    )
    return estimator(
        settings, body, TwoPointState, (V,), sides, asks_params=asks_params
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

    Two queries a step, both from the untouched params; the memory of one copy. It has
    its step, and is no gradient that Adam could take: that would go uphill. For Adam,
    take the two_point of "Returns".

    Args:
      learning_rate, smoothing: lr and mu > 0, or schedules.
      key: a threefry key or an int seed.
      sampler: gaussian() by default, as in the paper; rademacher() is cheaper.

    Returns:
      ``optax.chain(two_point(smoothing, 1, difference="central", chunk_size=1), sgd)``
      that can be asked.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.mezo(1e-2, key=0), jnp.ones(2)
      >>> updates, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(updates @ x < 0)
      True

    Source: arXiv 2305.17333, Algorithm 1.
    """
    check_number("learning_rate", learning_rate, 0.0, low_ok=True)
    estimator = two_point(
        smoothing, 1, key=key, sampler=sampler, difference="central", chunk_size=1
    )
    return followed_by(estimator, optax.scale_by_learning_rate(as_rate(learning_rate)))


def spsa(
    learning_rate: optax.ScalarOrSchedule,
    smoothing: Number,
    *,
    key: jax.Array | int,
    num_directions: int = 1,
    sampler: Sampler | None = None,
) -> Estimator:
    """SPSA: central differences along random signs, and SGD.

    For signs 1/v_j = v_j, so Spall's [y+ - y-] / (2 c v_j) is the central estimate. As
    :func:`mezo`, it has its step: no other optimizer goes after it.

    Args:
      learning_rate, smoothing: a_t and c_t > 0, or schedules.
      key: a threefry key or an int seed.
      num_directions: K >= 1, estimates averaged in a step.
      sampler: rademacher() by default; restrict(rademacher(), mask) freezes leaves.

    Returns:
      ``optax.chain(two_point(..., difference="central"), sgd)`` that can be asked.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, x = zojax.spsa(1e-2, 1e-3, key=0), jnp.arange(2.0)
      >>> updates, _ = opt.update(None, opt.init(x), x, value_fn=lambda x: x @ x)
      >>> bool(updates @ x < 0)
      True

    Source: Spall, IEEE Transactions on Automatic Control 37(3), 1992.
    """
    check_number("learning_rate", learning_rate, 0.0, low_ok=True)
    signs = rademacher() if sampler is None else sampler
    estimator = two_point(
        smoothing, num_directions, key=key, sampler=signs, difference="central"
    )
    return followed_by(estimator, optax.scale_by_learning_rate(as_rate(learning_rate)))


def value_and_grad(
    value_fn: Callable[..., Any],
    smoothing: float,
    num_directions: int,
    *,
    sampler: Sampler | None = None,
    difference: str = "forward",
    clip: float | None = None,
    shaping: rounds.Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
    """As jax.value_and_grad, with a gradient that is estimated from values alone.

        (params, key, *args, **kwargs) -> (value, estimate)

    The estimate is that of :func:`two_point`; the same key gives the same directions.

    Args:
      value_fn: (params, *args, **kwargs) -> scalar, or (scalar, aux) with ``has_aux``.
      smoothing, num_directions, sampler, difference: as in :func:`two_point`, without
        schedules.
      clip, shaping, chunk_size, axis_name, has_aux: likewise.

    Returns:
      A function that returns (value, gradient like params), or ((value, aux), gradient)
      with ``has_aux``. The value is f(params) with forward differences, elsewhere the
      mean of the finite values at the perturbed points; the aux is the first query's.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> f, rows = lambda x, y: jnp.sum((x - y) ** 2), zojax.perturbations.orthogonal()
      >>> value_and_grad = jax.jit(zojax.value_and_grad(f, 1e-3, 4, sampler=rows))
      >>> value, g = value_and_grad(jnp.zeros(4), jax.random.key(0), 1.0)
      >>> print(value, g.round(1))
      4.0 [-2. -2. -2. -2.]

    Source: the conventions of jax.value_and_grad.
    """
    sampler = gaussian() if sampler is None else sampler
    check_option("difference", difference, rounds.DIFFERENCES)
    asks_params, sides = difference == "forward", rounds.sides_of(difference)
    settings = rounds.Settings(
        0, smoothing, clip, shaping, chunk_size, axis_name, has_aux, None
    )
    rounds.check_settings(settings, asks_params)
    named = Directions(sampler, 0, num_directions, chunk_size, axis_name)
    rounds.check_baseline("difference", difference, sampler, num_directions)

    def value_and_estimate(params, key, *args, **kwargs):
        check_params(params)
        V = dataclasses.replace(named, key=key)
        mu = jnp.asarray(smoothing, value_dtype())
        bound = None if clip is None else jnp.asarray(clip, mu.dtype)
        step = rounds.Step(params, None, None, settings, V.key, mu, bound)
        weigh = rounds.weigher(difference, step)
        objective = as_objective(value_fn, has_aux, *args, **kwargs)
        respond = rounds.calling(objective, None, step)
        answer = respond(rounds.Round(V, mu, sides, asks_params, weigh))
        value = answer.at_params if asks_params else moments(answer.measured)[0]
        gradient = as_gradient(answer.sums, params)
        return ((value, answer.aux) if has_aux else value), gradient

    return value_and_estimate
