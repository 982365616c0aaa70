"""Directions that move a random part of the entries."""

import math

import jax
import jax.numpy as jnp

from zojax.perturbations import _sampler as samplers
from zojax.perturbations._entries import cast_like
from zojax.perturbations._independent import rademacher
from zojax.perturbations._noise import Entries, draw_leaves


def sparse(share: float, base: samplers.Sampler | None = None) -> samplers.Sampler:
    """Directions that move each entry with probability p alone, both sides the same.

        v_j = m_j x_j / sqrt(p),    m_j = 1 with probability p, else 0

    The entries that stay are those of theta, bit for bit, so that an f that is made of
    parts has few of them to compute again; which entries move is drawn anew for each
    row. The estimate has the error of the base, and little more unless p d is small.
    All entries stay with probability (1 - p)^d: such a direction says nothing.

    Args:
      share: p > 0, <= 1.
      base: sampler of x whose entries are independent, gaussian() or rademacher(),
        which it is by default. ``restrict`` and ``lazy`` go outside.

    Returns:
      A sampler of independent rows; with signs |v|^2 is d on average, and the MSE limit
      |g|^2 (d - 2 + 1/p)/K.

    Raises:
      ValueError: for a share out of its range, or another base.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> sampler = zojax.perturbations.sparse(0.25)
      >>> v = sampler(jax.random.key(0), 0, 1, jnp.ones(1000))
      >>> print(sorted(set(jnp.abs(v).tolist())), 200 < jnp.sum(v != 0) < 300)
      [0.0, 2.0] True

    Source: Spall's SPSA on subsets, as packages for quantum circuits have it.
    """
    base = rademacher() if base is None else base
    dense = samplers.entries_of("base", base)
    is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if not (is_number and 0 < share <= 1):
        raise ValueError(f"share must be a number > 0 and <= 1, got {share!r}")

    def draw_array(key, shape):
        own, moves = jax.random.split(key)
        length = jnp.float32(1 / math.sqrt(share))
        moved = jax.random.bernoulli(moves, jnp.float32(share), shape)
        return jnp.where(moved, length * dense.draw(own, shape), 0)

    entries = Entries(draw_array)

    def draw(key, k, num_directions, params):
        return cast_like(draw_leaves(key, k, params, entries), params)

    return samplers.from_rows(draw)._replace(entries=entries)
