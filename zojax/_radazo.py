"""R-AdaZO: Adam whose second moment is that of the first moment."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["ScaleByRadazoState", "radazo", "scale_by_radazo"]


class ScaleByRadazoState(NamedTuple):
    """State of :func:`scale_by_radazo`; moments in at least float32."""

    m: optax.Updates  # like params
    s: optax.Updates  # like params


def _check(name: str, value: float, accepted: str, fits: Callable) -> None:
    """Raises unless the number fits; a traced or injected number is not known here."""
    if isinstance(value, jax.Array):
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and fits(value)):
        raise ValueError(f"{name} must be a number {accepted}, got {value!r}")


def scale_by_radazo(
    b1: float = 0.9, b2: float = 0.99, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescales by the root of a running mean of the *squared first moment*.

        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) m^2
        u = m / (sqrt(s) + eps)

    There is no bias correction, as in the authors' code: the first step has size
    1 / sqrt(1 - b2) in every coordinate (10 at b2 = 0.99). optax.scale_by_adam does not
    reproduce it.

    Args:
      b1: decay of the first moment, 0 <= b1 < 1.
      b2: decay of the second moment, 0 <= b2 < 1.
      eps: added to the root, > 0.

    Returns:
      An optax.GradientTransformation.

    Raises:
      ValueError: for a rate out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt = zojax.scale_by_radazo()
      >>> x = jnp.ones(2)
      >>> updates, _ = opt.update(jnp.array([0.5, -2.0]), opt.init(x))
      >>> print(updates.round(3))
      [ 10. -10.]

    Source: R-AdaZO, arXiv 2502.01014; used in arXiv 2506.14460, Section 5.
    """
    _check("b1", b1, ">= 0 and < 1", lambda b: 0 <= b < 1)
    _check("b2", b2, ">= 0 and < 1", lambda b: 0 <= b < 1)
    _check("eps", eps, "> 0", lambda e: e > 0)

    def zeros(p):
        wide = jnp.promote_types(jnp.result_type(p), jnp.float32)
        return jnp.zeros_like(p, wide)  # where p lies

    def init_fn(params):
        return ScaleByRadazoState(
            jax.tree.map(zeros, params), jax.tree.map(zeros, params)
        )

    def update_fn(updates, state, params=None):
        del params
        m = jax.tree.map(
            lambda m, g: b1 * m + (1 - b1) * g.astype(m.dtype), state.m, updates
        )
        s = jax.tree.map(lambda s, m: b2 * s + (1 - b2) * m**2, state.s, m)
        scaled = jax.tree.map(
            lambda m, s, g: (m / (jnp.sqrt(s) + eps)).astype(g.dtype), m, s, updates
        )
        return scaled, ScaleByRadazoState(m, s)

    return optax.GradientTransformation(init_fn, update_fn)


def radazo(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """R-AdaZO as an optimizer: theta <- theta - lr m / (sqrt(s) + eps).

    Args:
      learning_rate: lr, or a schedule.
      b1, b2, eps: as in :func:`scale_by_radazo`.

    Returns:
      ``optax.chain(scale_by_radazo(...), scale_by_learning_rate(...))``.

    Raises:
      ValueError: for a rate out of its range.

    Example:
      >>> import optax, zojax
      >>> opt = optax.chain(zojax.zoar(0.05, 10, key=0), zojax.radazo(1e-3))

    Source: R-AdaZO, arXiv 2502.01014.
    """
    return optax.chain(
        scale_by_radazo(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)
    )
