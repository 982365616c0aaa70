"""How a perturbation direction is drawn.

Each factory returns a :class:`zojax.Sampler`: a pure function
``sampler(key, k, num_directions, params) -> direction`` that draws row ``k`` of the
matrix V named by ``key``. All of them satisfy

    E[v v^T] = I    (so E|v|^2 = d, the number of trainable entries),

so that no factor of d, K or smoothing appears anywhere else. A direction is global over
the parameter tree: one norm, one index range. Noise is drawn in float32 from a key that
depends on the leaf's path alone, then cast: two leaves of one shape differ, and adding
or freezing a leaf leaves the draws of the others as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax._base import PyTree, Sampler, is_none, tree_dot, wide_dtype

__all__ = [
    "aligned",
    "coordinate",
    "gaussian",
    "orthogonal",
    "rademacher",
    "restrict",
    "simplex",
    "sphere",
]


# -- drawing on a pytree ---------------------------------------------------------------


def _words(label: str) -> np.ndarray:
    """Two uint32 words that name a leaf path or a purpose within a key."""
    return np.frombuffer(hashlib.blake2b(label.encode(), digest_size=8).digest(), "<u4")


def _named_key(key: jax.Array, words: np.ndarray | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1])


def _trainable(params: PyTree) -> list[tuple[str, Any]]:
    """Returns (path, leaf) of each leaf; raises for one that cannot be perturbed."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params{name} has dtype {jnp.result_type(leaf)}: only float leaves can"
                " be perturbed; freeze it with zojax.perturbations.restrict"
            )
        leaves.append((name, leaf))
    return leaves


def _num_entries(params: PyTree) -> int:
    """d, the number of entries that a direction has."""
    return sum(math.prod(jnp.shape(leaf)) for _, leaf in _trainable(params))


def _cast_like(tree: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), tree, params)


def _draw(
    key: jax.Array,
    k: jax.Array | int,
    params: PyTree,
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
) -> PyTree:
    """Draws float32 noise for each leaf, as wide as the leaf or wider."""
    leaves = _trainable(params)
    if not leaves:
        return params
    # One batched derivation for all leaves; only the last fold depends on k, so the
    # rest is computed once under vmap.
    words = jnp.asarray(np.stack([_words(name) for name, _ in leaves]))
    leaf_keys = jax.vmap(_named_key, (None, 0))(key, words)
    row_keys = jax.vmap(jax.random.fold_in, (0, None))(leaf_keys, k)
    noise = [
        draw(row_keys[i], jnp.shape(leaf)).astype(wide_dtype(jnp.result_type(leaf)))
        for i, (_, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), noise)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws +-1 in float32: 32 signs from each random word."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    # Bit 31 - j becomes the sign bit of entry j: 0x3F800000 is 1.0f, 0xBF800000 -1.0f.
    shifted = words[:, None] << jnp.arange(32, dtype=jnp.uint32)
    bits = (shifted & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)
    signs = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return signs.reshape(-1)[:size].reshape(shape)


def _by_index(
    params: PyTree, entry: Callable[[jax.Array, jnp.dtype], jax.Array]
) -> PyTree:
    """Builds a direction from the global index (uint32) of each entry.

    Entries are numbered 0..d-1 through the leaves in tree order.
    """
    if _num_entries(params) >= 2**31:
        raise ValueError("designs over coordinates need fewer than 2**31 entries")
    start, leaves = 0, []
    for _, leaf in _trainable(params):
        shape = jnp.shape(leaf)
        index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
        leaves.append(entry(index + jnp.uint32(start), jnp.result_type(leaf)))
        start += math.prod(shape)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _reciprocal(x: jax.Array) -> jax.Array:
    """1/x, and 0 at 0."""
    return jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0)


