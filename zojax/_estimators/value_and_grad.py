"""A twin of jax.value_and_grad, for trainers that want a gradient of a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from zojax._checks import check_option
from zojax._directions import Directions, as_gradient
from zojax._estimators.differences import DIFFERENCES, check_baseline, sides_of, weigh
from zojax._estimators.log import moments
from zojax._estimators.rounds import check_settings, shaped, within
from zojax._evaluation import estimate, value_at_params
from zojax._numerics import PyTree
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
    shaping: Callable[[jax.Array], jax.Array] | None = None,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
    """As jax.value_and_grad, with a gradient that is estimated from values alone.

        (params, key, *args, **kwargs) -> (value, estimate)

    The estimate is that of :func:`two_point` for this key, and has no memory: for
    trainers that call such a function and know nothing of optax's extra args. Fold the
    step count into the key, or split it; the same key gives the same directions.

    Args:
      value_fn: (params, *args, **kwargs) -> scalar, or (scalar, aux) with ``has_aux``.
      smoothing: mu > 0, in units of params.
      num_directions: K >= 1; >= 2 for mean and leave_one_out.
      sampler, difference, clip, shaping, chunk_size, axis_name: as in
        :func:`two_point`.
      has_aux: whether value_fn returns (value, aux).

    Returns:
      A function that returns (value, gradient like params), or ((value, aux), gradient)
      with ``has_aux``. The value is f(params) with forward differences; the others do
      not ask there, and it is the mean of the finite values at the perturbed points.
      The aux is that of the first query.

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
    settings = check_settings(
        0,
        smoothing,
        clip,
        shaping,
        chunk_size,
        axis_name,
        has_aux,
        None,
        asks_params=asks_params,
    )
    Directions(sampler, 0, num_directions)  # raises for what does not fit
    check_baseline("difference", difference, sampler, num_directions)

    def value_and_estimate(params, key, *args, **kwargs):
        check_params(params)
        V = Directions(sampler, key, num_directions, chunk_size, axis_name)
        objective = as_objective(lambda at: value_fn(at, *args, **kwargs), has_aux)
        at_params, first_aux = None, None
        if asks_params:
            at_params, first_aux = value_at_params(objective, params, None, V.typed_key)

        def weights_of(values):
            y = shaped(values, settings)
            return within(clip, weigh(difference, y, at_params, smoothing), y)

        found = estimate(objective, params, V, smoothing, weights_of, sides=sides)
        value = moments(found.values)[0] if at_params is None else at_params
        aux = found.aux if first_aux is None else first_aux
        return (value, aux) if has_aux else value, as_gradient(found.sums, params)

    return value_and_estimate
