"""Drawing noise: normals and packed signs, leaf by leaf, slice by slice."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zojax._keys import leaf_keys, slice_keys
from zojax._loops import map_rows
from zojax._numerics import PyTree, by_platform, wide_dtype
from zojax.perturbations._entries import placed_like, trainable


class Entries(NamedTuple):
    """How noise of independent entries is drawn, in float32."""

    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    """(key, shape) -> noise of that shape."""
    draw_shared: Callable[..., jax.Array] | None = None
    """(key, shape, which u32[n...]) -> noise [n..., *shape]: of NUM_SHARED arrays that
    one key has room for, these. None if each needs a key of its own."""


NUM_SHARED = 32


def shares_keys(entries: Entries, shape: tuple[int, ...]) -> bool:
    """Whether slices of this shape share keys: only where each would waste its own.

    The rows of a table do: 32 signs of a random word then lie below each other.
    """
    return entries.draw_shared is not None and len(shape) < 2


def draw_stack(
    entries: Entries, key: jax.Array, number: int, shape: tuple[int, ...]
) -> jax.Array:
    """Draws all slices of a stacked leaf, whose key this is: [number, *shape]."""
    draw_shared = entries.draw_shared
    if draw_shared is None or not shares_keys(entries, shape):
        keys, _ = slice_keys(key, number)
        return jax.vmap(lambda key: entries.draw(key, shape))(keys)
    all_shared = jnp.arange(NUM_SHARED, dtype=jnp.uint32)
    draw = lambda key: draw_shared(key, shape, all_shared)
    keys, _ = slice_keys(key, -(-number // NUM_SHARED))
    noise = jax.vmap(draw)(keys)
    return noise.reshape(len(keys) * NUM_SHARED, *shape)[:number]


def map_keys(
    function: Callable[..., Any], key: jax.Array, k: Any, params: PyTree, *rest: PyTree
) -> PyTree:
    """function(key of row k, leaf, *others) at each leaf; of ks[n], with keys[n]."""
    leaves = trainable(params)
    if not leaves:
        return params
    keys_of = partial(leaf_keys, key, names=[name for name, _ in leaves])
    keys = jax.vmap(keys_of, out_axes=1)(k) if jnp.ndim(k) else keys_of(k)
    others = [jax.tree.leaves(tree) for tree in rest]
    new = [
        function(keys[i], leaf, *(leaves[i] for leaves in others))
        for i, (_, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def draw_leaves(key: jax.Array, k: Any, params: PyTree, entries: Entries) -> PyTree:
    """Draws float32 noise for each leaf, as wide as the leaf or wider."""

    def one(key, leaf):
        whole = placed_like(leaf, lambda key: entries.draw(key, jnp.shape(leaf)))
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


def _signs(words: jax.Array, shifts: jax.Array) -> jax.Array:
    """Bit 31 - shift of each word as +-1 in float32."""
    # The bit becomes the sign bit: 0x3F800000 is 1.0f, 0xBF800000 is -1.0f.
    bits = ((words << shifts) & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _spread(words: jax.Array, axis: int) -> jax.Array:
    """The 32 signs of each word, one after the other along an axis."""
    later = words.shape[axis + 1 :]
    shifts = jnp.arange(32, dtype=jnp.uint32).reshape(32, *[1] * len(later))
    shifts = jnp.broadcast_to(shifts, (1,) * (axis + 1) + shifts.shape)
    signs = _signs(jnp.expand_dims(words, axis + 1), shifts)
    return signs.reshape(*words.shape[:axis], 32 * words.shape[axis], *later)


# Arrays of a TPU lie in tiles of 8 rows of so many lanes.
LANES = 128
# Up to so many signs of a vector it does not matter how they are unpacked.
FEW_SIGNS = 2**16


def _word_axis(shape: tuple[int, ...]) -> int | None:
    """The axis along which words are spread with the least waste; None: none fits."""
    found, least = None, 2.0
    for axis, size in enumerate(shape[:-1]):
        waste = -(-size // 32) * 32 / max(size, 1)
        if math.prod(shape[axis + 1 :]) >= LANES and waste <= least:
            found, least = axis, waste
    return found


def _in_lanes(words: jax.Array) -> jax.Array:
    """The signs of words u32[n], one after the other, as rows of lanes [n / 4, 128].

    Each lane takes the one of its row's four words that it lies in: a choice, where an
    axis of 32 would be padded to 128 and then brought into another layout.
    """
    number = LANES // 32
    words = jnp.pad(words, (0, -len(words) % number))
    lane = jnp.arange(LANES, dtype=jnp.uint32)[None]
    chosen = words[number - 1 :: number, None]
    for i in reversed(range(number - 1)):
        chosen = jnp.where(lane < 32 * (i + 1), words[i::number, None], chosen)
    return _signs(chosen, lane % 32)


def _vector_of_signs(key: jax.Array, size: int) -> jax.Array:
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    as_words = lambda words: _spread(words[:, None], 1).reshape(-1)[:size]
    if size <= FEW_SIGNS:
        return as_words(words)
    on_tpu = lambda words: _in_lanes(words).reshape(-1)[:size]
    return by_platform(words, cpu=as_words, accelerator=as_words, tpu=on_tpu)


def fair_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws +-1 in float32: 32 signs from each random word.

    A word's signs lie one below the other along an axis that is not the last, so that
    rows of words become rows of signs as they lie; of a vector, one after the other.
    """
    axis = _word_axis(shape)
    if axis is None:
        return _vector_of_signs(key, math.prod(shape)).reshape(shape)
    words = (*shape[:axis], -(-shape[axis] // 32), *shape[axis + 1 :])
    signs = _spread(jax.random.bits(key, words, jnp.uint32), axis)
    return jax.lax.slice_in_dim(signs, 0, shape[axis], axis=axis)


def shared_signs(key: jax.Array, shape: tuple[int, ...], which: jax.Array) -> jax.Array:
    """Draws +-1 for some of the 32 arrays of this shape that the key has words for."""
    words = jax.random.bits(key, shape, jnp.uint32)
    which = which.reshape(which.shape + (1,) * len(shape))
    return _signs(jnp.expand_dims(words, range(which.ndim - len(shape))), which)


NORMALS = Entries(standard_normal)
SIGNS = Entries(fair_signs, shared_signs)
