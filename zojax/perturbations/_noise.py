"""Drawing noise: normals and packed signs, leaf by leaf, slice by slice."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from zojax._keys import KEY_IMPL, leaf_keys
from zojax._loops import map_rows
from zojax._numerics import PyTree, by_platform, wide_dtype
from zojax.perturbations._entries import placed_like, trainable

Entries = Callable[[jax.Array, tuple[int, ...]], jax.Array]
"""(key, shape) -> float32 noise of independent entries."""


def draw_slices(draw: Entries, words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws the noise of each slice from its key words, uint32[slices..., 2]."""
    one = lambda data: draw(jax.random.wrap_key_data(data, impl=KEY_IMPL), shape)
    slices = words.shape[:-1]
    if not slices:
        return one(words)
    noise = jax.vmap(one)(words.reshape(-1, words.shape[-1]))
    return noise.reshape(slices + shape)


def map_keys(
    function: Callable[[jax.Array, Any], Any], key: jax.Array, k: Any, params: PyTree
) -> PyTree:
    """function(key of row k at the leaf, leaf) over leaves; of ks[n], keys[n]."""
    leaves = trainable(params)
    if not leaves:
        return params
    keys_of = partial(leaf_keys, key, names=[name for name, _ in leaves])
    keys = jax.vmap(keys_of, out_axes=1)(k) if jnp.ndim(k) else keys_of(k)
    new = [function(keys[i], leaf) for i, (_, leaf) in enumerate(leaves)]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def draw_leaves(key: jax.Array, k: Any, params: PyTree, draw: Entries) -> PyTree:
    """Draws float32 noise for each leaf, as wide as the leaf or wider."""

    def one(key, leaf):
        whole = placed_like(leaf, lambda key: draw(key, jnp.shape(leaf)))
        return whole(key).astype(wide_dtype(jnp.result_type(leaf)))

    return map_keys(one, key, k, params)


# On a CPU JAX holds the random words of a whole batch of draws, which costs memory and,
# beyond the cache, time: from this many entries on the draws of a batch take turns.
LARGE_DRAW = 2**18


def standard_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws N(0, 1) in float32; under vmap on a CPU large draws take turns."""
    draw = lambda key: jax.random.normal(key, shape, jnp.float32)
    if math.prod(shape) < LARGE_DRAW:
        return draw(key)
    alone = jax.custom_batching.custom_vmap(draw)
    alone.def_vmap(lambda size, batched, keys: (map_rows(alone, keys), True))
    return by_platform(key, cpu=alone, accelerator=draw)


def fair_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws +-1 in float32: 32 signs from each random word."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    # Bit 31 - j becomes the sign bit of entry j: 0x3F800000 is 1.0f, 0xBF800000 -1.0f.
    shifted = words[:, None] << jnp.arange(32, dtype=jnp.uint32)[None]
    bits = (shifted & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)
    signs = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return signs.reshape(-1)[:size].reshape(shape)
