"""Keys: what a state holds, and one key for each step, leaf path and purpose."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax import _docs as docs

KEY_IMPL = "threefry2x32"


def canonical_key(key: Any) -> jax.Array:
    """Returns a typed key from a typed key, a legacy uint32[2] key or an int seed."""
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key), impl=KEY_IMPL)
    accepted = f"a single {KEY_IMPL} key (typed or uint32[2]) or an int seed"
    dtype = getattr(key, "dtype", None)
    if dtype is None:
        raise ValueError(f"key must be {accepted}, got {key!r}")
    if jnp.issubdtype(dtype, jnp.integer) and key.shape == ():
        return jax.random.key(key, impl=KEY_IMPL)  # a seed too, traced perhaps
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        # Values of other generators change under vmap, which would break replay.
        if str(jax.random.key_impl(key)) != KEY_IMPL or key.shape != ():
            found = f"{jax.random.key_impl(key)} with shape {key.shape}"
            several = f"; {docs.MANY_RUNS}" if key.ndim else ""
            raise ValueError(f"key must be {accepted}, got {found}{several}")
        return key
    if dtype != jnp.uint32 or key.shape != (2,):
        raise ValueError(f"key must be {accepted}, got {dtype} with shape {key.shape}")
    return jax.random.wrap_key_data(key, impl=KEY_IMPL)


def key_data(key: jax.Array | int) -> jax.Array:
    """Returns the raw uint32[2] words of a key, which every checkpointer takes."""
    return jax.random.key_data(canonical_key(key))


def step_key(data: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the typed key of step ``count``; any past step can be replayed."""
    return jax.random.fold_in(canonical_key(data), count)


def _words(label: str) -> np.ndarray:
    """Two uint32 words that stand for a leaf path or a purpose."""
    return np.frombuffer(hashlib.blake2b(label.encode(), digest_size=8).digest(), "<u4")


def _fold_words(key: jax.Array, words: np.ndarray | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1])


def purpose_key(key: jax.Array, purpose: str) -> jax.Array:
    """A key for draws that belong to no leaf; leaf paths never read like a purpose."""
    return _fold_words(key, _words(purpose))


def leaf_keys(key: jax.Array, k: jax.Array | int, names: list[str]) -> jax.Array:
    """Derives the key of row k for each leaf path, keys[len(names)]."""
    # One derivation for all leaves; only the last fold depends on k, under vmap too.
    words = jnp.asarray(np.stack([_words(name) for name in names]))
    keys = jax.vmap(_fold_words, (None, 0))(key, words)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, k)


def slice_keys(
    key: jax.Array, number: int, sharing: int = 1
) -> tuple[jax.Array, jax.Array]:
    """(Key, which of those that share it) of each slice along a leaf's first axis."""
    indices = np.arange(number, dtype=np.uint32)
    groups = jnp.arange(-(-number // sharing), dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, groups)
    which = jnp.asarray(indices % np.uint32(sharing))
    return (keys if sharing == 1 else keys[indices // sharing]), which
