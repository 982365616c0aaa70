"""What a state says about the last step's queries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax import _docs as docs
from zojax._checks import described, is_array
from zojax._numerics import PyTree, value_dtype
from zojax._objective import Carried


class QueryLog(NamedTuple):
    """What the objective answered, for logging: part of every estimator's state.

    Attributes:
      query_values: f[K, P], those of the last step as they came; 0 before the first.
      query_mean: f[], mean of the finite values at the *perturbed* points of the last
        step in which there was one. Not f(params).
      query_spread: f[], their standard deviation; exactly 0 if all were equal.
      query_best: f[], the lowest finite value of all steps, at any point; inf before.
      value_at_params: f[], the last finite f(params), where the estimator uses it
        (queried or passed as ``value=``); None where it does not.
      num_nonfinite: i32[], query values that were NaN or infinite, over all steps.
      num_flat: i32[], steps whose differences were all 0, over all steps: f does not
        change at this smoothing, or rounding swallowed the change.
      aux: the aux of the first query of the last step (at params where the estimator
        queries there, else at the first perturbed point); None unless ``aux_like``.
    """

    query_values: jax.Array
    query_mean: jax.Array
    query_spread: jax.Array
    query_best: jax.Array
    value_at_params: jax.Array | None
    num_nonfinite: jax.Array
    num_flat: jax.Array
    aux: PyTree


def init_log(shape: tuple[int, int], at_params: bool, aux_like: PyTree) -> QueryLog:
    """The log before the first step, of values [K, P]."""
    # Each leaf is a buffer of its own: a state may be donated.
    zeros = lambda shape=(): jnp.zeros(shape, value_dtype())

    def like(path, x):
        if not (is_array(x) or isinstance(x, jax.ShapeDtypeStruct)):
            name = f"aux_like{jax.tree_util.keystr(path)}"
            accepted = "an array (of a PRNG key jax.random.key_data(key))"
            raise ValueError(f"{name} must be {accepted}, got {described(x)}")
        return jnp.zeros(jnp.shape(x), jnp.result_type(x))

    return QueryLog(
        query_values=zeros(shape),
        query_mean=zeros(),
        query_spread=zeros(),
        query_best=jnp.full((), jnp.inf, value_dtype()),
        value_at_params=zeros() if at_params else None,
        num_nonfinite=jnp.zeros((), jnp.int32),
        num_flat=jnp.zeros((), jnp.int32),
        aux=jax.tree_util.tree_map_with_path(like, aux_like),
    )


def moments(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the finite values, of any finite size."""
    finite, dtype = jnp.isfinite(values), values.dtype
    share = finite.astype(dtype) / jnp.maximum(finite.sum(), 1).astype(dtype)
    mean_of = lambda x: jnp.sum(jnp.where(finite, x, 0) * share)
    # Equal values are told exactly by their distances to one of them, taken of eighths:
    # no distance overflows, and no reciprocal of one underflows.
    anchor = values.reshape(-1)[jnp.argmax(finite)]
    z = jnp.where(finite, values / 8 - anchor / 8, 0)
    z = z - mean_of(z)
    peak = jnp.max(jnp.where(finite, jnp.abs(z), 0))
    unit = z / jnp.where(peak > 0, peak, 1)
    return mean_of(values), peak * (8 * jnp.sqrt(mean_of(unit**2)))


def _aux_like(expected: PyTree, aux: PyTree) -> PyTree:
    """The aux as arrays in the structure of ``expected``; raises where it is another.

    Leaves are compared by path, since structures may hold things without equality.
    """
    described_by_path = lambda tree: {
        jax.tree_util.keystr(path): (jnp.shape(x), str(jnp.result_type(x)))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    wanted, found = described_by_path(expected), described_by_path(aux)
    if wanted != found:
        differ = {p for p in wanted.keys() | found if wanted.get(p) != found.get(p)}
        where = min(differ)
        raise ValueError(
            "aux_like must have the structure, shapes and dtypes of the aux that"
            f" value_fn returns: at aux{where} it has {wanted.get(where, 'nothing')},"
            f" value_fn returned {found.get(where, 'nothing')}"
        )
    leaves, structure = jax.tree.leaves(aux), jax.tree.structure(expected)
    arrays = [jnp.asarray(x, jnp.result_type(x)) for x in leaves]
    return jax.tree.unflatten(structure, arrays)


def _is_flat(values: jax.Array, at_params: jax.Array | None) -> jax.Array:
    """Whether all differences of finite values [K, P] were 0, and there were some."""
    if values.shape[1] > 1:  # two sides
        differences = values[:, 0] - values[:, 1]
    elif at_params is not None:
        differences = values[:, 0] - at_params
    else:
        differences = values[:, 0] - values[jnp.argmax(jnp.isfinite(values[:, 0])), 0]
    finite = jnp.isfinite(differences)
    return finite.any() & ~jnp.any(finite & (differences != 0))


def update_log(
    log: QueryLog, values: jax.Array, at_params: jax.Array | None, aux: PyTree
) -> QueryLog:
    """Enters the values [K, P] of a step, f(params) if it was asked, and the aux."""
    finite = jnp.isfinite(values)
    mean, spread = moments(values)
    lowest = jnp.min(jnp.where(finite, values, jnp.inf))
    nonfinite = jnp.sum(~finite, dtype=jnp.int32)
    flat = _is_flat(values, at_params)
    if at_params is not None:
        known = jnp.isfinite(at_params)
        nonfinite += jnp.asarray(~known, jnp.int32)
        lowest = jnp.minimum(lowest, jnp.where(known, at_params, jnp.inf))
        before = 0.0 if log.value_at_params is None else log.value_at_params
        at_params = jnp.where(known, at_params, before)
    if isinstance(aux, Carried) and log.aux is None:
        raise ValueError(
            "aux_like must be given, since value_fn returns state that the next step"
            " needs (aux_like=model_state, of zojax.nnx.split_loss), got None;"
            f" {docs.NNX}"
        )
    is_dropped = log.aux is None or aux is None
    aux = log.aux if is_dropped else _aux_like(log.aux, aux)
    dtype = log.query_mean.dtype
    keep = lambda new, old: jnp.asarray(jnp.where(finite.any(), new, old), dtype)
    return QueryLog(
        query_values=values.astype(dtype),
        query_mean=keep(mean, log.query_mean),
        query_spread=keep(spread, log.query_spread),
        query_best=jnp.minimum(lowest, log.query_best).astype(dtype),
        value_at_params=at_params,
        num_nonfinite=log.num_nonfinite + nonfinite,
        num_flat=log.num_flat + flat.astype(jnp.int32),
        aux=aux,
    )
