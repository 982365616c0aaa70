"""Drawing noise: normals and packed signs, leaf by leaf, slice by slice."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zojax._keys import KEY_IMPL, leaf_keys
from zojax._numerics import PyTree, on_cpu, wide_dtype
from zojax.perturbations._entries import placed_like, trainable


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
