"""Directions spread over a mesh axis: which are a device's own, and what travels.

Each device of the axis draws and asks K/n directions of its own. The K values travel,
so that every device weighs the same, and one sum. :func:`over` tells axis from none.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from zojax import _docs as docs
from zojax._numerics import PyTree, is_none, zeros_at


class Spread(NamedTuple):
    """How K directions are spread over the n devices of an axis."""

    run: Callable[..., Any]  # (body, *args) -> body(*args) on each, the same result
    own_ks: Callable[[int], jax.Array]  # K -> indices of this device's, i32[K/n]
    own: Callable[[jax.Array], jax.Array]  # [..., K] -> this device's [..., K/n]
    from_all: Callable[[PyTree, int], PyTree]  # ([K/n, ...], K) -> [K, ...] on all
    from_first: Callable[[PyTree], PyTree]  # what the first device has, on all
    total: Callable[[PyTree], PyTree]  # the sum over devices, in one collective


_as_it_is = lambda x, *_: x
ALONE = Spread(
    run=lambda body, *args: body(*args),
    own_ks=jnp.arange,
    own=_as_it_is,
    from_all=_as_it_is,
    from_first=_as_it_is,
    total=_as_it_is,
)


def over(axis_name: str | None) -> Spread:
    """Spreads directions over a mesh axis; None for none."""
    if axis_name is None:
        return ALONE
    on_axis = (_run, _own_ks, _own, _from_all, _from_first, _total)
    return Spread(*(partial(function, axis_name) for function in on_axis))


def _is_bound(axis_name: str) -> bool:
    """Whether collectives over the axis can be written here."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def _run(axis_name: str, body: Callable[..., PyTree], *args: PyTree) -> Any:
    # Inside shard_map the axis is there already. Otherwise it is one of the mesh that
    # jax.set_mesh put in force, and only this axis becomes manual: params and batch may
    # be sharded over the others.
    if _is_bound(axis_name):
        return body(*args)
    mesh = jax.sharding.get_abstract_mesh()
    if axis_name not in mesh.axis_names:
        raise ValueError(
            "axis_name must be an axis of shard_map or of the mesh in force"
            f" (jax.set_mesh), which has {mesh.axis_names}, got {axis_name!r};"
            f" {docs.MESH}"
        )
    if jax.sharding.AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            "axis_name needs a mesh without explicit axes, whose arrays cannot be"
            " closed over: jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,)"
            f" * n), or shard_map around the step; got {mesh.axis_types}; {docs.MESH}"
        )
    ins, out = (PartitionSpec(),) * len(args), PartitionSpec()
    spread = jax.shard_map(body, in_specs=ins, out_specs=out, axis_names={axis_name})
    return spread(*args)


def _own_ks(axis_name: str, num_directions: int) -> jax.Array:
    devices = jax.lax.axis_size(axis_name)
    if num_directions % devices:
        accepted = (
            f"a multiple of the {devices} devices along {axis_name!r} in each stage"
        )
        raise ValueError(f"num_directions must be {accepted}, got {num_directions}")
    own = num_directions // devices
    return jax.lax.axis_index(axis_name) * own + jnp.arange(own)


def _own(axis_name: str, weights: jax.Array) -> jax.Array:
    ks = _own_ks(axis_name, weights.shape[-1])
    return jax.lax.dynamic_slice_in_dim(weights, ks[0], len(ks), axis=-1)


def _from_all(axis_name: str, stacked: PyTree, num_directions: int) -> PyTree:
    first = _own_ks(axis_name, num_directions)[0]

    def leaf(x):
        # A sum with zeros elsewhere: unlike all_gather, it is known to be replicated.
        wide = jnp.zeros((num_directions, *x.shape[1:]), x.dtype)
        placed = jax.lax.dynamic_update_slice_in_dim(wide, x, first, axis=0)
        return jax.lax.psum(placed, axis_name)

    return jax.tree.map(leaf, stacked)


def _from_first(axis_name: str, tree: PyTree) -> PyTree:
    is_first = jax.lax.axis_index(axis_name) == 0

    def leaf(x):
        addable = x.astype(jnp.int32) if x.dtype == bool else x
        kept = jnp.where(is_first, addable, jnp.zeros((), addable.dtype))
        return jax.lax.psum(kept, axis_name).astype(x.dtype)

    return jax.tree.map(leaf, tree)


def _total(axis_name: str, tree: PyTree) -> PyTree:
    return jax.lax.psum(tree, axis_name)


def zeros_beside(shapes: PyTree, params: PyTree, *varying: jax.Array) -> PyTree:
    """Zeros that lie where params lie and vary over devices as others do.

    So must the carry of a loop that adds up others, inside shard_map at least.
    """
    probe = sum(jnp.sum(x.astype(jnp.float32)) for x in varying)

    def leaf(shape, p):
        if shape is None:
            return None
        beside = jnp.asarray(p).astype(shape.dtype) + probe.astype(shape.dtype)
        return jnp.broadcast_to(zeros_at(beside), shape.shape)

    return jax.tree.map(leaf, shapes, params, is_leaf=is_none)
