"""Runs that differ in a step size only: batched so that noise is drawn once for all."""

from typing import Any

import jax


def shared_axes(state: Any) -> Any:
    """The vmap axis of each leaf: None for keys and counts, which runs may share."""

    def axis(path, leaf):
        del leaf
        return None if jax.tree_util.keystr(path).endswith((".key", ".count")) else 0

    return jax.tree_util.tree_map_with_path(axis, state)
