"""Dtypes, sums and norms: arithmetic that is right in every dtype and on any device."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax._checks import check_like

PyTree = Any
Number = float | jax.Array | Callable[[jax.Array], jax.Array | float]
"""A number, or an optax schedule: step count -> number."""


def value_dtype() -> jnp.dtype:
    """Returns the dtype of query values: float32, or float64 under x64."""
    return jnp.result_type(float)


def wide_dtype(dtype: Any) -> jnp.dtype:
    """Returns the dtype to accumulate in: at least float32."""
    # Not by promotion, which may be strict: no two dtypes meet in this package.
    dtype = jnp.dtype(dtype)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if is_wide else jnp.dtype(jnp.float32)


def widest(*arrays: Any) -> jnp.dtype:
    """Returns the widest dtype to accumulate these in: at least float32."""
    wide = [wide_dtype(jnp.result_type(x)) for x in arrays]
    return jnp.dtype(np.result_type(np.float32, *wide))


def zeros_at(x: jax.Array) -> jax.Array:
    """Zeros that lie where x lies, on automatic axes too, where a use of x says it."""
    return jnp.where(jnp.zeros((), bool), x, jnp.zeros_like(x))


def by_platform(
    *args: Any,
    cpu: Callable[..., Any],
    accelerator: Callable[..., Any],
    tpu: Callable[..., Any] | None = None,
) -> Any:
    """cpu(*args) in a program for CPUs, accelerator(*args) in any other.

    A TPU may have its own. Decided when a program is lowered, not by the machine that
    lowers it. All that depends on the platform goes through here.
    """
    others = {} if tpu is None else {"tpu": tpu}
    return jax.lax.platform_dependent(*args, cpu=cpu, default=accelerator, **others)


# Up to so many are written out one by one; programs grow with each.
FEW_SUMS = 8
FEW_TERMS = 16


def contract(weights: jax.Array, x: jax.Array, axes: int = 1) -> jax.Array:
    """Contracts the last axes of weights with the first of x, in at least float32."""
    wide = wide_dtype(x.dtype)

    def product(weights, x):
        # Full precision: matrix units may round weights and directions to fewer bits.
        return jnp.tensordot(weights, x, axes, precision=jax.lax.Precision.HIGHEST)

    def fused(weights, x):
        # An accelerator's product would have to read directions from memory; a sum is
        # fused with what draws them.
        leading = weights.ndim - axes
        scale = weights.reshape(weights.shape + (1,) * (x.ndim - axes))
        x = jnp.expand_dims(x, range(leading))
        return jnp.sum(scale * x, range(leading, weights.ndim))

    def in_turn(weights, x):
        # A GPU fuses few terms with what uses their sum, but no sum over an axis.
        if axes != 1 or not 0 < len(x) <= FEW_TERMS:
            return fused(weights, x)
        leading = weights.shape[:-1]
        scales = weights.reshape(*leading, len(x), *[1] * (x.ndim - 1))
        scale = lambda i: jax.lax.index_in_dim(scales, i, len(leading), keepdims=False)
        row = lambda i: jnp.expand_dims(x[i], range(len(leading)))
        terms = (scale(i) * row(i) for i in range(len(x)))
        return functools.reduce(jnp.add, terms)

    def apart(weights, x):
        # A TPU fuses several sums with the drawing only if each stands alone.
        leading = weights.shape[: weights.ndim - axes]
        if not 1 < math.prod(leading) <= FEW_SUMS:
            return fused(weights, x)
        rows = weights.reshape(-1, *weights.shape[len(leading) :])
        sums = jnp.stack([fused(row, x) for row in rows])
        return sums.reshape(*leading, *sums.shape[1:])

    args = weights.astype(wide), x.astype(wide)
    return by_platform(*args, cpu=product, accelerator=in_turn, tpu=apart)


def number_at(number: Number, count: jax.Array) -> jax.Array:
    """Evaluates a number or schedule at a step count, in the dtype of query values."""
    return jnp.asarray(number(count) if callable(number) else number, value_dtype())


def as_rate(number: Number) -> Number:
    """A learning rate for optax, which casts a schedule to each leaf, and no array."""
    return (lambda count: number) if isinstance(number, jax.Array) else number


def total(numbers: list[jax.Array]) -> jax.Array:
    """Their sum, in the widest of their dtypes; 0 of none."""
    wide = widest(*numbers)
    return sum((x.astype(wide) for x in numbers), jnp.zeros((), wide))


def is_none(x: Any) -> bool:
    return x is None


def tree_dot(a: PyTree, b: PyTree) -> jax.Array:
    """Inner product over the whole tree, in at least float32."""

    def leaf_dot(x: jax.Array, y: jax.Array) -> jax.Array:
        # A plain sum, since matrix units may round products to fewer bits.
        wide = widest(x, y)
        return jnp.sum(x.astype(wide) * y.astype(wide))

    return total(jax.tree.leaves(jax.tree.map(leaf_dot, a, b)))


def reciprocal(x: jax.Array) -> jax.Array:
    """1/x, and 0 at 0."""
    return jnp.where(x > 0, 1.0 / jnp.where(x > 0, x, 1.0), 0.0)


def scale(tree: PyTree, factor: jax.Array | float) -> PyTree:
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def normalize(guide: PyTree, like: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns (a/|a|, True), or (0, False) where a is zero or not finite.

    Entries where ``like`` is frozen (None) do not count. Dividing by max|a| first keeps
    the norm within float32 for any guide. Raises for a guide of other shapes.
    """
    check_like("guide", guide, like)
    wide = lambda x: x.astype(wide_dtype(x.dtype))
    keep = lambda v, a: None if v is None else wide(jnp.asarray(a))
    kept = jax.tree.map(keep, like, guide, is_leaf=is_none)
    peaks = [jnp.max(jnp.abs(a), initial=0) for a in jax.tree.leaves(kept)]
    common = widest(*peaks)
    peak = jnp.max(jnp.stack([p.astype(common) for p in [jnp.zeros(()), *peaks]]))
    usable = jnp.isfinite(peak) & (peak > 0)
    bounded = jax.tree.map(
        lambda a: jnp.where(usable, a / jnp.where(usable, peak, 1).astype(a.dtype), 0),
        kept,
    )
    norm = jnp.sqrt(tree_dot(bounded, bounded))
    return scale(bounded, reciprocal(norm)), usable


def decayed(average: PyTree, new: PyTree, decay: jax.Array) -> PyTree:
    """decay * average + (1 - decay) * new; an entry that would overflow stays."""

    def leaf(a, g):
        wide = widest(decay, a, g)
        rate, old, now = (x.astype(wide) for x in (decay, a, g))
        moved = (rate * old + (1 - rate) * now).astype(a.dtype)
        return jnp.where(jnp.isfinite(moved), moved, a)

    return jax.tree.map(leaf, average, new)
