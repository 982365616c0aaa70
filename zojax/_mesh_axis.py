"""Directions spread over a mesh axis: which rows a device asks, and what travels.

Each device of the axis draws and asks K/n rows of its own. Two things travel: the K
values, so that every device weighs the same numbers, and one sum of the estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from zojax._numerics import PyTree, is_none, zeros_at


def _is_bound(axis_name: str) -> bool:
    """Whether collectives over the axis can be written here."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def on_axis(body: Callable[..., PyTree], axis_name: str | None, *args: PyTree) -> Any:
    """Runs body(*args) on each device of an axis; all get the same, and return it.

    Inside shard_map the axis is there already. Otherwise it is one of the mesh that
    jax.set_mesh put in force, and only this axis becomes manual: params and batch may
    be sharded over the others.
    """
    if axis_name is None or _is_bound(axis_name):
        return body(*args)
    mesh = jax.sharding.get_abstract_mesh()
    if axis_name not in mesh.axis_names:
        raise ValueError(
            "axis_name must be an axis of shard_map or of the mesh in force"
            f" (jax.set_mesh), which has {mesh.axis_names}, got {axis_name!r}"
        )
    if jax.sharding.AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            "axis_name needs a mesh without explicit axes, whose arrays cannot be"
            " closed over: jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,)"
            f" * n), or shard_map around the step; got {mesh.axis_types}"
        )
    return jax.shard_map(
        body,
        in_specs=(PartitionSpec(),) * len(args),
        out_specs=PartitionSpec(),
        axis_names={axis_name},
    )(*args)


def own_rows(num_directions: int, axis_name: str | None) -> jax.Array:
    """Row indices of this device, i32[K/n]; all K without an axis."""
    if axis_name is None:
        return jnp.arange(num_directions)
    devices = jax.lax.axis_size(axis_name)
    if num_directions % devices:
        raise ValueError(
            f"num_directions must be a multiple of the {devices} devices along"
            f" {axis_name!r} in each stage, got {num_directions}"
        )
    own = num_directions // devices
    return jax.lax.axis_index(axis_name) * own + jnp.arange(own)


def own(weights: jax.Array, axis_name: str | None) -> jax.Array:
    """This device's part of weights [..., K]."""
    if axis_name is None:
        return weights
    rows = own_rows(weights.shape[-1], axis_name)
    return jax.lax.dynamic_slice_in_dim(weights, rows[0], len(rows), axis=-1)


def from_all(stacked: PyTree, num_directions: int, axis_name: str | None) -> PyTree:
    """[K/n, ...] of each device -> [K, ...], the same on all."""
    if axis_name is None:
        return stacked
    first = own_rows(num_directions, axis_name)[0]

    def leaf(x):
        # A sum with zeros elsewhere: unlike all_gather, it is known to be replicated.
        wide = jnp.zeros((num_directions, *x.shape[1:]), x.dtype)
        placed = jax.lax.dynamic_update_slice_in_dim(wide, x, first, axis=0)
        return jax.lax.psum(placed, axis_name)

    return jax.tree.map(leaf, stacked)


def from_first(tree: PyTree, axis_name: str | None) -> PyTree:
    """What the first device of an axis has, on all."""
    if axis_name is None:
        return tree
    is_first = jax.lax.axis_index(axis_name) == 0

    def leaf(x):
        addable = x.astype(jnp.int32) if x.dtype == bool else x
        kept = jnp.where(is_first, addable, jnp.zeros((), addable.dtype))
        return jax.lax.psum(kept, axis_name).astype(x.dtype)

    return jax.tree.map(leaf, tree)


def total(tree: PyTree, axis_name: str | None) -> PyTree:
    """Sum over the devices of an axis, in one collective."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def zeros_beside(shapes: PyTree, params: PyTree, *varying: jax.Array) -> PyTree:
    """Zeros that lie where params lie and vary over devices as others do.

    For the carry of a loop that adds up: it must have the sharding of params, and
    inside shard_map the type of what is added.
    """
    probe = sum(jnp.sum(x.astype(jnp.float32)) for x in varying)

    def leaf(shape, p):
        if shape is None:
            return None
        beside = jnp.asarray(p).astype(shape.dtype) + probe.astype(shape.dtype)
        return jnp.broadcast_to(zeros_at(beside), shape.shape)

    return jax.tree.map(leaf, shapes, params, is_leaf=is_none)
