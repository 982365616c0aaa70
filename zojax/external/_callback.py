"""A host function inside of a jitted step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zojax._numerics import PyTree, value_dtype
from zojax.external._attempt import Function, Query, named_by
from zojax.external._measure import measuring


def as_value_fn(
    function: Function,
    *,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 0,
    workers: int | None = None,
) -> Callable[..., jax.Array]:
    """A Python function of one point as a ``value_fn``, jitted or not.

    All directions that are evaluated at once are one call of the host, which spreads
    them over an executor; with ``chunk_size`` c it is one for each c. Meant for CPUs
    and GPUs: on a TPU, and for what takes minutes, ask and tell (:func:`optimize`).

    Args:
      function, executor, timeout, retries, workers: as in :func:`optimize`. It may name
        query_key and timeout; there are no ids.

    Returns:
      params -> value f[], or (params, query_key) -> value if function names query_key.

    Raises:
      ValueError: for an argument out of its range.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, zojax
      >>> f = zojax.external.as_value_fn(lambda x: float(np.sum(np.sign(x - 1))))
      >>> opt, x = zojax.two_point(0.1, 8, key=0), jnp.zeros(4)
      >>> step = jax.jit(lambda state: opt.update(None, state, x, value_fn=f))
      >>> step(opt.init(x))[0].shape
      (4,)

    Source: none; ``jax.pure_callback``.
    """
    names = named_by(function)
    if "query_id" in names:
        message = "function must not name query_id, which a jitted step has not"
        raise ValueError(f"{message}; got {function!r}")
    measure = measuring(function, executor, timeout, retries, workers)

    def call(params: PyTree, words: jax.Array) -> jax.Array:
        leaves, structure = jax.tree.flatten((params, words))
        ndims = [jnp.ndim(x) for x in leaves]
        dtype = value_dtype()

        def on_host(*stacked):
            """Leaves have as many leading axes as maps are around, of size 1 or n."""
            arrays = [np.asarray(x) for x in stacked]
            leading = [
                x.shape[: x.ndim - n] for x, n in zip(arrays, ndims, strict=True)
            ]
            shape = np.broadcast_shapes(*leading)
            queries = []
            for i, where in enumerate(np.ndindex(shape)):
                own = [
                    x[tuple(np.minimum(where, np.array(lead, int) - 1))]
                    for x, lead in zip(arrays, leading, strict=True)
                ]
                point, key = jax.tree.unflatten(structure, own)
                queries.append(Query(i, point, key))
            values = np.empty(len(queries), dtype)
            for query, found, _ in measure(queries):
                values[query.id] = found.value
            return values.reshape(shape)

        result = jax.ShapeDtypeStruct((), dtype)
        return jax.pure_callback(on_host, result, *leaves, vmap_method="expand_dims")

    def with_key(params, query_key):
        return call(params, jax.random.key_data(query_key))

    def without_key(params):
        return call(params, jnp.zeros(2, jnp.uint32))

    return with_key if "query_key" in names else without_key
