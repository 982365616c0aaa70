"""Matrices of int8 with a float scale for each output: a quarter of float32's bytes.

What is tuned stays in floats: adapters beside the matrices, or their scales. Only what
a layer or a token needs is ever turned into floats.
"""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp

Params = dict[str, Any]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # [L, inputs, outputs]
TABLES = ("embed", "head")  # [tokens, D]
LARGEST = 127  # symmetric: -128 is not used
WHOLE = ("positions", "project_in", "project_out")  # float matrices that OPT has


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """values * scale / 127; a pytree, whose first axis is sliced as an array's.

    The scale is the largest weight of its output, not a step between values: so it has
    the size of a weight, and one smoothing suits scales, norms and weights alike.
    """

    values: jax.Array  # i8[..., inputs, outputs] of a matrix, [..., D] of rows
    scale: jax.Array  # f[..., 1, outputs] of a matrix, [..., 1] of rows

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.scale.dtype)  # of what is made with it

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: Any) -> Self:
        return jax.tree.map(lambda leaf: leaf[which], self)


@functools.partial(jax.jit, static_argnums=1)
def _quantized(array: jax.Array, axis: int) -> Quantized:
    """One scale for all entries along an axis."""
    scale = jnp.abs(array).max(axis=axis, keepdims=True)
    steps = LARGEST * array / jnp.where(scale == 0, 1, scale)
    return Quantized(jnp.round(steps).astype(jnp.int8), scale)


def quantize(params: Params) -> Params:
    """Quantises a model's matrices by output and its tables by row."""
    layers = {
        name: _quantized(leaf, -2) if name in MATRICES else leaf
        for name, leaf in params["layers"].items()
    }
    tables = {name: _quantized(params[name], -1) for name in TABLES if name in params}
    return {**params, **tables, "layers": layers}


def dequantize(x: jax.Array | Quantized) -> jax.Array:
    """The floats that these stand for; an array as it is."""
    if not isinstance(x, Quantized):
        return x
    return x.values.astype(x.dtype) * (x.scale / LARGEST)


def product(x: jax.Array, matrix: jax.Array | Quantized) -> jax.Array:
    """x @ matrix; a quantised one's scale is of the products, so it comes last."""
    if not isinstance(matrix, Quantized):
        return x @ matrix
    scale = (matrix.scale / LARGEST).astype(x.dtype)
    return (x @ matrix.values.astype(x.dtype)) * scale


def floats(params: Params) -> Params:
    """What can be tuned of a quantised model: scales, norms and biases."""
    return {
        name: floats(leaf) if isinstance(leaf, dict) else getattr(leaf, "scale", leaf)
        for name, leaf in params.items()
        if name not in WHOLE
    }


def with_floats(params: Params, tuned: Params) -> Params:
    """The model with other scales, norms and biases in their places."""
    out = dict(params)
    for name, leaf in tuned.items():
        old = params[name]
        if isinstance(old, dict):
            leaf = with_floats(old, leaf)
        elif isinstance(old, Quantized):
            leaf = Quantized(old.values, leaf)
        out[name] = leaf
    return out
