"""Noise lies where its leaf lies."""

from collections.abc import Callable
from typing import Any

import jax


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
