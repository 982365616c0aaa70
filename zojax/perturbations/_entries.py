"""The entries of a direction: which leaves, one index range over them, and where."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zojax import _docs as docs
from zojax._numerics import PyTree


def _way_out(dtype: jnp.dtype) -> str:
    """What to do with leaves that are numbers, but not as they are."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "hold its two parts as float leaves (lax.complex in value_fn), or "
    if jnp.issubdtype(dtype, jnp.floating):  # 8 bits or fewer
        return "hold it in bfloat16 and cast it in value_fn, or "
    return ""


def trainable(params: PyTree) -> list[tuple[str, Any]]:
    """Returns (path, leaf) of each leaf; raises for one that cannot be perturbed."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, dtype = jax.tree_util.keystr(path), jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
            raise ValueError(
                f"params{name} has dtype {dtype}: only float leaves can be perturbed;"
                f" {_way_out(dtype)}freeze it with zojax.perturbations.restrict as"
                f" sampler= (and base=): {docs.FROZEN}"
            )
        leaves.append((name, leaf))
    return leaves


def num_entries(params: PyTree) -> int:
    """d, the number of entries that a direction has."""
    return sum(math.prod(jnp.shape(leaf)) for _, leaf in trainable(params))


def cast_like(tree: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda x, p: x.astype(jnp.result_type(p)), tree, params)


def by_index(
    params: PyTree, entry: Callable[[jax.Array, jnp.dtype], jax.Array]
) -> PyTree:
    """Builds a direction from the global index (uint32) of each entry.

    Entries are numbered 0..d-1 through the leaves in tree order.
    """
    if num_entries(params) >= 2**31:
        raise ValueError("designs over coordinates need fewer than 2**31 entries")

    def index_at(leaf, start):
        shape = jnp.shape(leaf)
        number = lambda: jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
        return placed_like(leaf, lambda start: number() + start)(jnp.uint32(start))

    start, leaves = 0, []
    for _, leaf in trainable(params):
        leaves.append(entry(index_at(leaf, start), jnp.result_type(leaf)))
        start += math.prod(jnp.shape(leaf))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def placed_like(
    array: Any, function: Callable[..., jax.Array], num_axes: int = 0
) -> Callable[..., jax.Array]:
    """function, with its result where the array lies, if its type says where.

    On explicit axes of the mesh in force noise would otherwise have the type of its
    key, and every device draw it whole. The result may have so many axes more than the
    array, before its.
    """
    sharding = jax.typeof(array).sharding
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not any(sharding.spec):
        return function
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(n for n, t in kinds if t == jax.sharding.AxisType.Explicit)
    spec = jax.sharding.PartitionSpec(*[None] * num_axes, *sharding.spec)
    return jax.sharding.auto_axes(
        function, axes=explicit, out_sharding=sharding.update(spec=spec)
    )
