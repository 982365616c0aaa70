"""Directions of low rank, which a model applies without a perturbed copy."""

import functools
import math
import string

import jax
import jax.numpy as jnp

from zojax._checks import check_int
from zojax._numerics import contract, wide_dtype
from zojax.perturbations._entries import cast_like, placed_like
from zojax.perturbations._independent import gaussian
from zojax.perturbations._low_rank.array import (
    HIGHEST,
    LowRankArray,
    add_scaled,
    product,
)
from zojax.perturbations._low_rank.interpreter import of_factors
from zojax.perturbations._noise import map_keys
from zojax.perturbations._sampler import Sampler, entries_of, from_rows

# So many outer products are added elementwise, which fuses with the update of params
# where a product of matrices would be kept.
_FEW = 16


def _weighted_products(weights: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """sum_k w_k a_k b_k^T, for weights[..., K], a[K, ..., m, r] and b[K, ..., n, r]."""
    shape = weights.shape + (1,) * (a.ndim - 1)
    weighted = weights.reshape(shape) * a
    number, rank = a.shape[0], a.shape[-1]
    if number * rank <= _FEW:
        axis = weights.ndim - 1
        terms = [
            weighted[(slice(None),) * axis + (k, ..., slice(None), None, j)]
            * b[k, ..., None, :, j]
            for k in range(number)
            for j in range(rank)
        ]
        return functools.reduce(jnp.add, terms)
    # One product, over K and rank together: [m, K r] times [K r, n].
    lead = string.ascii_uppercase[: a.ndim - 3]
    equation = f"...k{lead}mr,k{lead}nr->...{lead}mn"
    return jnp.einsum(equation, weighted, b, precision=HIGHEST)


# -- the sampler -----------------------------------------------------------------------


def low_rank(rank: int, base: Sampler | None = None) -> Sampler:
    """Directions of low rank: v = A B^T / sqrt(r) at each matrix, E[v v^T] = I.

    A leaf with two axes or more is a stack of matrices, its last two axes m x n; A
    (m x r) and B (n x r) have independent entries, drawn in float32 for each matrix.
    Vectors and scalars are drawn whole, as base draws them.

    With this sampler, value_fn is not called with a perturbed copy, and needs no change
    for it: its program is traced, and products with a matrix W become

        x (W + mu v) = x W + mu (x A) B^T / sqrt(r),

    for all directions at once with the same W. Products (``dot_general``) with a matrix
    axis, embedding lookups, transposes, reshapes of a side, casts, slices, and these
    under ``jit``, ``scan`` and ``jax.checkpoint`` keep the factors. Elsewhere
    (elementwise use of a matrix, convolutions, ``cond`` and ``while_loop``) W + mu v is
    formed, for each direction. The factors stay in float32: mu v is not rounded with W.

    A kernel [width, heads, size] that is summed over its first axis is formed, too, as
    a stack of ``width`` matrices. Held as a matrix [width, heads * size] that value_fn
    reshapes it keeps its factors.

    Args:
      rank: r, 1 or more; min(m, n) and beyond are possible.
      base: gaussian() (the default) or rademacher(): the law of the entries.

    Returns:
      A sampler of independent rows.

    Raises:
      ValueError: for a rank that is no int >= 1, or a base without entries.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> sampler, w = zojax.perturbations.low_rank(1), jnp.ones((5, 4))
      >>> int(jnp.linalg.matrix_rank(sampler(jax.random.key(0), 0, 1, w)))
      1
      >>> V = zojax.Directions(sampler, 0, 8)
      >>> zojax.evaluate(lambda w: jnp.mean(jnp.ones(5) @ w), w, V, 1e-3)[0].shape
      (8, 1)

    Source: EGGROLL, arXiv 2511.16652; LOZO, arXiv 2410.07698.
    """
    check_int("rank", rank, 1)
    base = gaussian() if base is None else base
    draw = entries_of("base", base).draw

    def factors(key, leaf):
        """A / sqrt(r) and B, so that v = a b^T."""
        *leading, m, n = jnp.shape(leaf)
        wide = wide_dtype(jnp.result_type(leaf))
        of_a, of_b = jax.random.split(key)
        a = draw(of_a, (*leading, m, rank)).astype(wide) / math.sqrt(rank)
        return a, draw(of_b, (*leading, n, rank)).astype(wide)

    def whole(key, leaf):
        noise = placed_like(leaf, lambda key: draw(key, jnp.shape(leaf)))(key)
        return noise.astype(jnp.result_type(leaf))

    def row(key, k, num_directions, params):
        def leaf_of(key, leaf):
            if jnp.ndim(leaf) < 2:
                return whole(key, leaf)
            return placed_like(leaf, product)(*factors(key, leaf))

        return cast_like(map_keys(leaf_of, key, k, params), params)

    def line(key, k, num_directions, params):
        def draws_of(key, leaf):
            return whole(key, leaf) if jnp.ndim(leaf) < 2 else factors(key, leaf)

        draws = map_keys(draws_of, key, k, params)

        def moved(scale):
            def leaf_at(leaf, drawn):
                array = jnp.asarray(leaf)
                if array.ndim < 2:
                    return add_scaled(array, scale, drawn)
                # Wide, or a bfloat16 product would see a rounded mu.
                wide = wide_dtype(array.dtype)
                return LowRankArray(array, *drawn, jnp.asarray(scale, wide))

            return jax.tree.map(leaf_at, params, draws)

        return moved

    def combine(weights, key, ks, num_directions, params):
        def leaf_of(keys, leaf):
            if jnp.ndim(leaf) < 2:
                v = jax.vmap(lambda key: whole(key, leaf))(keys)
                return contract(weights, v)
            a, b = jax.vmap(lambda key: factors(key, leaf))(keys)
            wide = wide_dtype(jnp.result_type(leaf))
            sums = placed_like(leaf, _weighted_products, weights.ndim - 1)
            return sums(weights.astype(wide), a, b)

        return map_keys(leaf_of, key, ks, params)

    return from_rows(row)._replace(
        line=line, combine=combine, adapt=of_factors, holds_rows=False
    )