def _scale(tree: PyTree, factor: jax.Array | float) -> PyTree:
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def _parity_sign(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """(-1)^popcount(bits)."""
    odd = jax.lax.population_count(bits) & jnp.uint32(1)
    return 1 - 2 * odd.astype(dtype)


# -- independent rows ------------------------------------------------------------------


def gaussian() -> Sampler:
    """Standard normal directions: v ~ N(0, I).

    Returns:
      A sampler of independent rows; MSE limit of a two-point estimate |g|^2 (d+1)/K.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> sampler = zojax.perturbations.gaussian()
      >>> v = sampler(jax.random.key(0), 0, 1, {"w": jnp.ones((2, 3))})
      >>> v["w"].shape
      (2, 3)

    Source: Gaussian smoothing, arXiv 2506.14460, Section 3.1.
    """

    def draw(key, k, num_directions, params):
        del num_directions
        return _cast_like(_draw(key, k, params, _normal), params)

    return draw


def sphere() -> Sampler:
    """Uniform directions on the sphere of radius sqrt(d): v = sqrt(d) x / |x|.

    The norm is global over the parameter tree.

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
        del num_directions
        x = _draw(key, k, params, _normal)
        norm = jnp.sqrt(tree_dot(x, x))
        scaled = _scale(x, math.sqrt(_num_entries(params)) * _reciprocal(norm))
        return _cast_like(scaled, params)

    return draw


def rademacher() -> Sampler:
    """Independent fair signs: v in {-1, +1}^d, 32 of them from each random word.

    Returns:
      A sampler of independent rows with |v|^2 = d; MSE limit |g|^2 (d-1)/K. The
      cheapest noise to draw, by about a factor of ten on a CPU.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> v = zojax.perturbations.rademacher()(jax.random.key(0), 0, 1, jnp.ones(40))
      >>> print(float(jnp.min(jnp.abs(v))), float(jnp.max(jnp.abs(v))))
      1.0 1.0

    Source: arXiv 2510.19975, Theorem 2.2 (fixed-length perturbations).
    """

    def draw(key, k, num_directions, params):
        del num_directions
        return _cast_like(_draw(key, k, params, _signs), params)

    return draw


def coordinate() -> Sampler:
    """One coordinate at a time: v = sqrt(d) e_j, j uniform over 0..d-1.

    Returns:
      A sampler of independent rows with |v|^2 = d; MSE limit |g|^2 (d-1)/K. For
      directions without replacement see :func:`orthogonal`.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> v = zojax.perturbations.coordinate()(jax.random.key(0), 0, 1, jnp.ones(4))
      >>> sorted(v.tolist())
      [0.0, 0.0, 0.0, 2.0]

    Source: arXiv 2510.19975, Section 2 (random coordinate sampling).
    """

    def draw(key, k, num_directions, params):
        del num_directions
        d = _num_entries(params)
        row_key = jax.random.fold_in(_named_key(key, _words("coordinate")), k)
        chosen = jax.random.randint(row_key, (), 0, max(d, 1)).astype(jnp.uint32)
        return _by_index(
            params,
            lambda i, dtype: jnp.where(i == chosen, math.sqrt(d), 0).astype(dtype),
        )

    return draw


# -- joint designs ---------------------------------------------------------------------


def orthogonal() -> Sampler:
    """Mutually orthogonal directions: v_j . v_k = 0 and |v|^2 = d.

    Rows of a block-diagonal Hadamard matrix (blocks of 2^q entries, the binary digits
    of d) under fresh random signs of the columns, taken without replacement at equal
    strides from a random start. In the block of size b that row r falls into,

        v_ri = sqrt(d / b) (-1)^popcount(r & i) s_i,    0 in the other blocks.

    Rows need no storage: each is O(d) work from (key, k). More directions than
    dimensions come in blocks of d rows, each block with signs of its own.

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
        d = _num_entries(params)
        if d == 0:
            return params
        if num_directions <= d:
            block, stride = 0, d // num_directions
        else:
            block = jnp.asarray(k, jnp.int32) // d
            stride = d // jnp.clip(num_directions - block * d, 1, d)
            k = k - block * d
        offset_key = jax.random.fold_in(_named_key(key, _words("orthogonal")), block)
        offset = jax.random.randint(offset_key, (), 0, d).astype(jnp.uint32)
        row = (offset + jnp.asarray(k * stride, jnp.uint32)) % d

        starts, sizes, start = [], [], 0
        for q in reversed(range(d.bit_length())):
            if d >> q & 1:
                starts.append(start)
                sizes.append(1 << q)
                start += 1 << q
        which = jnp.searchsorted(jnp.asarray(starts, jnp.uint32), row, side="right") - 1
        low, size = jnp.asarray(starts, jnp.uint32)[which], jnp.asarray(sizes)[which]
        size = size.astype(jnp.uint32)

        def entry(i, dtype):
            wide = wide_dtype(dtype)
            inside = (i >= low) & (i - low < size)
            height = jnp.sqrt(d / size.astype(wide))
            return jnp.where(
                inside, height * _parity_sign((row - low) & (i - low), wide), 0
            )

        signs = _draw(key, block, params, _signs)
        return _cast_like(
            jax.tree.map(jnp.multiply, _by_index(params, entry), signs), params
        )

    return draw


def simplex() -> Sampler:
    """Hadamard simplex design: n = 2^q points whose sum is zero.

        v_kj = s_j (-1)^popcount(k & p_j),    k = 0..n-1,

    with random signs s_j and codes p_j in 1..n-1, spread as evenly as possible over the
    entries. Since the rows sum to zero, an offset of f cancels and no query at params
    is needed: use it with ``difference="mean"``, for which it is unbiased as it stands.
    Two points are antithetic SPSA.

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

    def check_num_directions(num_directions):
        if num_directions < 2 or num_directions & (num_directions - 1):
            raise ValueError(
                "num_directions must be a power of two >= 2 with simplex(), got"
                f" {num_directions}"
            )

    def draw(key, k, num_directions, params):
        check_num_directions(num_directions)
        num_codes = num_directions - 1
        offset_key = _named_key(key, _words("simplex"))
        offset = jax.random.randint(offset_key, (), 0, num_codes).astype(jnp.uint32)
        row = jnp.asarray(k, jnp.uint32)

        def entry(i, dtype):
            code = (i % num_codes + offset) % num_codes + jnp.uint32(1)
            return _parity_sign(row & code, wide_dtype(dtype))

        signs = _draw(key, 0, params, _signs)
        return _cast_like(
            jax.tree.map(jnp.multiply, _by_index(params, entry), signs), params
        )

    draw.check_num_directions = check_num_directions
    return draw


# -- samplers made from samplers -------------------------------------------------------


def _inherit_check(draw: Sampler, base: Sampler) -> Sampler:
    check = getattr(base, "check_num_directions", None)
    if check is not None:
        draw.check_num_directions = check
    return draw


def normalize(guide: PyTree, like: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns (a/|a|, True), or (0, False) where a is zero or not finite.

    Entries where ``like`` is frozen (None) do not count. Dividing by max|a| first keeps
    the norm within float32 for any guide.
    """
    wide = lambda x: x.astype(wide_dtype(x.dtype))
    kept = jax.tree.map(
        lambda v, a: None if v is None else wide(jnp.asarray(a)),
        like,
        guide,
        is_leaf=is_none,
    )
    peaks = [jnp.max(jnp.abs(a), initial=0) for a in jax.tree.leaves(kept)]
    peak = jnp.max(jnp.stack(peaks)) if peaks else jnp.zeros(())
    usable = jnp.isfinite(peak) & (peak > 0)
    bounded = jax.tree.map(
        lambda a: jnp.where(usable, a / jnp.where(usable, peak, 1).astype(a.dtype), 0),
        kept,
    )
    norm = jnp.sqrt(tree_dot(bounded, bounded))
    return _scale(bounded, _reciprocal(norm)), usable


def aligned(
    guide: PyTree, base: Sampler | None = None, *, fixed_length: bool = False
) -> Sampler:
    """Directionally aligned perturbations (DAP) around a guide a.

    Projects a base direction X onto the hyperplane a . v = xi |a|, xi a fair sign:

        v = X - (X . a) a / |a|^2 + xi a / |a|,    so (v . a)^2 = |a|^2.

    With ``fixed_length`` the direction also has |v|^2 = d,

        v = xi sqrt(d) [sqrt(1 - 1/d) w + a / (|a| sqrt(d))],

    w the unit vector of the projected X. The inner product and the norm are global over
    the tree. Where the guide is zero or not finite, v = X (for fixed length
    sqrt(d) X / |X|): isotropic, no alignment.

    Args:
      guide: pytree like params (at least at trainable leaves), of any finite scale: an
        estimate of the gradient. It must not depend on the noise of ``base``.
      base: sampler of X; gaussian() by default.
      fixed_length: also fix the length. E[v v^T] = I then needs a rotation-invariant
        base (gaussian or sphere).

    Returns:
      A sampler with the independence of its base. If the guide is the gradient, the MSE
      limit is |g|^2 (d-1)/K, with the error on the large entries reduced.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> a = jnp.array([3.0, 0.0, 4.0])
      >>> v = zojax.perturbations.aligned(a)(jax.random.key(0), 0, 1, a)
      >>> print(round(float(jnp.dot(v, a) ** 2), 3))
      25.0

    Source: arXiv 2510.19975, Algorithm 1 (delta = 1).
    """
    base = gaussian() if base is None else base

    def draw(key, k, num_directions, params):
        x = base(key, k, num_directions, params)
        unit, usable = normalize(guide, x)
        sign_key = jax.random.fold_in(_named_key(key, _words("aligned")), k)
        xi = _signs(sign_key, ())
        along = tree_dot(x, unit)

        def combine(x_scale, unit_scale):
            def leaf(x, a):
                wide = a.dtype
                moved = jnp.asarray(x_scale, wide) * x.astype(wide)
                return (moved + jnp.asarray(unit_scale, wide) * a).astype(x.dtype)

            return jax.tree.map(leaf, x, unit)

        if not fixed_length:
            return combine(1.0, xi - along)
        d = sum(leaf.size for leaf in jax.tree.leaves(x))
        projected = jax.tree.map(
            lambda x, a: x.astype(a.dtype) - along.astype(a.dtype) * a, x, unit
        )
        norm = jnp.sqrt(tree_dot(projected, projected))
        length = jnp.sqrt(jnp.where(usable, max(d - 1, 0), d))
        stretch = xi * length * _reciprocal(norm)
        return combine(stretch, xi - stretch * along)

    return _inherit_check(draw, base)


def restrict(sampler: Sampler, mask: PyTree | Callable[[PyTree], PyTree]) -> Sampler:
    """Restricts a sampler to the trainable leaves of params.

    Frozen leaves are not copied, not perturbed, get a zero gradient and do not count
    in d; the other leaves draw what they would draw without them.

    Args:
      sampler: any sampler.
      mask: as in optax.masked: a pytree prefix of bools, True where trainable, or a
        function params -> such a pytree.

    Returns:
      A sampler whose directions hold None at frozen leaves.

    Raises:
      ValueError: if the mask holds anything but bools, or does not fit params.

    Example:
      >>> import jax, jax.numpy as jnp, zojax
      >>> draw = zojax.perturbations.restrict(
      ...     zojax.perturbations.rademacher(), {"head": True, "body": False})
      >>> v = draw(jax.random.key(0), 0, 1, {"head": jnp.ones(2), "body": jnp.ones(3)})
      >>> v["body"] is None
      True

    Source: the convention of optax.masked.
    """

    def check_mask(tree):
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, (bool, np.bool_)):
                raise ValueError(
                    "mask must be a pytree prefix of bools (True: trainable) or a"
                    f" function returning one, got a leaf {leaf!r}"
                )

    if not callable(mask):
        check_mask(mask)

    def draw(key, k, num_directions, params):
        tree = mask(params) if callable(mask) else mask
        check_mask(tree)
        try:
            trainable = jax.tree.map(
                lambda keep, sub: sub if keep else jax.tree.map(lambda _: None, sub),
                tree,
                params,
            )
        except (ValueError, TypeError) as error:
            raise ValueError(
                "mask must be a pytree prefix of params, got"
                f" {jax.tree.structure(tree)} for {jax.tree.structure(params)}"
            ) from error
        return sampler(key, k, num_directions, trainable)

    return _inherit_check(draw, sampler)
