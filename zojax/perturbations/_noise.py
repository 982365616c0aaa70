"""Drawing on a pytree: one key a leaf path, one index range over the leaves."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax._base import KEY_IMPL, PyTree, on_cpu, wide_dtype


def _words(label: str) -> np.ndarray:
    """Two uint32 words that stand for a leaf path or a purpose."""
    return np.frombuffer(hashlib.blake2b(label.encode(), digest_size=8).digest(), "<u4")


def _fold_words(key: jax.Array, words: np.ndarray | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1])


def purpose_key(key: jax.Array, purpose: str) -> jax.Array:
    """A key for draws that belong to no leaf; leaf paths never read like a purpose."""
    return _fold_words(key, _words(purpose))


def trainable(params: PyTree) -> list[tuple[str, Any]]:
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


def num_entries(params: PyTree) -> int:
    """d, the number of entries that a direction has."""
    return sum(math.prod(jnp.shape(leaf)) for _, leaf in trainable(params))


def cast_like(tree: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), tree, params)


def leaf_keys(key: jax.Array, k: jax.Array | int, names: list[str]) -> jax.Array:
    """Derives the key of row k for each leaf path, keys[len(names)]."""
    # One batched derivation for all leaves; only the last fold depends on k, so the
    # rest is computed once under vmap.
    words = jnp.asarray(np.stack([_words(name) for name in names]))
    keys = jax.vmap(_fold_words, (None, 0))(key, words)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, k)


def slice_keys(key: jax.Array, number: int) -> jax.Array:
    """Derives a key for each slice along the first axis of a leaf."""
    indices = jnp.arange(number, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def placed_like(
    array: Any, function: Callable[..., jax.Array], num_axes: int = 0
) -> Callable[..., jax.Array]:
    """function, with its result where the array lies, if its type says where.

    On explicit axes of the mesh in force noise would otherwise have the type of its
    key, and every device draw it whole. The result may have so many axes more than the
    array, before its.
    """
    sharding = jax.typeof(array).sharding
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not any(sharding.spec):
        return function
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(n for n, t in kinds if t == jax.sharding.AxisType.Explicit)
    spec = jax.sharding.PartitionSpec(*[None] * num_axes, *sharding.spec)
    return jax.sharding.auto_axes(
        function, axes=explicit, out_sharding=sharding.update(spec=spec)
    )


def draw_slices(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    words: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Draws the noise of each slice from its key words, uint32[slices..., 2]."""
    one = lambda data: draw(jax.random.wrap_key_data(data, impl=KEY_IMPL), shape)
    slices = words.shape[:-1]
    if not slices:
        return one(words)
    noise = jax.vmap(one)(words.reshape(-1, words.shape[-1]))
    return noise.reshape(slices + shape)


def draw_leaves(
    key: jax.Array,
    k: jax.Array | int,
    params: PyTree,
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
) -> PyTree:
    """Draws float32 noise for each leaf, as wide as the leaf or wider."""
    leaves = trainable(params)
    if not leaves:
        return params
    row_keys = leaf_keys(key, k, [name for name, _ in leaves])

    def one(key, leaf):
        whole = placed_like(leaf, lambda key: draw(key, jnp.shape(leaf)))
        return whole(key).astype(wide_dtype(jnp.result_type(leaf)))

    noise = [one(row_keys[i], leaf) for i, (_, leaf) in enumerate(leaves)]
    return jax.tree.unflatten(jax.tree.structure(params), noise)


# On a CPU JAX holds the random words of a whole batch of draws, which costs memory and,
# beyond the cache, time: from this many entries on the draws of a batch take turns.
# A GPU draws where the numbers are used.
LARGE_DRAW = 2**18


def standard_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws N(0, 1) in float32; under vmap on a CPU large draws take turns."""
    draw = lambda key: jax.random.normal(key, shape, jnp.float32)
    if math.prod(shape) >= LARGE_DRAW and on_cpu():
        draw = jax.custom_batching.sequential_vmap(draw)
    return draw(key)


def fair_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws +-1 in float32: 32 signs from each random word."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    # Bit 31 - j becomes the sign bit of entry j: 0x3F800000 is 1.0f, 0xBF800000 -1.0f.
    shifted = words[:, None] << jnp.arange(32, dtype=jnp.uint32)
    bits = (shifted & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)
    signs = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return signs.reshape(-1)[:size].reshape(shape)


def by_index(
    params: PyTree, entry: Callable[[jax.Array, jnp.dtype], jax.Array]
) -> PyTree:
    """Builds a direction from the global index (uint32) of each entry.

    Entries are numbered 0..d-1 through the leaves in tree order.
    """
    if num_entries(params) >= 2**31:
        raise ValueError("designs over coordinates need fewer than 2**31 entries")

    def index_at(leaf, start):
        shape = jnp.shape(leaf)
        number = lambda: jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
        return placed_like(leaf, lambda start: number() + start)(jnp.uint32(start))

    start, leaves = 0, []
    for _, leaf in trainable(params):
        leaves.append(entry(index_at(leaf, start), jnp.result_type(leaf)))
        start += math.prod(jnp.shape(leaf))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
