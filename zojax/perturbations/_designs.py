"""Joint designs: the rows of one key are drawn to go together."""

import jax
import jax.numpy as jnp

from zojax._keys import purpose_key
from zojax._numerics import wide_dtype
from zojax.perturbations._entries import by_index, cast_like, num_entries
from zojax.perturbations._noise import SIGNS, draw_leaves, fair_signs
from zojax.perturbations._sampler import Sampler, from_rows


def _parity_sign(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """(-1)^popcount(bits)."""
    odd = jax.lax.population_count(bits) & jnp.uint32(1)
    return 1 - 2 * odd.astype(dtype)


def orthogonal() -> Sampler:
    """Mutually orthogonal directions: v_j . v_k = 0 and |v|^2 = d.

    Rows of a block-diagonal Hadamard matrix (blocks of 2^q entries, the binary digits
    of d) under random signs of the columns, taken without replacement at equal strides
    from a random start. In the block of size b that row r falls into,

        v_ri = xi_r sqrt(d / b) (-1)^popcount(r & i) s_i,    0 in the other blocks,

    xi_r a fair sign of the row, so that a baseline from other rows is unbiased. More
    than d rows come in blocks of d, each block with signs of its own.

    Returns:
      A sampler of a joint design; MSE limit |g|^2 (d/K - 1) for K <= d, exactly 0 at
      K = d and at its multiples.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> draw = zojax.perturbations.orthogonal()
      >>> V = jnp.stack([draw(jax.random.key(0), k, 3, jnp.ones(3)) for k in range(3)])
      >>> bool(jnp.allclose(V.T @ V / 3, jnp.eye(3), atol=1e-6))
      True

    Source: sampling without replacement, after arXiv 2510.19975, Theorem 2.2.
    """

    def draw(key, k, num_directions, params):
        d = num_entries(params)
        if d == 0:
            return params
        if num_directions <= d:
            block, place, stride = 0, k, d // num_directions
        else:
            block = jnp.asarray(k, jnp.int32) // d
            stride = d // jnp.clip(num_directions - block * d, 1, d)
            place = k - block * d
        offset_key = jax.random.fold_in(purpose_key(key, "orthogonal"), block)
        offset = jax.random.randint(offset_key, (), 0, d).astype(jnp.uint32)
        row = (offset + jnp.asarray(place * stride, jnp.uint32)) % d

        starts, sizes, start = [], [], 0
        for q in reversed(range(d.bit_length())):
            if d >> q & 1:
                starts.append(start)
                sizes.append(1 << q)
                start += 1 << q
        which = jnp.sum(row >= jnp.asarray(starts, jnp.uint32)) - 1
        low, size = jnp.asarray(starts, jnp.uint32)[which], jnp.asarray(sizes)[which]
        size = size.astype(jnp.uint32)

        sign_key = jax.random.fold_in(purpose_key(key, "orthogonal sign"), k)
        xi = fair_signs(sign_key, ())

        def entry(i, dtype):
            wide = wide_dtype(dtype)
            inside = (i >= low) & (i - low < size)
            height = xi.astype(wide) * jnp.sqrt(d / size.astype(wide))
            parity = _parity_sign((row - low) & (i - low), wide)
            return jnp.where(inside, height * parity, 0)

        signs = draw_leaves(key, block, params, SIGNS)
        unsigned = by_index(params, entry)
        return cast_like(jax.tree.map(jnp.multiply, unsigned, signs), params)

    return from_rows(draw, design="orthogonal")


def simplex() -> Sampler:
    """Hadamard simplex design: n = 2^q points whose sum is zero.

        v_kj = s_j (-1)^popcount(k & p_j),    k = 0..n-1,

    with random signs s_j and codes p_j in 1..n-1, spread as evenly as possible over the
    entries. Since the rows sum to zero, an offset of f cancels: ``difference="mean"``
    is unbiased as it stands. Two points are antithetic SPSA.

    Returns:
      A sampler of a joint design of ``num_directions`` = n points, a power of two; MSE
      limit about |g|^2 (d/(n-1) - 1), exactly 0 once n - 1 >= d.

    Raises:
      ValueError: if num_directions is not a power of two >= 2.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> draw = zojax.perturbations.simplex()
      >>> V = jnp.stack([draw(jax.random.key(0), k, 4, jnp.ones(3)) for k in range(4)])
      >>> print(V.sum(axis=0))
      [0. 0. 0.]

    Source: simplex designs with Hadamard codes; see also SPSA (Spall, 1992).
    """

    def check(num_directions):
        if num_directions < 2 or num_directions & (num_directions - 1):
            accepted = "a power of two >= 2 with simplex()"
            raise ValueError(f"num_directions must be {accepted}, got {num_directions}")

    def draw(key, k, num_directions, params):
        check(num_directions)
        num_codes = num_directions - 1
        offset_key = purpose_key(key, "simplex")
        offset = jax.random.randint(offset_key, (), 0, num_codes).astype(jnp.uint32)
        row = jnp.asarray(k, jnp.uint32)

        def entry(i, dtype):
            code = (i % num_codes + offset) % num_codes + jnp.uint32(1)
            return _parity_sign(row & code, wide_dtype(dtype))

        signs = draw_leaves(key, 0, params, SIGNS)
        unsigned = by_index(params, entry)
        return cast_like(jax.tree.map(jnp.multiply, unsigned, signs), params)

    return from_rows(draw, check=check, design="zero_sum")
