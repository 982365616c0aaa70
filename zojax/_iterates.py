"""Iterates: the average of the last ones, and a pull towards the first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax._checks import check_int, check_number
from zojax._numerics import Number, PyTree, number_at, wide_dtype
from zojax._objective import check_params


class AverageIteratesState(NamedTuple):
    """State of :func:`average_iterates`."""

    average: PyTree  # like params, floats in at least float32
    count: jax.Array  # type: ignore[assignment]  # i32[]


class DecayTowardsStartState(NamedTuple):
    """State of :func:`decay_towards_start`."""

    start: PyTree  # like params
    count: jax.Array  # type: ignore[assignment]  # i32[]


def _is_float(x):
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _copy(p, dtype=None):
    """An array of its own, since states and params may be donated; where p lies."""
    return jnp.array(p, jnp.result_type(p) if dtype is None else dtype, copy=True)


def average_iterates(since: int = 0) -> optax.GradientTransformation:
    """Keeps the average of the params that steps ``since``, ``since + 1``, ... led to.

        average <- average + (theta_t+1 - average) / (t - since + 1)    t >= since
        average <- theta_t+1                                            before

    Last in a chain, since it has to know the whole step, which it passes on. Noise that
    the last iterates wander about in averages out: ``optax.tree.get(state, "average")``
    is what to use at the end of a run (``optax.tree.cast_like(average, params)`` for
    the dtypes of params), ``since`` half of its steps, say.

    Args:
      since: >= 0, the count of the first step whose outcome is averaged.

    Returns:
      An optax transformation that needs params, with a copy of them in its state.

    Raises:
      ValueError: for an argument out of its range, or without params.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(optax.sgd(1.0), zojax.average_iterates(since=1))
      >>> x = jnp.zeros(())
      >>> state = opt.init(x)
      >>> for g in (1.0, -2.0, 4.0):  # to -1, 1 and -3
      ...     u, state = opt.update(jnp.asarray(g), state, x)
      ...     x = optax.apply_updates(x, u)
      >>> print(optax.tree.get(state, "average"))
      -1.0

    Source: Polyak and Juditsky, SIAM J. Control and Optimization 30(4), 1992.
    """
    check_int("since", since, 0)

    def init(params):
        check_params(params)
        wide = lambda p: wide_dtype(jnp.result_type(p)) if _is_float(p) else None
        average = jax.tree.map(lambda p: _copy(p, wide(p)), params)
        return AverageIteratesState(average, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        check_params(params)
        number = jnp.maximum(state.count - since + 1, 1)

        def leaf(mean, new):
            if not _is_float(new):
                return new
            share = 1 / number.astype(mean.dtype)
            # In two parts, which cannot overflow as a difference can.
            return (1 - share) * mean + share * new.astype(mean.dtype)

        new = optax.apply_updates(params, updates)
        average = jax.tree.map(leaf, state.average, new)
        count = optax.safe_increment(state.count)
        return updates, AverageIteratesState(average, count)

    return optax.GradientTransformation(init, update)


def decay_towards_start(rate: Number) -> optax.GradientTransformation:
    """Weight decay towards the params at ``init``: u <- u + rate (theta - theta_0).

    It goes where ``optax.add_decayed_weights`` would, after the estimator and before
    what scales by the learning rate and turns the sign. Then it is the gradient of
    rate/2 |theta - theta_0|^2, which keeps a model that is tuned by rewards near the
    one that it was. Entries that did not move are left alone, frozen leaves among them.

    Args:
      rate: >= 0, or a schedule.

    Returns:
      An optax transformation that needs params, with a copy of them in its state.

    Raises:
      ValueError: for a rate out of its range, or without params.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(zojax.decay_towards_start(0.5), optax.sgd(1.0))
      >>> state = opt.init(jnp.array([1.0, 2.0]))
      >>> print(opt.update(jnp.zeros(2), state, jnp.array([1.0, 4.0]))[0])  # back
      [-0. -1.]

    Source: L2-SP, arXiv 1802.01483.
    """
    check_number("rate", rate, 0.0, low_ok=True)

    def init(params):
        check_params(params)
        start = jax.tree.map(_copy, params)
        return DecayTowardsStartState(start, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        check_params(params)
        pull = number_at(rate, state.count)

        def leaf(u, p, p0):
            if not _is_float(p):
                return u
            wide = wide_dtype(jnp.result_type(p))
            away = jnp.asarray(p, wide) - p0.astype(wide)
            return (u.astype(wide) + pull.astype(wide) * away).astype(u.dtype)

        moved = jax.tree.map(leaf, updates, params, state.start)
        return moved, state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
