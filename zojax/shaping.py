"""Shapings of query values for ``shaping=``: rewards on a scale of their own.

What is made of values f[K, P] before a baseline and a difference. A value that failed
is NaN and stays so; the others are shaped as if it had not been asked. The estimate is
then that of the shaped objective, so that a step size need not know the scale of f.
"""

import jax
import jax.numpy as jnp

from zojax._checks import check_int
from zojax._estimators.log import moments
from zojax._estimators.rounds import Shaping

__all__ = ["centred_ranks", "per_group", "z_score"]


def z_score(values: jax.Array) -> jax.Array:
    """Distances to the mean in standard deviations: (y - mean y) / std y.

    Steps are then normalised: std y is about mu |grad f|, so that the estimate is that
    of grad f / (mu |grad f|), and a step size does not know the scale of f. FZOO's

        g / sigma,    g = 1/(K mu) sum_k [y_k - b] v_k
                      sigma^2 = 1/(K-1) sum_k [y_k - mean y]^2

    with the baseline b = mean y is ``two_point(mu, K, difference="mean",
    shaping=z_score)`` times sqrt((K-1)/K), since std y divides by K; with its own
    b = f(theta) it is an estimate of forward differences times sqrt((K-1)/K) over
    ``state.log.query_spread``, a query more for a baseline that is no better.

    Args:
      values: f[K, P], NaN where a query failed.

    Returns:
      f[K, P], 0 where all are equal, NaN where values are.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> print(zojax.shaping.z_score(jnp.array([[1.0], [jnp.nan], [3.0]])).ravel())
      [-1. nan  1.]

    Source: evolution strategies at scale, arXiv 2509.24372; FZOO, arXiv 2506.09034.
    """
    mean, spread = moments(values)
    scaled = (values - mean) / jnp.where(spread > 0, spread, 1)
    return jnp.where(jnp.isnan(values) | (spread > 0), scaled, 0)


def centred_ranks(values: jax.Array) -> jax.Array:
    """Ranks from -1/2 for the lowest to 1/2 for the largest; equal values share one.

    Args:
      values: f[K, P], NaN where a query failed.

    Returns:
      f[K, P], 0 where all are equal, NaN where values are.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> y = jnp.array([[3.0], [1e9], [-2.0], [3.0]])
      >>> print(zojax.shaping.centred_ranks(y).ravel())
      [ 0.   0.5 -0.5  0. ]

    Source: evolution strategies, arXiv 1703.03864, Section 2.1.
    """
    flat = values.reshape(-1)
    known = jnp.isfinite(flat)
    # Each against all, itself included: equal ones share the mean of their places.
    pairs = known[:, None] & known
    below = jnp.sum(pairs & (flat[:, None] > flat), axis=1)
    same = jnp.sum(pairs & (flat[:, None] == flat), axis=1)
    place = below.astype(flat.dtype) + (same.astype(flat.dtype) - 1) / 2
    last = jnp.maximum(known.sum() - 1, 1).astype(flat.dtype)
    alone = known.sum() <= 1
    ranks = jnp.where(alone, 0, place / last - jnp.asarray(0.5, flat.dtype))
    return jnp.where(known, ranks, jnp.nan).astype(values.dtype).reshape(values.shape)


def per_group(shaping: Shaping, num_groups: int) -> Shaping:
    """Shapes each group of neighbouring directions by itself: those of one prompt, say.

    A reward that one group finds easy and another hard is compared within each.

    Args:
      shaping: f[K / G, P] -> f[K / G, P].
      num_groups: G >= 1, which divides K; the first K / G directions are a group.

    Returns:
      A function f[K, P] -> f[K, P].

    Raises:
      ValueError: for an argument out of its range; on use if G does not divide K.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> shaping = zojax.shaping.per_group(zojax.shaping.z_score, 2)
      >>> print(shaping(jnp.array([[1.0], [3.0], [100.0], [500.0]])).ravel())
      [-1.  1. -1.  1.]

    Source: group-relative advantages, arXiv 2402.03300, Section 4.1.
    """
    if not callable(shaping):
        raise ValueError(f"shaping must be callable, got {shaping!r}")
    check_int("num_groups", num_groups, 1)

    def of_groups(values):
        if len(values) % num_groups:
            accepted = f"a divisor of the {len(values)} directions"
            raise ValueError(f"num_groups must be {accepted}, got {num_groups}")
        size = len(values) // num_groups
        parts = [values[i : i + size] for i in range(0, len(values), size)]
        return jnp.concatenate([shaping(part) for part in parts])

    return of_groups
