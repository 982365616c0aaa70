"""An array that is held as a value and two factors."""

import dataclasses
import functools
import string
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
    """value + scale * a b^T, with one pair of factors for each matrix of a stack.

    A side may have several axes: [width, heads, size] as a matrix of width rows has
    a[width, r] and b[heads, size, r].
    """

    value: jax.Array  # f[..., m, n], the untouched parameter
    a: jax.Array  # f[..., m, r], in at least float32
    b: jax.Array  # f[..., n, r], in at least float32
    scale: jax.Array  # f[], mu times the side of the query


def is_factored(x: Any) -> bool:
    return isinstance(x, LowRankArray)


def sides(x: LowRankArray) -> tuple[int, int]:
    """The first axis of m, after those of the stack, and the first axis of n."""
    return x.a.ndim + x.b.ndim - 2 - x.value.ndim, x.a.ndim - 1


def add_scaled(value: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
    """Value + scale * noise, rounded once."""
    wide = wide_dtype(value.dtype)
    moved = value.astype(wide) + jnp.asarray(scale, wide) * noise.astype(wide)
    return moved.astype(value.dtype)


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int] = (1, 1)) -> jax.Array:
    """The stack of a b^T; so many axes of a and of b are those of a side."""
    m, n = string.ascii_lowercase[: axes[0]], string.ascii_uppercase[: axes[1]]
    return jnp.einsum(f"...{m}Z,...{n}Z->...{m}{n}", a, b, precision=HIGHEST)


def formed(x: Any) -> Any:
    """The array that a LowRankArray stands for; anything else as it is."""
    if not is_factored(x):
        return x
    m, n = sides(x)
    of_axes = functools.partial(product, axes=(n - m, x.value.ndim - n))
    noise = placed_like(x.value, of_axes)(x.a, x.b)
    return add_scaled(x.value, x.scale, noise)
