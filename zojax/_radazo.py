"""R-AdaZO: Adam whose second moment is that of the first moment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zojax._checks import check_number
from zojax._numerics import as_rate, wide_dtype

Scalar = float | jax.Array


class ScaleByRadazoState(NamedTuple):
    """State of :func:`scale_by_radazo`; moments in at least float32."""

    m: optax.Updates  # like params
    s: optax.Updates  # like params


def scale_by_radazo(
    b1: Scalar = 0.9, b2: Scalar = 0.99, eps: Scalar = 1e-8
) -> optax.GradientTransformation:
    """Rescales by the root of a running mean of the *squared first moment*.

        m <- b1 m + (1 - b1) g
        s <- b2 s + (1 - b2) m^2
        u = m / (sqrt(s) + eps)

    There is no bias correction, as in the authors' code, unlike in optax's Adam: the
    first step has size 1 / sqrt(1 - b2) in every coordinate (10 at b2 = 0.99).

    Args:
      b1, b2: decays of the moments, >= 0 and < 1.
      eps: added to the root, > 0.

    Returns:
      An optax.GradientTransformation.

    Raises:
      ValueError: for a rate out of its range.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt, g = zojax.scale_by_radazo(), jnp.array([0.5, -2.0])
      >>> print(opt.update(g, opt.init(g))[0].round(3))
      [ 10. -10.]

    Source: R-AdaZO, arXiv 2502.01014; used in arXiv 2506.14460, Section 5.
    """
    check_number("b1", b1, 0.0, 1.0, low_ok=True, schedule=False)
    check_number("b2", b2, 0.0, 1.0, low_ok=True, schedule=False)
    check_number("eps", eps, 0.0, schedule=False)

    def init_fn(params):
        zeros = lambda p: jnp.zeros_like(p, wide_dtype(jnp.result_type(p)))
        moment = lambda: jax.tree.map(zeros, params)  # where params lie
        return ScaleByRadazoState(moment(), moment())

    def update_fn(updates, state, params=None):
        # A number as it is, an array in the dtype of a moment.
        at = lambda x, m: x.astype(m.dtype) if isinstance(x, jax.Array) else x
        mean = lambda b, m, new: at(b, m) * m + (1 - at(b, m)) * new
        first = lambda m, g: mean(b1, m, g.astype(m.dtype))
        m = jax.tree.map(first, state.m, updates)
        s = jax.tree.map(lambda s, m: mean(b2, s, m**2), state.s, m)
        scale = lambda m, s, g: (m / (jnp.sqrt(s) + at(eps, s))).astype(g.dtype)
        return jax.tree.map(scale, m, s, updates), ScaleByRadazoState(m, s)

    return optax.GradientTransformation(init_fn, update_fn)


def radazo(
    learning_rate: optax.ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformation:
    """R-AdaZO as an optimizer: theta <- theta - lr m / (sqrt(s) + eps).

    Args:
      learning_rate, b1, b2, eps: lr, or a schedule; as in :func:`scale_by_radazo`.

    Returns:
      ``optax.chain(scale_by_radazo(...), scale_by_learning_rate(...))``.

    Raises:
      ValueError: for a rate out of its range.

    Example:
      >>> import optax, zojax
      >>> opt = optax.chain(zojax.zoar(0.05, 10, key=0), zojax.radazo(1e-3))

    Source: R-AdaZO, arXiv 2502.01014.
    """
    check_number("learning_rate", learning_rate, 0.0, low_ok=True)
    rate = optax.scale_by_learning_rate(as_rate(learning_rate))
    return optax.chain(scale_by_radazo(b1, b2, eps), rate)
