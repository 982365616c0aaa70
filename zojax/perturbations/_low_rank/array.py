"""An array that is held as a value and two factors."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from zojax._numerics import wide_dtype
from zojax.perturbations._entries import placed_like

HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "a", "b", "scale"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class LowRankArray:
    """value + scale * a b^T, with one pair of factors for each matrix of a stack."""

    value: jax.Array  # f[..., m, n], the untouched parameter
    a: jax.Array  # f[..., m, r], in at least float32
    b: jax.Array  # f[..., n, r], in at least float32
    scale: jax.Array  # f[], mu times the side of the query


def is_factored(x: Any) -> bool:
    return isinstance(x, LowRankArray)


def add_scaled(value: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
    """Value + scale * noise, rounded once."""
    wide = wide_dtype(value.dtype)
    moved = value.astype(wide) + jnp.asarray(scale, wide) * noise.astype(wide)
    return moved.astype(value.dtype)


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("...mr,...nr->...mn", a, b, precision=HIGHEST)


def formed(x: Any) -> Any:
    """The array that a LowRankArray stands for; anything else as it is."""
    if not is_factored(x):
        return x
    noise = placed_like(x.value, product)(x.a, x.b)
    return add_scaled(x.value, x.scale, noise)
