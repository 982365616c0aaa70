"""Samplers of independent rows: row k depends on (key, k) alone."""

import math

import jax
import jax.numpy as jnp

from zojax._keys import purpose_key
from zojax._numerics import reciprocal, scale, tree_dot, wide_dtype
from zojax.perturbations._entries import by_index, cast_like, num_entries
from zojax.perturbations._noise import NORMALS, SIGNS, draw_leaves, fair_signs
from zojax.perturbations._sampler import Sampler, from_rows


def gaussian() -> Sampler:
    """Standard normal directions: v ~ N(0, I).

    Returns:
      A sampler of independent rows; MSE limit of a two-point estimate |g|^2 (d+1)/K.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> zojax.perturbations.gaussian()(jax.random.key(0), 0, 1, jnp.ones(3)).shape
      (3,)

    Source: Gaussian smoothing, arXiv 2506.14460, Section 3.1.
    """

    def draw(key, k, num_directions, params):
        return cast_like(draw_leaves(key, k, params, NORMALS), params)

    return from_rows(draw)._replace(entries=NORMALS)


def sphere() -> Sampler:
    """Uniform directions on the sphere of radius sqrt(d): v = sqrt(d) x / |x|.

    Returns:
      A sampler of independent rows with |v|^2 = d; MSE limit |g|^2 (d-1)/K.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> v = zojax.perturbations.sphere()(jax.random.key(0), 0, 1, jnp.ones(4))
      >>> print(round(float(jnp.sum(v**2)), 4))
      4.0

    Source: arXiv 2510.19975, Theorem 2.2 (fixed-length perturbations).
    """

    def draw(key, k, num_directions, params):
        x = draw_leaves(key, k, params, NORMALS)
        norm = jnp.sqrt(tree_dot(x, x))
        scaled = scale(x, math.sqrt(num_entries(params)) * reciprocal(norm))
        return cast_like(scaled, params)

    return from_rows(draw)


def rademacher() -> Sampler:
    """Fair signs, the cheapest noise: v in {-1, +1}^d, 32 from each random word.

    Returns:
      A sampler of independent rows with |v|^2 = d; MSE limit |g|^2 (d-1)/K.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> v = zojax.perturbations.rademacher()(jax.random.key(0), 0, 1, jnp.ones(40))
      >>> print(set(jnp.abs(v).tolist()))
      {1.0}

    Source: arXiv 2510.19975, Theorem 2.2 (fixed-length perturbations).
    """

    def draw(key, k, num_directions, params):
        return cast_like(draw_leaves(key, k, params, SIGNS), params)

    return from_rows(draw)._replace(entries=SIGNS)


def coordinate() -> Sampler:
    """One coordinate at a time: v = +-sqrt(d) e_j, j uniform, the sign fair.

    Returns:
      A sampler of independent rows with |v|^2 = d; MSE limit |g|^2 (d-1)/K.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> v = zojax.perturbations.coordinate()(jax.random.key(0), 0, 1, jnp.ones(4))
      >>> sorted(jnp.abs(v).tolist())
      [0.0, 0.0, 0.0, 2.0]

    Source: arXiv 2510.19975, Section 2 (random coordinate sampling).
    """

    def draw(key, k, num_directions, params):
        d = num_entries(params)
        row_key = jax.random.fold_in(purpose_key(key, "coordinate"), k)
        chosen = jax.random.randint(row_key, (), 0, max(d, 1)).astype(jnp.uint32)
        sign = fair_signs(purpose_key(row_key, "sign"), ())

        def entry(i, dtype):
            wide = wide_dtype(dtype)
            return jnp.where(i == chosen, sign.astype(wide) * math.sqrt(d), 0)

        return cast_like(by_index(params, entry), params)

    return from_rows(draw)
