"""A twin of jax.value_and_grad, for trainers that want a gradient of a function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from zojax._checks import check_option
from zojax._directions import Directions, as_gradient
from zojax._estimators.differences import (
    DIFFERENCES,
    check_baseline,
    sides_of,
    weigher,
)
from zojax._estimators.log import moments
from zojax._estimators.rounds import (
    Round,
    Settings,
    Shaping,
    Step,
    calling,
    check_settings,
)
from zojax._numerics import PyTree, value_dtype
from zojax._objective import as_objective, check_params
from zojax.perturbations import Sampler, gaussian


def value_and_grad(
    value_fn: Callable[..., Any],
    smoothing: float,
    num_directions: int,
    *,
    sampler: Sampler | None = None,
    difference: str = "forward",
    clip: float | None = None,
    shaping: Shaping | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
    """As jax.value_and_grad, with a gradient that is estimated from values alone.

        (params, key, *args, **kwargs) -> (value, estimate)

    For trainers that know nothing of optax's extra args. The estimate is that of
    :func:`two_point`; the same key gives the same directions, so each step needs one.

    Args:
      value_fn: (params, *args, **kwargs) -> scalar, or (scalar, aux) with ``has_aux``.
      smoothing, num_directions, sampler, difference, clip, shaping, chunk_size,
        axis_name, has_aux: as in :func:`two_point`, without schedules.

    Returns:
      A function that returns (value, gradient like params), or ((value, aux), gradient)
      with ``has_aux``. The value is f(params) with forward differences, elsewhere the
      mean of the finite values at the perturbed points; the aux is the first query's.

    Raises:
      ValueError: for a static argument out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> f = lambda x, target: jnp.sum((x - target) ** 2)
      >>> value_and_grad = jax.jit(zojax.value_and_grad(f, 1e-3, 4,
      ...     sampler=zojax.perturbations.orthogonal()))
      >>> value, g = value_and_grad(jnp.zeros(4), jax.random.key(0), target=1.0)
      >>> print(value, g.round(1))
      4.0 [-2. -2. -2. -2.]

    Source: the conventions of jax.value_and_grad.
    """
    sampler = gaussian() if sampler is None else sampler
    check_option("difference", difference, DIFFERENCES)
    asks_params, sides = difference == "forward", sides_of(difference)
    settings = Settings(
        0, smoothing, clip, shaping, chunk_size, axis_name, has_aux, None
    )
    check_settings(settings, asks_params)
    named = Directions(sampler, 0, num_directions, chunk_size, axis_name)
    check_baseline("difference", difference, sampler, num_directions)

    def value_and_estimate(params, key, *args, **kwargs):
        check_params(params)
        V = dataclasses.replace(named, key=key)
        mu = jnp.asarray(smoothing, value_dtype())
        bound = None if clip is None else jnp.asarray(clip, mu.dtype)
        step = Step(params, None, None, settings, V.typed_key, mu, bound)
        asked = Round(V, mu, sides, asks_params, weigher(difference, step))
        objective = as_objective(lambda at: value_fn(at, *args, **kwargs), has_aux)
        answer = calling(objective, None, step)(asked)
        value = answer.at_params if asks_params else moments(answer.measured)[0]
        gradient = as_gradient(answer.sums, params)
        return ((value, answer.aux) if has_aux else value), gradient

    return value_and_estimate
