"""SPSA as Spall gives it: gains that decay, and steps that are refused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax._checks import check_number
from zojax._keys import key_data, step_key
from zojax._numerics import value_dtype
from zojax._objective import RESERVED, answer_of, bind_value_fn, check_params

Schedule = Callable[[Any], jax.Array]


class SpallGains(NamedTuple):
    """What :func:`spall_gains` returns, in the order of ``zojax.spsa``'s arguments.

    Attributes:
      learning_rate: count -> a_k, k = count + 1.
      smoothing: count -> c_k.
    """

    learning_rate: Schedule
    smoothing: Schedule


def spall_gains(
    a: float,
    c: float,
    *,
    stability: float = 0.0,
    alpha: float = 0.602,
    gamma: float = 0.101,
) -> SpallGains:
    """Spall's gains: a_k = a / (A + k)^alpha and c_k = c / k^gamma, k from 1 on.

    His advice: c near the standard deviation of f's noise, or small where f has none; A
    a tenth of the steps to come; a so that the first steps are as long as wished.

    Args:
      a, c: > 0, in units of params^2 over f and of params.
      stability: A >= 0, steps.
      alpha, gamma: > 0; 1 and 1/6 are best in the limit, the defaults in practice.

    Returns:
      :class:`SpallGains`: ``zojax.spsa(*gains, key=0)``.

    Raises:
      ValueError: for a gain out of its range.

    Example:
      >>> import zojax
      >>> gains = zojax.spall_gains(0.1, 0.2, stability=9.0, alpha=1.0)
      >>> print(gains.learning_rate(0), gains.smoothing(0))
      0.01 0.2

    Source: Spall, IEEE Transactions on Aerospace and Electronic Systems 34(3), 1998.
    """
    for name, value in (("a", a), ("c", c), ("alpha", alpha), ("gamma", gamma)):
        check_number(name, value, 0.0, schedule=False)
    check_number("stability", stability, 0.0, low_ok=True, schedule=False)

    def decaying(gain, start, power):
        def at(count):
            k = jnp.asarray(count, value_dtype()) + (1 + start)
            return jnp.asarray(gain, k.dtype) / k**power

        return at

    return SpallGains(decaying(a, stability, alpha), decaying(c, 0.0, gamma))


class BlockStepsState(NamedTuple):
    """State of :func:`block_steps`."""

    value: jax.Array  # f[], of the params that were kept; inf before the first step
    num_blocked: jax.Array  # i32[]
    key: jax.Array  # u32[2]
    count: jax.Array  # type: ignore[assignment]  # i32[]


def block_steps(
    tolerance: float | jax.Array, *, key: jax.Array | int = 0, has_aux: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Refuses a step that raises f: u <- 0 where f(theta + u) > f(theta) + tolerance.

    Last in a chain, since it has to know the whole step. It calls the objective once a
    step, at the params to come; their value is kept. A value that is not finite is
    refused too.

    Args:
      tolerance: >= 0, in units of f; twice the standard deviation of its noise.
      key: of value_fn's ``query_key``, if it names one.
      has_aux: whether value_fn returns (value, aux).

    Returns:
      An optax transformation that needs ``value_fn=``.

    Raises:
      ValueError: for an argument out of its range, or without value_fn.

    Example:
      >>> import jax.numpy as jnp, optax, zojax
      >>> opt = optax.chain(optax.sgd(-1.0), zojax.block_steps(0.0))  # uphill
      >>> x, f = jnp.ones(2), lambda x: x @ x
      >>> state = opt.init(x)
      >>> for _ in range(2):
      ...     u, state = opt.update(x, state, x, value_fn=f)
      ...     x = optax.apply_updates(x, u)
      >>> print(x, state[1].num_blocked)  # the first step has nothing to compare with
      [2. 2.] 1

    Source: Spall, IEEE Transactions on Automatic Control 45(10), 2000 (blocking).
    """
    check_number("tolerance", tolerance, 0.0, low_ok=True, schedule=False)
    words = key_data(key)

    def init(params):
        check_params(params)
        zero = jnp.zeros((), jnp.int32)
        value = jnp.full((), jnp.inf, value_dtype())
        return BlockStepsState(value, zero, jnp.array(words), jnp.zeros_like(zero))

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        check_params(params)
        if value_fn is None:
            raise ValueError("block_steps needs value_fn=, an objective to call")
        data = {name: x for name, x in extra_args.items() if name not in RESERVED}
        objective = bind_value_fn(value_fn, data, has_aux)
        own = step_key(state.key, state.count) if objective.takes_key else None
        new = optax.apply_updates(params, updates)
        value, _ = answer_of(objective.call(new, own), has_aux)
        refused = ~(value <= state.value + jnp.asarray(tolerance, value.dtype))
        # Nothing to fall back to before the first finite value.
        refused &= jnp.isfinite(state.value)
        kept = jax.tree.map(lambda u: jnp.where(refused, jnp.zeros_like(u), u), updates)
        return kept, BlockStepsState(
            jnp.where(refused, state.value, value),
            state.num_blocked + refused.astype(jnp.int32),
            state.key,
            optax.safe_increment(state.count),
        )

    return optax.GradientTransformationExtraArgs(init, update)
